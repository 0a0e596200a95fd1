//! Built-in admission that looks at other objects: namespaces, service accounts, role escalation.

use api::status::{Cause, Status};
use serde_json::Value;

use super::write::suffix;
use super::{Context, Engine, Target, deleting};
use crate::authz;

mod node;
mod pod_security;

pub use pod_security::Exemptions;

/// The fields of roles and bindings that give permissions.
const GRANTS: [&str; 4] = ["rules", "aggregationRule", "roleRef", "subjects"];

/// What an administrator chooses about admission.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub pod_security: Exemptions,
    pub external_ips: ExternalIps,
}

/// Whether Services may take addresses that are not theirs to take: whoever creates one catches what everybody in the
/// cluster sends there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// `spec.externalIPs` is stored, and traffic is not served by it; answers say so.
    #[default]
    Inactive,
    Allowed,
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
            node::check_create(node, target, object)?;
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
        if let Some(node) = context.user.as_node() {
            node::check_update(node, target, new, old)?;
        }
        match &*target.kind.group {
            "rbac.authorization.k8s.io" if GRANTS.iter().any(|field| new.get(field) != old.get(field)) => {
                authz::check_escalation(self, &context.user, target, new)
            }
            _ => Ok(()),
        }
    }

    /// The validating end of admission: looks at an object as it is to be stored; gives warnings, or a refusal.
    pub(crate) fn review(
        &self,
        context: &Context,
        target: &Target,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<Vec<String>, Status> {
        let mut warnings = self.check_pod_security(context, target, new, old)?;
        let service = target.kind.group.is_empty() && target.kind.plural == "services" && target.subresource.is_empty();
        let external = |object: &Value| object["spec"]["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
        if service && external(new) && self.settings.external_ips == ExternalIps::Inactive {
            let why = "addresses that a Service takes for itself are not served unless the server allows it";
            warnings.push(format!("{}spec.externalIPs is not acted on: {why}", api::validate::inactive::MARK));
        }
        Ok(warnings)
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
