//! Roles and bindings.

use serde_json::Value;

use super::{Errors, items, one_of, text};
use crate::status::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn role(object: &Value, namespaced: bool, errors: &mut Errors) {
    for (i, rule) in items(&object["rules"]).enumerate() {
        let path = format!("rules[{i}]");
        let has = |name: &str| items(&rule[name]).next().is_some();
        if !has("verbs") {
            errors.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            let refused = if namespaced {
                Some("namespaced rules cannot apply to non-resource URLs")
            } else if has("apiGroups") || has("resources") || has("resourceNames") {
                Some("rules cannot apply to both regular resources and non-resource URLs")
            } else {
                None
            };
            if let Some(why) = refused {
                errors.push(FieldError::invalid(
                    format!("{path}.nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    why,
                ));
            }
            continue;
        }
        if !has("apiGroups") {
            errors.push(FieldError::required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if !has("resources") {
            errors.push(FieldError::required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

pub fn binding(object: &Value, namespaced: bool, errors: &mut Errors) {
    let role = &object["roleRef"];
    if text(&role["apiGroup"]) != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", role["apiGroup"].clone(), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of("roleRef.kind", &Value::from(text(&role["kind"])), kinds, errors);
    name(&role["name"], "roleRef.name", errors);
    for (i, subject) in items(&object["subjects"]).enumerate() {
        subject_of(subject, namespaced, &format!("subjects[{i}]"), errors);
    }
}

fn name(value: &Value, path: &str, errors: &mut Errors) {
    if text(value).is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        super::invalid(path, value, crate::names::path_segment(text(value)), errors);
    }
}

fn subject_of(subject: &Value, namespaced: bool, path: &str, errors: &mut Errors) {
    if text(&subject["name"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    }
    let group = |wanted: &str, errors: &mut Errors| {
        if text(&subject["apiGroup"]) != wanted {
            let given = Value::from(text(&subject["apiGroup"]));
            errors.push(FieldError::not_supported(format!("{path}.apiGroup"), given, &[wanted]));
        }
    };
    match text(&subject["kind"]) {
        "ServiceAccount" => {
            let complaints = crate::names::dns_subdomain(text(&subject["name"]));
            if !text(&subject["name"]).is_empty() {
                super::invalid(&format!("{path}.name"), &subject["name"], complaints, errors);
            }
            group("", errors);
            if !namespaced && text(&subject["namespace"]).is_empty() {
                errors.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" => group(GROUP, errors),
        other => {
            errors.push(FieldError::not_supported(format!("{path}.kind"), other, &["ServiceAccount", "User", "Group"]))
        }
    }
}
