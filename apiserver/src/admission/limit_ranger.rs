//! What pods and claims get from the LimitRanges of their namespace, and what they may not ask for there.

use api::limit_range;
use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::{Cluster, Member, Review};

#[derive(Debug)]
pub(super) struct LimitRanger;

#[async_trait]
impl Member for LimitRanger {
    /// What is on its way out is not held against limits any more.
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.old.is_none_or(|old| !old["metadata"]["deletionTimestamp"].is_string())
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        if *review.target.kind.plural == *"pods" {
            limit_range::fill(&ranges(cluster, review), &mut review.object);
        }
        Ok(())
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        let ranges = ranges(cluster, review);
        match limit_range::complaints(&ranges, &review.target.kind.plural, &review.object).as_slice() {
            [] => Ok(Vec::new()),
            [one] => Err(review.forbidden(one)),
            many => Err(review.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
}

fn ranges(cluster: Cluster<'_>, review: &Review<'_>) -> Vec<Value> {
    cluster.reader.listed("", "limitranges", review.namespace()).iter().map(|range| range.value()).collect()
}
