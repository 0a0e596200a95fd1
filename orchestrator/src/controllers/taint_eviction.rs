//! Pods leave a node whose `NoExecute` taints they do not tolerate, or tolerate no longer.
//!
//! How long a pod has borne a taint counts from when we saw it, as ages of leases do: nobody's clock is trusted.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::uid::Uid;
use client::events::{EventType, Reference};
use client::{Caches, Kept, Key};
use tokio::time::Instant;

use super::given::{Account, Given};
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::{Node, Pod, Taint, node_entry};

const NO_EXECUTE: &str = "NoExecute";
const REASON: &str = "TaintManagerEviction";

#[derive(Default)]
pub struct TaintEviction {
    /// Pods that bear a taint for a time: their UIDs, and since when.
    bearing: Mutex<HashMap<Key, (Uid, Instant)>>,
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";
    const ACCOUNT: Account = Account::Service("node-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>(), Kept::of::<Pod>()];

    fn new(_: &Given) -> Self {
        Self::default()
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let pods = queue.clone();
        caches.of::<Pod>().on_change(move |old, new| {
            let asked = |pod: &Pod| (pod.spec.node_name.clone(), pod.spec.tolerations.clone());
            let Some(pod) = new.or(old) else { return };
            if !pod.spec.node_name.is_empty() && old.map(asked) != new.map(asked) {
                pods.add(Key::new(&pod.metadata.meta.namespace, &pod.metadata.meta.name));
            }
        });
        let (queue, all) = (queue.clone(), caches.of::<Pod>());
        caches.of::<Node>().on_change(move |old, new| {
            let Some(node) = new else { return };
            if old.map(taints) == Some(taints(node)) {
                return;
            }
            for pod in all.indexed(&node_entry(&node.metadata.meta.name)) {
                queue.add(Key::new(&pod.metadata.meta.namespace, &pod.metadata.meta.name));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let pod = caches.of::<Pod>().get(&key.namespace, &key.name).filter(|pod| !pod.is_deleting());
        let Some(pod) = pod else {
            self.bearing().remove(key);
            return Plan::new();
        };
        let node = caches.of::<Node>().get("", &pod.spec.node_name);
        let stay = node.map_or(Stay::Unbounded, |node| stay(&pod, &taints(&node)));
        plan(&pod, stay, self.since(key, &pod.metadata.meta.uid, stay))
    }
}

impl TaintEviction {
    fn bearing(&self) -> MutexGuard<'_, HashMap<Key, (Uid, Instant)>> {
        self.bearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the pod has borne its taints; `None` of one that bears none, and did not before.
    fn since(&self, key: &Key, uid: &Uid, stay: Stay) -> Option<Duration> {
        let mut bearing = self.bearing();
        if bearing.get(key).is_some_and(|(other, _)| other != uid) {
            bearing.remove(key);
        }
        let (_, since) = match stay {
            Stay::For(_) => bearing.entry(key.clone()).or_insert_with(|| (uid.clone(), Instant::now())).clone(),
            Stay::Unbounded => bearing.remove(key)?,
        };
        Some(since.elapsed())
    }
}

fn taints(node: &Node) -> Vec<&Taint> {
    node.spec.taints.iter().filter(|taint| taint.effect == NO_EXECUTE).collect()
}

/// How long a pod may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    Unbounded,
    For(Duration),
}

/// By what tolerates each taint first; the shortest time of all.
fn stay(pod: &Pod, taints: &[&Taint]) -> Stay {
    let mut shortest = None;
    for taint in taints {
        let Some(tolerates) = pod.spec.tolerations.iter().find(|toleration| toleration.tolerates(taint)) else {
            return Stay::For(Duration::ZERO);
        };
        let seconds = tolerates.toleration_seconds.map(|seconds| u64::try_from(seconds).unwrap_or(0));
        shortest = [shortest, seconds].into_iter().flatten().min();
    }
    shortest.map_or(Stay::Unbounded, |seconds| Stay::For(Duration::from_secs(seconds)))
}

fn plan(pod: &Pod, stay: Stay, since: Option<Duration>) -> Plan {
    let meta = &pod.metadata.meta;
    let name = format!("{}/{}", meta.namespace, meta.name);
    let event =
        |message| Action::Event { about: Reference::pod(meta), type_: EventType::Normal, reason: REASON, message };
    match (stay, since) {
        (Stay::Unbounded, None) => Plan::new(),
        (Stay::Unbounded, Some(_)) => vec![event(format!("Cancelling deletion of Pod {name}"))],
        (Stay::For(time), since) => match time.saturating_sub(since.unwrap_or_default()) {
            Duration::ZERO => {
                let message = "Taint manager: deleting due to NoExecute taint".to_owned();
                let away = Action::SendAway { pod: meta.clone(), reason: "DeletionByTaintManager", message };
                vec![event(format!("Marking for deletion Pod {name}")), away]
            }
            left => vec![Action::Again { key: Key::new(&meta.namespace, &meta.name), after: left }],
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(tolerations: Value) -> Pod {
        let metadata = json!({"namespace": "a", "name": "p", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": "n", "tolerations": tolerations}}))
            .unwrap()
    }

    fn node(taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap()
    }

    fn seconds(tolerations: Value, tainted: Value) -> Option<u64> {
        match stay(&pod(tolerations), &taints(&node(tainted))) {
            Stay::Unbounded => None,
            Stay::For(time) => Some(time.as_secs()),
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let two = json!([{"key": "a", "value": "1", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]);
        let a = |seconds: Value| json!({"key": "a", "operator": "Exists", "tolerationSeconds": seconds});
        let b = |seconds: Value| json!({"key": "b", "effect": "NoExecute", "tolerationSeconds": seconds});
        assert_eq!(seconds(json!([]), json!([])), None);
        assert_eq!(seconds(json!([]), json!([{"key": "a", "effect": "NoSchedule"}])), None);
        assert_eq!(seconds(json!([]), two.clone()), Some(0));
        assert_eq!(seconds(json!([a(json!(null))]), two.clone()), Some(0), "one is not tolerated");
        assert_eq!(seconds(json!([a(json!(null)), b(json!(null))]), two.clone()), None);
        assert_eq!(seconds(json!([a(json!(30)), b(json!(20))]), two.clone()), Some(20));
        assert_eq!(seconds(json!([a(json!(null)), b(json!(20))]), two.clone()), Some(20));
        assert_eq!(seconds(json!([a(json!(-5)), b(json!(20))]), two.clone()), Some(0));
        assert_eq!(seconds(json!([{"operator": "Exists"}]), two), None);
    }

    #[test]
    fn plans_are_as_agreed() {
        let pod = pod(json!([]));
        let (half, whole) = (Duration::from_secs(30), Duration::from_secs(60));
        super::super::golden::check(
            "taint-eviction",
            &[
                ("no taint", plan(&pod, Stay::Unbounded, None)),
                ("not tolerated", plan(&pod, Stay::For(Duration::ZERO), Some(Duration::ZERO))),
                ("tolerated for a time", plan(&pod, Stay::For(whole), Some(half))),
                ("the time is over", plan(&pod, Stay::For(whole), Some(whole))),
                ("the taint went in time", plan(&pod, Stay::Unbounded, Some(half))),
            ],
        );
    }
}
