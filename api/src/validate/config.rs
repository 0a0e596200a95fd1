//! ConfigMaps, Secrets, Namespaces, Nodes, Leases, Events and ControllerRevisions.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::meta::not_negative;
use super::{Errors, entries, invalid, items, one_of, text};
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

const MAX_BYTES: usize = 1024 * 1024;

pub fn config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(&object["data"]) {
        let path = format!("data[{key}]");
        invalid(&path, &json!(key), names::config_key(key), errors);
        if object["binaryData"].get(key).is_some() {
            errors.push(FieldError::invalid(path, key.clone(), "duplicate of key present in binaryData"));
        }
        size += text(value).len();
    }
    for (key, value) in entries(&object["binaryData"]) {
        invalid(&format!("binaryData[{key}]"), &json!(key), names::config_key(key), errors);
        size += decoded(value).len();
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("[]", MAX_BYTES));
    }
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).unwrap_or_default()
}

pub fn secret(object: &Value, errors: &mut Errors) {
    let data = &object["data"];
    let mut size = 0;
    for (key, value) in entries(data) {
        invalid(&format!("data[{key}]"), &json!(key), names::config_key(key), errors);
        size += decoded(value).len();
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("data", MAX_BYTES));
    }
    let required = |key: &str, errors: &mut Errors| {
        if data.get(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(&object["type"]) {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(&object["metadata"]["annotations"][key]).is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{key}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            required("username", errors);
            required("password", errors);
        }
        "kubernetes.io/ssh-auth" if decoded(&data["ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => {
            required("tls.crt", errors);
            required("tls.key", errors);
        }
        _ => {}
    }
}

/// The file must be a JSON object; what it holds is never shown.
fn docker(data: &Value, key: &str, errors: &mut Errors) {
    let path = format!("data[{key}]");
    let Some(value) = data.get(key) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let why = match crate::decode::json::parse(&decoded(value)) {
        Ok(node) if matches!(node.go_kind(), "object" | "null") => return,
        Ok(node) => {
            format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", node.go_kind())
        }
        Err(why) => why,
    };
    errors.push(FieldError::invalid(path, "<secret contents redacted>", why));
}

pub fn namespace(object: &Value, errors: &mut Errors) {
    for finalizer in items(&object["spec"]["finalizers"]) {
        invalid("spec.finalizers", finalizer, names::qualified_name(text(finalizer)), errors);
        if !text(finalizer).contains('/') && text(finalizer) != "kubernetes" {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("spec.finalizers", finalizer.clone(), why));
        }
    }
}

pub fn node(object: &Value, errors: &mut Errors) {
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for (i, taint) in items(&object["spec"]["taints"]).enumerate() {
        let path = format!("metadata.taints[{i}]");
        let key = if taint["key"].is_null() { json!("") } else { taint["key"].clone() };
        invalid(&format!("{path}.key"), &key, names::qualified_name(text(&key)), errors);
        invalid(&format!("{path}.value"), &taint["value"], names::label_value(text(&taint["value"])), errors);
        one_of(&format!("{path}.effect"), &taint["effect"], &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        let pair = (text(&taint["key"]), text(&taint["effect"]));
        if seen.contains(&pair) {
            let shown = format!(
                "Duplicate value: {{\"Key\":{:?},\"Value\":{:?},\"Effect\":{:?},\"TimeAdded\":null}}",
                pair.0,
                text(&taint["value"]),
                pair.1
            );
            errors.push(duplicate_struct(
                &path,
                &shown["Duplicate value: ".len()..],
                "taints must be unique by key and effect pair",
            ));
        }
        seen.insert(pair);
    }
    for list in ["capacity", "allocatable"] {
        for (name, amount) in entries(&object["status"][list]) {
            if Quantity::parse(text(amount)).is_ok_and(Quantity::is_negative) {
                let path = format!("status.{list}.{name}");
                errors.push(FieldError::invalid(path, amount.clone(), "must be greater than or equal to 0"));
            }
        }
    }
    for (i, cidr) in items(&object["spec"]["podCIDRs"]).enumerate() {
        if !is_cidr(text(cidr)) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("spec.podCIDRs[{i}]"), cidr.clone(), why));
        }
    }
}

/// A duplicate shown as Go prints the struct, in the order of its fields.
pub fn duplicate_struct(path: &str, shown: &str, detail: &str) -> FieldError {
    let mut error = FieldError::duplicate(path, crate::status::verbatim(shown));
    error.detail = detail.into();
    error
}

pub fn is_cidr(text: &str) -> bool {
    let parse = || {
        let (ip, bits) = text.split_once('/')?;
        let ip: std::net::IpAddr = ip.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        Some(bits <= if ip.is_ipv4() { 32 } else { 128 })
    };
    parse().unwrap_or(false)
}

pub fn lease(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        ));
    }
    not_negative(&spec["leaseTransitions"], "spec.leaseTransitions", errors);
}

pub fn event(object: &Value, errors: &mut Errors) {
    let involved = &object["involvedObject"]["namespace"];
    let namespace = text(&object["metadata"]["namespace"]);
    let fits = text(involved) == namespace || (text(involved).is_empty() && namespace == "default");
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", text(involved), "does not match event.namespace"));
    }
}

/// The newer group is stricter about events that are its own (those with an event time).
pub fn new_event(object: &Value, errors: &mut Errors) {
    if object["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let controller =
        if object["reportingController"].is_null() { json!("") } else { object["reportingController"].clone() };
    if text(&controller).is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    invalid("reportingController", &controller, names::qualified_name(text(&controller)), errors);
    for name in ["reportingInstance", "action", "reason"] {
        let limit = 128;
        if text(&object[name]).is_empty() {
            errors.push(FieldError::required(name, ""));
        } else if text(&object[name]).len() > limit {
            errors.push(FieldError::invalid(name, "", format!("can have at most {limit} characters")));
        }
    }
    if !matches!(text(&object["type"]), "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {}", text(&object["type"]))));
    }
}

pub fn controller_revision(object: &Value, errors: &mut Errors) {
    if object["data"].is_null() {
        errors.push(FieldError::required("data", "data is mandatory"));
    }
    not_negative(&object["revision"], "revision", errors);
}
