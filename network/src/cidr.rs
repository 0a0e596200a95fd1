//! An IPv4 prefix.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use proxy_common::Ip4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    net: Ipv4Addr,
    length: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IPv4 prefix such as 10.244.0.0/16")]
pub struct CidrError(String);

impl Cidr {
    /// The prefix of this length around an address; host bits are cleared.
    pub fn new(address: Ipv4Addr, length: u8) -> Option<Self> {
        if length > 32 {
            return None;
        }
        let net = Ipv4Addr::from(u32::from(address) & mask(length));
        Some(Self { net, length })
    }

    /// One address alone.
    pub const fn single(address: Ipv4Addr) -> Self {
        Self { net: address, length: 32 }
    }

    pub const EVERYWHERE: Self = Self { net: Ipv4Addr::UNSPECIFIED, length: 0 };

    pub fn net(&self) -> Ipv4Addr {
        self.net
    }

    pub fn length(&self) -> u8 {
        self.length
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == u32::from(self.net)
    }

    /// Network and mask as programs read them.
    pub(crate) fn wire(&self) -> (Ip4, Ip4) {
        (Ip4::new(self.net.octets()), Ip4::new(mask(self.length).to_be_bytes()))
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.net, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_parse_and_contain() {
        let cidr: Cidr = "10.96.0.0/12".parse().unwrap();
        assert!(cidr.contains([10, 111, 255, 255].into()) && !cidr.contains([10, 112, 0, 0].into()));
        assert_eq!("10.244.7.9/16".parse::<Cidr>().unwrap().to_string(), "10.244.0.0/16");
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains([8, 8, 8, 8].into()));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", ""] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wire_form_is_in_wire_order() {
        let (net, mask) = "10.244.0.0/16".parse::<Cidr>().unwrap().wire();
        assert_eq!((net.octets(), mask.octets()), ([10, 244, 0, 0], [255, 255, 0, 0]));
    }
}
