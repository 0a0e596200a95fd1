//! Each node gets a part of the pods' range.
//!
//! The view says which parts seem free; that no two nodes get one is the API's part, which claims a range in the write that
//! gives it. A choice that somebody else made too is refused there, and made again.

use std::net::Ipv4Addr;

use client::events::{EventType, Reference};
use client::{Caches, Kept, Key};
use ipnetwork::Ipv4Network;
use serde_json::json;
use thiserror::Error;

use super::runtime::{Action, Controller, Plan, Queue};
use super::table::{Account, Given};
use super::views::{NODES, Node};

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

    /// The first part that overlaps none of these.
    fn free(&self, taken: &[Ipv4Network]) -> Option<Ipv4Network> {
        let (base, bits) = (u32::from(self.cluster.network()), 32 - self.node);
        let place = |address: Ipv4Addr| (u32::from(address).checked_sub(base)? >> bits).try_into().ok();
        let mut used = vec![false; 1 << (self.node - self.cluster.prefix())];
        for range in taken.iter().filter(|range| self.cluster.overlaps(**range)) {
            let first: usize = place(range.network()).unwrap_or(0);
            let last = place(range.broadcast()).map_or(used.len(), |last: usize| last + 1).min(used.len());
            used.get_mut(first..last).into_iter().flatten().for_each(|place| *place = true);
        }
        let free = u32::try_from(used.iter().position(|used| !used)?).ok()?;
        Ipv4Network::new(Ipv4Addr::from(base + (free << bits)), self.node).ok()
    }
}

pub struct NodeIpam {
    ranges: PodRanges,
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const ACCOUNT: Account = Account::Service("node-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>()];

    fn new(given: &Given) -> Self {
        Self { ranges: given.facts.pods }
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let (queue, nodes) = (queue.clone(), std::sync::Arc::downgrade(&caches.of::<Node>()));
        caches.of::<Node>().on_change(move |old, new| match new {
            Some(node) if node.spec.pod_cidrs.is_empty() => queue.add(Key::of(&node.metadata.meta)),
            Some(_) => {}
            // A part came free: those that wait for one may have it.
            None if old.is_some_and(|gone| !gone.spec.pod_cidrs.is_empty()) => {
                let all = nodes.upgrade().map(|nodes| nodes.all()).unwrap_or_default();
                let waiting = all.iter().filter(|node| node.spec.pod_cidrs.is_empty());
                waiting.for_each(|node| queue.add(Key::of(&node.metadata.meta)));
            }
            None => {}
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let nodes = caches.of::<Node>();
        let Some(node) = nodes.get("", &key.name).filter(|node| node.spec.pod_cidrs.is_empty()) else {
            return Plan::new();
        };
        let taken: Vec<Ipv4Network> =
            nodes.all().iter().flat_map(|node| &node.spec.pod_cidrs).filter_map(|range| range.parse().ok()).collect();
        plan(&node, self.ranges.free(&taken))
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
    fn the_first_free_part_is_given() {
        let ranges = PodRanges::new(cidr("10.244.0.0/22"), None).unwrap();
        let free = |taken: &[&str]| ranges.free(&taken.iter().map(|text| cidr(text)).collect::<Vec<_>>());
        assert_eq!(free(&[]), Some(cidr("10.244.0.0/24")));
        assert_eq!(free(&["10.244.0.0/24", "10.244.2.0/24"]), Some(cidr("10.244.1.0/24")));
        assert_eq!(free(&["10.244.0.0/23", "10.244.2.128/25"]), Some(cidr("10.244.3.0/24")), "parts of other sizes");
        assert_eq!(free(&["10.244.0.0/16"]), None);
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
