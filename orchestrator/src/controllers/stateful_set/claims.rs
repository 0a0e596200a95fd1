//! Claims outlive their pods, unless the set says otherwise: then they belong to the set, or to the pod that goes when the set
//! shrinks, and the collector takes them.

use std::sync::Arc;

use client::Key;
use serde_json::{Value, json};

use super::super::runtime::{Action, Plan};
use super::super::views::{OwnerReference, Pod};
use super::make::{about, claim_names, claims, name_of};
use super::view::{CLAIMS, Claim, StatefulSet};

/// Looks a claim of the set's namespace up.
pub type Claims<'a> = dyn Fn(&str) -> Option<Arc<Claim>> + 'a;

/// What a pod's ordinal is to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    Within,
    /// The set is smaller by now.
    Beyond,
}

/// Who takes a claim along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    Set,
    Pod,
}

fn holder(set: &StatefulSet, range: Range) -> Holder {
    let retention = &set.spec.persistent_volume_claim_retention_policy;
    match (range, &*retention.when_scaled, &*retention.when_deleted) {
        (Range::Beyond, "Delete", _) => Holder::Pod,
        (_, _, "Delete") => Holder::Set,
        _ => Holder::Nobody,
    }
}

/// Without a say in it: an owner that only has what it owns collected.
fn reference(api_version: &str, kind: &str, meta: &api::view::Meta) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": meta.name, "uid": meta.uid})
}

/// Makes those that are not there.
pub fn create(set: &StatefulSet, ordinal: i64, known: &Claims<'_>) -> Plan {
    let owners: Vec<Value> = match holder(set, Range::Within) {
        Holder::Set => vec![reference("apps/v1", "StatefulSet", &set.metadata.meta)],
        Holder::Nobody | Holder::Pod => Vec::new(),
    };
    let missing = claims(set, ordinal, &owners)
        .filter(|claim| claim["metadata"]["name"].as_str().is_some_and(|name| known(name).is_none()));
    let make = |object: Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let (pod, own) = (name_of(set, ordinal), &set.metadata.meta.name);
        let message = format!("create Claim {name} Pod {pod} in StatefulSet {own} success");
        let said = Action::Event {
            about: about(set),
            type_: client::events::EventType::Normal,
            reason: "SuccessfulCreate",
            message,
        };
        [
            Action::Create { resource: CLAIMS, namespace: set.metadata.meta.namespace.clone(), object, announce: None },
            said,
        ]
    };
    missing.flat_map(make).collect()
}

/// A claim of this pod goes, or goes with an earlier pod of the name: a new one has to wait for that.
pub fn are_stale(set: &StatefulSet, ordinal: i64, known: &Claims<'_>) -> bool {
    let pod = name_of(set, ordinal);
    claim_names(set, ordinal).filter_map(|name| known(&name)).any(|claim| {
        let earlier = |owner: &OwnerReference| owner.kind == "Pod" && owner.name == pod;
        claim.metadata.meta.deletion_timestamp.is_some() || claim.metadata.owned.owner_references.iter().any(earlier)
    })
}

/// Gives the claims of a pod to whoever is to take them along.
pub fn hand_over(set: &StatefulSet, pod: &Pod, ordinal: i64, range: Range, known: &Claims<'_>) -> Plan {
    let holder = holder(set, range);
    let (own, pods) = (&set.metadata.meta, &pod.metadata.meta);
    let change = |claim: Arc<Claim>| {
        let all = &claim.metadata.owned.owner_references;
        let has = |uid| all.iter().any(|owner| owner.uid == uid);
        if (has(own.uid.clone()), has(pods.uid.clone())) == (holder == Holder::Set, holder == Holder::Pod) {
            return None;
        }
        let others = all.iter().filter(|owner| owner.uid != own.uid && owner.uid != pods.uid);
        let mut owners: Vec<Value> = others
            .map(|owner| json!({"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}))
            .collect();
        match holder {
            Holder::Nobody => {}
            Holder::Set => owners.push(reference("apps/v1", "StatefulSet", own)),
            Holder::Pod => owners.push(reference("v1", "Pod", pods)),
        }
        Some(Action::Patch {
            resource: CLAIMS,
            key: Key::of(&claim.metadata.meta),
            subresource: "",
            version: Some(claim.metadata.meta.resource_version.clone()),
            patch: json!({"metadata": {"ownerReferences": if owners.is_empty() { Value::Null } else { json!(owners) }}}),
        })
    };
    claim_names(set, ordinal).filter_map(|name| known(&name)).filter_map(change).collect()
}
