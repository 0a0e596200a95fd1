//! What a decision writes: a binding, or the condition that says why there is none, or the end of those that have to go; and
//! the events about it.

use std::sync::Arc;

use api::conditions::Condition;
use api::status::Status;
use client::Client;
use client::events::{Recorder, Reference};
use serde_json::{Value, json};

use super::Step;
use super::decide::Unschedulable;
use crate::controllers::pods;
use crate::controllers::views::Pod;

const SCHEDULED: &str = "PodScheduled";

/// What becomes of the node that a pod was nominated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nomination {
    Stands,
    Ends,
}

/// What came of a write.
#[derive(Debug)]
pub enum Bound {
    Done,
    /// The pod has no node, though it was given one.
    Failed(Arc<Pod>),
    /// Not all of those that had to go for it do.
    Kept {
        pod: Arc<Pod>,
        victims: Vec<Arc<Pod>>,
    },
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
            Step::Refuse { pod, why, nomination } => {
                let nominated = match nomination {
                    Nomination::Stands => &pod.status.nominated_node_name,
                    Nomination::Ends => "",
                };
                self.refuse(&pod, &why, nominated).await;
                Bound::Done
            }
            Step::Preempt { pod, why, node, victims, outdone } => {
                let sent = victims.iter().map(|victim| self.send_away(victim, &pod, &node));
                let sent = futures::future::join_all(sent).await;
                if let Some(error) = sent.into_iter().find_map(Result::err) {
                    tracing::debug!(pod = pod.metadata.meta.name, %error, "not all that have to go do");
                    return Bound::Kept { pod, victims };
                }
                for other in outdone {
                    self.nominate(&other, "").await;
                }
                self.refuse(&pod, &why, &node).await;
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

    /// Has a pod deleted for a more important one.
    async fn send_away(&self, victim: &Pod, preemptor: &Pod, node: &str) -> Result<(), Status> {
        if victim.is_deleting() {
            return Ok(());
        }
        let why = format!("{}: preempting to accommodate a higher priority pod", super::NAME);
        let meta = &victim.metadata.meta;
        if pods::send_away(&self.client, meta, "PreemptionByScheduler", why).await?.is_some() {
            let message = format!("Preempted by pod {} on node {node}", preemptor.metadata.meta.uid);
            self.recorder.normal(&Reference::pod(meta), "Preempted", &message).await;
        }
        Ok(())
    }

    /// Says for which node a pod is nominated, or by an empty name that it is for none.
    async fn nominate(&self, pod: &Pod, node: &str) {
        if let Err(error) =
            pods::tell(&self.client, &pod.metadata.meta, |status| set_nomination(status, node), None).await
        {
            tracing::debug!(pod = pod.metadata.meta.name, %error, "nomination not written");
        }
    }

    /// Says in condition and event why a pod has no node; once per reason.
    async fn refuse(&self, pod: &Pod, why: &Unschedulable, nominated: &str) {
        let Unschedulable(why) = why;
        let known = pod.condition(SCHEDULED).is_some_and(|old| old.status == "False" && old.message == *why);
        if known && pod.status.nominated_node_name == nominated {
            return;
        }
        let condition = Condition::new(SCHEDULED, false).because("Unschedulable", why);
        if let Err(error) =
            pods::tell(&self.client, &pod.metadata.meta, |status| set_nomination(status, nominated), Some(condition))
                .await
        {
            tracing::debug!(pod = pod.metadata.meta.name, %error, "condition not written");
        }
        self.recorder.warning(&Reference::pod(&pod.metadata.meta), "FailedScheduling", why).await;
    }
}

fn set_nomination(status: &mut Value, node: &str) {
    match status.as_object_mut() {
        Some(status) if node.is_empty() => drop(status.remove("nominatedNodeName")),
        _ => status["nominatedNodeName"] = json!(node),
    }
}
