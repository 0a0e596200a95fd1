//! What Services have beside what clients ask for, and what they keep or lose when their type changes.

use serde_json::{Map, Value, json};

use crate::default::text;
use crate::write::section;

/// What a Service on an IPv4 cluster has besides its address: family, policy, and `clusterIP` beside `clusterIPs`.
/// Part of [`prepare_create`]; call it again after an update that made the service need an address.
pub fn service_families(service: &mut Value) {
    let spec = section(service, "spec");
    if text(spec, "type") == "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(name);
        }
        return;
    }
    if let (Some(ip), None) = (spec.get("clusterIP").filter(|ip| **ip != json!("")).cloned(), spec.get("clusterIPs")) {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
    let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    let dual = text(spec, "clusterIP") == "None" && !selects;
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!(if dual { "RequireDualStack" } else { "SingleStack" }));
    let families = if dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
    spec.entry("ipFamilies").or_insert(families);
}

/// An update that leaves allocated values out keeps them, and one that changes the type loses what the new type lacks.
pub fn update_service(new: &mut Map<String, Value>, old: &Value) {
    let external = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let (kind, before) = (text(new, "type").to_string(), old["type"].as_str().unwrap_or_default());
    if kind != "ExternalName" && before != "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let absent = new.get(name).is_none_or(|v| v.is_null() || *v == json!(""));
            if let (true, Some(value)) = (absent, old.get(name)) {
                new.insert(name.into(), value.clone());
            }
        }
    }
    // Whoever changes only the first address means the list too.
    if new.get("clusterIP") != old.get("clusterIP") && new.get("clusterIPs") == old.get("clusterIPs") {
        match new.get("clusterIP").cloned() {
            Some(ip) => new.insert("clusterIPs".into(), json!([ip])),
            None => new.remove("clusterIPs"),
        };
    }
    if external(&kind) && external(before) {
        keep_node_ports(new, old);
    }
    if external(before) && !external(&kind) {
        for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let had = old["ports"].as_array().into_iter().flatten().any(|o| o["nodePort"] == port["nodePort"]);
            if let (true, Some(port)) = (had, port.as_object_mut()) {
                port.remove("nodePort");
            }
        }
        if new.get("externalIPs").is_none() && new.get("externalTrafficPolicy") == old.get("externalTrafficPolicy") {
            new.remove("externalTrafficPolicy");
        }
    }
    if kind == "ExternalName" && before != "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if new.get(name) == old.get(name) {
                new.remove(name);
            }
        }
    }
    if before == "LoadBalancer" && kind != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if new.get(name) == old.get(name) {
                new.remove(name);
            }
        }
    }
}

/// A port that names no node port keeps the one it had.
fn keep_node_ports(new: &mut Map<String, Value>, old: &Value) {
    for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let before = old["ports"].as_array().into_iter().flatten().find(same).and_then(|o| o.get("nodePort")).cloned();
        if let (None, Some(number)) = (port.get("nodePort"), before) {
            port["nodePort"] = number;
        }
    }
}
