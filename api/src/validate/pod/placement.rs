//! Where a pod may run: node selectors, affinity, spreading, tolerations, gates.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::meta::{labels, selector};
use super::super::{Errors, invalid, one_of};
use crate::names;
use crate::status::FieldError;
use crate::value::{items, text};

pub fn labels_of_nodes(map: &Value, path: &str, errors: &mut Errors) {
    labels(map, path, errors);
}

pub fn affinity(affinity: &Value, path: &str, errors: &mut Errors) {
    let node = &affinity["nodeAffinity"];
    let at = format!("{path}.nodeAffinity");
    let required = &node["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_null() {
        let path = format!("{at}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        if items(&required["nodeSelectorTerms"]).next().is_none() {
            errors.push(FieldError::required(&*path, "must have at least one node selector term"));
        }
        for (i, term) in items(&required["nodeSelectorTerms"]).enumerate() {
            node_term(term, &format!("{path}[{i}]"), errors);
        }
    }
    for (i, term) in items(&node["preferredDuringSchedulingIgnoredDuringExecution"]).enumerate() {
        let path = format!("{at}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
        weight(term, &path, errors);
        node_term(&term["preference"], &format!("{path}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&affinity[kind], &format!("{path}.{kind}"), errors);
    }
}

fn weight(term: &Value, path: &str, errors: &mut Errors) {
    if !(1..=100).contains(&term["weight"].as_i64().unwrap_or(0)) {
        errors.push(FieldError::invalid(
            format!("{path}.weight"),
            term["weight"].clone(),
            "must be in the range 1-100",
        ));
    }
}

pub fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for (i, rule) in items(&term["matchExpressions"]).enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(&rule["values"]).count();
        match text(&rule["operator"]) {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), why));
            }
            "Gt" | "Lt" if values != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                rule["operator"].clone(),
                "not a valid selector operator",
            )),
        }
        invalid(&format!("{path}.key"), &rule["key"], names::qualified_name(text(&rule["key"])), errors);
    }
    for (i, rule) in items(&term["matchFields"]).enumerate() {
        node_field(rule, &format!("{path}.matchFields[{i}]"), errors);
    }
}

/// A node's name is all that is chosen by field.
fn node_field(rule: &Value, path: &str, errors: &mut Errors) {
    match text(&rule["operator"]) {
        "In" | "NotIn" if items(&rule["values"]).count() == 1 => {}
        "In" | "NotIn" => {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(format!("{path}.values"), why));
        }
        other => {
            errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"));
        }
    }
    match text(&rule["key"]) {
        "metadata.name" => {
            for (i, value) in items(&rule["values"]).enumerate() {
                invalid(&format!("{path}.values[{i}]"), value, names::dns_subdomain(text(value)), errors);
            }
        }
        key => errors.push(FieldError::invalid(format!("{path}.key"), key, "not a valid field selector key")),
    }
}

fn pod_affinity(affinity: &Value, path: &str, errors: &mut Errors) {
    for (i, term) in items(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]).enumerate() {
        pod_term(term, &format!("{path}.requiredDuringSchedulingIgnoredDuringExecution[{i}]"), errors);
    }
    for (i, term) in items(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]).enumerate() {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
        weight(term, &path, errors);
        pod_term(&term["podAffinityTerm"], &format!("{path}.podAffinityTerm"), errors);
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut Errors) {
    selector(&term["labelSelector"], &format!("{path}.labelSelector"), errors);
    selector(&term["namespaceSelector"], &format!("{path}.namespaceSelector"), errors);
    for (i, namespace) in items(&term["namespaces"]).enumerate() {
        invalid(&format!("{path}.namespaces[{i}]"), namespace, names::dns_label(text(namespace)), errors);
    }
    let path = format!("{path}.topologyKey");
    let key = text(&term["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(&*path, "can not be empty"));
    }
    invalid(&path, &json!(key), names::qualified_name(key), errors);
}

pub fn gates(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, gate) in items(&spec["schedulingGates"]).enumerate() {
        let name = text(&gate["name"]);
        let path = format!("{path}.schedulingGates[{i}]");
        invalid(&path, &gate["name"], names::qualified_name(name), errors);
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, name));
        }
        seen.insert(name);
    }
    if !seen.is_empty() && !text(&spec["nodeName"]).is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(format!("{path}.nodeName"), why));
    }
}

pub fn spread(constraints: &Value, path: &str, errors: &mut Errors) {
    for (i, constraint) in items(constraints).enumerate() {
        let path = format!("{path}[{i}]");
        if constraint["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                constraint["maxSkew"].clone(),
                "must be greater than zero",
            ));
        }
        if text(&constraint["topologyKey"]).is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let options = ["DoNotSchedule", "ScheduleAnyway"];
        one_of(&format!("{path}.whenUnsatisfiable"), &constraint["whenUnsatisfiable"], &options, errors);
        selector(&constraint["labelSelector"], &format!("{path}.labelSelector"), errors);
    }
}

pub fn tolerations(tolerations: &Value, path: &str, errors: &mut Errors) {
    for (i, toleration) in items(tolerations).enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if !key.is_empty() {
            invalid(&format!("{path}.key"), &toleration["key"], names::qualified_name(key), errors);
        }
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
        }
        if !toleration["tolerationSeconds"].is_null() && text(&toleration["effect"]) != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), text(&toleration["effect"]), why));
        }
        match operator {
            "Equal" | "" => {
                invalid(
                    &format!("{path}.operator"),
                    &toleration["value"],
                    names::label_value(text(&toleration["value"])),
                    errors,
                );
            }
            "Exists" => {
                if !text(&toleration["value"]).is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(format!("{path}.operator"), toleration["value"].clone(), why));
                }
            }
            other => errors.push(FieldError::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"])),
        }
        if !text(&toleration["effect"]).is_empty() {
            let options = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(&format!("{path}.effect"), &toleration["effect"], &options, errors);
        }
    }
}
