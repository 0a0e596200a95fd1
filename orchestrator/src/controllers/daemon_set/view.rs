//! What is read of a DaemonSet.

use api::uid::Uid;
use client::{Resource, View};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::views::{Metadata, Strategy};

pub const DAEMON_SETS: Resource = Resource::new("apps", "daemonsets");

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    pub metadata: Metadata,
    pub spec: DaemonSetSpec,
    pub status: DaemonSetStatus,
}

impl View for DaemonSet {
    const RESOURCE: Resource = DAEMON_SETS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    pub selector: Value,
    pub template: Value,
    pub min_ready_seconds: i64,
    pub update_strategy: Strategy,
    pub revision_history_limit: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetStatus {
    pub observed_generation: i64,
    pub desired_number_scheduled: i64,
    pub current_number_scheduled: i64,
    pub number_misscheduled: i64,
    pub number_ready: i64,
    pub updated_number_scheduled: i64,
    pub number_available: i64,
    pub number_unavailable: i64,
    pub collision_count: i64,
}

impl DaemonSetStatus {
    /// As a patch of all that is counted.
    pub fn patch(&self) -> Value {
        let nullable = |number: i64| if number == 0 { Value::Null } else { json!(number) };
        json!({"status": {
            "observedGeneration": self.observed_generation,
            "desiredNumberScheduled": self.desired_number_scheduled,
            "currentNumberScheduled": self.current_number_scheduled,
            "numberMisscheduled": self.number_misscheduled,
            "numberReady": self.number_ready,
            "updatedNumberScheduled": nullable(self.updated_number_scheduled),
            "numberAvailable": nullable(self.number_available),
            "numberUnavailable": nullable(self.number_unavailable),
        }})
    }
}
