//! What kinds do beyond being stored: a file each, a [`Behaviour`] each, held by the row of the table of kinds.
//!
//! Whoever adds a kind writes its file and its line of [`TABLE`]; everything that serves kinds reads the behaviour.
//! What several kinds share (pods, metadata, label selectors) is in rooms of its own: [`crate::validate`],
//! [`crate::write`], [`crate::table`], [`crate::default`].

mod admission_policy;
mod api_service;
mod certificate_signing_request;
mod component_status;
mod config_map;
mod controller_revision;
mod cron_job;
mod custom_resource_definition;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod flow_control;
mod horizontal_pod_autoscaler;
mod ingress;
mod ip_address;
mod job;
mod lease;
mod limit_range;
mod namespace;
mod network_policy;
mod node;
mod peer;
mod persistent_volume;
mod persistent_volume_claim;
pub mod pod;
mod pod_disruption_budget;
mod pod_template;
mod priority_class;
mod rbac;
mod replica_set;
mod replication_controller;
mod report;
mod resource;
mod resource_quota;
mod runtime_class;
mod secret;
pub mod service;
mod service_account;
mod service_cidr;
mod stateful_set;
mod storage;
mod webhooks;

pub use self::report::report;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::default::TypeDefault;
use crate::kind::Part;
use crate::names::dns_subdomain;
use crate::selector::Selectable;
use crate::validate::{Errors, NameRule};

/// The beginning of every warning that no other server gives.
pub const MARK: &str = "amphipod: ";

/// What is wrong with an object.
pub type Check = fn(&Value, &mut Errors);
/// What is wrong with a new state, and with its replacing the old one.
pub type UpdateCheck = fn(new: &Value, old: &Value, &mut Errors);
/// What a kind's columns show, by column.
pub type Cells = fn(&Value, Timestamp) -> Vec<(&'static str, Value)>;

/// What a kind does in its own way; what it leaves out it does as every kind does.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    pub name: NameRule,
    /// Of a new object, metadata apart.
    pub validate: Option<Check>,
    /// Of an update; without one, what is checked of a new object.
    pub validate_update: Option<UpdateCheck>,
    /// Of an update through a part.
    pub validate_part: Option<fn(Part, new: &Value, old: &Value, &mut Errors)>,
    /// What types that came with this kind fill in.
    pub defaults: &'static [TypeDefault],
    pub generation: Generation,
    pub first_status: FirstStatus,
    /// What a new object begins with.
    pub create: Option<fn(&mut Value)>,
    /// What an update keeps of the old object, or adds.
    pub update: Option<fn(new: &mut Value, old: &Value)>,
    /// What a write through a part takes of what was sent, into the outcome.
    pub update_part: Option<fn(Part, out: &mut Value, sent: &Value, old: &Value)>,
    /// Metadata that a write of the status cannot change either.
    pub status_keeps: &'static [&'static str],
    /// What a new object says of whoever asked for it.
    pub asked_by: Option<fn(&mut Value, &Asker<'_>)>,
    pub put: Put,
    pub version: Version,
    pub delete: Deletion,
    /// Fields that objects are selected by, beside name and namespace.
    pub selectable: &'static [Selectable<'static>],
    /// The refusal of a field that objects are not selected by.
    pub unknown_field: Option<fn(&str) -> String>,
    /// Where a pod is in it: what has a pod's metadata and spec.
    pub pod: Option<&'static str>,
    pub cells: Option<Cells>,
    /// Marks on rows, by which clients grey them.
    pub row_conditions: Option<fn(&Value) -> Vec<Value>>,
    /// What is accepted and will surprise.
    pub warnings: Option<fn(&Value) -> Vec<String>>,
    /// Told to whoever asks for one, answered or refused.
    pub deprecated: Option<&'static str>,
    /// Nothing acts on it, and what that means.
    pub inactive: Option<&'static str>,
    /// What upstream has none of either.
    pub none: &'static [Aspect],
    /// What upstream has and this server does not.
    pub missing: &'static [(Aspect, &'static str)],
}

