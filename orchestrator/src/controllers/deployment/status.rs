//! What a Deployment's status says: counts, and conditions with the times at which they changed.

use api::conditions::{self, Condition, State};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::runtime::{Action, Plan};
use super::super::views::{DEPLOYMENTS, Deployment, ReplicaSet};
use super::sizes::{bounds, total};
use client::Key;

/// The Deployment's status, when it is not what is stored.
pub(super) fn status(
    deployment: &Deployment,
    current: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Plan {
    let count = |of: fn(&ReplicaSet) -> i64| total(sets, of);
    let (replicas, ready, available) =
        (count(|s| s.status.replicas), count(|s| s.status.ready_replicas), count(|s| s.status.available_replicas));
    let updated = current.map_or(0, |set| set.status.replicas);
    let unavailable = (total(sets, |set| set.spec.replicas)
        .max(deployment.spec.replicas)
        .min(replicas.max(deployment.spec.replicas))
        - available)
        .max(0);
    let nullable = |number: i64| if number == 0 { Value::Null } else { json!(number) };
    let counts = json!({
        "observedGeneration": deployment.metadata.meta.generation.unwrap_or_default(),
        "replicas": nullable(replicas),
        "updatedReplicas": nullable(updated),
        "readyReplicas": nullable(ready),
        "availableReplicas": nullable(available),
        "unavailableReplicas": nullable(unavailable),
    });
    let old = &deployment.status;
    let progressed = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
        .iter()
        .any(|field| old[*field].as_i64().unwrap_or(0) != counts[*field].as_i64().unwrap_or(0));
    let complete =
        updated == deployment.spec.replicas && replicas == updated && available == updated && current.is_some();
    let minimum = deployment.spec.replicas - bounds(deployment).unavailable;
    let progress = match (complete, progressed) {
        (true, _) => Progress::Complete,
        (false, true) => Progress::Made,
        (false, false) => Progress::Awaited,
    };
    let (progress, again) = progressing(deployment, current, progress, now);
    let mut said = vec![available_condition(available >= minimum)];
    said.extend(progress);
    said.extend(failure(current, sets));
    let now = api::time::rfc3339(now);
    let conditions = conditions::merge(&old["conditions"], &OWN, &said, conditions::OF_DEPLOYMENTS, &now);
    let mut patch = counts;
    patch["conditions"] = json!(conditions);
    let same =
        patch.as_object().into_iter().flatten().all(|(key, value)| old.get(key).unwrap_or(&Value::Null) == value);
    let mut plan: Plan = again.into_iter().collect();
    if !same {
        let key = Key::of(&deployment.metadata.meta);
        plan.push(Action::Patch {
            resource: DEPLOYMENTS,
            key,
            subresource: "status",
            version: None,
            patch: json!({"status": patch}),
        });
    }
    plan
}

/// The types that are this controller's; others' conditions stay.
const OWN: [&str; 3] = ["Available", "Progressing", "ReplicaFailure"];

fn progress_condition(state: impl Into<State>, reason: &str, message: impl Into<String>) -> Condition {
    Condition::new("Progressing", state).because(reason, message)
}

/// What a ReplicaSet says of pods it could not make, the current one's first.
fn failure(current: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> Option<Condition> {
    let all = current.into_iter().chain(sets.iter().map(|set| &**set));
    all.filter_map(|set| set.status.condition("ReplicaFailure")).next().map(Condition::said_by)
}

fn available_condition(enough: bool) -> Condition {
    let (reason, message) = match enough {
        true => ("MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    Condition::new("Available", enough).because(reason, message)
}

/// How far a rollout has come since the stored status.
#[derive(PartialEq, Eq)]
enum Progress {
    Complete,
    Made,
    Awaited,
}

/// The Progressing condition, and when to look again for the deadline.
fn progressing(
    deployment: &Deployment,
    current: Option<&ReplicaSet>,
    progress: Progress,
    now: Timestamp,
) -> (Option<Condition>, Option<Action>) {
    let seconds = deployment.spec.progress_deadline_seconds.unwrap_or(600);
    if seconds >= i64::from(i32::MAX) {
        return (None, None);
    }
    let stored = deployment.status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Progressing");
    let subject = match current {
        Some(set) => format!("ReplicaSet \"{}\"", set.metadata.meta.name),
        None => format!("Deployment \"{}\"", deployment.metadata.meta.name),
    };
    if progress == Progress::Complete {
        return (
            Some(progress_condition(true, "NewReplicaSetAvailable", format!("{subject} has successfully progressed."))),
            None,
        );
    }
    let reason = stored.and_then(|stored| stored["reason"].as_str());
    if deployment.spec.paused {
        return match (reason, stored) {
            (Some("ProgressDeadlineExceeded"), Some(stored)) => (Some(Condition::said_by(stored)), None),
            _ => (Some(progress_condition(State::Unknown, "DeploymentPaused", "Deployment is paused")), None),
        };
    }
    let again = |after: i64| Action::Again {
        key: Key::of(&deployment.metadata.meta),
        after: Duration::from_secs(u64::try_from(after.max(1)).unwrap_or(1)),
    };
    let moving = || progress_condition(true, "ReplicaSetUpdated", format!("{subject} is progressing."));
    let Some(stored) = stored else {
        let created = progress_condition(
            true,
            "NewReplicaSetCreated",
            format!("Created new replica set {subject}").replace("replica set ReplicaSet", "replica set"),
        );
        return (Some(created), Some(again(seconds)));
    };
    if reason == Some("DeploymentPaused") {
        return (
            Some(progress_condition(State::Unknown, "DeploymentResumed", "Deployment is resumed")),
            Some(again(seconds)),
        );
    }
    // A new template starts a new count.
    let restarted = reason == Some("NewReplicaSetAvailable");
    if progress == Progress::Made || restarted {
        return (Some(moving()), Some(again(seconds)));
    }
    let since = stored["lastUpdateTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok()).unwrap_or(now);
    let left = seconds - (now.as_second() - since.as_second());
    if left <= 0 {
        return (
            Some(progress_condition(
                false,
                "ProgressDeadlineExceeded",
                format!("{subject} has timed out progressing."),
            )),
            None,
        );
    }
    (Some(Condition::said_by(stored)), Some(again(left)))
}
