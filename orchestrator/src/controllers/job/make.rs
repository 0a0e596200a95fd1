//! The pods that a Job makes.

use client::events::Reference;
use serde_json::{Value, json};

use super::super::ownership;
use super::super::runtime::Action;
use super::super::views::{JOB_TRACKING, PODS, Pod};
use super::view::Job;

/// A pod's index, as an annotation and a label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the pods of an index failed before this one: those that counted, and those that did not.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const ENV: &str = "JOB_COMPLETION_INDEX";
/// Of a name that the server makes the rest of.
const PREFIX_BYTES: usize = 58;

/// How often the pods of an index failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failures {
    pub counted: i64,
    pub ignored: i64,
}

impl Failures {
    /// Before this pod.
    pub fn before(pod: &Pod) -> Self {
        let number = |key: &str| pod.metadata.meta.annotations.get(key).and_then(|n| n.parse().ok()).unwrap_or(0);
        Self { counted: number(FAILURES), ignored: number(IGNORED) }
    }
}

/// What a pod is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub index: i64,
    /// Where failures are limited for each index.
    pub failures: Option<Failures>,
}

/// The index of a pod, where it has one.
pub fn index_of(pod: &Pod) -> Option<i64> {
    pod.metadata.meta.annotations.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

pub fn owner(job: &Job) -> Value {
    ownership::owner("batch/v1", "Job", &job.metadata.meta)
}

pub fn about(job: &Job) -> Reference {
    Reference::new("batch/v1", "Job", &job.metadata.meta)
}

pub fn create(job: &Job, place: Option<Place>) -> Action {
    let meta = &job.metadata.meta;
    let template = &job.spec.template;
    let mut finalizers = template["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(JOB_TRACKING));
    let mut metadata = json!({
        "generateName": format!("{}-", meta.name),
        "namespace": meta.namespace,
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
        "finalizers": finalizers,
        "ownerReferences": [owner(job)],
    });
    let mut spec = template["spec"].clone();
    if let Some(Place { index, failures }) = place {
        let ending = format!("-{index}-");
        let room = PREFIX_BYTES - ending.len();
        metadata["generateName"] = json!(format!("{}{ending}", meta.name.get(..room).unwrap_or(&meta.name)));
        metadata["labels"][INDEX] = json!(index.to_string());
        metadata["annotations"][INDEX] = json!(index.to_string());
        if let Some(failures) = failures {
            metadata["annotations"][FAILURES] = json!(failures.counted.to_string());
            if failures.ignored > 0 {
                metadata["annotations"][IGNORED] = json!(failures.ignored.to_string());
            }
        }
        spec["hostname"] = json!(format!("{}-{index}", meta.name));
        tell_index(&mut spec);
    }
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    Action::Create { resource: PODS, namespace: meta.namespace.clone(), object, announce: Some(about(job)) }
}

/// Containers know their pod's index, unless their author says something else.
fn tell_index(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let named = |variable: &Value| variable["name"] == ENV;
            if container["env"].as_array().is_some_and(|all| all.iter().any(named)) {
                continue;
            }
            let path = format!("metadata.labels['{INDEX}']");
            let variable = json!({"name": ENV, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
            match container["env"].as_array_mut() {
                Some(all) => all.push(variable),
                None => container["env"] = json!([variable]),
            }
        }
    }
}
