//! Nodes: what machines say of themselves.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, FirstStatus, Generation};
use crate::names;
use crate::quantity::Quantity;
use crate::selector::field;
use crate::status::FieldError;
use crate::table::cells::{NONE, or_none};
use crate::validate::{Errors, duplicate_struct, invalid, is_cidr, one_of};
use crate::value::{entries, items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(node),
    defaults: &[
        ("core.v1.NodeStatus", |m| {
            if let (Some(capacity), None) = (m.get("capacity").cloned(), m.get("allocatable")) {
                m.insert("allocatable".into(), capacity);
            }
        }),
        ("core.v1.NodeSpec", |m| match (m.get("podCIDR").cloned(), m.get("podCIDRs").cloned()) {
            (Some(one), None) => {
                m.insert("podCIDRs".into(), json!([one]));
            }
            (None, Some(Value::Array(many))) if !many.is_empty() => {
                m.insert("podCIDR".into(), many[0].clone());
            }
            _ => {}
        }),
    ],
    generation: Generation::Client,
    first_status: FirstStatus::Sent,
    selectable: &[field("spec.unschedulable").or("false")],
    cells: Some(cells),
    missing: &[
        (Aspect::Validation, "images, addresses and the configuration source of a node"),
        (Aspect::Warnings, "of old labels and of fields that nothing reads any more"),
    ],
    ..DEFAULT
};

fn node(object: &Value, errors: &mut Errors) {
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

fn cells(node: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&node["spec"], &node["status"]);
    let ready = items(&status["conditions"]).find(|c| c["type"] == "Ready").map(|c| c["status"] == "True");
    let mut shown = vec![match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }];
    if spec["unschedulable"] == true {
        shown.push("SchedulingDisabled");
    }
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = items(&status["addresses"]).find(|a| a["type"] == kind).map(|a| text(&a["address"]));
        json!(found.unwrap_or(NONE))
    };
    let info = |name: &str| json!(or_unknown(text(&status["nodeInfo"][name])));
    vec![
        ("Status", json!(shown.join(","))),
        ("Roles", json!(or_none(roles.join(",")))),
        ("Version", status["nodeInfo"]["kubeletVersion"].clone()),
        ("Internal-IP", address("InternalIP")),
        ("External-IP", address("ExternalIP")),
        ("OS-Image", info("osImage")),
        ("Kernel-Version", info("kernelVersion")),
        ("Container-Runtime", info("containerRuntimeVersion")),
    ]
}

fn or_unknown(shown: &str) -> &str {
    if shown.is_empty() { "<unknown>" } else { shown }
}
