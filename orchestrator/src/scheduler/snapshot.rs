//! The nodes and what is placed on them, kept as changes come in: a decision costs nothing that grows with the pods.
//!
//! A pod that was given a node counts there at once, before the API server has said so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;

use super::demand::{Amounts, Demand, HostPort};
use crate::controllers::views::Node;

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
    pub pods: HashMap<String, Arc<Demand>>,
}

impl Place {
    pub fn count(&self) -> i64 {
        i64::try_from(self.pods.len()).unwrap_or(i64::MAX)
    }

    pub fn name(&self) -> &str {
        self.node.as_ref().map_or("", |node| &node.metadata.meta.name)
    }

    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.as_ref().map(|node| &node.metadata.meta.labels)
    }

    fn put(&mut self, uid: &str, demand: Arc<Demand>) {
        self.used.add(&demand.amounts);
        self.weighed.0 += demand.weighed.0;
        self.weighed.1 += demand.weighed.1;
        self.ports.extend(demand.ports.iter().cloned());
        self.pods.insert(uid.to_owned(), demand);
    }

    fn take(&mut self, uid: &str) {
        let Some(demand) = self.pods.remove(uid) else { return };
        self.used.subtract(&demand.amounts);
        self.weighed.0 -= demand.weighed.0;
        self.weighed.1 -= demand.weighed.1;
        for port in &demand.ports {
            if let Some(at) = self.ports.iter().position(|own| own == port) {
                self.ports.swap_remove(at);
            }
        }
    }

    /// The same place without some of its pods.
    pub fn without(&self, goes: impl Fn(&Demand) -> bool) -> Self {
        let mut rest = self.clone();
        for uid in self.pods.iter().filter(|(_, demand)| goes(demand)).map(|(uid, _)| uid) {
            rest.take(uid);
        }
        rest
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
#[derive(Debug, Default)]
pub struct Snapshot {
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// On which node a pod counts.
    homes: HashMap<String, String>,
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

    pub fn home(&self, uid: &str) -> Option<&str> {
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

    /// A pod counts on a node, and on no other.
    pub fn put(&mut self, uid: &str, node: &str, demand: Arc<Demand>) {
        if self.home(uid) == Some(node) {
            return;
        }
        self.take(uid);
        let at = self.place_of(node);
        self.places[at].put(uid, demand);
        self.homes.insert(uid.to_owned(), node.to_owned());
    }

    /// A pod counts nowhere any more; returns where it did.
    pub fn take(&mut self, uid: &str) -> Option<String> {
        let name = self.homes.remove(uid)?;
        if let Some(at) = self.by_name.get(&name).copied() {
            self.places[at].take(uid);
            self.tidy(&name, at);
        }
        Some(name)
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
        if place.node.is_some() || !place.pods.is_empty() {
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

    #[test]
    fn what_is_used_follows_the_pods() {
        let mut all = Snapshot::default();
        assert_eq!(all.set_node(node("a", "4")), News::MayHelp);
        assert_eq!(all.set_node(node("a", "4")), News::Nothing, "a heartbeat");
        assert_eq!(all.set_node(node("a", "8")), News::MayHelp);
        all.set_node(node("b", "4"));
        all.put("p", "a", demand(100));
        all.put("p", "a", demand(100));
        assert_eq!((all.get("a").unwrap().used.cpu, all.get("a").unwrap().count()), (100, 1));
        all.put("p", "b", demand(100));
        assert_eq!((all.get("a").unwrap().used.cpu, all.get("b").unwrap().used.cpu), (0, 100));
        assert_eq!((all.take("p").as_deref(), all.take("p")), (Some("b"), None));
        assert_eq!(all.get("b").unwrap().used, Amounts::default());
    }

    #[test]
    fn pods_may_be_known_before_their_node_and_after_it() {
        let mut all = Snapshot::default();
        all.put("p", "late", demand(100));
        all.set_node(node("other", "1"));
        assert_eq!((all.nodes(), all.places().len()), (1, 2));
        all.set_node(node("late", "1"));
        assert_eq!((all.nodes(), all.get("late").unwrap().used.cpu), (2, 100));
        all.remove_node("late");
        assert_eq!((all.nodes(), all.places().len()), (1, 2));
        all.take("p");
        assert_eq!(all.places().len(), 1);
        assert_eq!(all.get("other").unwrap().name(), "other");
    }
}
