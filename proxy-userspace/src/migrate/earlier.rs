//! What layout 1 held of services, which cannot be had element by element: its sets were made of addresses, not of places.
//!
//! Frontends, slots and backends are read together and laid out anew, so that services go on until their first contents come. Who
//! stuck to which endpoint is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use proxy_common::{Affinity, Scope, Slot};

use super::MigrateError;
use crate::desired::{Contents, EndpointSet, Entry, Frontend, Target};
use crate::layout::{Raw, pin_name};
use crate::object::Pins;
use crate::sys::RawMap;

pub(crate) const LAYOUT: u32 = 1;

/// The services of layout 1, one for each slot, for it knew no names.
pub(crate) fn services(pins: &Pins) -> Result<Contents, MigrateError> {
    let frontends = elements(pins, "FRONTENDS")?;
    let slots = words(&elements(pins, "SLOTS")?);
    let backends = words(&elements(pins, "BACKENDS")?);
    let affinities = words(&elements(pins, "AFFINITY_OF")?);
    let mut by_slot: BTreeMap<u32, Vec<Frontend>> = BTreeMap::new();
    for (frontend, slot) in frontends.iter().filter_map(frontend) {
        by_slot.entry(slot).or_default().push(frontend);
    }
    let entry = |(number, frontends): (u32, Vec<Frontend>)| {
        let slot = Slot::from_bits(slots.get(&number).copied().unwrap_or_default());
        let places = slot.base..slot.base + u32::from(slot.count);
        let mut targets: Vec<Target> =
            places.filter_map(|place| backends.get(&place)).map(|bits| target(*bits)).collect();
        targets.sort();
        let affinity = Affinity::from_bits(affinities.get(&number).copied().unwrap_or_default());
        let set = EndpointSet {
            backends: targets,
            flags: slot.flags,
            affinity_seconds: affinity.seconds,
            ..Default::default()
        };
        let Frontend { port, protocol, .. } = frontends[0];
        (format!("layout 1/{number}"), vec![Entry { port, protocol, frontends, set }])
    };
    Ok(by_slot.into_iter().map(entry).collect())
}

fn elements(pins: &Pins, map: &'static str) -> Result<Vec<Raw>, MigrateError> {
    let path = pins.maps().join(pin_name(LAYOUT, map));
    let read = RawMap::open(&path, 1).and_then(|map| map.entries());
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| MigrateError::Carry { map, from: LAYOUT, to: LAYOUT + 1, source }),
    }
}

/// Index → word of an array.
fn words(elements: &[Raw]) -> HashMap<u32, u64> {
    let word = |raw: &Raw| {
        let word = u64::from_ne_bytes(raw.value[..].try_into().ok()?);
        (word != 0).then_some((u32::from_ne_bytes(raw.key[..].try_into().ok()?), word))
    };
    elements.iter().filter_map(word).collect()
}

/// Address, port, protocol, scope → slot in the lower half.
fn frontend(raw: &Raw) -> Option<(Frontend, u32)> {
    let [a, b, c, d, high, low, protocol, scope] = raw.key[..].try_into().ok()?;
    let slot = u64::from_ne_bytes(raw.value[..].try_into().ok()?) as u32;
    let scope = [Scope::Internal, Scope::External].into_iter().find(|known| *known as u8 == scope)?;
    let addr = IpAddr::from([a, b, c, d]);
    Some((Frontend { addr, port: u16::from_be_bytes([high, low]), protocol, scope }, slot))
}

/// An address in the lower half of the word and a port above it, both as on the wire.
fn target(bits: u64) -> Target {
    let ip = Ipv4Addr::from((bits as u32).to_ne_bytes());
    Target { ip: ip.into(), port: u16::from_be((bits >> 32) as u16) }
}
