//! The ranges of nodes' pods: claimed in the same transaction that gives a node its range, freed in the one that removes
//! the node.
//!
//! A claim is a create-only key, so two servers cannot give one range twice, whoever chooses it; and none is lost, because
//! there is no moment at which it exists without its node.

use api::status::Status;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::Engine;
use crate::object::{Collection, Encoded, Header, INTERNAL, ObjectKey};
use crate::store::{Expect, Write};

/// Ranges in use: keys of a collection that no kind shows. Each holds the name of its node.
fn claims() -> Collection {
    Collection::new(INTERNAL, "podranges")
}

/// A prefix without the slash that keys are cut at.
fn key(range: &IpNetwork) -> ObjectKey {
    ObjectKey::new("", &format!("{}-{}", range.network(), range.prefix()))
}

fn of_key(name: &str) -> Option<IpNetwork> {
    let (network, prefix) = name.rsplit_once('-')?;
    IpNetwork::new(network.parse().ok()?, prefix.parse().ok()?).ok()
}

fn ranges(node: &Value) -> Vec<IpNetwork> {
    let all = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
    all.filter_map(|range| range.as_str()?.parse().ok()).collect()
}

fn name(node: &Value) -> &str {
    node["metadata"]["name"].as_str().unwrap_or_default()
}

fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

impl Engine {
    /// The writes that claim what a node has by now and free what it had. Also for a node that had its range before there
    /// were claims: its next write makes up for it.
    pub(super) fn claim_ranges(&self, old: Option<&Value>, node: &Value) -> Result<Vec<Write>, Status> {
        let (now, before) = (ranges(node), old.map(ranges).unwrap_or_default());
        let mut writes = Vec::new();
        for range in &now {
            writes.extend(self.claim(range, name(node))?);
        }
        let gone = before.iter().filter(|range| !now.contains(range));
        writes.extend(gone.filter_map(|range| self.free_range(range, name(node))));
        Ok(writes)
    }

    pub(super) fn free_ranges(&self, node: &Value) -> Vec<Write> {
        ranges(node).iter().filter_map(|range| self.free_range(range, name(node))).collect()
    }

    fn claim(&self, range: &IpNetwork, node: &str) -> Result<Option<Write>, Status> {
        if self.holder(range).is_some_and(|holder| holder == node) {
            return Ok(None);
        }
        let all = self.cache().collection(&claims()).list("").objects;
        let taken = all.iter().find_map(|claim| {
            let other = of_key(claim.key.name()).filter(|other| overlap(range, other))?;
            let holder = claim.value()["node"].as_str().unwrap_or_default().to_owned();
            (holder != node).then_some((other, holder))
        });
        if let Some((other, holder)) = taken {
            let why = format!("the pod range {range} overlaps {other}, which node {holder:?} has");
            return Err(Status::conflict("", "nodes", node, &why));
        }
        let (key, object) = (key(range), json!({"metadata": {"name": key(range).name()}, "node": node}));
        Ok(Some(Write::put(claims(), key, Expect::Absent, Encoded::new(&object), Header::default())))
    }

    fn holder(&self, range: &IpNetwork) -> Option<String> {
        let claim = self.cache().collection(&claims()).get(&key(range))?;
        claim.value()["node"].as_str().map(str::to_owned)
    }

    fn free_range(&self, range: &IpNetwork, node: &str) -> Option<Write> {
        let key = key(range);
        let found = self.cache().collection(&claims()).get(&key)?;
        (found.value()["node"] == node).then(|| Write::remove(claims(), key, found.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_found_by_its_range() {
        for text in ["10.244.3.0/24", "fd00:10:244::/64"] {
            let range: IpNetwork = text.parse().unwrap();
            assert_eq!(of_key(key(&range).name()), Some(range));
        }
        assert_eq!(of_key("10.244.0.0"), None);
    }

    #[test]
    fn ranges_overlap_where_one_holds_the_other() {
        let at = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert!(
            overlap(&at("10.244.0.0/16"), &at("10.244.7.0/24")) && overlap(&at("10.244.7.0/24"), &at("10.244.0.0/16"))
        );
        assert!(!overlap(&at("10.244.6.0/24"), &at("10.244.7.0/24")));
    }
}
