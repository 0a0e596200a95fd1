//! A Deployment whose size changed, in the middle of a rollout or while it is paused: every running ReplicaSet takes its
//! share, so that a rollout gone half way stays half way.

use std::cmp::Reverse;
use std::sync::Arc;

use super::super::runtime::Plan;
use super::super::views::{Deployment, ReplicaSet};
use super::sizes::{DESIRED, MAXIMUM, bounds, scale, total};

/// Brings the sets to the Deployment's size without going on with a rollout.
pub(super) fn resize(deployment: &Deployment, current: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Plan {
    let wanted = deployment.spec.replicas;
    let mut running: Vec<_> = old.iter().chain(current).filter(|set| set.spec.replicas > 0).cloned().collect();
    match running.as_slice() {
        [] => {
            let latest = old.iter().max_by_key(|set| &set.metadata.owned.creation_timestamp);
            current.or(latest).and_then(|set| scale(deployment, set, wanted)).into_iter().collect()
        }
        [one] => scale(deployment, one, wanted).into_iter().collect(),
        _ if current.is_some_and(|set| is_saturated(deployment, set)) => {
            let rest = old.iter().filter(|set| set.spec.replicas > 0);
            rest.filter_map(|set| scale(deployment, set, 0)).collect()
        }
        _ if deployment.spec.strategy.type_ == "Recreate" => Plan::new(),
        _ => {
            let allowed = if wanted > 0 { wanted + bounds(deployment).surge } else { 0 };
            let change = allowed - total(&running, |set| set.spec.replicas);
            sort_by_size(&mut running, change);
            let sizes = share(deployment, &running, change);
            running.iter().zip(sizes).filter_map(|(set, size)| scale(deployment, set, size)).collect()
        }
    }
}

/// The largest first; of equal ones the newer when growing, the older when shrinking.
fn sort_by_size(sets: &mut [Arc<ReplicaSet>], change: i64) {
    sets.sort_by(|a, b| {
        let age = a.metadata.owned.creation_timestamp.cmp(&b.metadata.owned.creation_timestamp);
        let age = if change > 0 { age.reverse() } else { age };
        Reverse(a.spec.replicas).cmp(&Reverse(b.spec.replicas)).then(age)
    });
}

/// New sizes, in the order of the sets: each gets its proportion of the change, the first what rounding left.
fn share(deployment: &Deployment, sets: &[Arc<ReplicaSet>], change: i64) -> Vec<i64> {
    let mut given = 0;
    let mut sizes: Vec<i64> = Vec::new();
    for set in sets {
        let left = change - given;
        let own = proportion(deployment, set);
        let own = if change > 0 { own.min(left) } else { own.max(left) };
        let own = if left == 0 { 0 } else { own };
        given += own;
        sizes.push(set.spec.replicas + own);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    sizes
}

/// By how much a set would change if all did evenly.
fn proportion(deployment: &Deployment, set: &ReplicaSet) -> i64 {
    if deployment.spec.replicas == 0 {
        return -set.spec.replicas;
    }
    let noted = set.metadata.meta.annotations.get(MAXIMUM).and_then(|text| text.parse::<i64>().ok());
    let before = noted.or_else(|| deployment.status["replicas"].as_i64()).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let after = deployment.spec.replicas + bounds(deployment).surge;
    // Rounded to the nearest.
    (2 * set.spec.replicas * after + before).div_euclid(2 * before) - set.spec.replicas
}

fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.replicas;
    let noted = set.metadata.meta.annotations.get(DESIRED).and_then(|text| text.parse::<i64>().ok());
    noted == Some(wanted) && set.spec.replicas == wanted && set.status.available_replicas == wanted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::runtime::Action;
    use super::*;

    fn deployment(replicas: i64) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d"},
            "spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}},
        }))
        .unwrap()
    }

    fn set(name: &str, replicas: i64, age: u8) -> Arc<ReplicaSet> {
        let annotations = json!({DESIRED: "10", MAXIMUM: "13"});
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": annotations, "creationTimestamp": format!("2026-01-0{age}T00:00:00Z")},
            "spec": {"replicas": replicas},
        })).unwrap())
    }

    fn sizes(plan: &Plan) -> Vec<(String, i64)> {
        let size = |action: &Action| match action {
            Action::Patch { key, patch, .. } => Some((key.name.clone(), patch["spec"]["replicas"].as_i64()?)),
            _ => None,
        };
        plan.iter().filter_map(size).collect()
    }

    /// The worked example of the Kubernetes documentation ("Proportional scaling").
    #[test]
    fn a_rollout_gone_half_way_stays_half_way() {
        let (old, new) = (set("old", 8, 1), set("new", 5, 2));
        let grown = resize(&deployment(15), Some(&new), std::slice::from_ref(&old));
        assert_eq!(sizes(&grown), [("old".to_owned(), 11), ("new".to_owned(), 7)]);
        let grown = resize(&deployment(30), Some(&new), std::slice::from_ref(&old));
        assert_eq!(sizes(&grown), [("old".to_owned(), 20), ("new".to_owned(), 13)]);
        let shrunk = resize(&deployment(5), Some(&new), std::slice::from_ref(&old));
        assert_eq!(sizes(&shrunk), [("old".to_owned(), 5), ("new".to_owned(), 3)]);
        let none = resize(&deployment(0), Some(&new), &[old]);
        assert_eq!(sizes(&none), [("old".to_owned(), 0), ("new".to_owned(), 0)]);
    }

    #[test]
    fn the_only_running_set_takes_the_size() {
        let (old, new) = (set("old", 0, 1), set("new", 10, 2));
        assert_eq!(sizes(&resize(&deployment(12), Some(&new), std::slice::from_ref(&old))), [("new".to_owned(), 12)]);
        assert_eq!(sizes(&resize(&deployment(4), None, &[set("a", 0, 1), set("b", 0, 2)])), [("b".to_owned(), 4)]);
    }
}
