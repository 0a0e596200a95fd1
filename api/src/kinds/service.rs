//! Services: ports at an address of their own; what they have beside what clients ask for, and what they keep or lose when their type changes.

mod addresses;
mod update;

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use self::update::Needs;

use self::addresses::is_headless;
use super::{Aspect, Behaviour, DEFAULT, Deletion, Generation, Part, Put, Shows};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::names;
use crate::selector::{Labels, field};
use crate::status::FieldError;
use crate::table::cells::{joined, or_none};
use crate::validate::meta::{ip, port, port_number, special_ip};
use crate::validate::{Errors, PROTOCOLS, duplicate_struct, invalid, is_cidr, one_of};
use crate::value::{entries, items, number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    name: names::dns_1035_label,
    validate: Some(service),
    validate_update: Some(|new, old, errors| {
        addresses::stay(new, old, errors);
        service(new, errors);
    }),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            service_status(new, errors);
        }
    }),
    defaults: &[("core.v1.Service", default)],
    generation: Generation::Client,
    create: Some(update::prepare_create),
    update: Some(update::update_service),
    put: Put::Creates,
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    selectable: &[field("spec.clusterIP"), field("spec.type")],
    cells: Some(cells),
    missing: &[(
        Aspect::Warnings,
        "of addresses that are written in other forms, and of fields that nothing reads any more",
    )],
    ..DEFAULT
};

fn service(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let kind = text(&spec["type"]);
    if items(&spec["ports"]).next().is_none() && !is_headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    by_type(spec, kind, errors);
    ports(spec, errors);
    for (key, value) in entries(&spec["selector"]) {
        invalid("spec.selector", &json!(key), names::qualified_name(key), errors);
        invalid("spec.selector", value, names::label_value(text(value)), errors);
    }
    affinity(spec, errors);
    for (i, value) in items(&spec["externalIPs"]).enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        if let Some(address) = ip(value, &path, errors) {
            special_ip(address, value, &path, errors);
        }
    }
    addresses::validate(spec, errors);
    one_of("spec.type", &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    for (i, cidr) in items(&spec["loadBalancerSourceRanges"]).enumerate() {
        if !is_cidr(text(cidr).trim()) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("spec.LoadBalancerSourceRanges[{i}]"), cidr.clone(), why));
        }
    }
    policies(spec, kind, errors);
}

fn by_type(spec: &Value, kind: &str, errors: &mut Errors) {
    let first_ip = &spec["clusterIPs"][0];
    match kind {
        "NodePort" | "LoadBalancer" if text(first_ip) == "None" => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", first_ip.clone(), why));
        }
        "ExternalName" => {
            if !first_ip.is_null() {
                errors.push(FieldError::forbidden("spec.clusterIPs[0]", "may not be set for ExternalName services"));
            }
            let name = text(&spec["externalName"]).trim_end_matches('.');
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                invalid("spec.externalName", &spec["externalName"], names::dns_subdomain(name), errors);
            }
        }
        _ => {}
    }
}

fn ports(spec: &Value, errors: &mut Errors) {
    let list: Vec<&Value> = items(&spec["ports"]).collect();
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, p) in list.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = text(&p["name"]);
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            invalid(&format!("{path}.name"), &p["name"], names::dns_label(name), errors);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            seen.insert(name);
        }
        port_number(&p["port"], &format!("{path}.port"), errors);
        one_of(&format!("{path}.protocol"), &p["protocol"], PROTOCOLS, errors);
        port(&p["targetPort"], &format!("{path}.targetPort"), errors);
        if !text(&p["appProtocol"]).is_empty() {
            invalid(
                &format!("{path}.appProtocol"),
                &p["appProtocol"],
                names::qualified_name(text(&p["appProtocol"])),
                errors,
            );
        }
    }
    if text(&spec["type"]) == "ClusterIP" {
        for (i, _) in list.iter().enumerate().filter(|(_, p)| p["nodePort"].as_i64().unwrap_or(0) != 0) {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(format!("spec.ports[{i}].nodePort"), why));
        }
    }
    let mut taken = HashSet::new();
    for (i, p) in list.iter().enumerate() {
        if !taken.insert((p["port"].as_i64(), text(&p["protocol"]))) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                p["protocol"], p["port"]
            );
            errors.push(duplicate_struct(&format!("spec.ports[{i}]"), &shown, ""));
        }
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"], errors);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if text(&spec["sessionAffinity"]) == "ClientIP" && timeout.as_i64().is_some_and(|n| n <= 0 || n > 86400) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(path, timeout.clone(), "must be greater than 0 and less than 86400"));
    }
}

fn policies(spec: &Value, kind: &str, errors: &mut Errors) {
    let external = &spec["externalTrafficPolicy"];
    let reachable = matches!(kind, "NodePort" | "LoadBalancer") || items(&spec["externalIPs"]).next().is_some();
    if !external.is_null() {
        if !reachable {
            let why = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid("spec.externalTrafficPolicy", external.clone(), why));
        } else {
            one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"], errors);
        }
    }
    let internal = &spec["internalTrafficPolicy"];
    if !internal.is_null() {
        one_of("spec.internalTrafficPolicy", internal, &["Cluster", "Local"], errors);
    }
    if !spec["trafficDistribution"].is_null() {
        let options = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        one_of("spec.trafficDistribution", &spec["trafficDistribution"], &options, errors);
    }
    if !spec["loadBalancerClass"].is_null() && kind != "LoadBalancer" {
        errors.push(FieldError::forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'"));
    }
}

