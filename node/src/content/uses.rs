//! Which pod uses which object: pure book-keeping.

use std::collections::{BTreeSet, HashMap};

use api::references::{self, Referent};
use api::uid::Uid;
use client::Revision;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    pub kind: Referent,
    pub namespace: String,
    pub name: String,
}

#[derive(Debug)]
struct User {
    /// Of the pod, when it came to refer to just these.
    since: Revision,
    objects: BTreeSet<Object>,
}

/// What to begin and what to end watching.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub new: BTreeSet<Object>,
    pub unused: BTreeSet<Object>,
}

#[derive(Debug, Default)]
pub struct Uses {
    /// By UID.
    pods: HashMap<Uid, User>,
    /// UIDs by object.
    users: HashMap<Object, BTreeSet<Uid>>,
}

impl Uses {
    /// A pod as it is at a revision. What it refers to changes seldom; its status, which changes often, is no reason to
    /// look for anything newer.
    pub fn add(&mut self, uid: &Uid, namespace: &str, revision: Revision, spec: &Value) -> Change {
        let watched = |(kind, name)| Object { kind, namespace: namespace.to_owned(), name };
        let objects: BTreeSet<Object> = references::of_pod(spec)
            .into_iter()
            .filter(|(kind, _)| matches!(kind, Referent::ConfigMap | Referent::Secret))
            .map(watched)
            .collect();
        if self.pods.get(uid).is_some_and(|user| user.objects == objects) {
            return Change::default();
        }
        let new = objects.iter().filter(|object| !self.users.contains_key(*object)).cloned().collect();
        let before = self.pods.insert(uid.clone(), User { since: revision, objects: objects.clone() });
        for object in &objects {
            self.users.entry(object.clone()).or_default().insert(uid.clone());
        }
        let before = before.map(|user| user.objects).unwrap_or_default();
        let unused = self.let_go(uid, before.difference(&objects));
        Change { new, unused }
    }

    /// Forgets a pod; returns what nobody uses any more.
    pub fn remove(&mut self, uid: &Uid) -> BTreeSet<Object> {
        let objects = self.pods.remove(uid).map(|user| user.objects).unwrap_or_default();
        self.let_go(uid, objects.iter())
    }

    fn let_go<'a>(&mut self, uid: &Uid, objects: impl Iterator<Item = &'a Object>) -> BTreeSet<Object> {
        let mut unused = BTreeSet::new();
        for object in objects {
            let Some(users) = self.users.get_mut(object) else { continue };
            users.remove(uid);
            if users.is_empty() {
                self.users.remove(object);
                unused.insert(object.clone());
            }
        }
        unused
    }

    /// The revision that what a pod gets must be as new as.
    pub fn since(&self, uid: &Uid) -> Option<Revision> {
        self.pods.get(uid).map(|user| user.since)
    }

    /// UIDs of the pods that use an object.
    pub fn of(&self, object: &Object) -> impl Iterator<Item = &Uid> {
        self.users.get(object).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: Referent, name: &str) -> Object {
        Object { kind, namespace: "ns".into(), name: name.into() }
    }

    fn spec(maps: &[&str]) -> Value {
        json!({"serviceAccountName": "default", "volumes": maps.iter().map(|name| json!({"configMap": {"name": name}})).collect::<Vec<_>>()})
    }

    #[test]
    fn an_object_is_used_from_its_first_pod_to_its_last() {
        let mut uses = Uses::default();
        let (a, b) = (object(Referent::ConfigMap, "a"), object(Referent::ConfigMap, "b"));
        assert_eq!(uses.add(&Uid::new("1"), "ns", 5, &spec(&["a"])).new, BTreeSet::from([a.clone()]));
        assert_eq!(
            uses.add(&Uid::new("2"), "ns", 6, &spec(&["a", "b"])).new,
            BTreeSet::from([b.clone()]),
            "a is watched already"
        );
        assert_eq!(uses.of(&a).map(Uid::as_str).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(uses.remove(&Uid::new("1")), BTreeSet::new(), "the other pod uses it still");
        assert_eq!(uses.remove(&Uid::new("2")), BTreeSet::from([a, b]));
        assert_eq!(uses.remove(&Uid::new("2")), BTreeSet::new());
        assert!(uses.pods.is_empty() && uses.users.is_empty());
    }

    #[test]
    fn a_pod_is_as_old_as_its_references() {
        let mut uses = Uses::default();
        uses.add(&Uid::new("1"), "ns", 5, &spec(&["a"]));
        assert_eq!(uses.add(&Uid::new("1"), "ns", 9, &spec(&["a"])), Change::default(), "its status changed");
        assert_eq!(uses.since(&Uid::new("1")), Some(5));
        let change = uses.add(&Uid::new("1"), "ns", 12, &spec(&["b"]));
        assert_eq!((change.new.len(), change.unused.len(), uses.since(&Uid::new("1"))), (1, 1, Some(12)));
        assert_eq!(uses.since(&Uid::new("2")), None);
    }
}
