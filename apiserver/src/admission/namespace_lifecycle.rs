//! New objects need a namespace that is there and stays, and some namespaces are not deleted.

use api::status::{Cause, Status};
use async_trait::async_trait;

use super::{Cluster, Member, Operation, Review};
use crate::object::{Collection, ObjectKey};

#[derive(Debug)]
pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Member for NamespaceLifecycle {
    fn concerns(&self, review: &Review<'_>) -> bool {
        let kind = &review.target.kind;
        match review.operation {
            Operation::Delete => !kind.behaviour.delete.protected.is_empty(),
            // Whoever only asks what they may do learns nothing about namespaces.
            _ => kind.namespaced() && *kind.group != *"authorization.k8s.io",
        }
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        if review.operation == Operation::Delete { may_go(review) } else { stays(cluster, review).await }
    }
}

fn may_go(review: &Review<'_>) -> Result<(), Status> {
    let name = review.old.and_then(|old| old["metadata"]["name"].as_str()).unwrap_or_default();
    match review.target.kind.behaviour.delete.protected.contains(&name) {
        true => Err(review.forbidden("this namespace may not be deleted")),
        false => Ok(()),
    }
}

async fn stays(cluster: Cluster<'_>, review: &Review<'_>) -> Result<(), Status> {
    let namespace = review.namespace();
    cluster.reader.look(&Collection::new("", "namespaces"), &ObjectKey::new("", namespace)).await?;
    let Some(found) = cluster.reader.lookup("", "namespaces", "", namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if !found.header.fields.iter().any(|(field, value)| *field == "status.phase" && &**value == "Terminating") {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = review.forbidden(&why);
    if let Some(details) = &mut status.details {
        details.causes = vec![Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        }];
    }
    Err(status)
}
