//! Each node gets a part of the pods' range, or of each where pods have addresses of both families.
//!
//! The view says which parts seem free ([`parts`]); that no two nodes get one is the API's part, which claims a range in the write
//! that gives it. A choice that somebody else made too is refused there, and another is made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::events::{EventType, Reference};
use client::{Caches, Kept, Key};
use ipnetwork::IpNetwork;
use serde_json::json;

use super::given::{Account, Given};
use super::runtime::{Action, Controller, Failure, Plan, Queue};
use super::views::{NODES, Node};
use parts::Parts;

mod parts;

pub struct NodeIpam {
    /// Those of each family, in the order in which nodes name theirs.
    parts: Arc<Mutex<Vec<Parts>>>,
}

fn lock(parts: &Mutex<Vec<Parts>>) -> MutexGuard<'_, Vec<Parts>> {
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const ACCOUNT: Account = Account::Service("node-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>()];

    fn new(given: &Given) -> Self {
        Self { parts: Arc::new(Mutex::new(given.facts.pods.iter().copied().map(Parts::new).collect())) }
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let (queue, nodes, parts) = (queue.clone(), Arc::downgrade(&caches.of::<Node>()), self.parts.clone());
        caches.of::<Node>().on_change(move |old, new| {
            let Some(node) = new.or(old) else { return };
            let ranges = new.map(|node| node.spec.pod_cidrs.iter().filter_map(|range| range.parse().ok()));
            let ranges = ranges.map(Iterator::collect::<Vec<IpNetwork>>);
            for parts in lock(&parts).iter_mut() {
                parts.set(&node.metadata.meta.name, ranges.as_deref());
            }
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
        let choose = || lock(&self.parts).iter_mut().map(|parts| parts.choose(&key.name)).collect();
        node.map(|node| plan(&node, choose())).unwrap_or_default()
    }

    fn failed(&self, key: &Key, _: &Caches, _: &Failure) -> Plan {
        lock(&self.parts).iter_mut().for_each(|parts| parts.give_back(&key.name));
        Plan::new()
    }
}

fn plan(node: &Node, free: Option<Vec<IpNetwork>>) -> Plan {
    let meta = &node.metadata.meta;
    let Some(ranges) = free else {
        let message = format!("Node {} status is now: CIDRNotAvailable", meta.name);
        let about = Reference::new("v1", "Node", meta);
        return vec![Action::Event { about, type_: EventType::Normal, reason: "CIDRNotAvailable", message }];
    };
    let ranges: Vec<String> = ranges.iter().map(IpNetwork::to_string).collect();
    vec![Action::Patch {
        resource: NODES,
        key: Key::of(meta),
        subresource: "",
        version: Some(meta.resource_version.clone()),
        patch: json!({"spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}}),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn plans_are_as_agreed() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}})).unwrap();
        super::super::golden::check(
            "node-ipam",
            &[
                ("a free part", plan(&node, Some(vec![cidr("10.244.1.0/24")]))),
                ("one of each family", plan(&node, Some(vec![cidr("10.244.1.0/24"), cidr("fd00:10:244:1::/64")]))),
                ("none", plan(&node, None)),
            ],
        );
    }
}
