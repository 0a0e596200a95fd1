//! Each node gets a part of the pods' range.
//!
//! The view says which parts seem free ([`parts`]); that no two nodes get one is the API's part, which claims a range in the write
//! that gives it. A choice that somebody else made too is refused there, and another is made.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::events::{EventType, Reference};
use client::{Caches, Kept, Key};
use ipnetwork::Ipv4Network;
use serde_json::json;
use thiserror::Error;

use super::runtime::{Action, Controller, Failure, Plan, Queue};
use super::table::{Account, Given};
use super::views::{NODES, Node};
use parts::Parts;

mod parts;

/// The most bits by which a node's part may be longer than the whole, as upstream has it.
const MOST_BITS: u8 = 16;
/// What an agent can still divide among pods.
const LONGEST: u8 = 30;

/// All pods' addresses, and how they are cut into nodes' parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRanges {
    cluster: Ipv4Network,
    /// Prefix bits of a node's part.
    node: u8,
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("/{node} is no part of {cluster} for a node: from /{} to /{} are", cluster.prefix(), most(*cluster))]
pub struct BadPart {
    cluster: Ipv4Network,
    node: u8,
}

fn most(cluster: Ipv4Network) -> u8 {
    LONGEST.min(cluster.prefix().saturating_add(MOST_BITS))
}

impl PodRanges {
    /// Upstream's size of a part, unless the whole is smaller.
    const USUAL: u8 = 24;

    pub fn new(cluster: Ipv4Network, node: Option<u8>) -> Result<Self, BadPart> {
        let node = node.unwrap_or(Self::USUAL.max(cluster.prefix()));
        if (cluster.prefix()..=most(cluster)).contains(&node) {
            Ok(Self { cluster, node })
        } else {
            Err(BadPart { cluster, node })
        }
    }

    #[cfg(test)]
    pub fn usual() -> Self {
        let cluster = Ipv4Network::new([10, 244, 0, 0].into(), 16).unwrap();
        Self { cluster, node: Self::USUAL }
    }

    /// How many parts there are.
    fn count(&self) -> usize {
        1 << (self.node - self.cluster.prefix())
    }

    /// The parts that a range lies in; none where it lies elsewhere.
    fn places(&self, range: Ipv4Network) -> Range<usize> {
        if !self.cluster.overlaps(range) {
            return 0..0;
        }
        let (base, bits) = (u32::from(self.cluster.network()), 32 - self.node);
        let place = |address: Ipv4Addr| (u32::from(address).saturating_sub(base) >> bits) as usize;
        place(range.network())..(place(range.broadcast()) + 1).min(self.count())
    }

    fn part(&self, place: usize) -> Option<Ipv4Network> {
        let first = u32::try_from(place).ok()? << (32 - self.node);
        Ipv4Network::new(Ipv4Addr::from(u32::from(self.cluster.network()) + first), self.node).ok()
    }
}

pub struct NodeIpam {
    parts: Arc<Mutex<Parts>>,
}

fn lock(parts: &Mutex<Parts>) -> MutexGuard<'_, Parts> {
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const ACCOUNT: Account = Account::Service("node-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>()];

    fn new(given: &Given) -> Self {
        Self { parts: Arc::new(Mutex::new(Parts::new(given.facts.pods))) }
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let (queue, nodes, parts) = (queue.clone(), Arc::downgrade(&caches.of::<Node>()), self.parts.clone());
        caches.of::<Node>().on_change(move |old, new| {
            let Some(node) = new.or(old) else { return };
            let ranges = new.map(|node| node.spec.pod_cidrs.iter().filter_map(|range| range.parse().ok()));
            let ranges = ranges.map(Iterator::collect::<Vec<Ipv4Network>>);
            lock(&parts).set(&node.metadata.meta.name, ranges.as_deref());
            match new {
                Some(node) if node.spec.pod_cidrs.is_empty() => queue.add(Key::of(&node.metadata.meta)),
                Some(_) => {}
                // A part came free: those that wait for one may have it.
                None if old.is_some_and(|gone| !gone.spec.pod_cidrs.is_empty()) => {
                    let all = nodes.upgrade().map(|nodes| nodes.all()).unwrap_or_default();
                    let waiting = all.iter().filter(|node| node.spec.pod_cidrs.is_empty());
                    waiting.for_each(|node| queue.add(Key::of(&node.metadata.meta)));
                }
                None => {}
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let node = caches.of::<Node>().get("", &key.name).filter(|node| node.spec.pod_cidrs.is_empty());
        node.map(|node| plan(&node, lock(&self.parts).choose(&key.name))).unwrap_or_default()
    }

    fn failed(&self, key: &Key, _: &Caches, _: &Failure) -> Plan {
        lock(&self.parts).give_back(&key.name);
        Plan::new()
    }
}

fn plan(node: &Node, free: Option<Ipv4Network>) -> Plan {
    let meta = &node.metadata.meta;
    let Some(range) = free else {
        let message = format!("Node {} status is now: CIDRNotAvailable", meta.name);
        let about = Reference::new("v1", "Node", meta);
        return vec![Action::Event { about, type_: EventType::Normal, reason: "CIDRNotAvailable", message }];
    };
    vec![Action::Patch {
        resource: NODES,
        key: Key::of(meta),
        subresource: "",
        version: Some(meta.resource_version.clone()),
        patch: json!({"spec": {"podCIDR": range.to_string(), "podCIDRs": [range.to_string()]}}),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn parts_fit_into_the_whole() {
        let node = |cluster: &str, mask| PodRanges::new(cidr(cluster), mask).map(|ranges| ranges.node);
        assert_eq!((node("10.244.0.0/16", None), node("10.244.0.0/26", None)), (Ok(24), Ok(26)));
        assert_eq!(node("10.0.0.0/8", Some(24)), Ok(24));
        for (cluster, mask) in [("10.244.0.0/16", 15), ("10.244.0.0/16", 31), ("10.0.0.0/8", 25)] {
            assert!(node(cluster, Some(mask)).is_err(), "{cluster} /{mask}");
        }
        let error = node("10.244.0.0/16", Some(15)).unwrap_err().to_string();
        assert_eq!(error, "/15 is no part of 10.244.0.0/16 for a node: from /16 to /30 are");
    }

    #[test]
    fn plans_are_as_agreed() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}})).unwrap();
        super::super::golden::check(
            "node-ipam",
            &[("a free part", plan(&node, Some(cidr("10.244.1.0/24")))), ("none", plan(&node, None))],
        );
    }
}