/// A kind that is only stored.
pub const DEFAULT: Behaviour = Behaviour {
    name: dns_subdomain,
    validate: None,
    validate_update: None,
    validate_part: None,
    defaults: &[],
    generation: Generation::None,
    first_status: FirstStatus::Cleared,
    create: None,
    update: None,
    update_part: None,
    status_keeps: &[],
    asked_by: None,
    put: Put::Changes,
    version: Version::Optional,
    delete: Deletion::DEFAULT,
    selectable: &[],
    unknown_field: None,
    pod: None,
    cells: None,
    row_conditions: None,
    warnings: None,
    deprecated: None,
    inactive: None,
    none: &[],
    missing: &[],
};

/// A kind that somebody defined while the server ran.
pub static CUSTOM: Behaviour = Behaviour {
    generation: Generation::Body,
    version: Version::Needed,
    // Of its metadata a write of the status changes nothing but who wrote it.
    status_keeps: &["annotations", "finalizers", "generateName", "labels", "ownerReferences"],
    ..DEFAULT
};

/// Kinds that say nothing here are only stored, or answered and not stored.
static TABLE: &[(&str, &str, Behaviour)] = &[
    ("", "componentstatuses", component_status::BEHAVIOUR),
    ("", "configmaps", config_map::BEHAVIOUR),
    ("", "endpoints", endpoints::BEHAVIOUR),
    ("", "events", event::BEHAVIOUR),
    ("", "limitranges", limit_range::BEHAVIOUR),
    ("", "namespaces", namespace::BEHAVIOUR),
    ("", "nodes", node::BEHAVIOUR),
    ("", "persistentvolumeclaims", persistent_volume_claim::BEHAVIOUR),
    ("", "persistentvolumes", persistent_volume::BEHAVIOUR),
    ("", "pods", pod::BEHAVIOUR),
    ("", "podtemplates", pod_template::BEHAVIOUR),
    ("", "replicationcontrollers", replication_controller::BEHAVIOUR),
    ("", "resourcequotas", resource_quota::BEHAVIOUR),
    ("", "secrets", secret::BEHAVIOUR),
    ("", "serviceaccounts", service_account::BEHAVIOUR),
    ("", "services", service::BEHAVIOUR),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", webhooks::MUTATING),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", admission_policy::POLICY),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", admission_policy::BINDING),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", webhooks::VALIDATING),
    ("apiextensions.k8s.io", "customresourcedefinitions", custom_resource_definition::BEHAVIOUR),
    ("apiregistration.k8s.io", "apiservices", api_service::BEHAVIOUR),
    ("apps", "controllerrevisions", controller_revision::BEHAVIOUR),
    ("apps", "daemonsets", daemon_set::BEHAVIOUR),
    ("apps", "deployments", deployment::BEHAVIOUR),
    ("apps", "replicasets", replica_set::BEHAVIOUR),
    ("apps", "statefulsets", stateful_set::BEHAVIOUR),
    ("autoscaling", "horizontalpodautoscalers", horizontal_pod_autoscaler::BEHAVIOUR),
    ("batch", "cronjobs", cron_job::BEHAVIOUR),
    ("batch", "jobs", job::BEHAVIOUR),
    ("certificates.k8s.io", "certificatesigningrequests", certificate_signing_request::BEHAVIOUR),
    ("coordination.k8s.io", "leases", lease::BEHAVIOUR),
    ("discovery.k8s.io", "endpointslices", endpoint_slice::BEHAVIOUR),
    ("events.k8s.io", "events", event::NEW),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", flow_control::SCHEMA),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", flow_control::LEVEL),
    ("networking.k8s.io", "ingressclasses", ingress::CLASS),
    ("networking.k8s.io", "ingresses", ingress::BEHAVIOUR),
    ("networking.k8s.io", "ipaddresses", ip_address::BEHAVIOUR),
    ("networking.k8s.io", "networkpolicies", network_policy::BEHAVIOUR),
    ("networking.k8s.io", "servicecidrs", service_cidr::BEHAVIOUR),
    ("node.amphipod.io", "peers", peer::BEHAVIOUR),
    ("node.k8s.io", "runtimeclasses", runtime_class::BEHAVIOUR),
    ("policy", "poddisruptionbudgets", pod_disruption_budget::BEHAVIOUR),
    ("rbac.authorization.k8s.io", "clusterrolebindings", rbac::CLUSTER_ROLE_BINDING),
    ("rbac.authorization.k8s.io", "clusterroles", rbac::CLUSTER_ROLE),
    ("rbac.authorization.k8s.io", "rolebindings", rbac::ROLE_BINDING),
    ("rbac.authorization.k8s.io", "roles", rbac::ROLE),
    ("resource.k8s.io", "deviceclasses", resource::CLASS),
    ("resource.k8s.io", "resourceclaims", resource::CLAIM),
    ("resource.k8s.io", "resourceclaimtemplates", resource::TEMPLATE),
    ("resource.k8s.io", "resourceslices", resource::SLICE),
    ("scheduling.k8s.io", "priorityclasses", priority_class::BEHAVIOUR),
    ("storage.k8s.io", "csidrivers", storage::DRIVER),
    ("storage.k8s.io", "csinodes", storage::NODE),
    ("storage.k8s.io", "csistoragecapacities", storage::CAPACITY),
    ("storage.k8s.io", "storageclasses", storage::CLASS),
    ("storage.k8s.io", "volumeattachments", storage::ATTACHMENT),
    ("storage.k8s.io", "volumeattributesclasses", storage::ATTRIBUTES_CLASS),
];

