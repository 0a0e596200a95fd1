//! What an update may change.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::meta::immutable;
use super::{Errors, body_check, items, text};
use crate::kind::Kind;
use crate::status::FieldError;

pub fn body(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value, errors: &mut Errors) {
    match (&*kind.group, &*kind.plural, subresource) {
        ("", "pods", None) => pod(new, old, errors),
        ("", "pods", Some("resize")) => resize(new, old, errors),
        ("", "pods", Some("ephemeralcontainers")) => ephemeral_containers(new, old, errors),
        ("", "pods", Some("status")) => pod_status(new, old, errors),
        ("", "services", Some("status")) => service_status(new, errors),
        (_, _, Some(_)) => {}
        ("", "services", None) => {
            service(new, old, errors);
            body_check(kind)(new, errors);
        }
        ("", "configmaps", None) => {
            // Upstream looks at a ConfigMap's metadata four times, and says so four times.
            super::meta::common(&new["metadata"], errors);
            super::meta::common(&new["metadata"], errors);
            frozen(new, old, &["data", "binaryData"], errors);
            body_check(kind)(new, errors);
        }
        ("", "secrets", None) => {
            frozen(new, old, &["data"], errors);
            immutable(&new["type"], &old["type"], "type", errors);
            body_check(kind)(new, errors);
        }
        ("apps", "deployments" | "replicasets", None) => {
            immutable(&new["spec"]["selector"], &old["spec"]["selector"], "spec.selector", errors);
            body_check(kind)(new, errors);
        }
        ("apps", "controllerrevisions", None) => {
            immutable(&new["data"], &old["data"], "data", errors);
            body_check(kind)(new, errors);
        }
        ("discovery.k8s.io", "endpointslices", None) => {
            if new["addressType"] == old["addressType"] {
                body_check(kind)(new, errors);
            }
            immutable(&new["addressType"], &old["addressType"], "addressType", errors);
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings", None) => {
            body_check(kind)(new, errors);
            if new["roleRef"] != old["roleRef"] {
                errors.push(FieldError::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef"));
            }
        }
        ("networking.k8s.io", "ipaddresses", None) => {
            immutable(&new["spec"]["parentRef"], &old["spec"]["parentRef"], "spec.parentRef", errors);
        }
        ("scheduling.k8s.io", "priorityclasses", None) => {
            for field in ["value", "preemptionPolicy"] {
                if new[field] != old[field] {
                    errors.push(FieldError::forbidden(field, "may not be changed in an update."));
                }
            }
        }
        _ => body_check(kind)(new, errors),
    }
}

/// `immutable: true` holds for good.
fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
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

fn service(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    let typed = |s: &Value| text(&s["type"]) != "ExternalName";
    let (ip, was) = (&spec["clusterIPs"][0], &before["clusterIPs"][0]);
    if typed(spec) && typed(before) && !was.is_null() && ip != was {
        let shown = if ip.is_null() { json!([]) } else { spec["clusterIPs"].clone() };
        errors.push(FieldError::invalid("spec.clusterIPs[0]", shown, "may not change once set"));
    }
}

/// What is dialled by others is an address, and no name that somebody could answer for.
fn pod_status(new: &Value, old: &Value, errors: &mut Errors) {
    if new["status"]["podIPs"] == old["status"]["podIPs"] && new["status"]["podIP"] == old["status"]["podIP"] {
        return;
    }
    for (index, ip) in items(&new["status"]["podIPs"]).enumerate() {
        super::meta::ip(&ip["ip"], &format!("status.podIPs[{index}]"), errors);
    }
    if !text(&new["status"]["podIP"]).is_empty() {
        super::meta::ip(&new["status"]["podIP"], "status.podIP", errors);
    }
}

fn service_status(new: &Value, errors: &mut Errors) {
    let list = &new["status"]["loadBalancer"]["ingress"];
    if items(list).next().is_some() && text(&new["spec"]["type"]) != "LoadBalancer" {
        let why = "may only be used when `spec.type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("status.loadBalancer.ingress", why));
    }
}

const POD_RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Images, a shorter deadline and more tolerations are all that a running pod takes.
fn pod(new: &Value, old: &Value, errors: &mut Errors) {
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
        errors.push(FieldError::forbidden("spec", format!("{POD_RULE}\n{}", changed(&new["spec"], &old["spec"]))));
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

/// What containers use may change, as long as it stays the same kind of pod.
fn resize(new: &Value, old: &Value, errors: &mut Errors) {
    let (now, was) = (crate::write::qos_class(new), crate::write::qos_class(old));
    if now != was {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", new["status"]["qosClass"].clone(), why));
    }
    let others = |pod: &Value| {
        let mut pod = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array_mut().into_iter().flatten() {
                container.as_object_mut().map(|map| map.remove("resizePolicy"));
                for amounts in ["limits", "requests"] {
                    let amounts = container["resources"].get_mut(amounts).and_then(Value::as_object_mut);
                    if let Some(map) = amounts {
                        map.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
                    }
                }
                // Nothing said about resources is the same as empty resources.
                let empty = |value: &Value| {
                    value.as_object().is_none_or(|map| map.values().all(|v| v.as_object().is_some_and(Map::is_empty)))
                };
                if empty(&container["resources"]) {
                    container.as_object_mut().map(|map| map.remove("resources"));
                }
            }
        }
        pod
    };
    if others(new) != others(old) {
        errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
    body_resources(new, errors);
}

/// What every container may ask for.
fn body_resources(pod: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&pod["spec"][list]).enumerate() {
            super::pod::resources(&container["resources"], &format!("spec.{list}[{i}].resources"), errors);
        }
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

/// A diff of the fields that changed.
fn changed(new: &Value, old: &Value) -> String {
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

fn ephemeral_containers(new: &Value, old: &Value, errors: &mut Errors) {
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
            changed(after.unwrap_or(&Value::Null), before)
        );
        errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
}
