//! The nodes and what is placed on them, kept as changes come in: a decision costs nothing that grows with the pods.
//!
//! A pod that was given a node counts there at once, before the API server has said so. One for which others have to go first is
//! *nominated*: it counts there as well for all that are no more important than it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use api::uid::Uid;
use client::Key;

use super::company::{Company, Identity, Namespaces};
use super::demand::{Amounts, Demand, HostPort};
use crate::controllers::views::Node;

/// A pod as it counts on a node.
#[derive(Debug, Clone)]
pub struct Resident {
    pub key: Key,
    pub uid: Uid,
    pub demand: Arc<Demand>,
    /// It is being deleted.
    pub ending: bool,
}

/// How many pods of one kind are on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crowd {
    pub all: i64,
    pub ending: i64,
}

/// A node, and what its pods have asked for.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// `None` while only pods speak of it.
    pub node: Option<Arc<Node>>,
    pub allocatable: Amounts,
    /// How many pods it takes.
    pub slots: i64,
    pub used: Amounts,
    pub weighed: (i64, i64),
    pub ports: Vec<HostPort>,
    /// By uid.
    pub pods: HashMap<Uid, Resident>,
    pub nominees: Vec<Resident>,
}

impl Place {
    pub fn count(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    pub fn name(&self) -> &str {
        self.node.as_ref().map_or("", |node| &node.metadata.meta.name)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.as_ref().map(|node| &node.metadata.meta.labels)
    }

    pub fn put(&mut self, resident: Resident) {
        let demand = &resident.demand;
        self.used.add(&demand.amounts);
        self.weighed.0 += demand.weighed.0;
        self.weighed.1 += demand.weighed.1;
        self.ports.extend(demand.ports.iter().cloned());
        self.pods.insert(resident.uid.clone(), resident);
    }

    pub fn take(&mut self, uid: &Uid) -> Option<Resident> {
        let pod = self.pods.remove(uid)?;
        let demand = &pod.demand;
        self.used.subtract(&demand.amounts);
        self.weighed.0 -= demand.weighed.0;
        self.weighed.1 -= demand.weighed.1;
        for port in &demand.ports {
            if let Some(at) = self.ports.iter().position(|own| own == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(pod)
    }

    /// The nominees that a pod must not get before.
    pub fn before(&self, demand: &Demand, uid: &Uid) -> impl Iterator<Item = &Resident> {
        self.nominees.iter().filter(move |other| other.uid != *uid && other.demand.priority >= demand.priority)
    }
}

/// Whether news about a node may help a pod that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    MayHelp,
    /// A heartbeat.
    Nothing,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// On which node a pod counts.
    homes: HashMap<Uid, String>,
    /// For which node a pod is nominated.
    nominations: HashMap<Uid, String>,
    /// Pods that are the same to others' terms, by node. Few, since those of one template are.
    crowds: HashMap<Identity, HashMap<String, Crowd>>,
    /// Pods whose terms hold for those that come later, by node.
    outlasting: HashMap<Arc<Company>, HashMap<String, i64>>,
    namespaces: Arc<Namespaces>,
    nodes: usize,
}

impl Snapshot {
    /// Also names of which only pods speak.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub fn get(&self, name: &str) -> Option<&Place> {
        self.by_name.get(name).map(|at| &self.places[*at])
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    pub fn home(&self, uid: &Uid) -> Option<&str> {
        self.homes.get(uid).map(String::as_str)
    }

    /// A node is there, or as it is now.
    pub fn set_node(&mut self, node: Arc<Node>) -> News {
        let at = self.place_of(&node.metadata.meta.name.clone());
        let place = &mut self.places[at];
        let facts =
            |node: &Node| (node.spec.clone(), node.status.allocatable.clone(), node.metadata.meta.labels.clone());
        let old = place.node.as_ref().map(|old| facts(old));
        self.nodes += usize::from(old.is_none());
        if old.as_ref() == Some(&facts(&node)) {
            place.node = Some(node);
            return News::Nothing;
        }
        place.allocatable = Amounts::of(&node.status.allocatable);
        let slots = node.status.allocatable.get("pods").and_then(|text| Quantity::parse(text).ok());
        place.slots = slots.map_or(0, Quantity::value);
        place.node = Some(node);
        News::MayHelp
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.get(name).copied() else { return };
        self.nodes -= usize::from(self.places[at].node.take().is_some());
        self.tidy(name, at);
    }

    pub fn nomination(&self, uid: &Uid) -> Option<&str> {
        self.nominations.get(uid).map(String::as_str)
    }

    /// A pod counts on this node already, as what it is now.
    pub fn has(&self, pod: &Resident, node: &str) -> bool {
        let known = self.get(node).and_then(|place| place.pods.get(&pod.uid));
        known.is_some_and(|known| Arc::ptr_eq(&known.demand, &pod.demand))
    }

    /// A pod counts on a node, and on no other; what it was nominated for is over.
    pub fn put(&mut self, pod: Resident, node: &str) {
        self.withdraw(&pod.uid);
        self.take(&pod.uid);
        let at = self.place_of(node);
        self.homes.insert(pod.uid.clone(), node.to_owned());
        self.count(&pod, node, 1);
        self.places[at].put(pod);
    }

    /// A pod that counts somewhere is being deleted.
    pub fn ends(&mut self, uid: &Uid) {
        let Some(node) = self.homes.get(uid) else { return };
        let Some(at) = self.by_name.get(node).copied() else { return };
        let Some(pod) = self.places[at].pods.get_mut(uid).filter(|pod| !pod.ending) else { return };
        pod.ending = true;
        if let Some(crowd) = self.crowds.get_mut(&pod.demand.identity).and_then(|nodes| nodes.get_mut(node)) {
            crowd.ending += 1;
        }
    }

    fn count(&mut self, pod: &Resident, node: &str, by: i64) {
        let nodes = self.crowds.entry(pod.demand.identity.clone()).or_default();
        let crowd = nodes.entry(node.to_owned()).or_default();
        crowd.all += by;
        crowd.ending += if pod.ending { by } else { 0 };
        if crowd.all == 0 {
            nodes.remove(node);
            if nodes.is_empty() {
                self.crowds.remove(&pod.demand.identity);
            }
        }
        let Some(company) = pod.demand.company.as_ref().filter(|company| company.outlasts()) else { return };
        let nodes = self.outlasting.entry(company.clone()).or_default();
        let count = nodes.entry(node.to_owned()).or_default();
        *count += by;
        if *count == 0 {
            nodes.remove(node);
            if nodes.is_empty() {
                self.outlasting.remove(company);
            }
        }
    }

    pub fn crowds(&self) -> impl Iterator<Item = (&Identity, &HashMap<String, Crowd>)> {
        self.crowds.iter()
    }

    pub fn outlasting(&self) -> impl Iterator<Item = (&Arc<Company>, &HashMap<String, i64>)> {
        self.outlasting.iter()
    }

    pub fn namespaces(&self) -> &Arc<Namespaces> {
        &self.namespaces
    }

    /// A namespace's labels as they are now; `None` when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> News {
        if self.namespaces.get(name) == labels.as_ref() {
            return News::Nothing;
        }
        let all = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => drop(all.insert(name.to_owned(), labels)),
            None => drop(all.remove(name)),
        }
        News::MayHelp
    }

