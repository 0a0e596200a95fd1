//! The API without HTTP: what controllers, the scheduler and an agent of the same process use.
//!
//! The same path as a request from outside (authorisation, admission, validation), under a user of its own.

use std::sync::Arc;

use api::decode::{self, FieldValidation};
use api::kind::Kind;
use api::selector::Fields;
use api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authz::Attributes;
use crate::engine::{
    Context, DeleteOptions, Deleted, Draft, Engine, List, ListOptions, Target, Watch, WatchOptions, WriteOptions,
};
use crate::identity::User;
use crate::object::Revision;
use crate::reviews;
use crate::server::Shared;

/// One identity's way into the API; cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    user: User,
    manager: String,
}

/// Names a collection: group, version, plural.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
}

impl Resource {
    pub const fn core(plural: &'static str) -> Self {
        Self { group: "", version: "v1", plural }
    }

    pub const fn new(group: &'static str, plural: &'static str) -> Self {
        Self { group, version: "v1", plural }
    }
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, user: User, manager: &str) -> Self {
        Self { shared, user, manager: manager.to_owned() }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    fn target(&self, resource: Resource, namespace: &str, name: &str, subresource: &str) -> Result<Target, Status> {
        let kind = self.engine().registry().find(resource.group, resource.version, resource.plural);
        Target::new(kind.ok_or_else(Status::no_route)?, namespace, name).below(subresource)
    }

    /// Whether a request of ours is one we may make.
    fn check(&self, verb: &str, target: &Target) -> Result<(), Status> {
        let asked = Attributes { verb: verb.to_owned(), ..Attributes::of(target) };
        // A namespace is an object and the place it is.
        let place = if *target.kind.plural == *"namespaces" { &target.name } else { &target.namespace };
        let asked = Attributes { namespace: place.clone(), ..asked };
        self.engine().authorizer.check(self.engine(), &self.user, &asked)
    }

    /// The target of a request of ours, if we may make it.
    fn allowed(
        &self,
        verb: &str,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
    ) -> Result<Target, Status> {
        let target = self.target(resource, namespace, name, subresource)?;
        self.check(verb, &target)?;
        Ok(target)
    }

    /// The collection that a list or watch of ours looks at, if we may see what it selects.
    fn may_select(&self, verb: &str, resource: Resource, namespace: &str, fields: &Fields) -> Result<Target, Status> {
        let node_name = fields.exact("spec.nodeName").map(str::to_owned);
        let target = self.target(resource, namespace, "", "")?;
        let asked = Attributes { verb: verb.to_owned(), node_name, ..Attributes::of(&target) };
        self.engine().authorizer.check(self.engine(), &self.user, &asked)?;
        Ok(target)
    }

    fn context(&self) -> Context {
        Context { user: self.user.clone(), now: Timestamp::now() }
    }

    fn options(&self) -> WriteOptions {
        WriteOptions { manager: self.manager.clone(), dry_run: false }
    }

    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        let target = self.allowed("get", resource, namespace, name, "")?;
        let object = self.engine().get(&target, None).await?;
        Ok(self.engine().show(&target.kind, &object))
    }

    pub async fn list(&self, resource: Resource, namespace: &str, options: &ListOptions) -> Result<List, Status> {
        let target = self.may_select("list", resource, namespace, &options.fields)?;
        self.engine().list(&target, options).await
    }

    pub fn watch(&self, resource: Resource, namespace: &str, options: WatchOptions) -> Result<Watch, Status> {
        let target = self.may_select("watch", resource, namespace, &options.fields)?;
        self.engine().watch(&target, options)
    }

    pub async fn create(&self, resource: Resource, namespace: &str, object: Value) -> Result<Value, Status> {
        let target = self.allowed("create", resource, namespace, "", "")?;
        let object = canonical(&target.kind, &object)?;
        let written = self.engine().create(&self.context(), &target, &self.options(), object).await?;
        Ok(written.object.into_value())
    }

    /// Changes an object or a slice of it (`""`, `status`, `finalize`); `change` may run several times.
    pub async fn update<F>(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: F,
    ) -> Result<Value, Status>
    where
        F: Fn(&Value) -> Result<Value, Status> + Send + Sync,
    {
        let target = self.target(resource, namespace, name, subresource)?;
        self.update_at(&target, |current| canonical(&target.kind, &change(current)?)).await
    }

    /// The same for an object of any kind, whose owner makes no field that its kind does not have.
    pub async fn update_at<F>(&self, target: &Target, change: F) -> Result<Value, Status>
    where
        F: Fn(&Value) -> Result<Value, Status> + Send + Sync,
    {
        // What follows is a read-modify-write or a patch, whichever the identity's role grants.
        self.check("update", target).or_else(|refused| self.check("patch", target).map_err(|_| refused))?;
        let through = |current: Option<&Value>| change(current.ok_or_else(|| target.not_found())?).map(Draft::Update);
        let written = self.engine().update(&self.context(), target, &self.options(), &through).await?;
        Ok(written.object.into_value())
    }

    pub async fn delete(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete_at(&self.target(resource, namespace, name, "")?, options).await
    }

    /// The same for an object of any kind.
    pub async fn delete_at(&self, target: &Target, options: &DeleteOptions) -> Result<Deleted, Status> {
        self.check("delete", target)?;
        self.engine().delete(&self.context(), target, options).await
    }

    /// Gives a pod its node; `uid` guards against a namesake. Returns the pod's new revision.
    pub async fn bind(&self, namespace: &str, pod: &str, uid: &str, node: &str) -> Result<Revision, Status> {
        let target = self.allowed("create", Resource::core("pods"), namespace, pod, "binding")?;
        let binding = json!({"metadata": {"name": pod, "uid": uid}, "target": {"kind": "Node", "name": node}});
        self.engine().bind(&self.context(), &target, &self.options(), &binding).await
    }

    /// A token of a service account (`spec` as in TokenRequest); returns the answered TokenRequest.
    pub async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<Value, Status> {
        let target = self.allowed("create", Resource::core("serviceaccounts"), namespace, account, "token")?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        reviews::token_request(self.engine(), &self.shared.tokens, &self.context(), &target, request)
    }
}

/// An object of ours in canonical form; what does not fit its kind is our mistake, and said as one.
fn canonical(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let decoded = decode::value(&kind.gvk(), &kind.schema, object, Vec::new(), FieldValidation::Strict);
    decoded.map(|decoded| decoded.value).map_err(|failure| Status::bad_request(failure.text))
}
