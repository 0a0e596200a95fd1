//! What is read of a StatefulSet and of its claims.

use api::uid::Uid;
use client::{Resource, View};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::views::Metadata;

pub const STATEFUL_SETS: Resource = Resource::new("apps", "statefulsets");
pub const CLAIMS: Resource = Resource::core("persistentvolumeclaims");

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    pub metadata: Metadata,
    pub spec: StatefulSetSpec,
    pub status: StatefulSetStatus,
}

impl View for StatefulSet {
    const RESOURCE: Resource = STATEFUL_SETS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    pub replicas: i64,
    pub ordinals: Ordinals,
    pub service_name: String,
    pub selector: Value,
    pub template: Value,
    /// `OrderedReady` or `Parallel`.
    pub pod_management_policy: String,
    pub update_strategy: Strategy,
    pub volume_claim_templates: Vec<Value>,
    pub persistent_volume_claim_retention_policy: Retention,
    pub min_ready_seconds: i64,
    pub revision_history_limit: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    pub start: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub type_: String,
    pub rolling_update: Option<RollingUpdate>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub partition: i64,
    /// One where nothing is said.
    pub max_unavailable: Value,
}

/// `Retain` or `Delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    pub when_deleted: String,
    pub when_scaled: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStatus {
    pub observed_generation: i64,
    pub replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub current_replicas: i64,
    pub updated_replicas: i64,
    pub current_revision: String,
    pub update_revision: String,
    pub collision_count: i64,
}

impl StatefulSetStatus {
    /// As a patch of all that is counted.
    pub fn patch(&self) -> Value {
        let nullable = |number: i64| if number == 0 { Value::Null } else { json!(number) };
        json!({"status": {
            "observedGeneration": self.observed_generation,
            "replicas": self.replicas,
            "readyReplicas": nullable(self.ready_replicas),
            "availableReplicas": self.available_replicas,
            "currentReplicas": nullable(self.current_replicas),
            "updatedReplicas": nullable(self.updated_replicas),
            "currentRevision": self.current_revision,
            "updateRevision": self.update_revision,
            "collisionCount": self.collision_count,
        }})
    }
}

/// A PersistentVolumeClaim: whose it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Claim {
    pub metadata: Metadata,
}

impl View for Claim {
    const RESOURCE: Resource = CLAIMS;

    fn uid(&self) -> &Uid {
        &self.metadata.meta.uid
    }
}
