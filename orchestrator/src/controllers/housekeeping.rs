//! Small controllers that keep namespaces, accounts and nodes in order.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::conditions::{self, Condition, State};
use client::{Caches, Kept, Key};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::given::{Account, Given};
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::{CONFIG_MAPS, ConfigMap, Lease, NODES, Namespace, Node, SERVICE_ACCOUNTS, ServiceAccount, Taint};

const CA_MAP: &str = "kube-root-ca.crt";
const DEFAULT_ACCOUNT: &str = "default";

fn watch_namespaces(caches: &Caches, queue: &Queue) {
    let queue = queue.clone();
    caches.of::<Namespace>().on_change(move |_, new| {
        if let Some(namespace) = new {
            queue.add(Key::new("", &namespace.metadata.meta.name));
        }
    });
}

fn living(caches: &Caches, key: &Key) -> Option<String> {
    let namespace = caches.of::<Namespace>().get("", &key.name)?;
    namespace.metadata.meta.deletion_timestamp.is_none().then(|| namespace.metadata.meta.name.clone())
}

/// Every namespace has the account `default`.
pub struct ServiceAccounts;

impl Controller for ServiceAccounts {
    const NAME: &'static str = "serviceaccount-controller";
    const ACCOUNT: Account = Account::Service("service-account-controller");
    const READS: &'static [Kept] = &[Kept::of::<Namespace>(), Kept::of::<ServiceAccount>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_namespaces(caches, queue);
        let queue = queue.clone();
        caches.of::<ServiceAccount>().on_change(move |old, new| {
            if let (Some(gone), None) = (old, new) {
                queue.add(Key::new("", &gone.metadata.meta.namespace));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(namespace) = living(caches, key) else { return Plan::new() };
        if caches.of::<ServiceAccount>().get(&namespace, DEFAULT_ACCOUNT).is_some() {
            return Plan::new();
        }
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": DEFAULT_ACCOUNT, "namespace": namespace}});
        vec![Action::Create { resource: SERVICE_ACCOUNTS, namespace, object, announce: None }]
    }
}

/// Every namespace has the cluster's CA certificate, for pods to trust the API server by.
pub struct RootCa {
    pub certificate: String,
}

impl Controller for RootCa {
    const NAME: &'static str = "root-ca-certificate-publisher-controller";
    const ACCOUNT: Account = Account::Service("root-ca-cert-publisher");
    const READS: &'static [Kept] = &[Kept::of::<Namespace>(), Kept::of::<ConfigMap>()];

    fn new(given: &Given) -> Self {
        Self { certificate: given.facts.authority.ca_certificate.clone() }
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_namespaces(caches, queue);
        let queue = queue.clone();
        caches.of::<ConfigMap>().on_change(move |old, new| {
            if let Some(map) = new.or(old).filter(|map| map.metadata.meta.name == CA_MAP) {
                queue.add(Key::new("", &map.metadata.meta.namespace));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(namespace) = living(caches, key) else { return Plan::new() };
        let data = json!({"ca.crt": self.certificate});
        match caches.of::<ConfigMap>().get(&namespace, CA_MAP) {
            Some(map) if map.data.len() == 1 && map.data.get("ca.crt") == Some(&self.certificate) => Plan::new(),
            Some(_) => vec![Action::Patch {
                resource: CONFIG_MAPS,
                key: Key::new(&namespace, CA_MAP),
                subresource: "",
                version: None,
                patch: json!({"data": data}),
            }],
            None => {
                let description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
                let metadata = json!({"name": CA_MAP, "namespace": namespace, "annotations": {"kubernetes.io/description": description}});
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
                vec![Action::Create { resource: CONFIG_MAPS, namespace, object, announce: None }]
            }
        }
    }
}

/// How long after its last heartbeat a node counts as gone.
const GRACE: Duration = Duration::from_secs(40);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Marks nodes whose agent went silent; ages count from when we saw the lease change, never from its timestamps.
#[derive(Default)]
pub struct NodeLifecycle {
    seen: Mutex<HashMap<String, (String, Instant)>>,
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle-controller";
    const ACCOUNT: Account = Account::Service("node-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>(), Kept::of::<Lease>()];

    fn new(_: &Given) -> Self {
        Self::default()
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let nodes = queue.clone();
        caches.of::<Node>().on_change(move |_, new| {
            if let Some(node) = new {
                nodes.add(Key::new("", &node.metadata.meta.name));
            }
        });
        let queue = queue.clone();
        caches.of::<Lease>().on_change(move |_, new| {
            if let Some(lease) = new.filter(|lease| lease.metadata.meta.namespace == "kube-node-lease") {
                queue.add(Key::new("", &lease.metadata.meta.name));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(node) = caches.of::<Node>().get("", &key.name) else { return Plan::new() };
        let renewed = caches
            .of::<Lease>()
            .get("kube-node-lease", &key.name)
            .map(|lease| lease.spec.renew_time.clone())
            .unwrap_or_default();
        let age = self.age(&key.name, &renewed);
        plan_node(&node, age, Timestamp::now())
    }
}

impl NodeLifecycle {
    /// Time since the lease was seen to change.
    fn age(&self, node: &str, renewed: &str) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(node.to_owned()).or_insert_with(|| (renewed.to_owned(), Instant::now()));
        if entry.0 != renewed {
            *entry = (renewed.to_owned(), Instant::now());
        }
        entry.1.elapsed()
    }
}

fn plan_node(node: &Node, age: Duration, now: Timestamp) -> Plan {
    let key = Key::new("", &node.metadata.meta.name);
    let silent = age >= GRACE;
    let mut plan = Plan::new();
    let ready = node.status.conditions.iter().find(|condition| condition.type_ == "Ready").map(|ready| &*ready.status);
    if silent && ready != Some("Unknown") {
        plan.push(Action::Patch {
            resource: NODES,
            key: key.clone(),
            subresource: "status",
            // The list is written whole: not over what the node has said meanwhile.
            version: Some(node.metadata.meta.resource_version.clone()),
            patch: json!({"status": {"conditions": unknown_conditions(node, now)}}),
        });
    }
    let wanted = match (silent, ready) {
        (true, _) => Some(UNREACHABLE),
        (false, Some("True")) => None,
        (false, Some("Unknown")) => Some(UNREACHABLE),
        (false, _) => Some(NOT_READY),
    };
    if let Some(taints) = retaint(&node.spec.taints, wanted, now) {
        let taints = if taints.is_empty() { Value::Null } else { json!(taints) };
        plan.push(Action::Patch {
            resource: NODES,
            key: key.clone(),
            subresource: "",
            version: None,
            patch: json!({"spec": {"taints": taints}}),
        });
    }
    if !silent {
        plan.push(Action::Again { key, after: GRACE.saturating_sub(age) + Duration::from_millis(100) });
    }
    plan
}

/// The conditions that a node says of itself.
const OF_NODE: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The node's conditions, of which nobody knows now whether they hold.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    let stored = json!(node.status.conditions);
    let said = OF_NODE.map(|type_| {
        let old = node.status.conditions.iter().find(|condition| condition.type_ == type_);
        let (reason, message) = match old {
            Some(old) if old.status == "Unknown" => (&*old.reason, &*old.message),
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        Condition::new(type_, State::Unknown).because(reason, message)
    });
    let mut all = conditions::merge(&stored, &[], &said, conditions::OF_SILENT_NODES, &api::time::rfc3339(now));
    // Of what was never said, nothing was heard since the node was made.
    for new in &mut all[node.status.conditions.len()..] {
        new["lastHeartbeatTime"] = json!(node.metadata.owned.creation_timestamp);
    }
    all
}

/// The taints with ours set right; `None` when they are.
fn retaint(taints: &[Taint], wanted: Option<&str>, now: Timestamp) -> Option<Vec<Taint>> {
    let ours = |taint: &Taint| matches!(&*taint.key, NOT_READY | UNREACHABLE);
    let has = |key: &str, effect: &str| taints.iter().any(|taint| taint.key == key && taint.effect == effect);
    let right = match wanted {
        Some(key) => {
            has(key, "NoSchedule") && has(key, "NoExecute") && taints.iter().filter(|taint| ours(taint)).count() == 2
        }
        None => !taints.iter().any(ours),
    };
    if right {
        return None;
    }
    let mut all: Vec<Taint> = taints.iter().filter(|taint| !ours(taint)).cloned().collect();
    if let Some(key) = wanted {
        let now = api::time::rfc3339(now);
        for effect in ["NoSchedule", "NoExecute"] {
            all.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(now.clone()),
                ..Taint::default()
            });
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_tainted() {
        let plan = plan_node(&node("True", json!([])), GRACE, Timestamp::UNIX_EPOCH);
        assert_eq!(plan.len(), 2, "{plan:?}");
        let Action::Patch { patch, .. } = &plan[1] else { panic!() };
        assert_eq!(patch["spec"]["taints"][0]["key"], UNREACHABLE);
    }

    #[test]
    fn of_a_silent_node_only_its_own_conditions_become_unknown() {
        let (heard, now) = ("2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z");
        let stored = json!([
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": heard, "lastTransitionTime": heard},
            {"type": "Foreign", "status": "True", "lastTransitionTime": heard},
            {"type": "DiskPressure", "status": "Unknown", "reason": "r", "lastHeartbeatTime": heard, "lastTransitionTime": heard},
        ]);
        let mut node = node("True", json!([]));
        node.metadata.owned.creation_timestamp = "2019-01-01T00:00:00Z".into();
        node.metadata.meta.resource_version = "7".into();
        node.status.conditions = serde_json::from_value(stored.clone()).unwrap();
        let plan = plan_node(&node, GRACE, Timestamp::UNIX_EPOCH);
        let Action::Patch { version, patch, .. } = &plan[0] else { panic!("{plan:?}") };
        assert_eq!(version.as_deref(), Some("7"), "not over what the node has said meanwhile");
        let never = |type_: &str| {
            json!({"type": type_, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
            "message": "Kubelet never posted node status.", "lastHeartbeatTime": "2019-01-01T00:00:00Z", "lastTransitionTime": now})
        };
        let expected = json!([
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.",
                "lastHeartbeatTime": heard, "lastTransitionTime": now},
            stored[1], stored[2], never("MemoryPressure"), never("PIDPressure"),
        ]);
        assert_eq!(patch["status"]["conditions"], expected);
    }

    #[test]
    fn a_node_that_is_back_loses_our_taints_only() {
        let taints = json!([{"key": "own", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]);
        let plan = plan_node(&node("True", taints), Duration::ZERO, Timestamp::UNIX_EPOCH);
        let Action::Patch { patch, .. } = &plan[0] else { panic!("{plan:?}") };
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 1);
        assert!(matches!(plan[1], Action::Again { .. }));
    }

    #[test]
    fn plans_are_as_agreed() {
        let plan = |ready: &str, age| plan_node(&node(ready, json!([])), age, Timestamp::UNIX_EPOCH);
        super::super::golden::check(
            "node-lifecycle",
            &[
                ("fresh", plan("True", Duration::ZERO)),
                ("not ready", plan("False", Duration::ZERO)),
                ("silent", plan("True", GRACE)),
                ("known to be silent", plan("Unknown", GRACE * 2)),
            ],
        );
    }
}
