//! What owners do with what they own: taken, given up, written as owner references (what others wrote there stays), named
//! after templates, and found to be available.

use std::hash::Hasher as _;
use std::sync::Arc;
use std::time::Duration;

use fnv::FnvHasher;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::runtime::Action;
use super::views::{Metadata, OwnerReference, Pod};
use api::selector::Labels;
use api::uid::Uid;
use api::view::Meta;
use client::Key;
use client::Resource;

/// The reference by which a controller's object owns what it makes.
pub fn owner(api_version: &str, kind: &str, meta: &Meta) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Adds an owner to those an object has.
pub fn adopt(resource: Resource, object: &Metadata, owner: Value) -> Action {
    let others = object.owned.owner_references.iter().map(reference);
    repoint(resource, object, others.chain([owner]).collect())
}

/// Takes one owner away.
pub fn release(resource: Resource, object: &Metadata, owner: &Uid) -> Action {
    let others = object.owned.owner_references.iter().filter(|reference| reference.uid != *owner);
    repoint(resource, object, others.map(reference).collect())
}

fn reference(owner: &OwnerReference) -> Value {
    let mut value = json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid});
    for (field, flag) in [("controller", owner.controller), ("blockOwnerDeletion", owner.block_owner_deletion)] {
        if let Some(flag) = flag {
            value[field] = json!(flag);
        }
    }
    value
}

/// Only while the object is as it was seen: somebody else may have taken it since.
fn repoint(resource: Resource, object: &Metadata, owners: Vec<Value>) -> Action {
    let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
    Action::Patch {
        resource,
        key: Key::of(&object.meta),
        subresource: "",
        version: Some(object.meta.resource_version.clone()),
        patch: json!({"metadata": {"ownerReferences": owners}}),
    }
}

/// A short name of a template: FNV-1a over its text, in the letters of generated names.
pub fn hash(text: &str) -> String {
    let mut hash = FnvHasher::default();
    hash.write(text.as_bytes());
    let bytes = hash.finish().to_le_bytes();
    let letters =
        |at: usize| api::names::suffix([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[(at + 4) % 8]]);
    format!("{}{}", letters(0), letters(3))
}

/// A pod has the labels that are asked for.
pub fn selects(labels: &Labels, pod: &Pod) -> bool {
    labels.matches(|key| pod.metadata.meta.labels.get(key).map(String::as_str))
}

/// When a pod counts as available; `None` while it is not ready.
fn available_at(pod: &Pod, min_ready_seconds: i64) -> Option<Timestamp> {
    let ready = pod.condition("Ready").filter(|ready| ready.status == "True")?;
    let since: Timestamp = ready.last_transition_time.parse().ok()?;
    since.checked_add(SignedDuration::from_secs(min_ready_seconds)).ok()
}

/// It has been ready for long enough.
pub fn is_available(pod: &Pod, min_ready_seconds: i64, now: Timestamp) -> bool {
    pod.is_ready() && (min_ready_seconds == 0 || available_at(pod, min_ready_seconds).is_some_and(|at| at <= now))
}

/// How long until the next ready pod becomes available.
pub fn next_available(pods: &[Arc<Pod>], min_ready_seconds: i64, now: Timestamp) -> Option<Duration> {
    let waiting = pods.iter().filter(|pod| pod.is_ready() && !is_available(pod, min_ready_seconds, now));
    let next = waiting.filter_map(|pod| available_at(pod, min_ready_seconds)).min()?;
    Some(Duration::try_from(next.duration_since(now)).unwrap_or_default() + Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    use super::super::views::PODS;
    use super::*;

    fn owners(action: &Action) -> &Value {
        let Action::Patch { patch, .. } = action else { panic!("{action:?}") };
        &patch["metadata"]["ownerReferences"]
    }

    #[test]
    fn other_owners_stay_as_they_are() {
        let other = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1", "blockOwnerDeletion": false});
        let object: Metadata =
            serde_json::from_value(json!({"name": "p", "namespace": "ns", "ownerReferences": [other]})).unwrap();
        let own = owner("apps/v1", "ReplicaSet", &Meta { name: "set".into(), uid: Uid::new("2"), ..Meta::default() });
        let adopted = adopt(PODS, &object, own.clone());
        assert_eq!(*owners(&adopted), json!([other, own]));
        let taken: Metadata =
            serde_json::from_value(json!({"name": "p", "namespace": "ns", "ownerReferences": [other, own]})).unwrap();
        assert_eq!(*owners(&release(PODS, &taken, &Uid::new("2"))), json!([other]));
        assert_eq!(*owners(&release(PODS, &object, &Uid::new("1"))), Value::Null);
    }

    #[test]
    fn a_pod_is_available_when_it_was_ready_for_long_enough() {
        let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(json!({"status": {"conditions": ready}})).unwrap());
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (early, late) = (at("2026-01-01T00:00:04Z"), at("2026-01-01T00:00:10Z"));
        assert!(!is_available(&pod, 10, early) && is_available(&pod, 10, late) && is_available(&pod, 0, early));
        let next = next_available(std::slice::from_ref(&pod), 10, early);
        assert_eq!(next, Some(Duration::from_millis(6010)));
        assert_eq!(next_available(&[pod], 10, late), None);
    }
}
