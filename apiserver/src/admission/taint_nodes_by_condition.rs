//! A node is not ready until something says so: nothing is scheduled to it before.

use api::status::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Cluster, Member, Review};

#[derive(Debug)]
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Member for TaintNodesByCondition {
    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let same = |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        match &mut review.object["spec"]["taints"] {
            Value::Array(taints) if taints.iter().any(same) => {}
            Value::Array(taints) => taints.push(taint),
            none => *none = json!([taint]),
        }
        Ok(())
    }
}
