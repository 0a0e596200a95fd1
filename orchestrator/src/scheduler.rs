//! The scheduler: `schedule(pod, snapshot) -> node`, pure; binding is separate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use client::events::{Recorder, Reference};
use client::{Caches, Client, Kept};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::controllers::views::{Container, Node, PODS, Pod, Taint, Toleration};

const NAME: &str = "default-scheduler";
pub const READS: &[Kept] = &[Kept::of::<Pod>(), Kept::of::<Node>()];
/// Pods that did not fit are looked at again when something changed, and at the latest after this.
const RETRY: Duration = Duration::from_secs(60);

/// Amounts by resource name, in thousandths.
type Amounts = BTreeMap<String, i128>;

/// A node and what its pods have asked for.
pub struct Candidate<'a> {
    pub node: &'a Node,
    pub requested: Amounts,
    pub ports: Vec<(u16, String)>,
}

/// Why no node was chosen: upstream's sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable(pub String);

/// Chooses a node.
///
/// # Errors
/// Says for how many nodes each reason holds.
pub fn schedule<'a>(pod: &Pod, candidates: &'a [Candidate<'a>]) -> Result<&'a str, Unschedulable> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let wanted = requests(pod);
    let mut best: Option<(i64, &Candidate<'_>)> = None;
    for candidate in candidates {
        match obstacles(pod, &wanted, candidate) {
            found if found.is_empty() => {
                let score = score(&wanted, candidate);
                if best.is_none_or(|(highest, _)| score > highest) {
                    best = Some((score, candidate));
                }
            }
            found => found.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
    }
    if let Some((_, candidate)) = best {
        return Ok(&candidate.node.metadata.meta.name);
    }
    if candidates.is_empty() {
        return Err(Unschedulable("no nodes available to schedule pods".into()));
    }
    let list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    Err(Unschedulable(format!("0/{} nodes are available: {}.", candidates.len(), list.join(", "))))
}

/// What a pod asks for: the sum of its containers or the largest init container, plus overhead, plus one pod.
pub fn requests(pod: &Pod) -> Amounts {
    let sidecar = |container: &&Container| container.restart_policy == "Always";
    let mut total = Amounts::new();
    for container in pod.spec.containers.iter().chain(pod.spec.init_containers.iter().filter(sidecar)) {
        add(&mut total, &amounts(&container.resources.requests));
    }
    for container in pod.spec.init_containers.iter().filter(|container| !sidecar(container)) {
        for (name, amount) in amounts(&container.resources.requests) {
            let entry = total.entry(name).or_default();
            *entry = amount.max(*entry);
        }
    }
    add(&mut total, &amounts(&pod.spec.overhead));
    total.insert("pods".into(), 1000);
    total
}

fn amounts(list: &BTreeMap<String, String>) -> Amounts {
    // Stored quantities passed validation; one that does not parse asks for nothing.
    list.iter()
        .filter_map(|(name, text)| Some((name.clone(), Quantity::parse(text).ok()?.milli_value().into())))
        .collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += amount;
    }
}

/// Everything that keeps a pod off a node, in upstream's words.
fn obstacles(pod: &Pod, wanted: &Amounts, candidate: &Candidate<'_>) -> Vec<String> {
    let node = candidate.node;
    if node.spec.unschedulable && !tolerates_all(&pod.spec.tolerations, "node.kubernetes.io/unschedulable") {
        return vec!["node(s) were unschedulable".into()];
    }
    if let Some(taint) = untolerated(pod, &node.spec.taints) {
        return vec![format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)];
    }
    if !selected(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if host_ports(pod).iter().any(|port| candidate.ports.contains(port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    let allocatable = amounts(&node.status.allocatable);
    let lacks = |name: &String, amount: i128| {
        let free = allocatable.get(name).copied().unwrap_or(0) - candidate.requested.get(name).copied().unwrap_or(0);
        amount > free
    };
    let short = wanted.iter().filter(|(name, amount)| **amount > 0 && lacks(name, **amount));
    short
        .map(|(name, _)| if name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {name}") })
        .collect()
}

fn tolerates_all(tolerations: &[Toleration], key: &str) -> bool {
    let taint = Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() };
    tolerations.iter().any(|toleration| tolerates(toleration, &taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key.is_empty() && toleration.operator == "Exists" || toleration.key == taint.key;
    let value = toleration.operator == "Exists" || toleration.value == taint.value;
    effect && key && value
}

fn untolerated<'a>(pod: &Pod, taints: &'a [Taint]) -> Option<&'a Taint> {
    let hard = |taint: &&Taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute");
    taints.iter().filter(hard).find(|taint| !pod.spec.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn selected(pod: &Pod, node: &Node) -> bool {
    let labels = &node.metadata.meta.labels;
    let own = pod.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let required = pod
        .spec
        .affinity
        .as_ref()
        .map(|affinity| &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]);
    let terms = required.and_then(|required| required["nodeSelectorTerms"].as_array());
    own && terms.is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

/// A term without any requirement matches nothing.
fn term_matches(term: &Value, node: &Node) -> bool {
    let list = |field: &str| term[field].as_array().cloned().unwrap_or_default();
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    let label = |key: &str| node.metadata.meta.labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(&*node.metadata.meta.name);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|requirement| requirement_holds(requirement, label))
        && fields.iter().all(|requirement| requirement_holds(requirement, field))
}

fn requirement_holds<'a>(requirement: &Value, value: impl Fn(&str) -> Option<&'a str>) -> bool {
    let found = value(requirement["key"].as_str().unwrap_or_default());
    let values: Vec<&str> = requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let limit = number(values.first().copied());
    match requirement["operator"].as_str() {
        Some("In") => found.is_some_and(|found| values.contains(&found)),
        Some("NotIn") => found.is_none_or(|found| !values.contains(&found)),
        Some("Exists") => found.is_some(),
        Some("DoesNotExist") => found.is_none(),
        Some("Gt") => number(found).zip(limit).is_some_and(|(found, limit)| found > limit),
        Some("Lt") => number(found).zip(limit).is_some_and(|(found, limit)| found < limit),
        _ => false,
    }
}

fn host_ports(pod: &Pod) -> Vec<(u16, String)> {
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports).filter(|port| port.host_port != 0);
    ports.map(|port| (port.host_port, port.protocol.clone())).collect()
}

/// The emptier the node after the pod, the better: 0–100 over CPU and memory.
fn score(wanted: &Amounts, candidate: &Candidate<'_>) -> i64 {
    let allocatable = amounts(&candidate.node.status.allocatable);
    let free = |name: &str| {
        let all = allocatable.get(name).copied().unwrap_or(0);
        let used = candidate.requested.get(name).copied().unwrap_or(0) + wanted.get(name).copied().unwrap_or(0);
        if all == 0 { 0 } else { i64::try_from((all - used) * 100 / all).unwrap_or(0) }
    };
    // Equal requests: fewer pods first.
    let pods = i64::try_from(candidate.requested.get("pods").copied().unwrap_or(0) / 1000).unwrap_or(0);
    (free("cpu") + free("memory")) * 1000 - pods
}

/// The state of all nodes, as one decision sees it.
fn candidates<'a>(nodes: &'a [Arc<Node>], pods: &[Arc<Pod>]) -> Vec<Candidate<'a>> {
    nodes
        .iter()
        .map(|node| {
            let mut candidate = Candidate { node, requested: Amounts::new(), ports: Vec::new() };
            for pod in pods.iter().filter(|pod| pod.spec.node_name == node.metadata.meta.name && !pod.has_ended()) {
                add(&mut candidate.requested, &requests(pod));
                candidate.ports.extend(host_ports(pod));
            }
            candidate
        })
        .collect()
}

