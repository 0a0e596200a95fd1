//! Ephemeral containers: for looking into a pod, so without what pods rely on.

use std::collections::HashSet;

use serde_json::Value;

use super::super::Errors;
use super::container::{common, unique};
use crate::status::FieldError;
use crate::value::{entries, items, text};

const WHY: &str = "cannot be set for an Ephemeral Container";
/// What only other containers have, in the order of their fields.
const FOREIGN: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

pub(super) fn containers(spec: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let others = || items(&spec["containers"]).chain(items(&spec["initContainers"])).map(|other| text(&other["name"]));
    let mut seen: HashSet<&str> = others().collect();
    for (i, container) in items(&spec["ephemeralContainers"]).enumerate() {
        let path = format!("{path}.ephemeralContainers[{i}]");
        common(container, spec, &path, volumes, errors);
        unique(container, &path, &mut seen, errors);
        let target = text(&container["targetContainerName"]);
        if !target.is_empty() && others().all(|other| other != target) {
            errors.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        let foreign = FOREIGN.iter().filter(|field| is_set(field, &container[**field]));
        errors.extend(foreign.map(|field| FieldError::forbidden(format!("{path}.{field}"), WHY)));
        // They are bind mounts, which outlast the container.
        for (i, mount) in items(&container["volumeMounts"]).enumerate() {
            for field in ["subPath", "subPathExpr"].iter().filter(|field| !text(&mount[**field]).is_empty()) {
                errors.push(FieldError::forbidden(format!("{path}.volumeMounts[{i}].{field}"), WHY));
            }
        }
    }
}

/// `resources: {}` says nothing, and defaults write it.
fn is_set(field: &str, value: &Value) -> bool {
    match field {
        "resources" => entries(value).any(|(_, value)| !value.is_null()),
        _ => !value.is_null(),
    }
}
