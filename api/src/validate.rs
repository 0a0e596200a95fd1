//! Validation: everything wrong with an object, in upstream's order and words.
//!
//! What a kind's own fields have to be is in its file of [`crate::kinds`]; here is what kinds share.

pub(crate) mod amount;
mod at;
pub(crate) mod conditions;
mod errors;
pub mod inactive;
pub(crate) mod internal;
pub(crate) mod meta;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod volumes;
mod warn;
pub(crate) mod workload;

use serde_json::Value;

pub(crate) use self::at::{At, one_source};
pub use self::errors::{Errors, NameRule};
pub(crate) use self::errors::{
    MAX_BYTES, PROTOCOLS, Unknown, decoded, diff, duplicate_struct, frozen, invalid, is_cidr, one_of,
};
pub use self::meta::{MANAGER_BYTES, manager};
pub use self::warn::warnings;

use crate::custom;
use crate::kind::{Kind, Part};
use crate::status::FieldError;

/// Everything wrong with a new object; metadata first.
pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::object(&object["metadata"], kind.scope, kind.behaviour.name, finalizers(kind), &mut errors);
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
