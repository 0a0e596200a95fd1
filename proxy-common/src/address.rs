//! Addresses and ports in the byte order of the wire, which their types say.

/// An IPv4 address in the byte order of the wire.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ip4(pub u32);

impl Ip4 {
    pub const UNSPECIFIED: Self = Self(0);

    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    pub const fn is_loopback(self) -> bool {
        self.octets()[0] == 127
    }
}

impl From<core::net::Ipv4Addr> for Ip4 {
    fn from(ip: core::net::Ipv4Addr) -> Self {
        Self::new(ip.octets())
    }
}

/// A port in the byte order of the wire.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port(pub u16);

impl Port {
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An address of either family; IPv4 ones are mapped (::ffff:a.b.c.d). Two words, so that comparing takes two instructions.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ip {
    high: u64,
    low: u64,
}

/// The third word of a mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    pub const fn v4(ip: Ip4) -> Self {
        Self::from_quads([0, 0, MAPPED, ip.0])
    }

    /// Words as sockets have them: four bytes each, in the order of the wire.
    pub const fn from_quads(words: [u32; 4]) -> Self {
        Self { high: join(words[0], words[1]), low: join(words[2], words[3]) }
    }

    pub const fn quads(self) -> [u32; 4] {
        let ([a, b], [c, d]) = (split(self.high), split(self.low));
        [a, b, c, d]
    }

    /// The two words that it is.
    pub const fn halves(self) -> [u64; 2] {
        [self.high, self.low]
    }

    pub const fn from_halves([high, low]: [u64; 2]) -> Self {
        Self { high, low }
    }

    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self { high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]) }
    }

    pub const fn octets(self) -> [u8; 16] {
        let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (self.high.to_ne_bytes(), self.low.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The IPv4 address of a mapped one.
    pub const fn to_v4(self) -> Option<Ip4> {
        let [third, fourth] = split(self.low);
        if self.high == 0 && third == MAPPED { Some(Ip4(fourth)) } else { None }
    }

    /// "No address", in either family: the host that asks.
    pub const fn is_unspecified(self) -> bool {
        let [third, fourth] = split(self.low);
        self.high == 0 && fourth == 0 && (third == 0 || third == MAPPED)
    }

    pub const fn is_loopback(self) -> bool {
        match self.to_v4() {
            Some(ip) => ip.is_loopback(),
            None => self.high == 0 && self.low == 1_u64.to_be(),
        }
    }

    /// Of IPv6: it means something on one link only.
    pub const fn is_link_local(self) -> bool {
        self.octets()[0] == 0xfe && self.octets()[1] & 0xc0 == 0x80
    }

    /// Of IPv6.
    pub const fn is_multicast(self) -> bool {
        self.octets()[0] == 0xff
    }

    pub const fn family(self) -> Family {
        if self.to_v4().is_some() { Family::V4 } else { Family::V6 }
    }

    /// Sixteen bytes as one number, for tags.
    pub const fn folded(self) -> u32 {
        let [a, b, c, d] = self.quads();
        a.rotate_left(3) ^ b.rotate_left(11) ^ c.rotate_left(19) ^ d
    }
}

impl From<core::net::Ipv6Addr> for Ip {
    fn from(ip: core::net::Ipv6Addr) -> Self {
        Self::from_octets(ip.octets())
    }
}

impl From<core::net::IpAddr> for Ip {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(ip) => Self::v4(ip.into()),
            core::net::IpAddr::V6(ip) => ip.into(),
        }
    }
}

const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

const fn split(word: u64) -> [u32; 2] {
    let (low, high) = (word as u32, (word >> 32) as u32);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4 = 0,
    V6 = 1,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Addr;

    #[test]
    fn bytes_lie_as_on_the_wire() {
        assert_eq!(Ip4::new([10, 1, 2, 3]).0.to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(Port::new(0x1234).0.to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::new(53).get(), 53);
        assert!(Ip4::new([10, 244, 3, 4]).is_within(Ip4::new([10, 244, 0, 0]), Ip4::new([255, 255, 0, 0])));
        let v6 = |octets: [u8; 2], last| {
            let mut all = [0; 16];
            (all[0], all[1], all[15]) = (octets[0], octets[1], last);
            Ip::from_octets(all)
        };
        assert!(v6([0xfd, 7], 9).is_within(v6([0xfd, 7], 0), v6([0xff, 0xff], 0)));
        assert!(!v6([0xfd, 7], 9).is_within(v6([0xfd, 7], 8), v6([0xff, 0xff], 0xff)));
        assert!(v6([0xfe, 0xbf], 1).is_link_local() && !v6([0xfe, 0xc0], 1).is_link_local());
        assert!(v6([0xff, 2], 1).is_multicast() && !v6([0xfe, 0x80], 1).is_multicast());
    }

    #[test]
    fn both_families_have_one_form() {
        let v4 = Ip4::new([10, 244, 0, 7]);
        assert_eq!(Ip::v4(v4).octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 0, 7]);
        assert_eq!((Ip::v4(v4).to_v4(), Ip::v4(v4).family()), (Some(v4), Family::V4));
        let v6 = core::array::from_fn(|byte| byte as u8);
        assert_eq!(Ip::from_octets(v6).octets(), v6);
        assert_eq!(Ip::from_quads(Ip::from_octets(v6).quads()), Ip::from_octets(v6));
        assert_eq!((Ip::from_octets(v6).to_v4(), Ip::from_octets(v6).family()), (None, Family::V6));
        let mut loopback = [0; 16];
        assert!(Ip::from_octets(loopback).is_unspecified() && Ip::v4(Ip4::UNSPECIFIED).is_unspecified());
        loopback[15] = 1;
        assert!(Ip::from_octets(loopback).is_loopback() && !Ip::from_octets(loopback).is_unspecified());
        assert!(Ip::v4(Ip4::new([127, 0, 0, 9])).is_loopback() && !Ip::v4(v4).is_loopback());
    }
}
