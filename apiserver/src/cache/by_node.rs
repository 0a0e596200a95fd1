//! What is on each node: its pods, and what these refer to, so that whether a node may read an object is one look-up.
//!
//! Kept in step with the cache of pods: a pod counts before anybody sees it, and until nobody does any more. Its object is read
//! when its node asks next, once for each change; of nodes that ask nothing, nothing is read. Who reads holds no lock that the
//! cache waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use api::references::{self, Referent};

use super::Change;
use super::topics::NODE;
use crate::object::{Object, ObjectKey};

/// See the module's text.
#[derive(Debug, Default)]
pub struct ByNode(RwLock<HashMap<Box<str>, Arc<Mutex<OnNode>>>>);

/// An object that pods refer to; its key has the pods' namespace.
type Reference = (Referent, ObjectKey);

#[derive(Debug, Default)]
struct OnNode {
    /// What each pod refers to, as it was read last.
    pods: HashMap<ObjectKey, Box<[Reference]>>,
    /// Pods that came or changed since.
    unread: HashMap<ObjectKey, Arc<Object>>,
    /// How many pods refer to each.
    referred: HashMap<Reference, u32>,
}

/// The node that a pod is on.
pub fn node_of(pod: &Object) -> Option<&str> {
    let field = pod.header.fields.iter().find(|(name, _)| *name == NODE);
    field.map(|(_, node)| &**node).filter(|node| !node.is_empty())
}

impl ByNode {
    /// A pod as it is about to be seen.
    pub fn comes(&self, pod: &Arc<Object>) {
        let Some(node) = node_of(pod) else { return };
        self.with(node, |on| {
            on.unread.insert(pod.key.clone(), pod.clone());
        });
    }

    /// What was is seen no longer.
    pub fn changed(&self, change: &Change) {
        let Some(before) = change.previous.as_deref() else { return };
        let Some(node) = node_of(before) else { return };
        let stays = change.kind != super::ChangeKind::Deleted && node_of(&change.object) == Some(node);
        if stays {
            return;
        }
        let mut nodes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let empty = nodes.get(node).is_some_and(|on| {
            let mut on = on.lock().unwrap_or_else(PoisonError::into_inner);
            on.remove(&before.key);
            on.pods.is_empty() && on.unread.is_empty()
        });
        if empty {
            nodes.remove(node);
        }
    }

    /// Whether a pod of this node refers to an object of its namespace.
    pub fn refers(&self, node: &str, kind: Referent, namespace: &str, name: &str) -> bool {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        found.is_some_and(|on| catch_up(&on).0.referred.contains_key(&(kind, ObjectKey::new(namespace, name))))
    }

