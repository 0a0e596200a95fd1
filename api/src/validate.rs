//! Validation: everything wrong with an object, in upstream's order and words.
//!
//! What a kind's own fields have to be is in its file of [`crate::kinds`]; here is what kinds share.

mod at;
pub(crate) mod conditions;
pub mod inactive;
pub(crate) mod internal;
pub(crate) mod meta;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod volumes;
mod warn;
pub(crate) mod workload;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

pub(crate) use self::at::{At, one_source};
pub use self::meta::{MANAGER_BYTES, manager};
pub use self::warn::warnings;

use crate::custom;
use crate::kind::{Kind, Part};
use crate::status::FieldError;
use crate::value::text;

pub type Errors = Vec<FieldError>;
pub type NameRule = fn(&str) -> Vec<String>;

/// Everything wrong with a new object; metadata first.
pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::object(&object["metadata"], kind.namespaced(), kind.behaviour.name, finalizers(kind), &mut errors);
    if let Some(custom) = &kind.custom {
        custom::create(kind, custom, object, &mut errors);
    }
    if let Some(validate) = kind.behaviour.validate {
        validate(object, &mut errors);
    }
    errors
}

/// `new` replaces `old` through the object itself (`None`) or a part of it.
pub fn update(kind: &Kind, part: Option<Part>, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    // Upstream checks twice, generally and per kind, and clients see both causes.
    for _ in 0..2 {
        meta::update(&new["metadata"], &old["metadata"], &mut errors);
        meta::common(&new["metadata"], finalizers(kind), &mut errors);
    }
    if let Some(custom) = &kind.custom {
        custom::update(kind, custom, part, new, old, &mut errors);
    }
    let behaviour = kind.behaviour;
    match (part, behaviour.validate_update, behaviour.validate) {
        (Some(part), ..) => {
            if let Some(validate) = behaviour.validate_part {
                validate(part, new, old, &mut errors);
            }
        }
        (None, Some(validate), _) => validate(new, old, &mut errors),
        (None, None, Some(validate)) => validate(new, &mut errors),
        (None, None, None) => {}
    }
    errors
}

/// Only the kinds of Kubernetes' core are particular about them.
fn finalizers(kind: &Kind) -> meta::Finalizers {
    let generic = matches!(&*kind.group, "apiextensions.k8s.io" | "apiregistration.k8s.io");
    if generic || kind.custom.is_some() { meta::Finalizers::Any } else { meta::Finalizers::Known }
}

/// What a Scale may ask for.
pub fn scale(scale: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::not_negative(&scale["spec"]["replicas"], "spec.replicas", &mut errors);
    errors
}

/// Protocols of ports, as they are listed.
pub(crate) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What a ConfigMap or Secret may hold.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

pub(crate) fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).unwrap_or_default()
}

/// `immutable: true` holds for good.
pub(crate) fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in fields.iter().filter(|f| new[**f] != old[**f]) {
        errors.push(FieldError::forbidden(*field, why));
    }
}

/// A diff of the fields of two specs.
pub(crate) fn diff(new: &Value, old: &Value) -> String {
    let mut lines = String::from("@@ spec @@");
    let names: std::collections::BTreeSet<&String> =
        [new, old].iter().filter_map(|v| v.as_object()).flat_map(|m| m.keys()).collect();
    for name in names.into_iter().filter(|n| new[n.as_str()] != old[n.as_str()]) {
        for (sign, spec) in [('-', old), ('+', new)] {
            if let Some(value) = spec.get(name) {
                lines.push_str(&format!("\n{sign} {name}: {value}"));
            }
        }
    }
    lines
}

/// Each complaint as an invalid value.
pub(crate) fn invalid(path: &str, value: &Value, complaints: Vec<String>, errors: &mut Errors) {
    errors.extend(complaints.into_iter().map(|c| FieldError::invalid(path, value.clone(), c)));
}

/// One of these, in the order in which upstream lists them.
pub(crate) fn one_of(path: &str, value: &Value, options: &[&str], errors: &mut Errors) {
    if !options.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, value.clone(), options));
    }
}

/// A duplicate shown as Go prints the struct, in the order of its fields.
pub(crate) fn duplicate_struct(path: &str, shown: &str, detail: &str) -> FieldError {
    let mut error = FieldError::duplicate(path, crate::status::verbatim(shown));
    error.detail = detail.into();
    error
}

pub(crate) fn is_cidr(text: &str) -> bool {
    let parse = || {
        let (ip, bits) = text.split_once('/')?;
        let ip: std::net::IpAddr = ip.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        Some(bits <= if ip.is_ipv4() { 32 } else { 128 })
    };
    parse().unwrap_or(false)
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
