//! What is read of a CronJob.

use api::uid::Uid;
use client::{Resource, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::views::Metadata;

pub const CRON_JOBS: Resource = Resource::new("batch", "cronjobs");

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CronJob {
    pub metadata: Metadata,
    pub spec: CronJobSpec,
    pub status: CronJobStatus,
}

impl View for CronJob {
    const RESOURCE: Resource = CRON_JOBS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobSpec {
    pub schedule: String,
    pub time_zone: String,
    pub starting_deadline_seconds: Option<i64>,
    /// `Allow`, `Forbid` or `Replace`.
    pub concurrency_policy: String,
    pub suspend: bool,
    pub job_template: Value,
    pub successful_jobs_history_limit: Option<usize>,
    pub failed_jobs_history_limit: Option<usize>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CronJobStatus {
    pub active: Vec<ActiveJob>,
    pub last_schedule_time: Option<String>,
    pub last_successful_time: Option<String>,
}

/// A Job that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActiveJob {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
    pub resource_version: String,
    pub uid: Uid,
}

impl CronJobStatus {
    /// As a patch that leaves nothing of another status.
    pub fn patch(&self) -> Value {
        json!({"status": {
            "active": if self.active.is_empty() { Value::Null } else { json!(self.active) },
            "lastScheduleTime": self.last_schedule_time,
            "lastSuccessfulTime": self.last_successful_time,
        }})
    }
}
