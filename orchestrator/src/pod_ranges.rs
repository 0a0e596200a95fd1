//! All pods' addresses, and how they are cut into nodes' parts.

use std::net::Ipv4Addr;
use std::ops::Range;

use ipnetwork::Ipv4Network;
use thiserror::Error;

/// The most bits by which a node's part may be longer than the whole, as upstream has it.
const MOST_BITS: u8 = 16;
/// What an agent can still divide among pods.
const LONGEST: u8 = 30;

/// See the module's text.
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

    /// `node` is the flag's length of a part; the usual one when none.
    ///
    /// # Errors
    /// [`BadPart`] when a part would be larger than the whole, too small to divide among pods, or one of too many.
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

    /// The whole.
    pub fn cluster(&self) -> Ipv4Network {
        self.cluster
    }

    /// How many parts there are.
    pub fn count(&self) -> usize {
        1 << (self.node - self.cluster.prefix())
    }

    /// The parts that a range lies in; none where it lies elsewhere.
    pub fn places(&self, range: Ipv4Network) -> Range<usize> {
        if !self.cluster.overlaps(range) {
            return 0..0;
        }
        let (base, bits) = (u32::from(self.cluster.network()), 32 - self.node);
        let place = |address: Ipv4Addr| (u32::from(address).saturating_sub(base) >> bits) as usize;
        place(range.network())..(place(range.broadcast()) + 1).min(self.count())
    }

    pub fn part(&self, place: usize) -> Option<Ipv4Network> {
        let first = u32::try_from(place).ok()? << (32 - self.node);
        Ipv4Network::new(Ipv4Addr::from(u32::from(self.cluster.network()) + first), self.node).ok()
    }
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
}
