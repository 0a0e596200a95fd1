//! Every case is told in IPv4 addresses, and runs in either family: `a.b.c.d` is a name of `fd77::a.b.c.d` in a world of IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_userspace::SocketHooks;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// Everybody has an address of each; names are of IPv4, and IPv6 addresses are said as they are.
    Both,
}

/// What of a case's world may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub family: Family,
    pub hooks: SocketHooks,
}

impl From<SocketHooks> for Setting {
    fn from(hooks: SocketHooks) -> Self {
        Self { family: Family::V4, hooks }
    }
}

const ALL: [Setting; 4] = [
    Setting { family: Family::V4, hooks: SocketHooks::Attached },
    Setting { family: Family::V6, hooks: SocketHooks::Absent },
    Setting { family: Family::V4, hooks: SocketHooks::Absent },
    Setting { family: Family::V6, hooks: SocketHooks::Attached },
];

/// Families by socket hooks: two that have each in them, or all.
pub const WORLDS: &[Setting] = if cfg!(feature = "every-world") { &ALL } else { ALL.split_at(2).0 };

/// What an address of the other family has in front.
const PREFIX: [u16; 6] = [0xfd77, 0, 0, 0, 0, 0];
/// The pods' gateway has an address of its own in each family.
const GATEWAYS: (Ipv4Addr, [u8; 16]) = (Ipv4Addr::new(169, 254, 1, 1), proxy_common::GATEWAY6.octets());

impl Family {
    /// One of them, or both.
    pub fn each(self) -> &'static [Self] {
        match self {
            Self::V4 => &[Self::V4],
            Self::V6 => &[Self::V6],
            Self::Both => &[Self::V4, Self::V6],
        }
    }

    /// The addresses that a name stands for.
    pub fn ips(self, name: &str) -> impl Iterator<Item = IpAddr> {
        self.each().iter().map(move |family| family.ip(name))
    }

    pub fn ip(self, name: &str) -> IpAddr {
        let name: Ipv4Addr = name.parse().unwrap();
        if self == Self::V6 { v6(name).into() } else { name.into() }
    }

    /// Of an address with its port. One of IPv6 is what it says.
    pub fn at(self, name: &str) -> SocketAddr {
        match name.parse().unwrap() {
            SocketAddr::V4(name) => SocketAddr::new(self.ip(&name.ip().to_string()), name.port()),
            name => name,
        }
    }

    /// A command line with the family's addresses and ranges, and the programs that it has of its own.
    pub fn line(self, line: &str) -> String {
        if self != Self::V6 {
            return line.to_owned();
        }
        let line = line.replace("iptables ", "ip6tables ").replace("ip route", "ip -6 route");
        let words = line.split(' ').map(|word| {
            let (name, length) =
                word.split_once('/').map_or((word, None), |(name, length)| (name, length.parse::<u8>().ok()));
            match (name.parse(), length) {
                (Ok(name), None) if word == name_of(name) => v6(name).to_string(),
                (Ok(name), Some(length)) => format!("{}/{}", v6(name), length + 96),
                _ => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

fn name_of(name: Ipv4Addr) -> String {
    name.to_string()
}

fn v6(name: Ipv4Addr) -> Ipv6Addr {
    match name {
        Ipv4Addr::UNSPECIFIED => Ipv6Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST => Ipv6Addr::LOCALHOST,
        name if name == GATEWAYS.0 => GATEWAYS.1.into(),
        name => {
            let [a, b, c, d] = name.octets();
            let [p, q, r, s, t, u] = PREFIX;
            Ipv6Addr::new(p, q, r, s, t, u, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
    }
}

/// The name of an address that a program was told.
pub fn named(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) if ip.octets() == GATEWAYS.1 => GATEWAYS.0.into(),
        IpAddr::V6(ip) if ip.segments()[..6] == PREFIX => {
            let [.., a, b, c, d] = ip.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        ip => ip,
    }
}

/// The same with its port.
pub fn named_at(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(named(address.ip()), address.port())
}
