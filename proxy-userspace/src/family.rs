//! The address families of a node: which it has, how its maps are called and sized for them, and the addresses of who is in both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_common::*;

use crate::sys::Plain;

/// The families that a node has addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    #[default]
    V4,
    V6,
    Both,
}

impl Families {
    /// Not zero: IPv4, IPv6.
    pub(crate) fn served(self) -> (u32, u32) {
        ((self != Self::V6).into(), (self != Self::V4).into())
    }

    /// Elements of a map, where that depends on the families; none: what the object says.
    pub(crate) fn elements(self, map: &str) -> Option<u32> {
        let (_, sizes) = SIZES.iter().find(|(name, _)| *name == map)?;
        Some(sizes[self as usize] as u32)
    }
}

/// Of a family that a node has not, a map holds nothing. A node of both shares the memory for connections among them: the maps of
/// either node are 64 MiB in all.
const SIZES: &[(&str, [usize; 3])] = &[
    ("PODS", [MAX_PODS, 1, MAX_PODS]),
    ("PODS6", [1, MAX_PODS, MAX_PODS]),
    ("SHARES", [MAX_PODS, 1, MAX_PODS]),
    ("SHARES6", [1, MAX_PODS, MAX_PODS]),
    ("LOCAL_NETNS6", [1, MAX_NETNS, MAX_NETNS]),
    ("NODE_ADDRESSES", [MAX_NODE_ADDRESSES, 1, MAX_NODE_ADDRESSES]),
    ("NODE_ADDRESSES6", [1, MAX_NODE_ADDRESSES, MAX_NODE_ADDRESSES]),
    ("FLOWS", [MAX_FLOWS, 1, 38_400]),
    ("FLOWS6", [1, 90_112, 32_768]),
    ("SNAT", [MAX_SNAT_PLACES, 1, MAX_SNAT_PLACES]),
    ("SNAT6", [1, MAX_SNAT_PLACES6, MAX_SNAT_PLACES6]),
    ("EXPOSED", [MAX_EXPOSED, 1, MAX_EXPOSED / 2]),
    ("EXPOSED6", [1, MAX_EXPOSED, MAX_EXPOSED / 2]),
    ("NEWEST", [MAX_NEW_FLOWS, 1, MAX_NEW_FLOWS]),
    ("NEWEST6", [1, MAX_NEW_FLOWS6, MAX_NEW_FLOWS6]),
    ("FRAGMENTS", [MAX_FRAGMENTS, 1, MAX_FRAGMENTS / 2]),
    ("FRAGMENTS6", [1, MAX_FRAGMENTS, MAX_FRAGMENTS / 2]),
];

/// A family, by the names of its maps and as addresses of the standard library.
pub(crate) trait Twin: Addr<End: Plain> + Plain {
    const NODE: &'static str;
    const PODS: &'static str;
    const SHARES: &'static str;
    const NODE_ADDRESSES: &'static str;
    const FLOWS: &'static str;
    const SNAT: &'static str;
    const EXPOSED: &'static str;

    fn of(ip: IpAddr) -> Option<Self>;
    fn address(self) -> IpAddr;
}

macro_rules! twin {
    ($addr:ty, $suffix:literal, $variant:path) => {
        impl Twin for $addr {
            const NODE: &'static str = concat!("NODE", $suffix);
            const PODS: &'static str = concat!("PODS", $suffix);
            const SHARES: &'static str = concat!("SHARES", $suffix);
            const NODE_ADDRESSES: &'static str = concat!("NODE_ADDRESSES", $suffix);
            const FLOWS: &'static str = concat!("FLOWS", $suffix);
            const SNAT: &'static str = concat!("SNAT", $suffix);
            const EXPOSED: &'static str = concat!("EXPOSED", $suffix);

            fn of(ip: IpAddr) -> Option<Self> {
                match ip {
                    $variant(ip) => Some(ip.into()),
                    _ => None,
                }
            }

            fn address(self) -> IpAddr {
                self.octets().into()
            }
        }
    };
}

twin!(Ip4, "", IpAddr::V4);
twin!(Ip, "6", IpAddr::V6);

/// The addresses of a pod, or of the node: of one family, or of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// That of the other's family.
    pub fn beside(self, other: IpAddr) -> Option<IpAddr> {
        self.iter().find(|ip| ip.is_ipv4() == other.is_ipv4())
    }

    pub fn has(self, ip: IpAddr) -> bool {
        self.iter().any(|own| own == ip)
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Those there are addresses of; of none, IPv4.
    pub fn families(self) -> Families {
        match (self.v4, self.v6) {
            (Some(_), Some(_)) => Families::Both,
            (None, Some(_)) => Families::V6,
            _ => Families::V4,
        }
    }
}

impl From<IpAddr> for Addresses {
    fn from(ip: IpAddr) -> Self {
        [ip].into_iter().collect()
    }
}

/// The first of either family counts.
impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(all: I) -> Self {
        all.into_iter().fold(Self::default(), |addresses, ip| match ip {
            IpAddr::V4(ip) => Self { v4: addresses.v4.or(Some(ip)), ..addresses },
            IpAddr::V6(ip) => Self { v6: addresses.v6.or(Some(ip)), ..addresses },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_one_family_has_nothing_of_the_other() {
        for (name, [v4, v6, both]) in SIZES {
            let other = if name.ends_with('6') { v4 } else { v6 };
            assert!(*other == 1 && *both > 1, "{name}");
        }
        assert_eq!(Families::Both.elements("FLOWS6"), Some(32_768));
        assert_eq!(Families::V4.elements("SLOTS"), None);
    }

    #[test]
    fn addresses_are_one_of_each_family() {
        let all = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let addresses: Addresses = all.into_iter().collect();
        assert_eq!(addresses.iter().collect::<Vec<_>>(), all[..2]);
        assert_eq!((addresses.beside(all[2]), addresses.has(all[2])), (Some(all[0]), false));
        assert_eq!(Addresses::from(all[1]).beside(all[0]), None);
    }
}
