//! Metadata, labels, selectors and plain numbers.

use serde_json::{Value, json};

use super::{Errors, NameRule, invalid};
use crate::names;
use crate::scope::Scope;
use crate::status::{ErrorKind, FieldError, verbatim};
use crate::value::{entries, items, text};

const ANNOTATION_BYTES: usize = 256 * 1024;
pub const MANAGER_BYTES: usize = 128;
const SUBRESOURCE_BYTES: usize = 256;

/// Which finalizers an object may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalizers {
    /// Kubernetes' own, and those whose names say whose they are.
    Known,
    /// Of any name that is well formed.
    Any,
}

pub fn object(metadata: &Value, scope: Scope, rule: NameRule, finalizers: Finalizers, errors: &mut Errors) {
    let prefix = &metadata["generateName"];
    if !text(prefix).is_empty() {
        // A prefix may end in what a name may not.
        let stem = text(prefix).strip_suffix('-').map_or(text(prefix).to_string(), |s| format!("{s}a"));
        invalid("metadata.generateName", prefix, rule(&stem), errors);
    }
    if text(&metadata["name"]).is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        invalid("metadata.name", &metadata["name"], rule(text(&metadata["name"])), errors);
    }
    if scope == Scope::Namespaced {
        if text(&metadata["namespace"]).is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            invalid(
                "metadata.namespace",
                &metadata["namespace"],
                names::dns_label(text(&metadata["namespace"])),
                errors,
            );
        }
    }
    common(metadata, finalizers, errors);
}

/// What is checked on every write.
pub fn common(metadata: &Value, finalizers: Finalizers, errors: &mut Errors) {
    not_negative(&metadata["generation"], "metadata.generation", errors);
    labels(&metadata["labels"], "metadata.labels", errors);
    annotations(&metadata["annotations"], "metadata.annotations", errors);
    owners(&metadata["ownerReferences"], errors);
    for finalizer in items(&metadata["finalizers"]) {
        invalid("metadata.finalizers", finalizer, names::qualified_name(text(finalizer)), errors);
        if finalizers == Finalizers::Known && !is_known_finalizer(text(finalizer)) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("metadata.finalizers", finalizer.clone(), why));
        }
    }
    for (index, entry) in items(&metadata["managedFields"]).enumerate() {
        let path = format!("metadata.managedFields[{index}]");
        manager(text(&entry["manager"]), &format!("{path}.manager"), errors);
        if text(&entry["subresource"]).len() > SUBRESOURCE_BYTES {
            errors.push(FieldError::too_long(format!("{path}.subresource"), SUBRESOURCE_BYTES));
        }
    }
}

/// The name of whoever manages fields.
pub fn manager(name: &str, path: &str, errors: &mut Errors) {
    if name.len() > MANAGER_BYTES {
        errors.push(FieldError::too_long(path, MANAGER_BYTES));
    }
    for (at, odd) in name.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(odd));
        errors.push(FieldError::invalid(path, verbatim(&go_quoted(name)), why));
    }
}

/// As Go quotes a string with control characters.
fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

pub fn labels(labels: &Value, path: &str, errors: &mut Errors) {
    for (key, value) in entries(labels) {
        invalid(path, &json!(key), names::qualified_name(key), errors);
        invalid(path, value, names::label_value(text(value)), errors);
    }
}

fn annotations(annotations: &Value, path: &str, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(annotations) {
        invalid(path, &json!(key), names::qualified_name(&key.to_lowercase()), errors);
        size += key.len() + text(value).len();
    }
    if size > ANNOTATION_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATION_BYTES));
    }
}

fn owners(owners: &Value, errors: &mut Errors) {
    let path = "metadata.ownerReferences";
    let mut controllers = 0;
    for owner in items(owners) {
        let (group, version) = text(&owner["apiVersion"]).split_once('/').unwrap_or(("", text(&owner["apiVersion"])));
        if version.is_empty() || version.contains('/') {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                owner["apiVersion"].clone(),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(&owner[field]).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", "must not be empty"));
            }
        }
        if owner["kind"] == "Event" && matches!(group, "" | "events.k8s.io") {
            let why = format!("{group}/{version}, Kind=Event is disallowed from being an owner");
            errors.push(FieldError::invalid(path, owner.clone(), why));
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(path, owners.clone(), "Only one reference can have Controller set to true"));
    }
}

/// One of Kubernetes' own, or one whose name says whose it is.
pub fn is_known_finalizer(name: &str) -> bool {
    name.contains('/') || matches!(name, "orphan" | "foregroundDeletion" | "kubernetes")
}

pub fn update(new: &Value, old: &Value, errors: &mut Errors) {
    if !old["deletionTimestamp"].is_null() {
        let known: std::collections::HashSet<&str> = items(&old["finalizers"]).map(text).collect();
        let added: Vec<&str> =
            items(&new["finalizers"]).map(text).filter(|finalizer| !known.contains(finalizer)).collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", why));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        immutable(&new[field], &old[field], &format!("metadata.{field}"), errors);
    }
}

pub fn immutable(new: &Value, old: &Value, path: &str, errors: &mut Errors) {
    if new != old {
        errors.push(FieldError::invalid(path, new.clone(), "field is immutable"));
    }
}

pub fn not_negative(value: &Value, path: &str, errors: &mut Errors) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

pub fn between(value: &Value, low: i64, high: i64, path: &str, errors: &mut Errors) {
    if value.as_i64().is_some_and(|n| n < low || n > high) {
        errors.push(FieldError::invalid(path, value.clone(), format!("must be between {low} and {high}, inclusive")));
    }
}

pub fn port_number(value: &Value, path: &str, errors: &mut Errors) {
    let number = if value.is_null() { json!(0) } else { value.clone() };
    between(&number, 1, 65535, path, errors);
}

/// A port by number or name.
pub fn port(value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::String(name) => invalid(path, value, names::port_name(name), errors),
        _ => port_number(value, path, errors),
    }
}

pub fn selector(selector: &Value, path: &str, errors: &mut Errors) {
    labels(&selector["matchLabels"], &format!("{path}.matchLabels"), errors);
    for (i, term) in items(&selector["matchExpressions"]).enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(&term["values"]).count();
        match text(&term["operator"]) {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                term["operator"].clone(),
                "not a valid selector operator",
            )),
        }
        let key = if term["key"].is_null() { json!("") } else { term["key"].clone() };
        invalid(&format!("{path}.key"), &key, names::qualified_name(text(&key)), errors);
        for (j, value) in items(&term["values"]).enumerate() {
            invalid(&format!("{path}.values[{j}]"), value, names::label_value(text(value)), errors);
        }
    }
}

/// An address that services and endpoints may have.
pub fn ip(value: &Value, path: &str, errors: &mut Errors) -> Option<std::net::IpAddr> {
    match text(value).parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::new(ErrorKind::Invalid, path, text(value), why));
            None
        }
    }
}

/// Addresses that no endpoint can have.
pub fn special_ip(ip: std::net::IpAddr, value: &Value, path: &str, errors: &mut Errors) {
    let multicast = match ip {
        std::net::IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    let link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    for (wrong, why) in [
        (ip.is_unspecified(), format!("may not be unspecified ({ip})")),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()),
    ] {
        if wrong {
            errors.push(FieldError::invalid(path, value.clone(), why));
        }
    }
}
