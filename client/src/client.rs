//! The one handle on the API: which identity asks is the transport's business, what is asked is said here.

use std::sync::Arc;

use api::status::Status;
use api::uid::Uid;
use serde_json::{Value, json};

use crate::object::{List, Resource, Revision, ServedKind};
use crate::transport::{DeleteOptions, Deleted, EventStream, Selector, Target, Transport};

/// One identity's way into the API; cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

fn at<'a>(resource: &'a Resource, namespace: &'a str, name: &'a str, subresource: &'a str) -> Target<'a> {
    Target { resource, namespace, name, subresource }
}

impl Client {
    pub fn new(transport: impl Transport) -> Self {
        Self { transport: Arc::new(transport) }
    }

    /// One object, as it is now.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when it is not there.
    pub async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        self.transport.get(at(resource, namespace, name, "")).await
    }

    /// Everything that is selected, at one revision.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 400 for a selector that cannot be understood.
    pub async fn list(&self, resource: &Resource, namespace: &str, selector: &Selector) -> Result<List, Status> {
        self.transport.list(at(resource, namespace, "", ""), selector).await
    }

    /// The present state, [`crate::Event::Synced`], and every change from then on.
    ///
    /// # Errors
    /// Those of [`Client::list`]. What ends it later is said by [`EventStream::next`].
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: &str,
        selector: &Selector,
    ) -> Result<Box<dyn EventStream>, Status> {
        self.transport.watch(at(resource, namespace, "", ""), selector, None).await
    }

    /// Every change after a revision.
    ///
    /// # Errors
    /// Those of [`Client::watch`]; 410, from here or from the stream, when the history does not reach back to that
    /// revision.
    pub async fn watch_after(
        &self,
        resource: &Resource,
        namespace: &str,
        selector: &Selector,
        revision: Revision,
    ) -> Result<Box<dyn EventStream>, Status> {
        self.transport.watch(at(resource, namespace, "", ""), selector, Some(revision)).await
    }

    /// Creates an object; gives what the server made of it.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 409 AlreadyExists when the name is taken, 400 or 422 for what is not
    /// valid.
    pub async fn create(&self, resource: &Resource, namespace: &str, object: Value) -> Result<Value, Status> {
        self.transport.create(at(resource, namespace, "", ""), object).await
    }

    /// Changes an object or a slice of it (`""`, `status`, `finalize`); `change` may run several times.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when it is not there, 409 Conflict when it kept changing under us;
    /// what `change` refuses comes back as it is.
    pub async fn update<F>(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: F,
    ) -> Result<Value, Status>
    where
        F: Fn(&Value) -> Result<Value, Status> + Send + Sync,
    {
        self.transport.update(at(resource, namespace, name, subresource), &change).await
    }

    /// A JSON merge patch; a `metadata.resourceVersion` in it must be the present one.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when it is not there, 409 Conflict for another `resourceVersion`
    /// than the present one.
    pub async fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Value,
    ) -> Result<Value, Status> {
        self.transport.patch(at(resource, namespace, name, subresource), patch).await
    }

    /// Deletes an object, at once or when its finalizers or its node are done.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when it is gone already, 409 Conflict when it is not the one that
    /// the options name.
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.transport.delete(at(resource, namespace, name, ""), options).await
    }

    /// Gives a pod its node; `uid` guards against a namesake.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when the pod is not there, 409 Conflict when it is another, has a
    /// node or is being deleted.
    pub async fn bind(&self, namespace: &str, pod: &str, uid: &Uid, node: &str) -> Result<(), Status> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod, "namespace": namespace, "uid": uid},
            "target": {"kind": "Node", "name": node},
        });
        self.transport.create(at(&Resource::core("pods"), namespace, pod, "binding"), binding).await.map(drop)
    }

    /// A token of a service account (`spec` as in TokenRequest); returns the answered TokenRequest.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]); 404 when the account, or what the token is to be bound to, is not
    /// there.
    pub async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<Value, Status> {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.transport.create(at(&Resource::core("serviceaccounts"), namespace, account, "token"), request).await
    }

    /// The kinds that are served now.
    ///
    /// # Errors
    /// Those of every call (see [`Transport`]). All kinds or none: a group that cannot be read fails it.
    pub async fn kinds(&self) -> Result<Vec<ServedKind>, Status> {
        self.transport.kinds().await
    }
}