    fn with(&self, node: &str, act: impl FnOnce(&mut OnNode)) {
        let nodes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(on) = nodes.get(node) {
            return act(&mut on.lock().unwrap_or_else(PoisonError::into_inner));
        }
        drop(nodes);
        let mut nodes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let on = nodes.entry(node.into()).or_default();
        act(&mut on.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Reads what is unread; gives how many pods that were.
fn catch_up(on: &Mutex<OnNode>) -> (MutexGuard<'_, OnNode>, usize) {
    let lock = || on.lock().unwrap_or_else(PoisonError::into_inner);
    let unread: Vec<Arc<Object>> = lock().unread.values().cloned().collect();
    let read: Vec<Box<[Reference]>> = unread.iter().map(|pod| references(pod)).collect();
    let (count, mut on) = (unread.len(), lock());
    for (pod, found) in unread.into_iter().zip(read) {
        on.take(&pod, found);
    }
    (on, count)
}

fn references(pod: &Object) -> Box<[Reference]> {
    let found = references::of_pod(&pod.value()["spec"]).into_iter();
    found.map(|(kind, name)| (kind, ObjectKey::new(pod.key.namespace(), &name))).collect()
}

impl OnNode {
    /// A pod was read. One that went meanwhile, or that another has read since, is passed over; one that changed stays unread.
    fn take(&mut self, pod: &Arc<Object>, found: Box<[Reference]>) {
        match self.unread.get(&pod.key) {
            None => return,
            Some(newest) if Arc::ptr_eq(newest, pod) => drop(self.unread.remove(&pod.key)),
            Some(_) => {}
        }
        for reference in &found {
            *self.referred.entry(reference.clone()).or_default() += 1;
        }
        if let Some(before) = self.pods.insert(pod.key.clone(), found) {
            self.release(&before);
        }
    }

    fn remove(&mut self, pod: &ObjectKey) {
        self.unread.remove(pod);
        if let Some(before) = self.pods.remove(pod) {
            self.release(&before);
        }
    }

    fn release(&mut self, references: &[Reference]) {
        for reference in references {
            if let Some(count) = self.referred.get_mut(reference) {
                *count -= 1;
                if *count == 0 {
                    self.referred.remove(reference);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::ChangeKind;
    use super::*;
    use crate::object::{Encoded, Header};

    fn pod(name: &str, node: &str, secrets: &[&str]) -> Arc<Object> {
        let volumes: Vec<Value> = secrets.iter().map(|name| json!({"secret": {"secretName": name}})).collect();
        let value = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "volumes": volumes}});
        let header = Header { fields: [(NODE.into(), node.into())].into(), ..Header::default() };
        Arc::new(Object {
            key: ObjectKey::new("ns", name),
            revision: 1,
            header,
            json: Encoded::new(&value).with_version(1),
        })
    }

    fn step(index: &ByNode, previous: Option<&Arc<Object>>, next: Option<&Arc<Object>>) {
        if let Some(next) = next {
            index.comes(next);
        }
        let kind = match (previous, next) {
            (None, _) => ChangeKind::Added,
            (_, Some(_)) => ChangeKind::Modified,
            (_, None) => ChangeKind::Deleted,
        };
        let object = next.or(previous).unwrap().clone();
        index.changed(&Change { kind, object, previous: previous.cloned() });
    }

    fn secret(index: &ByNode, node: &str, name: &str) -> bool {
        index.refers(node, Referent::Secret, "ns", name)
    }

    #[test]
    fn references_come_and_go_with_pods() {
        let index = ByNode::default();
        let (first, second) = (pod("p", "a", &["one", "both"]), pod("q", "a", &["both"]));
        step(&index, None, Some(&first));
        step(&index, None, Some(&second));
        let seen = |node: &str| ["one", "both", "two"].map(|name| secret(&index, node, name));
        assert_eq!((seen("a"), seen("b")), ([true, true, false], [false; 3]));
        assert!(!index.refers("a", Referent::ConfigMap, "ns", "one"), "of another kind");
        assert!(!index.refers("a", Referent::Secret, "other", "one"), "of another namespace");
        let changed = pod("p", "a", &["two"]);
        step(&index, Some(&first), Some(&changed));
        assert_eq!(seen("a"), [false, true, true]);
        step(&index, Some(&changed), None);
        assert_eq!(seen("a"), [false, true, false], "another pod refers to one of them");
        step(&index, Some(&second), None);
        assert_eq!(seen("a"), [false; 3]);
        assert!(index.0.read().unwrap().is_empty(), "a node without pods takes no memory");
    }

    #[test]
    fn a_pod_counts_from_when_it_is_bound() {
        let index = ByNode::default();
        let (pending, bound) = (pod("p", "", &["one"]), pod("p", "a", &["one"]));
        step(&index, None, Some(&pending));
        assert!(!secret(&index, "a", "one") && !secret(&index, "", "one"));
        step(&index, Some(&pending), Some(&bound));
        assert!(secret(&index, "a", "one"));
        let elsewhere = pod("p", "b", &["one"]);
        step(&index, Some(&bound), Some(&elsewhere));
        assert!(!secret(&index, "a", "one") && secret(&index, "b", "one"));
    }

    /// Between the look and the taking, a pod may change, go, or be read by another.
    #[test]
    fn what_was_read_counts_only_for_a_pod_that_is_there() {
        let index = ByNode::default();
        let [first, second] = [&["one"], &["two"]].map(|secrets| pod("p", "a", secrets));
        let take = |pod: &Arc<Object>| {
            let on = index.0.read().unwrap()["a"].clone();
            on.lock().unwrap().take(pod, references(pod));
        };
        index.comes(&first);
        index.comes(&second);
        take(&first);
        assert!(secret(&index, "a", "two") && !secret(&index, "a", "one"), "the change is read by who asks next");
        take(&first);
        assert!(secret(&index, "a", "two"), "another has read the newer one");
        index.comes(&pod("stays", "a", &[]));
        step(&index, Some(&second), None);
        take(&second);
        assert!(!secret(&index, "a", "two"), "it is gone");
    }

    /// What a decision looks at: of 100,000 pods in its namespace the node's own, each once.
    #[test]
    fn other_nodes_pods_are_not_looked_at() {
        let index = ByNode::default();
        for number in 0..100_000 {
            index.comes(&pod(&format!("p{number}"), &format!("n{}", number % 1000), &[]));
        }
        index.comes(&pod("own", "a", &["one"]));
        let read = |node: &str| catch_up(&index.0.read().unwrap()[node]).1;
        assert_eq!((read("a"), read("a")), (1, 0));
        assert!(secret(&index, "a", "one"));
        assert_eq!(read("n1"), 100, "nobody had asked");
        index.comes(&pod("own", "a", &["two"]));
        assert_eq!(read("a"), 1, "once for a change");
    }
}
