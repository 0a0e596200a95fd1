//! The number behind a pod's priority class, and that there is one default class at most.

use api::status::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Cluster, Member, Operation, Review};

const PREEMPTS: &str = "PreemptLowerPriority";

/// Of pods.
#[derive(Debug)]
pub(super) struct Priority;

#[async_trait]
impl Member for Priority {
    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        match review.old {
            Some(old) => keep(old, &mut review.object),
            None => resolve(cluster, review)?,
        }
        Ok(())
    }
}

/// An update that does not say keeps what the pod was given.
fn keep(old: &Value, pod: &mut Value) {
    for field in ["priority", "preemptionPolicy"] {
        if pod["spec"][field].is_null() && !old["spec"][field].is_null() {
            pod["spec"][field] = old["spec"][field].clone();
        }
    }
}

fn resolve(cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
    let spec = &review.object["spec"];
    let class = match spec["priorityClassName"].as_str().filter(|class| !class.is_empty()) {
        Some(name) => match cluster.reader.lookup("scheduling.k8s.io", "priorityclasses", "", name) {
            Some(found) => Some(found.value()),
            None => return Err(review.forbidden(&format!("no PriorityClass with name {name} was found"))),
        },
        None => default_class(cluster),
    };
    let preempts = class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or(PREEMPTS);
    let priority = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != priority) {
        return Err(review.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        )));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != preempts) {
        return Err(review.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {preempts} from the given PriorityClass name"
        )));
    }
    let spec = &mut review.object["spec"];
    spec["priority"] = json!(priority);
    spec["preemptionPolicy"] = json!(preempts);
    if let Some(class) = &class {
        spec["priorityClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// The class of pods that name none, if there is one: of several the lowest.
fn default_class(cluster: Cluster<'_>) -> Option<Value> {
    let all = cluster.reader.listed("scheduling.k8s.io", "priorityclasses", "").into_iter().map(|class| class.value());
    all.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
}

/// Of priority classes.
#[derive(Debug)]
pub(super) struct OneDefault;

#[async_trait]
impl Member for OneDefault {
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.object["globalDefault"] == true
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        let Some(known) = default_class(cluster) else { return Ok(Vec::new()) };
        let known = known["metadata"]["name"].as_str().unwrap_or_default();
        if review.operation == Operation::Update && known == review.name() {
            return Ok(Vec::new());
        }
        let why = format!("PriorityClass {known} is already marked as default. Only one default can exist");
        Err(review.forbidden(&why))
    }
}
