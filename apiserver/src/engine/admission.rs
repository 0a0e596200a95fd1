//! Built-in admission that looks at other objects: namespaces, service accounts, role escalation.

use api::status::{Cause, Status};
use serde_json::Value;

use super::write::suffix;
use super::{Context, Engine, Target, deleting};
use crate::authz;

/// The fields of roles and bindings that give permissions.
const GRANTS: [&str; 4] = ["rules", "aggregationRule", "roleRef", "subjects"];

/// An agent creates only what is its own: its node, its lease, and no pods (it runs none that the API did not give it).
fn restrict_node(node: &str, target: &Target, object: &Value) -> Result<(), Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let refused = |why: String| Err(Status::forbidden(&target.kind.group, &target.kind.plural, name, &why));
    match (&*target.kind.group, &*target.kind.plural) {
        ("", "pods") => refused(format!("node {node:?} can only create mirror pods, and this cluster has none")),
        ("", "nodes") | ("coordination.k8s.io", "leases") if name != node => {
            refused(format!("node {node:?} is not allowed to create the {} of another node", target.kind.kind))
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// A namespaced object is created only in a namespace that is there and stays.
    pub(crate) fn check_namespace(&self, target: &Target, object: &Value) -> Result<(), Status> {
        if !target.kind.namespaced() || !target.kind.stored() {
            return Ok(());
        }
        let namespace = &target.namespace;
        let Some(found) = self.lookup("", "namespaces", "", namespace) else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if !deleting(&found.value()) {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(&target.kind.group, &target.kind.plural, name, &why);
        if let Some(details) = &mut status.details {
            details.causes = vec![Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            }];
        }
        Err(status)
    }

    pub(crate) fn admit_create(&self, context: &Context, target: &Target, object: &mut Value) -> Result<(), Status> {
        if let Some(node) = context.user.as_node() {
            restrict_node(node, target, object)?;
        }
        match (&*target.kind.group, &*target.kind.plural) {
            ("", "pods") => self.admit_pod(target, object),
            ("rbac.authorization.k8s.io", _) => authz::check_escalation(self, &context.user, target, object),
            _ => Ok(()),
        }
    }

    pub(crate) fn admit_update(
        &self,
        context: &Context,
        target: &Target,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        match &*target.kind.group {
            "rbac.authorization.k8s.io" if GRANTS.iter().any(|field| new.get(field) != old.get(field)) => {
                authz::check_escalation(self, &context.user, target, new)
            }
            _ => Ok(()),
        }
    }

    /// The number behind a pod's priority class; 0 without one.
    fn priority(&self, target: &Target, pod: &Value) -> Result<i32, Status> {
        let Some(class) = pod["spec"]["priorityClassName"].as_str().filter(|class| !class.is_empty()) else {
            return Ok(0);
        };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let found = self.lookup("scheduling.k8s.io", "priorityclasses", "", class);
        let found = found.ok_or_else(|| {
            Status::forbidden(
                &target.kind.group,
                &target.kind.plural,
                name,
                &format!("no PriorityClass with name {class} was found"),
            )
        })?;
        Ok(found.value()["value"].as_i64().and_then(|value| i32::try_from(value).ok()).unwrap_or(0))
    }

    /// Service account and its token volume, priority, tolerations.
    fn admit_pod(&self, target: &Target, pod: &mut Value) -> Result<(), Status> {
        let priority = self.priority(target, pod)?;
        if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != i64::from(priority)) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            );
            return Err(target.forbidden_named(pod, &why));
        }
        let class = pod["spec"]["runtimeClassName"].as_str().filter(|class| !class.is_empty());
        if let Some(class) = class.filter(|class| self.lookup("node.k8s.io", "runtimeclasses", "", class).is_none()) {
            return Err(target.forbidden_named(pod, &format!("pod rejected: RuntimeClass {class:?} not found")));
        }
        api::write::admit_pod(pod, priority);
        if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
            return Ok(());
        }
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned();
        let Some(found) = self.lookup("", "serviceaccounts", &target.namespace, &account) else {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "error looking up service account {}/{account}: serviceaccount \"{account}\" not found",
                target.namespace
            );
            return Err(Status::forbidden("", "pods", name, &why));
        };
        api::write::mount_service_account(pod, &found.value(), &suffix());
        Ok(())
    }
}