    /// Room on a node is kept for a pod.
    pub fn nominate(&mut self, pod: Resident, node: &str) {
        self.withdraw(&pod.uid);
        let at = self.place_of(node);
        self.nominations.insert(pod.uid.clone(), node.to_owned());
        self.places[at].nominees.push(pod);
    }

    /// No room is kept for a pod any more; returns where it was.
    pub fn withdraw(&mut self, uid: &Uid) -> Option<String> {
        let name = self.nominations.remove(uid)?;
        if let Some(at) = self.by_name.get(&name).copied() {
            self.places[at].nominees.retain(|nominee| nominee.uid != *uid);
            self.tidy(&name, at);
        }
        Some(name)
    }

    /// A pod counts nowhere any more; returns it, and where it did.
    pub fn take(&mut self, uid: &Uid) -> Option<(Resident, String)> {
        let name = self.homes.remove(uid)?;
        let at = self.by_name.get(&name).copied()?;
        let pod = self.places[at].take(uid)?;
        self.count(&pod, &name, -1);
        self.tidy(&name, at);
        Some((pod, name))
    }

    fn place_of(&mut self, name: &str) -> usize {
        if let Some(at) = self.by_name.get(name) {
            return *at;
        }
        self.places.push(Place::default());
        self.by_name.insert(name.to_owned(), self.places.len() - 1);
        self.places.len() - 1
    }

