//! Claims and Ingresses that name no class get the newest of those that are marked as default.

use std::cmp::Reverse;

use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::{Cluster, Member, Review};

#[derive(Debug)]
pub(super) struct DefaultStorageClass;

#[async_trait]
impl Member for DefaultStorageClass {
    fn concerns(&self, review: &Review<'_>) -> bool {
        // An empty class is a choice too.
        is_unset(review, "storageClassName", "volume.beta.kubernetes.io/storage-class")
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        const MARKS: [&str; 2] =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        if let Some(name) = newest(cluster, ("storage.k8s.io", "storageclasses"), &MARKS) {
            review.object["spec"]["storageClassName"] = name;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct DefaultIngressClass;

#[async_trait]
impl Member for DefaultIngressClass {
    fn concerns(&self, review: &Review<'_>) -> bool {
        is_unset(review, "ingressClassName", "kubernetes.io/ingress.class")
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        const MARKS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
        if let Some(name) = newest(cluster, ("networking.k8s.io", "ingressclasses"), &MARKS) {
            review.object["spec"]["ingressClassName"] = name;
        }
        Ok(())
    }
}

fn is_unset(review: &Review<'_>, field: &str, annotation: &str) -> bool {
    let object = &review.object;
    object["spec"][field].is_null() && object["metadata"]["annotations"].get(annotation).is_none()
}

/// The name of the newest class with one of these marks; of equally old ones the first by name.
fn newest(cluster: Cluster<'_>, (group, plural): (&str, &str), marks: &[&str]) -> Option<Value> {
    let classes = cluster.reader.listed(group, plural, "").into_iter().map(|class| class.value());
    let marked = classes.filter(|class| marks.iter().any(|mark| class["metadata"]["annotations"][*mark] == "true"));
    let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
    let found = marked.max_by_key(|class| (text(class, "creationTimestamp"), Reverse(text(class, "name"))))?;
    Some(found["metadata"]["name"].clone())
}
