//! ReplicaSet: as many pods as asked for, adopted and released by label. What reads like a ReplicaSet ([`Form`]) is kept so too.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use api::conditions::{self, Condition};
use api::selector::Labels;
use client::events::{EventType, Reference};
use client::{Caches, Kept, Key, Resource, View};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::given::{Account, Given};
use super::ownership;
use super::runtime::{Act, Action, Controller, Failure, Plan, Queue};
use super::views::{PODS, Pod, REPLICA_SETS, ReplicaSet};

/// Pods made or removed by one plan: bounds what a mistake costs before it is seen.
const BURST: usize = 500;

/// A kind whose objects keep a number of pods.
#[derive(Debug)]
pub struct Form {
    /// Of the controller, as kube-controller-manager's `--controllers` names it.
    pub name: &'static str,
    /// Of its service account, and of its events.
    pub account: &'static str,
    pub api_version: &'static str,
    pub kind: &'static str,
    pub resource: Resource,
    pub selector: fn(&Value) -> Option<Labels>,
}

/// The view of such a kind, which reads as a ReplicaSet's.
pub trait Replicating: View + AsRef<ReplicaSet> {
    const FORM: &'static Form;
}

impl AsRef<ReplicaSet> for ReplicaSet {
    fn as_ref(&self) -> &ReplicaSet {
        self
    }
}

impl Replicating for ReplicaSet {
    const FORM: &'static Form = &Form {
        name: "replicaset-controller",
        account: "replicaset-controller",
        api_version: "apps/v1",
        kind: "ReplicaSet",
        resource: REPLICA_SETS,
        selector: |selector| Labels::from_object(selector).ok(),
    };
}

/// One object of such a kind.
#[derive(Debug, Clone, Copy)]
struct Set<'v> {
    view: &'v ReplicaSet,
    form: &'static Form,
}

impl<'v> Set<'v> {
    fn of<V: Replicating>(view: &'v V) -> Self {
        Self { view: view.as_ref(), form: V::FORM }
    }

    fn labels(self) -> Option<Labels> {
        (self.form.selector)(&self.view.spec.selector)
    }
}

impl Deref for Set<'_> {
    type Target = ReplicaSet;

    fn deref(&self) -> &ReplicaSet {
        self.view
    }
}

pub type ReplicaSets = Replicas<ReplicaSet>;

/// The controller of one such kind.
pub struct Replicas<V>(PhantomData<V>);

impl<V: Replicating> Controller for Replicas<V> {
    const NAME: &'static str = V::FORM.name;
    const SOURCE: &'static str = V::FORM.account;
    const ACCOUNT: Account = Account::Service(V::FORM.account);
    const READS: &'static [Kept] = &[Kept::of::<V>(), Kept::of::<Pod>()];