/// What a built-in kind does.
pub fn of(group: &str, plural: &str) -> &'static Behaviour {
    static PLAIN: Behaviour = DEFAULT;
    TABLE.iter().find(|(g, p, _)| (*g, *p) == (group, plural)).map_or(&PLAIN, |(.., behaviour)| behaviour)
}

/// All that types fill in, of every kind.
pub fn defaults() -> impl Iterator<Item = &'static TypeDefault> {
    TABLE.iter().flat_map(|(.., behaviour)| behaviour.defaults)
}

/// What a kind either has, or says that upstream has none of, or says is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    Validation,
    Defaults,
    Columns,
    Warnings,
}

impl Aspect {
    pub const ALL: [Aspect; 4] = [Aspect::Validation, Aspect::Defaults, Aspect::Columns, Aspect::Warnings];
}

/// How a kind's generation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none: always absent.
    None,
    /// Raised when the spec changes.
    Spec,
    /// Raised when anything but metadata and status changes.
    Body,
    /// 1, for good.
    First,
    /// Kept as the client sends it.
    Client,
}

/// The status of a new object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstStatus {
    Cleared,
    /// As it is sent.
    Sent,
}

/// What a PUT does where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Changes,
    Creates,
}

/// Whether a PUT has to name the version that it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Optional,
    Needed,
}

/// Who asks for an object.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub name: &'a str,
    pub uid: &'a str,
    pub groups: &'a [String],
    pub extra: &'a BTreeMap<String, Vec<String>>,
}

/// How objects of a kind end.
#[derive(Debug, Clone, Copy)]
pub struct Deletion {
    /// Names that are not deleted.
    pub protected: &'static [&'static str],
    /// What becomes of dependents when nobody says.
    pub dependents: Dependents,
    /// Told to whoever does not say what becomes of dependents.
    pub warning: Option<&'static str>,
    pub shows: Shows,
    pub ending: Ending,
    /// What the first deletion of an object puts into it: what it waits for.
    pub begin: Option<fn(&mut Value, Timestamp)>,
}

impl Deletion {
    pub const DEFAULT: Self = Self {
        protected: &[],
        dependents: Dependents::Deleted,
        warning: None,
        shows: Shows::Status,
        ending: Ending::AtOnce,
        begin: None,
    };
}

/// What becomes of an object's dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependents {
    Deleted,
    Orphaned,
}

/// What a deletion answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    Status,
    /// The last state.
    Object,
}

/// What stands between a deletion and the end.
#[derive(Debug, Clone, Copy)]
pub enum Ending {
    AtOnce,
    /// Some seconds, of the object and of those that were asked for.
    Graceful(fn(&Value, Option<i64>) -> i64),
    /// Something of its own that has to be done, while this holds.
    Held(fn(&Value) -> bool),
}
