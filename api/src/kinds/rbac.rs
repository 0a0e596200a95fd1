//! Roles and bindings.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Put};
use crate::default::set;
use crate::names::path_segment;
use crate::status::FieldError;
use crate::validate::{Errors, invalid, one_of};
use crate::value::{items, text};

const COMMON: Behaviour = Behaviour {
    name: path_segment,
    generation: Generation::Client,
    put: Put::Creates,
    none: &[Aspect::Warnings],
    ..DEFAULT
};

pub const ROLE: Behaviour = Behaviour {
    validate: Some(|o, e| role(o, Reach::Namespace, e)),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..COMMON
};
pub const CLUSTER_ROLE: Behaviour = Behaviour {
    validate: Some(|o, e| role(o, Reach::Cluster, e)),
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[(Aspect::Validation, "selectors of the aggregation rule")],
    ..COMMON
};
pub const ROLE_BINDING: Behaviour = Behaviour {
    validate: Some(|o, e| binding(o, Reach::Namespace, e)),
    validate_update: Some(|new, old, errors| {
        binding(new, Reach::Namespace, errors);
        role_stays(new, old, errors);
    }),
    defaults: &[
        ("rbac.v1.RoleRef", |m| set(m, "apiGroup", "rbac.authorization.k8s.io")),
        ("rbac.v1.Subject", |m| {
            if matches!(crate::default::text(m, "kind"), "User" | "Group") {
                set(m, "apiGroup", "rbac.authorization.k8s.io");
            }
        }),
    ],
    cells: Some(cells),
    ..COMMON
};
pub const CLUSTER_ROLE_BINDING: Behaviour = Behaviour {
    validate: Some(|o, e| binding(o, Reach::Cluster, e)),
    validate_update: Some(|new, old, errors| {
        binding(new, Reach::Cluster, errors);
        role_stays(new, old, errors);
    }),
    cells: Some(cells),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..COMMON
};

/// Where what a role or binding grants holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Namespace,
    Cluster,
}

fn role_stays(new: &Value, old: &Value, errors: &mut Errors) {
    if new["roleRef"] != old["roleRef"] {
        errors.push(FieldError::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef"));
    }
}

const GROUP: &str = "rbac.authorization.k8s.io";

fn role(object: &Value, reach: Reach, errors: &mut Errors) {
    for (i, rule) in items(&object["rules"]).enumerate() {
        let path = format!("rules[{i}]");
        let has = |name: &str| items(&rule[name]).next().is_some();
        if !has("verbs") {
            errors.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            let refused = if reach == Reach::Namespace {
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

fn binding(object: &Value, reach: Reach, errors: &mut Errors) {
    let role = &object["roleRef"];
    if text(&role["apiGroup"]) != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", role["apiGroup"].clone(), &[GROUP]));
    }
    let kinds: &[&str] = if reach == Reach::Namespace { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of("roleRef.kind", &Value::from(text(&role["kind"])), kinds, errors);
    name(&role["name"], "roleRef.name", errors);
    for (i, subject) in items(&object["subjects"]).enumerate() {
        subject_of(subject, reach, &format!("subjects[{i}]"), errors);
    }
}

fn name(value: &Value, path: &str, errors: &mut Errors) {
    if text(value).is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        invalid(path, value, path_segment(text(value)), errors);
    }
}

fn subject_of(subject: &Value, reach: Reach, path: &str, errors: &mut Errors) {
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
                invalid(&format!("{path}.name"), &subject["name"], complaints, errors);
            }
            group("", errors);
            if reach == Reach::Cluster && text(&subject["namespace"]).is_empty() {
                errors.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" => group(GROUP, errors),
        other => {
            errors.push(FieldError::not_supported(format!("{path}.kind"), other, &["ServiceAccount", "User", "Group"]))
        }
    }
}

fn cells(binding: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let role = &binding["roleRef"];
    let of = |kind: &str| {
        let names: Vec<String> = items(&binding["subjects"])
            .filter(|s| s["kind"] == kind)
            .map(|s| match (kind, text(&s["namespace"])) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(&s["name"])),
                _ => text(&s["name"]).to_string(),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        ("Role", json!(format!("{}/{}", text(&role["kind"]), text(&role["name"])))),
        ("Users", of("User")),
        ("Groups", of("Group")),
        ("ServiceAccounts", of("ServiceAccount")),
    ]
}