    fn new(_: &Given) -> Self {
        Self(PhantomData)
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<V>().on_change(move |old, new| {
            if let Some(set) = new.or(old) {
                own.add(Key::of(&set.as_ref().metadata.meta));
            }
        });
        let (queue, sets) = (queue.clone(), caches.of::<V>());
        caches.of::<Pod>().on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let namespace = &pod.metadata.meta.namespace;
                match pod.metadata.owned.controller() {
                    Some(owner) if owner.kind == V::FORM.kind => queue.add(Key::new(namespace, &owner.name)),
                    Some(_) => {}
                    // An orphan concerns whoever selects it.
                    None => sets
                        .namespace(namespace)
                        .iter()
                        .filter(|set| selects(Set::of(&***set), pod))
                        .for_each(|set| queue.add(Key::of(&(**set).as_ref().metadata.meta))),
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(set) = caches.of::<V>().get(&key.namespace, &key.name) else { return Plan::new() };
        let set = Set::of(&*set);
        let owned = caches.of::<Pod>().indexed(&format!("owner/{}", set.metadata.meta.uid));
        let orphans = caches.of::<Pod>().indexed(&format!("orphan/{}", key.namespace));
        plan(set, &owned, &orphans, Timestamp::now())
    }

    fn failed(&self, key: &Key, caches: &Caches, failure: &Failure) -> Plan {
        let set = caches.of::<V>().get(&key.namespace, &key.name);
        set.map(|set| say_failure(Set::of(&*set), failure, Timestamp::now())).unwrap_or_default()
    }
}

fn selects(set: Set<'_>, pod: &Pod) -> bool {
    set.labels().is_some_and(|labels| !labels.is_everything() && ownership::selects(&labels, pod))
}

/// What brings the set's pods to the wanted number, and its status to the truth.
fn plan(set: Set<'_>, owned: &[Arc<Pod>], orphans: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(labels) = set.labels() else { return Plan::new() };
    let mut plan = Plan::new();
    let (mine, strangers): (Vec<_>, Vec<_>) = owned.iter().cloned().partition(|pod| ownership::selects(&labels, pod));
    let mut mine: Vec<Arc<Pod>> = mine;
    if set.metadata.meta.deletion_timestamp.is_none() {
        plan.extend(
            strangers
                .iter()
                .filter(|pod| pod.is_active())
                .map(|pod| ownership::release(PODS, &pod.metadata, &set.metadata.meta.uid)),
        );
        let adopted = orphans.iter().filter(|pod| pod.is_active() && ownership::selects(&labels, pod));
        for pod in adopted {
            plan.push(ownership::adopt(PODS, &pod.metadata, owner(set)));
            mine.push(pod.clone());
        }
        plan.extend(resize(set, &mine));
    }
    let active: Vec<_> = mine.iter().filter(|pod| pod.is_active()).cloned().collect();
    plan.extend(status(set, &active, now));
    let next = ownership::next_available(&active, set.spec.min_ready_seconds, now);
    plan.extend(next.map(|after| Action::Again { key: Key::of(&set.metadata.meta), after }));
    plan
}

fn owner(set: Set<'_>) -> Value {
    ownership::owner(set.form.api_version, set.form.kind, &set.metadata.meta)
}

/// Creates what is missing or removes what is too much, the least useful first. Creation begins slowly: where one pod is
/// refused, the others would be too.
fn resize(set: Set<'_>, mine: &[Arc<Pod>]) -> Plan {
    let mut active: Vec<_> = mine.iter().filter(|pod| pod.is_active()).collect();
    let wanted = usize::try_from(set.spec.replicas).unwrap_or(0);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST);
        return vec![Action::Slowly((0..missing).map(|_| create(set)).collect())];
    }
    let mut neighbours: HashMap<&str, usize> = HashMap::new();
    for pod in &active {
        *neighbours.entry(&pod.spec.node_name).or_default() += 1;
    }
    let surplus = (active.len() - wanted).min(BURST);
    active.sort_by_cached_key(|pod| usefulness(pod, neighbours[&*pod.spec.node_name]));
    active.into_iter().take(surplus).flat_map(|pod| remove(set, pod)).collect()
}

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The order in which pods go: unassigned, pending, unready, cheap, crowded, lately ready, often restarted, young.
pub fn usefulness(pod: &Pod, neighbours: usize) -> impl Ord + use<> {
    let phase = match &*pod.status.phase {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let ready = pod.condition("Ready").filter(|ready| ready.status == "True");
    let cost = pod.metadata.meta.annotations.get(DELETION_COST).and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0);
    let restarts = pod.status.container_statuses.iter().map(|status| status.restart_count).max().unwrap_or(0);
    (
        (!pod.spec.node_name.is_empty(), phase, ready.is_some(), cost),
        Reverse(neighbours),
        ready.map(|ready| Reverse(ready.last_transition_time.clone())),
        Reverse(restarts),
        Reverse(pod.metadata.owned.creation_timestamp.clone()),
    )
}

