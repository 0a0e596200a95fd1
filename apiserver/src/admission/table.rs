//! The built-in members, in the order in which Kubernetes asks its own.
//!
//! Webhooks, and after them quotas, come last: nothing that changes an object comes after what counts it.

use api::kind::Part;

use super::Operation::{Create, Delete, Update};
use super::{Acts, Parts, Resources, Row};
use super::{
    certificates, claim_resize, default_class, default_toleration_seconds, limit_ranger, namespace_lifecycle,
    node_restriction, pod_security, priority, runtime_class, service_account, service_external_ips,
    taint_nodes_by_condition,
};

const PODS: Resources = Resources::Of(&[("", "pods", Parts::Itself)]);
const CERTIFICATES: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

pub(super) const BUILTIN: &[Row] = &[
    Row {
        name: "NamespaceLifecycle",
        operations: &[Create, Delete],
        resources: Resources::All,
        acts: Acts::Mutates,
        member: &namespace_lifecycle::NamespaceLifecycle,
    },
    Row {
        name: "LimitRanger",
        operations: &[Create],
        resources: Resources::Of(&[("", "pods", Parts::Itself), ("", "persistentvolumeclaims", Parts::Itself)]),
        acts: Acts::Both,
        member: &limit_ranger::LimitRanger,
    },
    Row {
        name: "LimitRanger",
        operations: &[Update],
        resources: Resources::Of(&[
            ("", "pods", Parts::One(Part::Resize)),
            ("", "persistentvolumeclaims", Parts::Itself),
        ]),
        acts: Acts::Both,
        member: &limit_ranger::LimitRanger,
    },
    Row {
        name: "ServiceAccount",
        operations: &[Create],
        resources: PODS,
        acts: Acts::Mutates,
        member: &service_account::ServiceAccount,
    },
    Row {
        name: "NodeRestriction",
        operations: &[Create, Update, Delete],
        resources: Resources::Of(&[
            ("", "pods", Parts::All),
            ("", "nodes", Parts::All),
            ("", "persistentvolumeclaims", Parts::All),
            ("", "serviceaccounts", Parts::All),
            ("coordination.k8s.io", "leases", Parts::All),
            ("storage.k8s.io", "csinodes", Parts::All),
            (CERTIFICATES, REQUESTS, Parts::Itself),
            ("resource.k8s.io", "resourceslices", Parts::All),
        ]),
        acts: Acts::Mutates,
        member: &node_restriction::NodeRestriction,
    },
    Row {
        name: "TaintNodesByCondition",
        operations: &[Create],
        resources: Resources::Of(&[("", "nodes", Parts::Itself)]),
        acts: Acts::Mutates,
        member: &taint_nodes_by_condition::TaintNodesByCondition,
    },
    Row {
        name: "PodSecurity",
        operations: &[Create, Update],
        resources: Resources::All,
        acts: Acts::Validates,
        member: &pod_security::PodSecurity,
    },
    Row {
        name: "Priority",
        operations: &[Create, Update],
        resources: PODS,
        acts: Acts::Mutates,
        member: &priority::Priority,
    },
    Row {
        name: "Priority",
        operations: &[Create, Update],
        resources: Resources::Of(&[("scheduling.k8s.io", "priorityclasses", Parts::Itself)]),
        acts: Acts::Validates,
        member: &priority::OneDefault,
    },
    Row {
        name: "DefaultTolerationSeconds",
        operations: &[Create, Update],
        resources: PODS,
        acts: Acts::Mutates,
        member: &default_toleration_seconds::DefaultTolerationSeconds,
    },
    Row {
        name: "DefaultStorageClass",
        operations: &[Create],
        resources: Resources::Of(&[("", "persistentvolumeclaims", Parts::Itself)]),
        acts: Acts::Mutates,
        member: &default_class::DefaultStorageClass,
    },
    Row {
        name: "PersistentVolumeClaimResize",
        operations: &[Update],
        resources: Resources::Of(&[("", "persistentvolumeclaims", Parts::Itself)]),
        acts: Acts::Validates,
        member: &claim_resize::ClaimResize,
    },
    Row {
        name: "RuntimeClass",
        operations: &[Create],
        resources: PODS,
        acts: Acts::Both,
        member: &runtime_class::RuntimeClass,
    },
    Row {
        name: "CertificateApproval",
        operations: &[Update],
        resources: Resources::Of(&[(CERTIFICATES, REQUESTS, Parts::One(Part::Approval))]),
        acts: Acts::Validates,
        member: &certificates::Approval,
    },
    Row {
        name: "CertificateSigning",
        operations: &[Update],
        resources: Resources::Of(&[(CERTIFICATES, REQUESTS, Parts::One(Part::Status))]),
        acts: Acts::Validates,
        member: &certificates::Signing,
    },
    Row {
        name: "CertificateSubjectRestriction",
        operations: &[Create],
        resources: Resources::Of(&[(CERTIFICATES, REQUESTS, Parts::Itself)]),
        acts: Acts::Validates,
        member: &certificates::SubjectRestriction,
    },
    Row {
        name: "DefaultIngressClass",
        operations: &[Create],
        resources: Resources::Of(&[("networking.k8s.io", "ingresses", Parts::Itself)]),
        acts: Acts::Mutates,
        member: &default_class::DefaultIngressClass,
    },
    Row {
        name: "ServiceExternalIPs",
        operations: &[Create, Update],
        resources: Resources::Of(&[("", "services", Parts::Itself)]),
        acts: Acts::Validates,
        member: &service_external_ips::ServiceExternalIps,
    },
];
