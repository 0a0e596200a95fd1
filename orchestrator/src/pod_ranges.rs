//! All pods' addresses, and how they are cut into nodes' parts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnetwork::IpNetwork;
use thiserror::Error;

/// The most bits by which a node's part may be longer than the whole, as upstream has it.
const MOST_BITS: u8 = 16;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRanges {
    cluster: IpNetwork,
    /// Prefix bits of a node's part.
    node: u8,
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("/{node} is no part of {cluster} for a node: from /{} to /{} are", cluster.prefix(), most(*cluster))]
pub struct BadPart {
    cluster: IpNetwork,
    node: u8,
}

/// The bits of an address of its family.
fn width(range: IpNetwork) -> u8 {
    if range.is_ipv4() { 32 } else { 128 }
}

/// What an agent can still divide among pods, and no more parts than a controller can count.
fn most(cluster: IpNetwork) -> u8 {
    (width(cluster) - 2).min(cluster.prefix().saturating_add(MOST_BITS))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Whether two ranges share addresses.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

impl PodRanges {
    /// `node` is the flag's length of a part; upstream's usual one (24 and 64 bits) when none, unless the whole is smaller.
    ///
    /// # Errors
    /// [`BadPart`] when a part would be larger than the whole, too small to divide among pods, or one of too many.
    pub fn new(cluster: IpNetwork, node: Option<u8>) -> Result<Self, BadPart> {
        let usual = if cluster.is_ipv4() { 24 } else { 64 };
        let node = node.unwrap_or(cluster.prefix().max(usual));
        if (cluster.prefix()..=most(cluster)).contains(&node) {
            Ok(Self { cluster, node })
        } else {
            Err(BadPart { cluster, node })
        }
    }

    #[cfg(test)]
    pub fn usual() -> Self {
        Self::new("10.244.0.0/16".parse().unwrap(), None).unwrap()
    }

    /// All pods' addresses.
    pub fn cluster(&self) -> IpNetwork {
        self.cluster
    }

    /// How many parts there are.
    pub fn count(&self) -> usize {
        1 << (self.node - self.cluster.prefix())
    }

    /// Bits of an address below a part.
    fn below(&self) -> u8 {
        width(self.cluster) - self.node
    }

    /// The parts that a range lies in; none where it lies elsewhere.
    pub fn places(&self, range: IpNetwork) -> Range<usize> {
        if !overlap(self.cluster, range) {
            return 0..0;
        }
        let base = number(self.cluster.network());
        let place = |address| {
            let above = number(address).saturating_sub(base) >> self.below();
            usize::try_from(above).unwrap_or(usize::MAX).min(self.count() - 1)
        };
        place(range.network())..place(range.broadcast()) + 1
    }

    pub fn part(&self, place: usize) -> Option<IpNetwork> {
        let first = number(self.cluster.network()) + (u128::try_from(place).ok()? << self.below());
        let address = match self.cluster {
            IpNetwork::V4(_) => Ipv4Addr::from(u32::try_from(first).ok()?).into(),
            IpNetwork::V6(_) => Ipv6Addr::from(first).into(),
        };
        IpNetwork::new(address, self.node).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNetwork {
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
    fn parts_of_both_families_have_places() {
        for (cluster, third, within) in [
            ("10.244.0.0/16", "10.244.2.0/24", "10.244.2.128/25"),
            ("fd00:244::/48", "fd00:244:0:2::/64", "fd00:244:0:2::/80"),
        ] {
            let ranges = PodRanges::new(cidr(cluster), None).unwrap();
            assert_eq!(ranges.part(2), Some(cidr(third)));
            assert_eq!((ranges.places(cidr(third)), ranges.places(cidr(within))), (2..3, 2..3));
            assert_eq!(ranges.places(cidr(cluster)), 0..ranges.count());
            assert_eq!((ranges.places(cidr("192.0.2.0/24")), ranges.places(cidr("fd01::/64"))), (0..0, 0..0));
        }
        assert_eq!(
            PodRanges::new(cidr("fd00::/48"), Some(65)).map(|_| ()).unwrap_err().to_string(),
            "/65 is no part of fd00::/48 for a node: from /48 to /64 are"
        );
    }
}