/// Runs the scheduler for ever.
pub async fn run(client: Client, caches: Arc<Caches>) {
    let recorder = Recorder::new(client.clone(), NAME, "");
    let wake = Arc::new(Notify::new());
    watch(&caches, &wake);
    caches.synced().await;
    loop {
        let woken = wake.notified();
        let mut left = false;
        for pod in pending(&caches) {
            left |= !place(&client, &recorder, &caches, &pod).await;
        }
        if left {
            // A change may let them fit; so may time (a failed write).
            let _ = tokio::time::timeout(RETRY, woken).await;
        } else {
            woken.await;
        }
    }
}

fn watch(caches: &Caches, wake: &Arc<Notify>) {
    let pods = wake.clone();
    caches.of::<Pod>().on_change(move |old, new| {
        let unbound = new.is_some_and(|pod| pod.spec.node_name.is_empty())
            && old
                .is_none_or(|old| old.metadata.owned.generation != new.map_or(0, |new| new.metadata.owned.generation));
        let freed = old.is_some_and(|old| !old.spec.node_name.is_empty() && (new.is_none_or(Pod::has_ended)));
        if unbound || freed {
            pods.notify_one();
        }
    });
    let nodes = wake.clone();
    caches.of::<Node>().on_change(move |old, new| {
        let facts =
            |node: &Node| (node.spec.clone(), node.status.allocatable.clone(), node.metadata.meta.labels.clone());
        if old.map(facts) != new.map(facts) {
            nodes.notify_one();
        }
    });
}

/// Unbound pods of this scheduler: higher priority first, then the oldest.
fn pending(caches: &Caches) -> Vec<Arc<Pod>> {
    let waiting = |pod: &Arc<Pod>| {
        pod.spec.node_name.is_empty()
            && pod.spec.scheduler_name == NAME
            && pod.is_active()
            && pod.spec.scheduling_gates.is_empty()
    };
    let mut all: Vec<_> = caches.of::<Pod>().all().into_iter().filter(waiting).collect();
    all.sort_by_key(|pod| (std::cmp::Reverse(pod.spec.priority), pod.metadata.owned.creation_timestamp.clone()));
    all
}

