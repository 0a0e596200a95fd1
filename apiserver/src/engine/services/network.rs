//! What Services may be given: a range of addresses in one family or in both, and node ports.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use thiserror::Error;

/// Where node ports come from, as Kubernetes has it.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// A family of addresses, as Services name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `None` for any other word.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The addresses of one family that Services may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange(IpNetwork);

/// What services may be given. The first range is the one that Services get an address of that ask for nothing.
#[derive(Debug, Clone)]
pub struct ServiceNetwork {
    first: ServiceRange,
    second: Option<ServiceRange>,
    pub node_ports: RangeInclusive<u16>,
}

/// Why ranges are none for Services.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadRange {
    #[error("{0}: a prefix of {1} bits is out of range ({2} to {3})")]
    Prefix(IpNetwork, u8, u8, u8),
    #[error("{0} and {1} are of one family: two ranges are an IPv4 and an IPv6 one")]
    SameFamily(IpNetwork, IpNetwork),
    #[error("{0} ranges: one is wanted, or an IPv4 and an IPv6 one")]
    Count(usize),
}

impl ServiceRange {
    /// # Errors
    /// [`BadRange::Prefix`] for a range that is too small to have an address for the API server and for names, or so large
    /// that it could only be a mistake.
    pub fn new(range: IpNetwork) -> Result<Self, BadRange> {
        let (low, high) = match range {
            IpNetwork::V4(_) => (8, 28),
            IpNetwork::V6(_) => (64, 124),
        };
        let bad = BadRange::Prefix(range, range.prefix(), low, high);
        let whole = IpNetwork::new(range.network(), range.prefix()).ok();
        whole.filter(|range| (low..=high).contains(&range.prefix())).map(Self).ok_or(bad)
    }

    pub fn network(self) -> IpNetwork {
        self.0
    }

    pub fn family(self) -> Family {
        Family::of(&self.0.network())
    }

    /// Addresses that may be given out: neither the network's own nor, in IPv4, the broadcast one.
    pub fn size(self) -> u64 {
        match self.0 {
            IpNetwork::V4(range) => (1_u64 << (32 - range.prefix())) - 2,
            IpNetwork::V6(range) => u64::MAX >> (range.prefix() - 64),
        }
    }

    /// `offset` is from 1 to [`ServiceRange::size`].
    pub fn at(self, offset: u64) -> IpAddr {
        match self.0 {
            IpNetwork::V4(range) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                std::net::Ipv4Addr::from(u32::from(range.network()).saturating_add(offset)).into()
            }
            IpNetwork::V6(range) => Ipv6Addr::from(u128::from(range.network()) + u128::from(offset)).into(),
        }
    }

    /// Whether this address of the range may be given out.
    pub fn gives(self, address: &IpAddr) -> bool {
        let offset = match (self.0, address) {
            (IpNetwork::V4(range), IpAddr::V4(address)) => {
                u64::from(u32::from(*address)).checked_sub(u64::from(u32::from(range.network())))
            }
            (IpNetwork::V6(range), IpAddr::V6(address)) => {
                u128::from(*address).checked_sub(u128::from(range.network())).and_then(|offset| offset.try_into().ok())
            }
            _ => None,
        };
        offset.is_some_and(|offset| (1..=self.size()).contains(&offset))
    }

    /// Addresses up to this offset are for those who ask for one: dynamic ones come from above it first.
    pub fn reserved(self) -> u64 {
        let size = self.size();
        if size < 16 { 0 } else { (size / 16).clamp(16, 256) }
    }
}

impl ServiceNetwork {
    /// With the usual node ports.
    ///
    /// # Errors
    /// [`BadRange`] unless these are one range, or two of different families, and each of a usable size.
    pub fn new(ranges: &[IpNetwork]) -> Result<Self, BadRange> {
        let (first, second) = match ranges {
            [only] => (*only, None),
            [first, second] if first.is_ipv4() == second.is_ipv4() => {
                return Err(BadRange::SameFamily(*first, *second));
            }
            [first, second] => (*first, Some(*second)),
            _ => return Err(BadRange::Count(ranges.len())),
        };
        let second = second.map(ServiceRange::new).transpose()?;
        Ok(Self { first: ServiceRange::new(first)?, second, node_ports: NODE_PORTS })
    }

    pub fn ranges(&self) -> impl Iterator<Item = ServiceRange> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// The families that Services may have, that of [`ServiceNetwork::api_server`] first.
    pub fn families(&self) -> Vec<Family> {
        self.ranges().map(ServiceRange::family).collect()
    }

    pub fn range(&self, family: Family) -> Option<ServiceRange> {
        self.ranges().find(|range| range.family() == family)
    }

    /// The first address: the `kubernetes` Service.
    pub fn api_server(&self) -> IpAddr {
        self.first.at(1)
    }

    /// The tenth address: the cluster DNS service.
    pub fn dns(&self) -> IpAddr {
        self.first.at(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Result<ServiceRange, BadRange> {
        ServiceRange::new(text.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_knows_its_ends() {
        let v4 = range("10.96.0.0/12").unwrap();
        assert_eq!((v4.at(1), v4.at(10), v4.reserved()), (ip("10.96.0.1"), ip("10.96.0.10"), 256));
        assert!(v4.gives(&ip("10.111.255.254")));
        assert!(!["10.96.0.0", "10.111.255.255", "10.112.0.1", "fd00::1"].iter().any(|text| v4.gives(&ip(text))));
        let v6 = range("fd00:10:96::/108").unwrap();
        assert_eq!((v6.at(1), v6.size()), (ip("fd00:10:96::1"), (1 << 20) - 1));
        assert!(v6.gives(&ip("fd00:10:96::f:ffff")));
        assert!(!["fd00:10:96::", "fd00:10:96::10:0", "10.96.0.1"].iter().any(|text| v6.gives(&ip(text))));
        assert_eq!(range("fd00::/64").unwrap().size(), u64::MAX);
        assert_eq!((range("10.96.0.0/28").unwrap().reserved(), range("10.96.0.0/27").unwrap().reserved()), (0, 16));
        for text in ["10.0.0.0/7", "10.0.0.0/29", "fd00::/63", "fd00::/125"] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn two_ranges_are_of_two_families() {
        let network = |texts: &[&str]| {
            let ranges: Vec<IpNetwork> = texts.iter().map(|text| text.parse().unwrap()).collect();
            ServiceNetwork::new(&ranges)
        };
        let dual = network(&["fd00:96::/112", "10.96.0.0/16"]).unwrap();
        assert_eq!((dual.families(), dual.dns()), (vec![Family::V6, Family::V4], ip("fd00:96::a")));
        assert!(matches!(network(&["10.0.0.0/16", "10.1.0.0/16"]), Err(BadRange::SameFamily(..))));
        assert_eq!(network(&[]).unwrap_err(), BadRange::Count(0));
    }
}