fn service_status(new: &Value, errors: &mut Errors) {
    let list = &new["status"]["loadBalancer"]["ingress"];
    if items(list).next().is_some() && text(&new["spec"]["type"]) != "LoadBalancer" {
        let why = "may only be used when `spec.type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("status.loadBalancer.ingress", why));
    }
    for (i, ingress) in items(list).enumerate() {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let (address, mode) = (&ingress["ip"], &ingress["ipMode"]);
        if !text(address).is_empty() {
            ip(address, &format!("{path}.ip"), errors);
        }
        let path = format!("{path}.ipMode");
        match (text(address).is_empty(), mode.is_null()) {
            (false, true) => errors.push(FieldError::required(path, "must be specified when `ip` is set")),
            (true, false) => errors.push(FieldError::forbidden(path, "may not be specified when `ip` is not set")),
            (false, false) => one_of(&path, mode, &["Proxy", "VIP"], errors),
            (true, true) => {}
        }
    }
}

/// An address of a balancer is the nodes' own unless somebody says otherwise.
fn default_status(map: &mut Object) {
    if map.get("spec").is_none_or(|spec| text(&spec["type"]) != "LoadBalancer") {
        return;
    }
    let list = map.get_mut("status").and_then(|status| status.get_mut("loadBalancer")?.get_mut("ingress"));
    for ingress in list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        if !member(ingress, "ip").is_empty() {
            set_absent(ingress, "ipMode", "VIP");
        }
    }
}

fn default(map: &mut Object) {
    default_status(map);
    nested(map, "spec", |spec| {
        set(spec, "sessionAffinity", "None");
        match member(spec, "sessionAffinity") {
            "None" => {
                spec.remove("sessionAffinityConfig");
            }
            "ClientIP" => {
                let full = spec.get("sessionAffinityConfig").and_then(|c| c.get("clientIP")?.get("timeoutSeconds"));
                if full.is_none_or(Value::is_null) {
                    spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
                }
            }
            _ => {}
        }
        set(spec, "type", "ClusterIP");
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            service_port(port);
        }
        let kind = member(spec, "type").to_string();
        let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            set_absent(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_absent(spec, "allocateLoadBalancerNodePorts", true);
        }
    });
}

fn service_port(port: &mut Value) {
    let Some(port) = port.as_object_mut() else { return };
    set(port, "protocol", "TCP");
    if let Some(number) = port.get("port").cloned() {
        set(port, "targetPort", number);
    }
}

fn cells(service: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let spec = &service["spec"];
    let kind = text(&spec["type"]);
    let cluster_ip = or_none(text(&spec["clusterIP"]).into());
    let ports: Vec<String> = items(&spec["ports"])
        .map(|p| match number(&p["nodePort"]) {
            0 => format!("{}/{}", p["port"], text(&p["protocol"])),
            node => format!("{}:{node}/{}", p["port"], text(&p["protocol"])),
        })
        .collect();
    vec![
        ("Type", json!(kind)),
        ("Cluster-IP", json!(cluster_ip)),
        ("External-IP", json!(external_ip(service, kind))),
        ("Port(s)", json!(or_none(ports.join(",")))),
        ("Selector", json!(or_none(Labels::from_map(&spec["selector"]).to_string()))),
    ]
}

fn external_ip(service: &Value, kind: &str) -> String {
    let given = joined(&service["spec"]["externalIPs"]);
    match kind {
        "ExternalName" => text(&service["spec"]["externalName"]).into(),
        "LoadBalancer" => {
            let mut list: Vec<&str> = items(&service["status"]["loadBalancer"]["ingress"])
                .map(|i| if text(&i["ip"]).is_empty() { text(&i["hostname"]) } else { text(&i["ip"]) })
                .collect();
            list.extend(given.split(',').filter(|ip| !ip.is_empty()));
            if list.is_empty() { "<pending>".into() } else { list.join(",") }
        }
        _ => or_none(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balancers_address_is_the_nodes_own_unless_it_says_otherwise() {
        let with = |ingress: Value| {
            let mut service =
                json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [ingress]}}});
            default_status(service.as_object_mut().unwrap());
            let mut errors = Errors::default();
            service_status(&service, &mut errors);
            (service["status"]["loadBalancer"]["ingress"][0]["ipMode"].clone(), errors.len())
        };
        assert_eq!(with(json!({"ip": "192.0.2.7"})), (json!("VIP"), 0));
        assert_eq!(with(json!({"ip": "192.0.2.7", "ipMode": "Proxy"})), (json!("Proxy"), 0));
        assert_eq!(with(json!({"hostname": "a.example"})), (Value::Null, 0));
        for wrong in [
            json!({"ip": "192.0.2.7", "ipMode": "Other"}),
            json!({"hostname": "a.example", "ipMode": "VIP"}),
            json!({"ip": "nonsense"}),
        ] {
            assert_eq!(with(wrong.clone()).1, 1, "{wrong}");
        }
    }
}
