//! A claim grows only where the class that provisions its volume lets volumes grow. That none shrinks is a rule of the kind.

use api::quantity::Quantity;
use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::{Cluster, Member, Review};

/// The class was an annotation once, which still counts first.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

#[derive(Debug)]
pub(super) struct ClaimResize;

#[async_trait]
impl Member for ClaimResize {
    fn concerns(&self, review: &Review<'_>) -> bool {
        let size =
            |claim: &Value| Quantity::of(&claim["spec"]["resources"]["requests"]["storage"]).unwrap_or(Quantity::ZERO);
        review.old.is_some_and(|old| size(&review.object) > size(old))
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        let Some(old) = review.old else { return Ok(Vec::new()) };
        if old["status"]["phase"] != "Bound" {
            return Err(review.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(&review.object).filter(|class| class_of(old) == Some(*class));
        let class = class.and_then(|name| cluster.reader.lookup("storage.k8s.io", "storageclasses", "", name));
        match class.is_some_and(|class| class.value()["allowVolumeExpansion"] == true) {
            true => Ok(Vec::new()),
            false => Err(review.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            )),
        }
    }
}

fn class_of(claim: &Value) -> Option<&str> {
    let annotation = claim["metadata"]["annotations"].get(CLASS);
    annotation.or_else(|| claim["spec"].get("storageClassName"))?.as_str().filter(|name| !name.is_empty())
}
