//! Built-in admission that looks at other objects: namespaces, service accounts, role escalation.

use api::kinds::{Asker, pod};
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
        if let Some(asked_by) = target.kind.behaviour.asked_by {
            let user = &context.user;
            asked_by(object, &Asker { name: &user.name, uid: &user.uid, groups: &user.groups, extra: &user.extra });
        }
        match (&*target.kind.group, &*target.kind.plural) {
            ("", "pods") => self.admit_pod(target, object),
            ("networking.k8s.io", "ingresses") => self.admit_ingress(target, object),
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
        self.check_limits(target, new, old)?;
        let mut warnings = self.check_pod_security(context, target, new, old)?;
        let service = target.kind.group.is_empty() && target.kind.plural == "services" && target.part.is_none();
        let external = |object: &Value| object["spec"]["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
        if service && external(new) && self.settings.external_ips == ExternalIps::Inactive {
            let why = "addresses that a Service takes for itself are not served unless the server allows it";
            warnings.push(format!("{}spec.externalIPs is not acted on: {why}", api::validate::inactive::MARK));
        }
        Ok(warnings)
    }

    /// An Ingress that names no class gets the newest of those that are marked as default.
    fn admit_ingress(&self, target: &Target, ingress: &mut Value) -> Result<(), Status> {
        const OLD: &str = "kubernetes.io/ingress.class";
        const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
        if !ingress["spec"]["ingressClassName"].is_null() || ingress["metadata"]["annotations"].get(OLD).is_some() {
            return Ok(());
        }
        let classes = self.registry().find(&target.kind.group, &target.kind.version, "ingressclasses");
        let all = classes.map(|kind| self.all(&kind, "")).unwrap_or_default();
        let marked = all.iter().map(|class| class.value());
        let marked = marked.filter(|class| class["metadata"]["annotations"][DEFAULT] == "true");
        let text = |class: &Value, field: &str| class["metadata"][field].as_str().unwrap_or_default().to_owned();
        let order = |class: &Value| (text(class, "creationTimestamp"), std::cmp::Reverse(text(class, "name")));
        if let Some(class) = marked.max_by_key(order) {
            ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }

    /// The class of pods that name none, if there is one: of several the lowest, as upstream chooses.
    fn default_priority(&self) -> Option<Value> {
        let classes = self.registry().find("scheduling.k8s.io", "v1", "priorityclasses")?;
        let all = self.all(&classes, "").into_iter().map(|class| class.value());
        all.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
    }

    /// The number behind a pod's priority class, or behind the default one; 0 without any. A class also says whether
    /// the pod may preempt.
    fn priority(&self, target: &Target, pod: &mut Value) -> Result<i32, Status> {
        let class = match pod["spec"]["priorityClassName"].as_str().filter(|class| !class.is_empty()) {
            Some(name) => Some(self.named_class(target, pod, name)?),
            None => self.default_priority(),
        };
        let Some(class) = class else { return Ok(0) };
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        let wanted = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
        match pod["spec"]["preemptionPolicy"].as_str() {
            Some(given) if given != wanted => {
                let why = format!(
                    "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {wanted} from the given PriorityClass name"
                );
                return Err(target.forbidden_named(pod, &why));
            }
            _ => pod["spec"]["preemptionPolicy"] = wanted.into(),
        }
        Ok(class["value"].as_i64().and_then(|value| i32::try_from(value).ok()).unwrap_or(0))
    }

    fn named_class(&self, target: &Target, pod: &Value, class: &str) -> Result<Value, Status> {
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
        Ok(found.value())
    }

    fn runtime_class(&self, target: &Target, pod: &Value) -> Result<Option<Value>, Status> {
        let Some(class) = pod["spec"]["runtimeClassName"].as_str().filter(|class| !class.is_empty()) else {
            return Ok(None);
        };
        match self.lookup("node.k8s.io", "runtimeclasses", "", class) {
            Some(found) => Ok(Some(found.value())),
            None => Err(target.forbidden_named(pod, &format!("pod rejected: RuntimeClass {class:?} not found"))),
        }
    }

    fn limit_ranges(&self, namespace: &str) -> Vec<Value> {
        let kind = self.registry().find("", "v1", "limitranges");
        let all = kind.map(|kind| self.all(&kind, namespace)).unwrap_or_default();
        all.iter().map(|range| range.value()).collect()
    }

    /// A new pod or claim within the limits of its namespace.
    fn check_limits(&self, target: &Target, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        let limited = matches!(&*target.kind.plural, "pods" | "persistentvolumeclaims") && target.kind.group.is_empty();
        if !limited || old.is_some() {
            return Ok(());
        }
        let ranges = self.limit_ranges(&target.namespace);
        match api::limit_range::complaints(&ranges, &target.kind.plural, new).as_slice() {
            [] => Ok(()),
            [one] => Err(target.forbidden_named(new, one)),
            many => Err(target.forbidden_named(new, &format!("[{}]", many.join(", ")))),
        }
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
        let class = self.runtime_class(target, pod)?;
        pod::admit_pod(pod, priority);
        pod::apply_runtime_class(class.as_ref(), pod).map_err(|why| target.forbidden_named(pod, &why))?;
        api::limit_range::fill(&self.limit_ranges(&target.namespace), pod);
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
        pod::mount_service_account(pod, &found.value(), &suffix());
        Ok(())
    }
}
