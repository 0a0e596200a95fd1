//! What is read of a Job. Its status is read whole, since whoever changes it writes all of it.

use api::selector::Labels;
use api::uid::Uid;
use client::{Resource, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::views::{Metadata, owner_index};

pub const JOBS: Resource = Resource::new("batch", "jobs");

/// Said first, while pods still go and are counted; the Job is finished after it.
pub const SUCCESS: &str = "SuccessCriteriaMet";
pub const FAILURE: &str = "FailureTarget";

/// Found by its owner.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Job {
    pub metadata: Metadata,
    pub spec: JobSpec,
    pub status: JobStatus,
}

impl View for Job {
    const RESOURCE: Resource = JOBS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }

    fn indexes(&self) -> Vec<String> {
        vec![owner_index(&self.metadata)]
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobSpec {
    pub parallelism: i64,
    /// Where none is said, one success is enough.
    pub completions: Option<i64>,
    pub completion_mode: String,
    pub backoff_limit: i64,
    pub backoff_limit_per_index: Option<i64>,
    pub max_failed_indexes: Option<i64>,
    pub active_deadline_seconds: Option<i64>,
    pub ttl_seconds_after_finished: Option<i64>,
    pub suspend: bool,
    pub managed_by: Option<String>,
    pub pod_failure_policy: Option<FailurePolicy>,
    pub success_policy: Option<SuccessPolicy>,
    pub pod_replacement_policy: String,
    pub selector: Value,
    pub template: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FailurePolicy {
    pub rules: Vec<FailureRule>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailureRule {
    pub action: String,
    pub on_exit_codes: Option<ExitCodes>,
    pub on_pod_conditions: Vec<ConditionPattern>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExitCodes {
    /// Of any container where none is named.
    pub container_name: Option<String>,
    pub operator: String,
    pub values: Vec<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConditionPattern {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SuccessPolicy {
    pub rules: Vec<SuccessRule>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SuccessRule {
    pub succeeded_indexes: Option<String>,
    pub succeeded_count: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    pub start_time: Option<String>,
    pub completion_time: Option<String>,
    pub active: i64,
    pub ready: Option<i64>,
    pub terminating: Option<i64>,
    pub succeeded: i64,
    pub failed: i64,
    pub completed_indexes: String,
    pub failed_indexes: Option<String>,
    pub uncounted_terminated_pods: Option<Uncounted>,
    pub conditions: Vec<Value>,
}

/// Pods that ended and are in no number yet: they are once they have lost their finalizer, so none counts twice or never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Uncounted {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub succeeded: Vec<Uid>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Uid>,
}

impl Uncounted {
    pub fn len(&self) -> usize {
        self.succeeded.len() + self.failed.len()
    }
}

impl Job {
    pub fn labels(&self) -> Option<Labels> {
        Labels::from_object(&self.spec.selector).ok().filter(|labels| !labels.is_everything())
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode == "Indexed"
    }

    pub fn is_deleting(&self) -> bool {
        self.metadata.meta.deletion_timestamp.is_some()
    }

    /// How it ends is said already.
    pub fn is_decided(&self) -> bool {
        self.status.has(SUCCESS) || self.status.has(FAILURE)
    }

    pub fn is_finished(&self) -> bool {
        self.status.has("Complete") || self.status.has("Failed")
    }

    /// A pod that goes is replaced when it is gone, not before.
    pub fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy == "Failed" || self.spec.pod_failure_policy.is_some()
    }
}

impl JobStatus {
    /// The condition of this type holds.
    pub fn has(&self, type_: &str) -> bool {
        self.condition(type_).is_some()
    }

    pub fn condition(&self, type_: &str) -> Option<&Value> {
        self.conditions.iter().find(|condition| condition["type"] == type_ && condition["status"] == "True")
    }

    /// As a patch that leaves nothing of another status.
    pub fn patch(&self) -> Value {
        let number = |number: i64| if number == 0 { Value::Null } else { json!(number) };
        let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
        let uncounted = self.uncounted_terminated_pods.as_ref().map(|uncounted| {
            let list = |list: &[Uid]| if list.is_empty() { Value::Null } else { json!(list) };
            json!({"succeeded": list(&uncounted.succeeded), "failed": list(&uncounted.failed)})
        });
        json!({"status": {
            "startTime": self.start_time,
            "completionTime": self.completion_time,
            "active": number(self.active),
            "ready": self.ready,
            "terminating": self.terminating,
            "succeeded": number(self.succeeded),
            "failed": number(self.failed),
            "completedIndexes": text(&self.completed_indexes),
            "failedIndexes": self.failed_indexes,
            "uncountedTerminatedPods": uncounted,
            "conditions": if self.conditions.is_empty() { Value::Null } else { json!(self.conditions) },
        }})
    }
}