    /// Lets a place go that is neither a node nor anybody's home.
    fn tidy(&mut self, name: &str, at: usize) {
        let place = &self.places[at];
        if place.node.is_some() || !place.pods.is_empty() || !place.nominees.is_empty() {
            return;
        }
        self.by_name.remove(name);
        self.places.swap_remove(at);
        let moved = self.places.len();
        for index in self.by_name.values_mut().filter(|index| **index == moved) {
            *index = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, cpu: &str) -> Arc<Node> {
        let value = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": cpu, "pods": "9"}}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn demand(cpu: i64) -> Arc<Demand> {
        Arc::new(Demand { amounts: Amounts { cpu, ..Amounts::default() }, weighed: (cpu, 0), ..Demand::default() })
    }

    fn resident(uid: &str, demand: Arc<Demand>) -> Resident {
        Resident { key: Key::new("ns", uid), uid: Uid::new(uid), demand, ending: false }
    }

    #[test]
    fn what_is_used_follows_the_pods() {
        let mut all = Snapshot::default();
        assert_eq!(all.set_node(node("a", "4")), News::MayHelp);
        assert_eq!(all.set_node(node("a", "4")), News::Nothing, "a heartbeat");
        assert_eq!(all.set_node(node("a", "8")), News::MayHelp);
        all.set_node(node("b", "4"));
        all.put(resident("p", demand(100)), "a");
        all.put(resident("p", demand(100)), "a");
        assert_eq!((all.get("a").unwrap().used.cpu, all.get("a").unwrap().count()), (100, 1));
        all.put(resident("p", demand(100)), "b");
        assert_eq!((all.get("a").unwrap().used.cpu, all.get("b").unwrap().used.cpu), (0, 100));
        assert_eq!(all.take(&Uid::new("p")).map(|(_, node)| node).as_deref(), Some("b"));
        assert!(all.take(&Uid::new("p")).is_none() && all.crowds().count() == 0);
        assert_eq!(all.get("b").unwrap().used, Amounts::default());
    }

    #[test]
    fn room_is_kept_from_whoever_is_no_more_important() {
        let mut all = Snapshot::default();
        all.set_node(node("a", "4"));
        let important = |priority| Arc::new(Demand { priority, ..Demand::clone(&demand(100)) });
        all.nominate(resident("p", important(5)), "a");
        let used = |all: &Snapshot, priority, uid: &str| {
            all.get("a")
                .unwrap()
                .before(&important(priority), &Uid::new(uid))
                .map(|other| other.demand.amounts.cpu)
                .sum::<i64>()
        };
        assert_eq!((used(&all, 4, "q"), used(&all, 5, "q"), used(&all, 6, "q")), (100, 100, 0));
        assert_eq!((used(&all, 5, "p"), all.get("a").unwrap().used.cpu), (0, 0), "it is kept for itself");
        all.nominate(resident("p", important(5)), "b");
        assert_eq!((used(&all, 0, "q"), all.nomination(&Uid::new("p"))), (0, Some("b")));
        all.put(resident("p", important(5)), "a");
        assert_eq!((all.nomination(&Uid::new("p")), all.places().len()), (None, 1));
        assert_eq!(all.get("a").unwrap().used.cpu, 100);
    }

    #[test]
    fn pods_may_be_known_before_their_node_and_after_it() {
        let mut all = Snapshot::default();
        all.put(resident("p", demand(100)), "late");
        all.set_node(node("other", "1"));
        assert_eq!((all.nodes(), all.places().len()), (1, 2));
        all.set_node(node("late", "1"));
        assert_eq!((all.nodes(), all.get("late").unwrap().used.cpu), (2, 100));
        all.remove_node("late");
        assert_eq!((all.nodes(), all.places().len()), (1, 2));
        all.take(&Uid::new("p"));
        assert_eq!(all.places().len(), 1);
        assert_eq!(all.get("other").unwrap().name(), "other");
    }
}
