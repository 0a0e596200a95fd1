//! What a decision writes: a binding, or the condition that says why there is none; and the event about it.

use std::sync::Arc;

use api::conditions::{self, Stamp};
use api::status::Status;
use client::Client;
use client::events::{Recorder, Reference};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Step;
use super::decide::Unschedulable;
use crate::controllers::views::{PODS, Pod};

const SCHEDULED: &str = "PodScheduled";

/// What came of a write.
#[derive(Debug)]
pub enum Bound {
    Done,
    /// The pod has no node, though it was given one.
    Failed(Arc<Pod>),
}

pub struct Writer {
    pub client: Client,
    pub recorder: Recorder,
}

impl Writer {
    pub async fn write(self: Arc<Self>, step: Step) -> Bound {
        match step {
            Step::Bind { pod, node } => match self.bind(&pod, &node).await {
                Ok(()) => Bound::Done,
                Err(error) => {
                    tracing::debug!(pod = pod.metadata.meta.name, %error, "not bound");
                    Bound::Failed(pod)
                }
            },
            Step::Refuse { pod, why } => {
                self.refuse(&pod, &why).await;
                Bound::Done
            }
        }
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), Status> {
        let meta = &pod.metadata.meta;
        self.client.bind(&meta.namespace, &meta.name, &meta.uid, node).await?;
        let message = format!("Successfully assigned {}/{} to {node}", meta.namespace, meta.name);
        self.recorder.normal(&Reference::pod(meta), "Scheduled", &message).await;
        Ok(())
    }

    /// Says in condition and event why a pod has no node; once per reason.
    async fn refuse(&self, pod: &Pod, why: &Unschedulable) {
        let Unschedulable(why) = why;
        if pod.condition(SCHEDULED).is_some_and(|old| old.status == "False" && old.message == *why) {
            return;
        }
        let meta = &pod.metadata.meta;
        let now = api::time::rfc3339(Timestamp::now());
        let change = |current: &Value| {
            if current["metadata"]["uid"] != meta.uid {
                return Err(Status::not_found("", "pods", &meta.name));
            }
            let condition = json!({"type": SCHEDULED, "status": "False", "reason": "Unschedulable", "message": why,
                "observedGeneration": current["metadata"]["generation"]});
            let mut next = current.clone();
            let stored = &current["status"]["conditions"];
            let all = conditions::merge(stored, &[], vec![condition], &[Stamp::Transition], &now);
            next["status"]["conditions"] = json!(all);
            Ok(next)
        };
        if let Err(error) = self.client.update(&PODS, &meta.namespace, &meta.name, "status", change).await {
            tracing::debug!(pod = meta.name, %error, "condition not written");
        }
        self.recorder.warning(&Reference::pod(meta), "FailedScheduling", why).await;
    }
}