/// Binds one pod, or says why not; true when it has its node.
async fn place(client: &Client, recorder: &Recorder, caches: &Caches, pod: &Pod) -> bool {
    let meta = &pod.metadata.meta;
    let (nodes, pods) = (caches.of::<Node>().all(), caches.of::<Pod>().all());
    let reference = Reference::pod(meta);
    match schedule(pod, &candidates(&nodes, &pods)) {
        Ok(node) => match client.bind(&meta.namespace, &meta.name, &meta.uid, node).await {
            Ok(()) => {
                // The next decision must see this one.
                let pods = caches.of::<Pod>();
                let shown = |_: &u64| {
                    let found = pods.get(&meta.namespace, &meta.name);
                    found.is_none_or(|found| found.metadata.meta.uid != meta.uid || !found.spec.node_name.is_empty())
                };
                // The sender lives in the cache, which lives here.
                let _ = pods.subscribe().wait_for(shown).await;
                recorder
                    .normal(
                        &reference,
                        "Scheduled",
                        &format!("Successfully assigned {}/{} to {node}", meta.namespace, meta.name),
                    )
                    .await;
                true
            }
            Err(error) => {
                tracing::debug!(pod = meta.name, %error, "not bound");
                error.code == 404 || error.code == 409
            }
        },
        Err(Unschedulable(why)) => {
            refuse(client, recorder, pod, &reference, &why).await;
            false
        }
    }
}

/// Says in condition and event why a pod has no node; once per reason.
async fn refuse(client: &Client, recorder: &Recorder, pod: &Pod, reference: &Reference, why: &str) {
    if pod.condition("PodScheduled").is_some_and(|old| old.status == "False" && old.message == why) {
        return;
    }
    let meta = &pod.metadata.meta;
    let now = api::time::rfc3339(Timestamp::now());
    let change = |current: &Value| {
        let mut next = current.clone();
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
            "observedGeneration": current["metadata"]["generation"], "lastTransitionTime": now});
        let conditions = next["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut conditions: Vec<Value> = conditions.into_iter().filter(|old| old["type"] != "PodScheduled").collect();
        conditions.push(condition);
        next["status"]["conditions"] = json!(conditions);
        Ok(next)
    };
    if let Err(error) = client.update(&PODS, &meta.namespace, &meta.name, "status", change).await {
        tracing::debug!(pod = meta.name, %error, "condition not written");
    }
    recorder.warning(reference, "FailedScheduling", why).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cpu: &str, extra: Value) -> Arc<Node> {
        let mut value = json!({"metadata": {"name": name, "labels": {"disk": name}}, "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "2"}}});
        value["spec"] = extra;
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(cpu: &str, spec: Value, bound: &str) -> Arc<Pod> {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
        spec["nodeName"] = json!(bound);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running"}}))
                .unwrap(),
        )
    }

    fn choose(pod: &Pod, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Result<String, String> {
        schedule(pod, &candidates(nodes, pods)).map(str::to_owned).map_err(|why| why.0)
    }

    #[test]
    fn what_does_not_fit_is_said_with_counts() {
        let nodes = [node("a", "1", json!({})), node("b", "2", json!({}))];
        assert_eq!(choose(&pod("1500m", json!({}), ""), &nodes, &[]), Ok("b".into()));
        assert_eq!(
            choose(&pod("3", json!({}), ""), &nodes, &[]),
            Err("0/2 nodes are available: 2 Insufficient cpu.".into())
        );
        let full = [pod("0", json!({}), "a"), pod("0", json!({}), "a")];
        assert_eq!(
            choose(&pod("0", json!({}), ""), &nodes[..1], &full),
            Err("0/1 nodes are available: 1 Too many pods.".into())
        );
        assert_eq!(choose(&pod("0", json!({}), ""), &[], &[]), Err("no nodes available to schedule pods".into()));
    }

    #[test]
    fn selectors_and_affinity_choose_by_label() {
        let nodes = [node("a", "1", json!({})), node("b", "1", json!({}))];
        assert_eq!(choose(&pod("0", json!({"nodeSelector": {"disk": "b"}}), ""), &nodes, &[]), Ok("b".into()));
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["a"]}]}]}}}});
        assert_eq!(choose(&pod("0", affinity, ""), &nodes, &[]), Ok("b".into()));
        let none = choose(&pod("0", json!({"nodeSelector": {"disk": "z"}}), ""), &nodes, &[]);
        assert_eq!(none, Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.".into()));
    }

    #[test]
    fn taints_keep_away_whoever_does_not_tolerate_them() {
        let nodes = [node("a", "1", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}))];
        assert_eq!(
            choose(&pod("0", json!({}), ""), &nodes, &[]),
            Err("0/1 nodes are available: 1 node(s) had untolerated taint {k: v}.".into())
        );
        assert_eq!(
            choose(&pod("0", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}), ""), &nodes, &[]),
            Ok("a".into())
        );
        let closed = [node("a", "1", json!({"unschedulable": true}))];
        assert_eq!(
            choose(&pod("0", json!({}), ""), &closed, &[]),
            Err("0/1 nodes are available: 1 node(s) were unschedulable.".into())
        );
    }

    #[test]
    fn the_emptier_node_is_preferred() {
        let nodes = [node("a", "2", json!({})), node("b", "2", json!({}))];
        assert_eq!(choose(&pod("100m", json!({}), ""), &nodes, &[pod("1", json!({}), "a")]), Ok("b".into()));
    }
}
