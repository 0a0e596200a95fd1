//! What is stored and shown to nobody: objects of defined kinds of which no version is served.
//!
//! Whoever empties a namespace does not see them, and a namespace of the same name would have them when they are served
//! again. So the server itself ends them with their namespace.

use std::sync::Arc;

use api::kind::Kind;
use api::status::Status;

use super::{DeleteOptions, Engine, ListOptions};
use crate::request::{Context, Propagation, Target};

impl Engine {
    /// Deletes what a namespace that is about to go has of them.
    ///
    /// # Errors
    /// When some stay for the sake of their finalizers: then so has the namespace.
    pub(super) async fn empty_unserved(&self, namespace: &str) -> Result<(), Status> {
        let registry = self.registry();
        let mut left = Vec::new();
        for kind in registry.unserved().filter(|kind| kind.namespaced()) {
            match self.delete_unserved(kind, namespace).await? {
                0 => {}
                count => left.push(format!("{}.{} has {count} resource instances", kind.plural, kind.group)),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let why =
            format!("objects with finalizers are left of kinds of which no version is served: {}", left.join(", "));
        Err(Status::forbidden("", "namespaces", namespace, &why))
    }

    /// Deletes the objects of one kind; gives how many stay.
    async fn delete_unserved(&self, kind: &Arc<Kind>, namespace: &str) -> Result<usize, Status> {
        let all = Target::new(kind.clone(), namespace, "");
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        self.delete_collection(&Context::of_server(), &all, &ListOptions::default(), &options).await?;
        Ok(self.all(kind, namespace).len())
    }
}
