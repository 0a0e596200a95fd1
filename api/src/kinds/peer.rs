//! Peers: what nodes have to know of each other, apart from the Node objects and their heartbeats. Amphipod's own kind.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::table::cells::{joined, or_none};
use crate::validate::{At, Errors, is_cidr};
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(peer),
    generation: Generation::Spec,
    cells: Some(|o, _| {
        let spec = &o["spec"];
        vec![
            ("Addresses", json!(joined(&spec["addresses"]))),
            ("PodCIDRs", json!(joined(&spec["podCIDRs"]))),
            ("Zone", json!(or_none(text(&spec["zone"]).to_owned()))),
        ]
    }),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn peer(object: &Value, errors: &mut Errors) {
    let spec = At::of(object, "spec");
    for address in spec.at("addresses").items() {
        if address.text().parse::<std::net::IpAddr>().is_err() {
            address.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", errors);
        }
    }
    for range in spec.at("podCIDRs").items() {
        if !is_cidr(range.text()) {
            range.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)", errors);
        }
    }
}
