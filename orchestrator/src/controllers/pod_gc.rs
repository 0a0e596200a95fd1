//! Pods that nobody takes away: deleted ones that no node has.
//!
//! Their deletion removes them by itself, in two steps, and may end between them. They are left to it for a while.

use std::time::Duration;

use client::{Caches, Kept, Key};

use super::given::{Account, Given};
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::{PODS, Pod};

/// As often as upstream's collector of pods looks.
const LEFT: Duration = Duration::from_secs(20);

pub struct PodGarbageCollector;

impl Controller for PodGarbageCollector {
    const NAME: &'static str = "pod-garbage-collector-controller";
    const ACCOUNT: Account = Account::Service("pod-garbage-collector");
    const READS: &'static [Kept] = &[Kept::of::<Pod>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let queue = queue.clone();
        caches.of::<Pod>().on_change(move |_, new| {
            if let Some(pod) = new.filter(|pod| is_left(pod)) {
                queue.add_after(Key::of(&pod.metadata.meta), LEFT);
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let pod = caches.of::<Pod>().get(&key.namespace, &key.name);
        pod.map_or_else(Plan::new, |pod| plan(key, &pod))
    }
}

fn is_left(pod: &Pod) -> bool {
    pod.is_deleting() && pod.spec.node_name.is_empty()
}

fn plan(key: &Key, pod: &Pod) -> Plan {
    if !is_left(pod) {
        return Plan::new();
    }
    let uid = Some(pod.metadata.meta.uid.clone());
    vec![Action::Delete { resource: PODS, key: key.clone(), uid, propagation: None }]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(deleted: Value, node: &str) -> Pod {
        let metadata = json!({"namespace": "a", "name": "p", "uid": "u", "deletionTimestamp": deleted});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": node}})).unwrap()
    }

    #[test]
    fn plans_are_as_agreed() {
        let plan = |deleted: Value, node: &str| plan(&Key::new("a", "p"), &pod(deleted, node));
        let deleted = json!("2026-01-01T00:00:00Z");
        super::super::golden::check(
            "pod-garbage-collector",
            &[
                ("waits for a node", plan(Value::Null, "")),
                ("deleted, and on a node that takes it away", plan(deleted.clone(), "n")),
                ("deleted, and on no node", plan(deleted, "")),
            ],
        );
    }
}
