//! ReplicationController: what came before ReplicaSets, and is kept like one. It selects by equal labels alone.

use api::selector::Labels;
use api::uid::Uid;
use client::{Resource, View};
use serde::Deserialize;

use super::replicaset::{Form, Replicas, Replicating};
use super::views::ReplicaSet;

pub type ReplicationControllers = Replicas<ReplicationController>;

pub const REPLICATION_CONTROLLERS: Resource = Resource::core("replicationcontrollers");

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct ReplicationController(ReplicaSet);

impl AsRef<ReplicaSet> for ReplicationController {
    fn as_ref(&self) -> &ReplicaSet {
        &self.0
    }
}

impl View for ReplicationController {
    const RESOURCE: Resource = REPLICATION_CONTROLLERS;

    fn uid(&self) -> &Uid {
        &self.0.metadata.meta.uid
    }
}

impl Replicating for ReplicationController {
    const FORM: &'static Form = &Form {
        name: "replicationcontroller-controller",
        account: "replication-controller",
        api_version: "v1",
        kind: "ReplicationController",
        resource: REPLICATION_CONTROLLERS,
        selector: |selector| Some(Labels::from_map(selector)),
    };
}
