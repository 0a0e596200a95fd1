//! Services, Endpoints, EndpointSlices and IPAddresses.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::config::{duplicate_struct, is_cidr};
use super::meta::{ip, port, port_number, special_ip};
use super::{Errors, invalid, items, one_of, text};
use crate::names;
use crate::status::FieldError;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub fn service(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let kind = text(&spec["type"]);
    let headless = text(&spec["clusterIP"]) == "None";
    if items(&spec["ports"]).next().is_none() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    by_type(spec, kind, errors);
    ports(spec, errors);
    for (key, value) in super::entries(&spec["selector"]) {
        invalid("spec.selector", &json!(key), names::qualified_name(key), errors);
        invalid("spec.selector", value, names::label_value(text(value)), errors);
    }
    affinity(spec, errors);
    for (i, ip) in items(&spec["clusterIPs"]).enumerate().filter(|(_, ip)| text(ip) != "None") {
        self::ip(ip, &format!("spec.clusterIPs[{i}]"), errors);
    }
    for (i, value) in items(&spec["externalIPs"]).enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        if let Some(address) = ip(value, &path, errors) {
            special_ip(address, value, &path, errors);
        }
    }
    families(spec, headless, errors);
    one_of("spec.type", &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    for (i, cidr) in items(&spec["loadBalancerSourceRanges"]).enumerate() {
        if !is_cidr(text(cidr).trim()) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("spec.LoadBalancerSourceRanges[{i}]"), cidr.clone(), why));
        }
    }
    policies(spec, kind, errors);
}

/// The cluster has IPv4 only; services that get no address may name both families.
fn families(spec: &Value, headless: bool, errors: &mut Errors) {
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    if headless && !selects {
        return;
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", why));
    }
    for (i, family) in items(&spec["ipFamilies"]).enumerate().filter(|(_, f)| **f == "IPv6") {
        errors.push(FieldError::invalid(
            format!("spec.ipFamilies[{i}]"),
            family.clone(),
            "not configured on this cluster",
        ));
    }
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

pub fn endpoints(object: &Value, errors: &mut Errors) {
    for (i, subset) in items(&object["subsets"]).enumerate() {
        let path = format!("subsets[{i}]");
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|l| items(&subset[*l]).next().is_none()) {
            errors.push(FieldError::required(&*path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in lists {
            for (j, address) in items(&subset[list]).enumerate() {
                endpoint_address(address, &format!("{path}.{list}[{j}]"), errors);
            }
        }
        let many = items(&subset["ports"]).count() > 1;
        for (j, p) in items(&subset["ports"]).enumerate() {
            endpoint_port(p, many, &format!("{path}.ports[{j}]"), errors);
        }
    }
}

fn endpoint_address(address: &Value, path: &str, errors: &mut Errors) {
    let ip_path = format!("{path}.ip");
    let found = ip(&address["ip"], &ip_path, errors);
    if !text(&address["hostname"]).is_empty() {
        invalid(
            &format!("{path}.hostname"),
            &address["hostname"],
            names::dns_label(text(&address["hostname"])),
            errors,
        );
    }
    if !text(&address["nodeName"]).is_empty() {
        invalid(
            &format!("{path}.nodeName"),
            &address["nodeName"],
            names::dns_subdomain(text(&address["nodeName"])),
            errors,
        );
    }
    match found {
        Some(found) => special_ip(found, &address["ip"], &ip_path, errors),
        None => errors.push(FieldError::invalid(ip_path, address["ip"].clone(), "must be a valid IP address")),
    }
}

fn endpoint_port(p: &Value, many: bool, path: &str, errors: &mut Errors) {
    match text(&p["name"]) {
        "" if many => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => invalid(&format!("{path}.name"), &p["name"], names::dns_label(name), errors),
    }
    port_number(&p["port"], &format!("{path}.port"), errors);
    one_of(&format!("{path}.protocol"), &p["protocol"], PROTOCOLS, errors);
}

pub fn endpoint_slice(object: &Value, errors: &mut Errors) {
    match text(&object["addressType"]) {
        "" => errors.push(FieldError::required("addressType", "")),
        kind => {
            one_of("addressType", &json!(kind), &["FQDN", "IPv4", "IPv6"], errors);
            slice_endpoints(object, kind, errors);
        }
    }
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, p) in items(&object["ports"]).enumerate() {
        let path = format!("ports[{i}]");
        let name = text(&p["name"]);
        if !name.is_empty() {
            invalid(&format!("{path}.name"), &p["name"], names::dns_label(name), errors);
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        seen.insert(name);
        one_of(&format!("{path}.protocol"), &p["protocol"], PROTOCOLS, errors);
    }
}

fn slice_endpoints(object: &Value, kind: &str, errors: &mut Errors) {
    for (i, endpoint) in items(&object["endpoints"]).enumerate() {
        let path = format!("endpoints[{i}]");
        if items(&endpoint["addresses"]).next().is_none() {
            errors.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
        }
        for (j, address) in items(&endpoint["addresses"]).enumerate() {
            slice_address(address, kind, &format!("{path}.addresses"), j, errors);
        }
        if !text(&endpoint["nodeName"]).is_empty() {
            let complaints = names::dns_subdomain(text(&endpoint["nodeName"]));
            invalid(&format!("{path}.nodeName"), &endpoint["nodeName"], complaints, errors);
        }
        if !text(&endpoint["hostname"]).is_empty() {
            invalid(
                &format!("{path}.hostname"),
                &endpoint["hostname"],
                names::dns_label(text(&endpoint["hostname"])),
                errors,
            );
        }
        for (j, zone) in items(&endpoint["hints"]["forZones"]).enumerate() {
            let path = format!("{path}.hints.forZones[{j}].name");
            let name = text(&zone["name"]);
            if !name.is_empty() {
                invalid(&path, &zone["name"], names::label_value(name), errors);
            }
        }
    }
}

fn slice_address(address: &Value, kind: &str, path: &str, index: usize, errors: &mut Errors) {
    let at = format!("{path}[{index}]");
    match kind {
        "FQDN" => invalid(&at, address, names::dns_subdomain(text(address)), errors),
        "IPv4" | "IPv6" => {
            let Some(found) = ip(address, &at, errors) else { return };
            if found.is_ipv4() != (kind == "IPv4") {
                let why = format!("must be an {kind} address");
                errors.push(FieldError::invalid(path, address.clone(), why));
            }
            special_ip(found, address, &at, errors);
        }
        _ => {}
    }
}

/// The name of an IPAddress is the address.
pub fn ip_name(name: &str) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        _ => vec!["not a valid ip in canonical format".into()],
    }
}

pub fn ip_address(object: &Value, errors: &mut Errors) {
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        errors.push(FieldError::required("spec.parentRef", ""));
        return;
    }
    for name in ["resource", "name"] {
        if text(&parent[name]).is_empty() {
            errors.push(FieldError::required(format!("spec.parentRef.{name}"), ""));
        }
    }
}
