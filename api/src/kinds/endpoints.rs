//! Endpoints: the older form of EndpointSlices.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Put};
use crate::default::set;
use crate::names;
use crate::status::FieldError;
use crate::table::cells::{at_most_three, or_none};
use crate::validate::meta::{ip, port_number, special_ip};
use crate::validate::{Errors, PROTOCOLS, invalid, one_of};
use crate::value::{items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(endpoints),
    defaults: &[("core.v1.EndpointPort", |m| set(m, "protocol", "TCP"))],
    generation: Generation::Client,
    put: Put::Creates,
    cells: Some(|o, _| vec![("Endpoints", json!(shown(o)))]),
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    missing: &[(Aspect::Warnings, "of addresses that are written in other forms")],
    ..DEFAULT
};

fn endpoints(object: &Value, errors: &mut Errors) {
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
        let count = items(&subset["ports"]).count();
        for (j, p) in items(&subset["ports"]).enumerate() {
            endpoint_port(p, count, &format!("{path}.ports[{j}]"), errors);
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

/// One of `count` ports: where there are more, each has a name.
fn endpoint_port(p: &Value, count: usize, path: &str, errors: &mut Errors) {
    match text(&p["name"]) {
        "" if count > 1 => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => invalid(&format!("{path}.name"), &p["name"], names::dns_label(name), errors),
    }
    port_number(&p["port"], &format!("{path}.port"), errors);
    one_of(&format!("{path}.protocol"), &p["protocol"], PROTOCOLS, errors);
}

/// `ip:port` pairs, three at most.
fn shown(object: &Value) -> String {
    let mut list = Vec::new();
    for subset in items(&object["subsets"]) {
        let ports: Vec<&Value> = items(&subset["ports"]).collect();
        for address in items(&subset["addresses"]) {
            let ip = text(&address["ip"]);
            if ports.is_empty() {
                list.push(ip.to_string());
            }
            list.extend(ports.iter().map(|p| format!("{ip}:{}", p["port"])));
        }
    }
    or_none(at_most_three(&list))
}
