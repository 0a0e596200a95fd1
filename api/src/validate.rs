//! Validation: everything wrong with an object, in upstream's order and words.
//!
//! Kinds without a row here are checked by their metadata alone.

mod config;
pub mod inactive;
mod meta;
mod network;
mod pod;
mod rbac;
mod update;
mod warn;
mod workload;

use serde_json::Value;

pub use self::warn::{deprecations, warnings};

use crate::kind::Kind;
use crate::status::FieldError;

type Errors = Vec<FieldError>;
type NameRule = fn(&str) -> Vec<String>;
type Check = fn(&Value, &mut Errors);

struct Row {
    group: &'static str,
    plural: &'static str,
    name: NameRule,
    body: Check,
}

const fn row(group: &'static str, plural: &'static str, name: NameRule, body: Check) -> Row {
    Row { group, plural, name, body }
}

use crate::names::{dns_1035_label, dns_label, dns_subdomain, path_segment};

const ROWS: &[Row] = &[
    row("", "pods", dns_subdomain, pod::pod),
    row("", "podtemplates", dns_subdomain, |o, e| pod::template(&o["template"], "template", e)),
    row("", "services", dns_1035_label, network::service),
    row("", "endpoints", dns_subdomain, network::endpoints),
    row("", "namespaces", dns_label, config::namespace),
    row("", "nodes", dns_subdomain, config::node),
    row("", "configmaps", dns_subdomain, config::config_map),
    row("", "secrets", dns_subdomain, config::secret),
    row("", "serviceaccounts", dns_subdomain, |_, _| {}),
    row("", "events", dns_subdomain, config::event),
    row("events.k8s.io", "events", dns_subdomain, config::new_event),
    row("apps", "deployments", dns_subdomain, workload::deployment),
    row("apps", "replicasets", dns_subdomain, workload::replica_set),
    row("apps", "controllerrevisions", dns_subdomain, config::controller_revision),
    row("discovery.k8s.io", "endpointslices", dns_subdomain, network::endpoint_slice),
    row("coordination.k8s.io", "leases", dns_subdomain, config::lease),
    row("networking.k8s.io", "ipaddresses", network::ip_name, network::ip_address),
    row("rbac.authorization.k8s.io", "roles", path_segment, |o, e| rbac::role(o, true, e)),
    row("rbac.authorization.k8s.io", "clusterroles", path_segment, |o, e| rbac::role(o, false, e)),
    row("rbac.authorization.k8s.io", "rolebindings", path_segment, |o, e| rbac::binding(o, true, e)),
    row("rbac.authorization.k8s.io", "clusterrolebindings", path_segment, |o, e| rbac::binding(o, false, e)),
];

fn rules(kind: &Kind) -> (NameRule, Check) {
    let found = ROWS.iter().find(|r| r.group == kind.group && r.plural == kind.plural);
    found.map_or((dns_subdomain, |_, _| {}), |r| (r.name, r.body))
}

/// Everything wrong with a new object; metadata first.
pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let (name, body) = rules(kind);
    let mut errors = Vec::new();
    meta::object(&object["metadata"], kind.namespaced(), name, &mut errors);
    body(object, &mut errors);
    errors
}

/// `new` replaces `old` through the object itself (`None`) or a subresource.
pub fn update(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    // Upstream checks twice, generally and per kind, and clients see both causes.
    for _ in 0..2 {
        meta::update(&new["metadata"], &old["metadata"], &mut errors);
        meta::common(&new["metadata"], &mut errors);
    }
    update::body(kind, subresource, new, old, &mut errors);
    errors
}

/// What a Scale may ask for.
pub fn scale(scale: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::not_negative(&scale["spec"]["replicas"], "spec.replicas", &mut errors);
    errors
}

fn body_check(kind: &Kind) -> Check {
    rules(kind).1
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Each complaint as an invalid value.
fn invalid(path: &str, value: &Value, complaints: Vec<String>, errors: &mut Errors) {
    errors.extend(complaints.into_iter().map(|c| FieldError::invalid(path, value.clone(), c)));
}

/// One of these, in the order in which upstream lists them.
fn one_of(path: &str, value: &Value, options: &[&str], errors: &mut Errors) {
    if !options.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, value.clone(), options));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;
    use serde_json::json;

    fn messages(group: &str, plural: &str, object: Value) -> Vec<String> {
        let kind = Registry::builtin().find(group, "v1", plural).unwrap();
        create(&kind, &object).iter().map(ToString::to_string).collect()
    }

    fn deployment(spec: Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "web", "namespace": "n"}, "spec": {"replicas": 1,
            "selector": {"matchLabels": {"app": "web"}}, "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "containers": [{"name": "c", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}}}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        messages("apps", "deployments", object)
    }

    #[test]
    fn deployments_need_a_selector_that_matches() {
        assert_eq!(deployment(json!({})), Vec::<String>::new());
        let mismatch = "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`";
        assert_eq!(deployment(json!({"selector": {"matchLabels": {"app": "x"}}})), [mismatch]);
        assert_eq!(deployment(json!({"selector": null})), ["spec.selector: Required value", mismatch]);
        assert_eq!(
            deployment(json!({"replicas": -1})),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn names_are_checked_first() {
        let errors =
            messages("", "configmaps", json!({"metadata": {"name": "", "namespace": "n"}, "data": {"a b": "x"}}));
        assert_eq!(errors[0], "metadata.name: Required value: name or generateName is required");
        assert!(errors[1].starts_with("data[a b]: Invalid value: \"a b\": a valid config key must"));
    }

    #[test]
    fn roles_need_verbs() {
        let role = json!({"metadata": {"name": "r", "namespace": "n"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": null}]});
        let errors = messages("rbac.authorization.k8s.io", "roles", role);
        assert_eq!(errors, ["rules[0].verbs: Required value: verbs must contain at least one value"]);
    }
}
