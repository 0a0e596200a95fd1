//! NetworkPolicies.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::default::set_absent;
use crate::names;
use crate::table::cells::selector;
use crate::validate::{At, Errors, is_cidr};
use crate::value::items;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| policy(&At::of(object, "spec"), errors)),
    defaults: &[
        ("networking.v1.NetworkPolicyPort", |m| set_absent(m, "protocol", "TCP")),
        ("networking.v1.NetworkPolicySpec", |m| {
            let list = |m: &crate::default::Object, field: &str| {
                m.get(field).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
            };
            if !list(m, "policyTypes") {
                let both = list(m, "egress");
                m.insert("policyTypes".into(), if both { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
            }
        }),
    ],
    generation: Generation::Spec,
    cells: Some(|o, _| vec![("Pod-Selector", json!(selector(&o["spec"]["podSelector"])))]),
    inactive: Some("no traffic is restricted"),
    missing: &[(Aspect::Warnings, "of ranges that are written in other forms")],
    ..DEFAULT
};

fn policy(spec: &At<'_>, errors: &mut Errors) {
    spec.at("podSelector").selector(errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(direction).items() {
            rule.at("ports").items().for_each(|port| self::port(&port, errors));
            rule.at(peers).items().for_each(|peer| self::peer(&peer, errors));
        }
    }
    let types = spec.at("policyTypes");
    if items(types.value).len() > 2 {
        return types.invalid("may not specify more than two policyTypes", errors);
    }
    types.items().for_each(|name| name.one_of(&["Ingress", "Egress"], errors));
}

fn port(port: &At<'_>, errors: &mut Errors) {
    port.at("protocol").one_of_if_given(&["TCP", "UDP", "SCTP"], errors);
    let (from, to) = (port.at("port"), port.at("endPort"));
    match from.value {
        Value::Null if to.is_given() => to.invalid("may not be specified when `port` is not specified", errors),
        Value::Null => {}
        Value::String(_) => {
            if to.is_given() {
                to.invalid("may not be specified when `port` is non-numeric", errors);
            }
            from.named(names::port_name, errors);
        }
        _ => {
            from.port_number(errors);
            if to.number() < from.number() && to.is_given() {
                to.invalid_as(from.value.clone(), "must be greater than or equal to `port`", errors);
            }
            if to.is_given() {
                to.port_number(errors);
            }
        }
    }
}

fn peer(peer: &At<'_>, errors: &mut Errors) {
    let (pods, namespaces, block) = (peer.at("podSelector"), peer.at("namespaceSelector"), peer.at("ipBlock"));
    pods.selector(errors);
    namespaces.selector(errors);
    if block.is_given() {
        ip_block(&block, errors);
    }
    match (pods.is_given() || namespaces.is_given(), block.is_given()) {
        (false, false) => peer.required("must specify a peer", errors),
        (true, true) => peer.forbidden("may not specify both ipBlock and another peer", errors),
        _ => {}
    }
}

fn ip_block(block: &At<'_>, errors: &mut Errors) {
    let cidr = block.at("cidr");
    if cidr.is_empty() {
        return cidr.required("", errors);
    }
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some(whole) = range(cidr.text()) else { return cidr.invalid(why, errors) };
    for except in block.at("except").items() {
        match range(except.text()) {
            None => except.invalid(why, errors),
            Some(part) if !is_part(part, whole) => {
                except.invalid("must be a strict subset of `cidr`", errors);
            }
            Some(_) => {}
        }
    }
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/').filter(|_| is_cidr(text))?;
    Some((ip.parse().ok()?, bits.parse().ok()?))
}

/// A range within another, and smaller.
fn is_part((ip, bits): (IpAddr, u8), (whole, size): (IpAddr, u8)) -> bool {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, true),
        IpAddr::V6(ip) => (ip.to_bits(), false),
    };
    let ((ip, four), (whole, other)) = (wide(ip), wide(whole));
    let mask = u128::MAX.checked_shl(128 - u32::from(size)).unwrap_or(0);
    four == other && bits > size && ip & mask == whole & mask
}
