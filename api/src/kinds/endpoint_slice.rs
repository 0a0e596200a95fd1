//! EndpointSlices: where a Service leads to.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::default::set_absent;
use crate::names;
use crate::status::FieldError;
use crate::table::cells::at_most_three;
use crate::validate::meta::{immutable, ip, special_ip};
use crate::validate::{Errors, PROTOCOLS, invalid, one_of};
use crate::value::{items, number, plain, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(endpoint_slice),
    validate_update: Some(|new, old, errors| {
        if new["addressType"] == old["addressType"] {
            endpoint_slice(new, errors);
        }
        immutable(&new["addressType"], &old["addressType"], "addressType", errors);
    }),
    defaults: &[("discovery.v1.EndpointPort", |m| {
        set_absent(m, "name", "");
        set_absent(m, "protocol", "TCP");
    })],
    generation: Generation::Body,
    cells: Some(cells),
    missing: &[
        (Aspect::Validation, "limits on how many addresses, ports and hints there are"),
        (Aspect::Warnings, "of addresses that are written in other forms"),
    ],
    ..DEFAULT
};

fn endpoint_slice(object: &Value, errors: &mut Errors) {
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

fn cells(slice: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let ports: Vec<String> = items(&slice["ports"])
        .map(|p| match number(&p["port"]) {
            0 => text(&p["name"]).to_string(),
            port => port.to_string(),
        })
        .collect();
    let ports = if slice["ports"].is_null() { "<unset>".into() } else { at_most_three(&ports) };
    let addresses: Vec<String> = items(&slice["endpoints"]).flat_map(|e| items(&e["addresses"])).map(plain).collect();
    let addresses = if addresses.is_empty() { "<unset>".into() } else { at_most_three(&addresses) };
    vec![("AddressType", slice["addressType"].clone()), ("Ports", json!(ports)), ("Endpoints", json!(addresses))]
}
