//! How many pods each set of a Deployment may have, and how that is noted on the set.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Key;
use serde_json::json;

use super::super::amount::{Rounding, resolve};
use super::super::runtime::Action;
use super::super::views::{Deployment, REPLICA_SETS, ReplicaSet};

pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// How far a rollout may go beyond and below the wanted number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub surge: i64,
    pub unavailable: i64,
}

pub(super) fn bounds(deployment: &Deployment) -> Bounds {
    let Some(rolling) = &deployment.spec.strategy.rolling_update else {
        return Bounds { surge: 0, unavailable: deployment.spec.replicas };
    };
    let total = deployment.spec.replicas;
    let surge = resolve(&rolling.max_surge, total, Rounding::Up);
    let unavailable = resolve(&rolling.max_unavailable, total, Rounding::Down);
    // Both zero would never move.
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Bounds { surge, unavailable: unavailable.min(total.max(if surge == 0 { 1 } else { 0 })) }
}

pub(super) fn total(sets: &[Arc<ReplicaSet>], of: impl Fn(&ReplicaSet) -> i64) -> i64 {
    sets.iter().map(|set| of(set)).sum()
}

pub(super) fn sizes(deployment: &Deployment) -> [(String, String); 2] {
    let wanted = deployment.spec.replicas;
    [(DESIRED.into(), wanted.to_string()), (MAXIMUM.into(), (wanted + bounds(deployment).surge).to_string())]
}

/// Brings a set to a size, and notes for which size of the Deployment that was.
pub(super) fn scale(deployment: &Deployment, set: &ReplicaSet, replicas: i64) -> Option<Action> {
    let sizes: BTreeMap<_, _> = sizes(deployment).into();
    let noted = sizes.iter().all(|(key, value)| set.metadata.meta.annotations.get(key) == Some(value));
    (set.spec.replicas != replicas || !noted).then(|| Action::Patch {
        resource: REPLICA_SETS,
        key: Key::of(&set.metadata.meta),
        subresource: "",
        version: None,
        patch: json!({"metadata": {"annotations": sizes}, "spec": {"replicas": replicas}}),
    })
}
