//! A Peer per node: what other nodes have to know of it, said by the server, so no node says where others' pods are.
//!
//! It changes only when an address, a range or the zone does: who watches peers hears of no heartbeat.

use api::view::{Peer, PeerSpec};
use client::views::PEERS;
use client::{Caches, Kept, Key};
use serde_json::json;

use super::given::{Account, Given};
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::Node;

pub struct Peers;

impl Controller for Peers {
    const NAME: &'static str = "peer-controller";
    const ACCOUNT: Account = Account::Service("peer-controller");
    const READS: &'static [Kept] = &[Kept::of::<Node>(), Kept::of::<Peer>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let nodes = queue.clone();
        caches.of::<Node>().on_change(move |old, new| {
            // Heartbeats of nodes are no news.
            if old.map(spec) != new.map(spec)
                && let Some(node) = new.or(old)
            {
                nodes.add(Key::of(&node.metadata.meta));
            }
        });
        let peers = queue.clone();
        caches.of::<Peer>().on_change(move |old, new| {
            if let Some(peer) = new.or(old) {
                peers.add(Key::of(&peer.metadata));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let (node, peer) = (caches.of::<Node>().get("", &key.name), caches.of::<Peer>().get("", &key.name));
        plan(key, node.as_deref().map(spec), peer.as_deref())
    }
}

fn spec(node: &Node) -> PeerSpec {
    let own = node.status.addresses.iter().filter(|address| address.type_ == "InternalIP");
    PeerSpec {
        addresses: own.map(|address| address.address.clone()).collect(),
        pod_cidrs: node.spec.pod_cidrs.clone(),
        tunnel_key: String::new(),
        zone: node.zone().to_owned(),
    }
}

fn plan(key: &Key, wanted: Option<PeerSpec>, found: Option<&Peer>) -> Plan {
    match (wanted, found) {
        (None, None) => Plan::new(),
        (None, Some(peer)) => {
            let uid = Some(peer.metadata.uid.clone());
            vec![Action::Delete { resource: PEERS, key: key.clone(), uid, propagation: None }]
        }
        (Some(spec), None) => {
            let object = json!({"apiVersion": "node.amphipod.io/v1", "kind": "Peer", "metadata": {"name": key.name}, "spec": spec});
            vec![Action::Create { resource: PEERS, namespace: String::new(), object, announce: None }]
        }
        (Some(spec), Some(peer)) if peer.spec == spec => Plan::new(),
        (Some(spec), Some(_)) => vec![Action::Patch {
            resource: PEERS,
            key: key.clone(),
            subresource: "",
            version: None,
            // Whole: what is not said any more goes.
            patch: json!({"spec": {"addresses": spec.addresses, "podCIDRs": spec.pod_cidrs, "tunnelKey": spec.tunnel_key, "zone": spec.zone}}),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_as_agreed() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"}]},
        }))
        .unwrap();
        let spec = spec(&node);
        let peer = |spec: &PeerSpec| Peer { spec: spec.clone(), ..Peer::default() };
        let plan = |wanted: Option<&PeerSpec>, found: Option<PeerSpec>| {
            plan(&Key::new("", "n"), wanted.cloned(), found.as_ref().map(peer).as_ref())
        };
        super::super::golden::check(
            "peers",
            &[
                ("a new node", plan(Some(&spec), None)),
                ("known", plan(Some(&spec), Some(spec.clone()))),
                ("another address", plan(Some(&spec), Some(PeerSpec::default()))),
                ("a node that is gone", plan(None, Some(spec.clone()))),
                ("nothing", plan(None, None)),
            ],
        );
    }
}
