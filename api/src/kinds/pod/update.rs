//! What an update of a pod may change.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::status::FieldError;
use crate::validate::{Errors, diff, meta};
use crate::value::{items, text};

/// What is dialled by others is an address, and no name that somebody could answer for.
pub fn pod_status(new: &Value, old: &Value, errors: &mut Errors) {
    if new["status"]["podIPs"] == old["status"]["podIPs"] && new["status"]["podIP"] == old["status"]["podIP"] {
        return;
    }
    for (index, ip) in items(&new["status"]["podIPs"]).enumerate() {
        meta::ip(&ip["ip"], &format!("status.podIPs[{index}]"), errors);
    }
    if !text(&new["status"]["podIP"]).is_empty() {
        meta::ip(&new["status"]["podIP"], "status.podIP", errors);
    }
}

const POD_RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Images, a shorter deadline and more tolerations are all that a running pod takes.
pub fn pod(new: &Value, old: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&new["spec"][list]).enumerate() {
            if text(&container["image"]).is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{i}].image"), ""));
            }
        }
    }
    let path = "spec.activeDeadlineSeconds";
    match (new["spec"]["activeDeadlineSeconds"].as_i64(), old["spec"]["activeDeadlineSeconds"].as_i64()) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(FieldError::invalid(path, n, "must be between 0 and 2147483647, inclusive"));
            return;
        }
        (Some(n), Some(before)) if n > before => {
            errors.push(FieldError::invalid(path, n, "must be less than or equal to previous value"));
            return;
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(path, Value::Null, "must not update from a positive integer to nil value"));
            return;
        }
        _ => {}
    }
    gates(new, old, errors);
    let tolerations = |pod: &Value| -> HashSet<String> { items(&pod["spec"]["tolerations"]).map(toleration).collect() };
    let kept = tolerations(old).is_subset(&tolerations(new));
    if !kept || allowed(new) != allowed(old) {
        errors.push(FieldError::forbidden("spec", format!("{POD_RULE}\n{}", diff(&new["spec"], &old["spec"]))));
    }
}

/// A gate may go and none may come: the pod may be running already.
fn gates(new: &Value, old: &Value, errors: &mut Errors) {
    let had: HashSet<&str> = items(&old["spec"]["schedulingGates"]).map(|gate| text(&gate["name"])).collect();
    let added =
        items(&new["spec"]["schedulingGates"]).enumerate().filter(|(_, gate)| !had.contains(text(&gate["name"])));
    for (i, gate) in added {
        let why = format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
        errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}]"), why));
    }
}

/// What makes two tolerations the same one.
fn toleration(toleration: &Value) -> String {
    json!(["key", "operator", "value", "effect"].map(|field| &toleration[field])).to_string()
}

/// A spec without what may change.
fn allowed(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(map) = spec.as_object_mut() {
        map.remove("activeDeadlineSeconds");
        map.remove("tolerations");
        // A gate may go, and while one stands the pod may be narrowed.
        map.remove("schedulingGates");
        if pod["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) {
            map.insert("terminationGracePeriodSeconds".into(), json!(1));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = json!("");
        }
    }
    spec
}

pub fn ephemeral_containers(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = &new["spec"];
    let mut names: HashSet<&str> =
        items(&spec["containers"]).chain(items(&spec["initContainers"])).map(|c| text(&c["name"])).collect();
    for (i, container) in items(&spec["ephemeralContainers"]).enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        let name = text(&container["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        names.insert(name);
        if text(&container["image"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.image"), ""));
        }
    }
    let now: HashMap<&str, &Value> = items(&spec["ephemeralContainers"]).map(|c| (text(&c["name"]), c)).collect();
    for before in items(&old["spec"]["ephemeralContainers"]) {
        let after = now.get(text(&before["name"])).copied();
        let verdict = match after {
            None => "removed",
            Some(after) if after != before => "changed",
            _ => continue,
        };
        let why = format!(
            "existing ephemeral containers {:?} may not be {verdict}\n{}",
            text(&before["name"]),
            diff(after.unwrap_or(&Value::Null), before)
        );
        errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
}