fn create(set: Set<'_>) -> Action {
    let meta = &set.metadata.meta;
    let template = &set.spec.template;
    let mut metadata = json!({"generateName": format!("{}-", meta.name), "namespace": meta.namespace, "ownerReferences": [owner(set)]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
    Action::Create { resource: PODS, namespace: meta.namespace.clone(), object, announce: Some(about(set)) }
}

fn remove(set: Set<'_>, pod: &Pod) -> [Action; 2] {
    let meta = &pod.metadata.meta;
    let said = Action::Event {
        about: about(set),
        type_: EventType::Normal,
        reason: "SuccessfulDelete",
        message: format!("Deleted pod: {}", meta.name),
    };
    [Action::Delete { resource: PODS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }, said]
}

fn about(set: Set<'_>) -> Reference {
    Reference::new(set.form.api_version, set.form.kind, &set.metadata.meta)
}

/// A pod that could not be made or removed: in the set's condition, and in an event.
fn say_failure(set: Set<'_>, failure: &Failure, now: Timestamp) -> Plan {
    let (reason, verb) = match failure.act {
        Act::Create => ("FailedCreate", "creating"),
        Act::Delete => ("FailedDelete", "deleting"),
        Act::Change => return Plan::new(),
    };
    let message = failure.status.to_string();
    let said = Action::Event {
        about: about(set),
        type_: EventType::Warning,
        reason,
        message: format!("Error {verb}: {message}"),
    };
    if set.status.condition(REPLICA_FAILURE).is_some() {
        return vec![said];
    }
    let time = api::time::rfc3339(now);
    let failed = [Condition::new(REPLICA_FAILURE, true).because(reason, message)];
    let conditions = conditions::merge(&json!(set.status.conditions), &[], &failed, conditions::PLAIN, &time);
    vec![said, write_status(set, json!({"conditions": conditions}))]
}

fn write_status(set: Set<'_>, status: Value) -> Action {
    Action::Patch {
        resource: set.form.resource.clone(),
        key: Key::of(&set.metadata.meta),
        subresource: "status",
        version: None,
        patch: json!({"status": status}),
    }
}

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Conditions once the set is as large as it should be: a failure is over then.
fn settled_conditions(set: Set<'_>) -> Option<Vec<Value>> {
    set.status.condition(REPLICA_FAILURE)?;
    Some(conditions::merge(&json!(set.status.conditions), &[REPLICA_FAILURE], &[], &[], ""))
}

fn status(set: Set<'_>, active: &[Arc<Pod>], now: Timestamp) -> Option<Action> {
    let template = set.spec.template["metadata"]["labels"].as_object();
    let labeled = |pod: &Pod| {
        template
            .into_iter()
            .flatten()
            .all(|(key, value)| pod.metadata.meta.labels.get(key).map(String::as_str) == value.as_str())
    };
    let count =
        |is: &dyn Fn(&Pod) -> bool| i64::try_from(active.iter().filter(|pod| is(pod)).count()).unwrap_or(i64::MAX);
    let (replicas, labels) = (count(&|_| true), count(&labeled));
    let (ready, available) =
        (count(&Pod::is_ready), count(&|pod| ownership::is_available(pod, set.spec.min_ready_seconds, now)));
    let old = &set.status;
    let generation = set.metadata.meta.generation.unwrap_or_default();
    let settled = settled_conditions(set).filter(|_| replicas == set.spec.replicas);
    let same =
        (old.replicas, old.fully_labeled_replicas, old.ready_replicas, old.available_replicas, old.observed_generation)
            == (replicas, labels, ready, available, generation);
    let nullable = |number: i64| if number == 0 { Value::Null } else { json!(number) };
    let mut status = json!({
        "replicas": replicas,
        "fullyLabeledReplicas": nullable(labels),
        "readyReplicas": nullable(ready),
        "availableReplicas": nullable(available),
        "observedGeneration": generation,
    });
    match settled {
        None if same => return None,
        None => {}
        Some(left) => status["conditions"] = if left.is_empty() { Value::Null } else { json!(left) },
    }
    Some(write_status(set, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    /// Whose a pod is.
    enum Owner {
        Set,
        Nobody,
    }

    fn pod(name: &str, label: &str, owner: Owner, phase: &str) -> Arc<Pod> {
        let owners = match owner {
            Owner::Set => {
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}])
            }
            Owner::Nobody => json!([]),
        };
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1", "labels": {"app": label}, "ownerReferences": owners, "creationTimestamp": format!("2026-01-0{}T00:00:00Z", name.len())},
            "spec": {"nodeName": "n"}, "status": {"phase": phase},
        })).unwrap())
    }

    fn kinds(plan: &Plan) -> Vec<&'static str> {
        let flat = plan.iter().flat_map(|action| match action {
            Action::Slowly(actions) => actions.as_slice(),
            other => std::slice::from_ref(other),
        });
        flat.map(|action| match action {
            Action::Create { .. } => "create",
            Action::Delete { .. } => "delete",
            Action::Patch { subresource: "status", .. } => "status",
            Action::Patch { .. } => "patch",
            Action::SendAway { .. } => "send away",
            Action::Again { .. } => "again",
            Action::Event { .. } => "event",
            Action::Slowly(_) => "slowly",
            Action::InTurn(_) => "in turn",
            Action::IfAllowed { .. } => "if allowed",
        })
        .collect()
    }

    #[test]
    fn missing_pods_are_created_and_ended_ones_replaced() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(kinds(&plan(Set::of(&set(2)), &[], &[], now)), ["create", "create", "status"]);
        let owned = [pod("a", "web", Owner::Set, "Running"), pod("b", "web", Owner::Set, "Failed")];
        assert_eq!(kinds(&plan(Set::of(&set(2)), &owned, &[], now)), ["create", "status"]);
    }

    #[test]
    fn a_relabelled_pod_is_released_and_replaced() {
        let owned = [pod("a", "other", Owner::Set, "Running")];
        let made = plan(Set::of(&set(1)), &owned, &[], Timestamp::UNIX_EPOCH);
        assert_eq!(kinds(&made), ["patch", "create", "status"]);
        let Action::Patch { patch, .. } = &made[0] else { panic!() };
        assert_eq!(patch["metadata"]["ownerReferences"], Value::Null);
    }

    #[test]
    fn a_matching_orphan_is_adopted_before_anything_is_made() {
        let made = plan(Set::of(&set(1)), &[], &[pod("a", "web", Owner::Nobody, "Running")], Timestamp::UNIX_EPOCH);
        assert_eq!(kinds(&made), ["patch", "status"]);
    }

    #[test]
    fn surplus_goes_least_useful_first() {
        let owned = [
            pod("a", "web", Owner::Set, "Running"),
            pod("bb", "web", Owner::Set, "Pending"),
            pod("ccc", "web", Owner::Set, "Running"),
        ];
        let made = plan(Set::of(&set(1)), &owned, &[], Timestamp::UNIX_EPOCH);
        let gone: Vec<_> = made
            .iter()
            .filter_map(|action| match action {
                Action::Delete { key, .. } => Some(key.name.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(gone, ["bb", "ccc"], "pending first, then the youngest");
    }

    #[test]
    fn cheap_crowded_and_unlucky_pods_go_first() {
        let with = |name: &str, extra: Value| -> Arc<Pod> {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
            let mut value = json!({"metadata": {"name": name, "annotations": {}}, "spec": {"nodeName": "n"},
                "status": {"phase": "Running", "conditions": ready, "containerStatuses": [{"restartCount": 0}]}});
            for (pointer, field) in extra.as_object().unwrap() {
                *value.pointer_mut(pointer).unwrap() = field.clone();
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let plain = with("plain", json!({}));
        let cases = [
            ("cheap", json!({"/metadata/annotations": {DELETION_COST: "-5"}}), 1),
            ("crowded", json!({}), 2),
            ("lately ready", json!({"/status/conditions/0/lastTransitionTime": "2026-01-02T00:00:00Z"}), 1),
            ("restarted", json!({"/status/containerStatuses/0/restartCount": 3}), 1),
        ];
        for (name, extra, neighbours) in cases {
            assert!(usefulness(&with(name, extra), neighbours) < usefulness(&plain, 1), "{name}");
        }
        let dear = with("dear", json!({"/metadata/annotations": {DELETION_COST: "5"}}));
        assert!(usefulness(&dear, 9) > usefulness(&plain, 1));
    }

    #[test]
    fn plans_are_as_agreed() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let running = |name: &str| pod(name, "web", Owner::Set, "Running");
        let three = [running("a"), running("bb"), pod("ccc", "web", Owner::Set, "Pending")];
        let refused = Failure { act: Act::Create, status: api::status::Status::forbidden("", "pods", "web-x", "no") };
        let mut ready = running("a");
        let conditions = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T23:59:55Z"}]);
        Arc::make_mut(&mut ready).status.conditions = serde_json::from_value(conditions).unwrap();
        let mut patient = set(1);
        patient.spec.min_ready_seconds = 10;
        super::super::golden::check(
            "replicaset",
            &[
                ("one of two is missing", plan(Set::of(&set(2)), &[running("a")], &[], now)),
                ("two of three are too many", plan(Set::of(&set(1)), &three, &[], now)),
                ("one left and another joined", {
                    plan(
                        Set::of(&set(2)),
                        &[pod("a", "other", Owner::Set, "Running")],
                        &[pod("bb", "web", Owner::Nobody, "Running")],
                        now,
                    )
                }),
                ("ready, and not yet for long enough", plan(Set::of(&patient), &[ready], &[], now)),
                ("pods were refused", say_failure(Set::of(&set(2)), &refused, now)),
            ],
        );
    }
}
