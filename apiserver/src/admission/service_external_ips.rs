//! Addresses that Services take for themselves: whoever creates such a Service catches what everybody in the cluster sends
//! there. Kubernetes' `DenyServiceExternalIPs` refuses them; here they are stored and not served, and answers say so.

use api::status::Status;
use async_trait::async_trait;

use super::{Cluster, Member, Review};

/// Whether Services may take addresses that are not theirs to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// `spec.externalIPs` is stored, and traffic is not served by it; answers say so.
    #[default]
    Inactive,
    Allowed,
}

#[derive(Debug)]
pub(super) struct ServiceExternalIps;

#[async_trait]
impl Member for ServiceExternalIps {
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.object["spec"]["externalIPs"].as_array().is_some_and(|list| !list.is_empty())
    }

    async fn validate(&self, cluster: Cluster<'_>, _: &Review<'_>) -> Result<Vec<String>, Status> {
        if cluster.settings.external_ips == ExternalIps::Allowed {
            return Ok(Vec::new());
        }
        let why = "addresses that a Service takes for itself are not served unless the server allows it";
        Ok(vec![format!("{}spec.externalIPs is not acted on: {why}", api::kinds::MARK)])
    }
}
