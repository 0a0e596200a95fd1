//! What differs between the two families, in one place: whatever tells packets apart or sends them on is written once, for an address
//! of either.

use core::fmt::Debug;

use crate::{Exposed, Family, FragmentKey, FragmentKey6, Ip, Ip4, Port, Tuple};

/// An address as packets of its family show it: [`Ip4`], or [`Ip`] for IPv6.
pub trait Addr: Copy + Eq + Ord + Debug + Default + 'static {
    const FAMILY: Family;
    /// Every pod's gateway, and the source that a pod sees when it reaches itself through a service.
    const GATEWAY: Self;
    /// The protocol number of the family's ICMP.
    const ICMP: u8;
    /// Users of one port of the range at a time, each towards another kind of far end. A power of two.
    const SNAT_WAYS: usize;
    /// A tuple, word by word.
    type Words: Copy + Eq + Debug + Default + AsRef<[u64]> + AsMut<[u64]>;
    /// An end of a connection, or the address it is exposed under: one word for IPv4, so that it is read whole.
    type End: Copy + Eq + Ord + Debug + Default;
    /// What fills a place among the shared ports up to a power of two.
    type Spare: Copy + Eq + Debug + Default;
    type FragmentKey: Copy + Eq + Debug;

    fn is_within(self, net: Self, mask: Self) -> bool;
    fn to_ip(self) -> Ip;
    /// None for an address of the other family.
    fn from_ip(ip: Ip) -> Option<Self>;
    /// Four bytes of it, or made of it: beside a value, they show whose that is.
    fn mark(self) -> u32;
    /// The Ethernet address that frames to a pod show.
    fn pod_mac(self) -> [u8; 6];
    fn words(tuple: &Tuple<Self>) -> Self::Words;
    fn from_words(words: Self::Words) -> Tuple<Self>;
    /// The words of the tuple that goes the other way.
    fn reversed(words: Self::Words) -> Self::Words;
    /// Of a flow's key and contents.
    fn tag(key: Self::Words, to: Self::Words) -> u64;
    fn end(self, port: Port, protocol: u8) -> Self::End;
    /// An end as one word that is never 0. Of two ends that share it, only one can have a port of the range.
    fn end_mark(self, port: Port, protocol: u8) -> u64;
    fn exposed(exposed: Exposed<Self>) -> Self::End;
    fn from_exposed(bits: Self::End) -> Exposed<Self>;
    fn fragment_key(tuple: &Tuple<Self>, id: u32) -> Self::FragmentKey;
}

impl Addr for Ip4 {
    const FAMILY: Family = Family::V4;
    const GATEWAY: Self = crate::GATEWAY;
    const ICMP: u8 = crate::ICMP;
    const SNAT_WAYS: usize = 8;
    type Words = [u64; 2];
    type End = u64;
    type Spare = [u64; 0];
    type FragmentKey = FragmentKey;

    #[inline(always)]
    fn is_within(self, net: Self, mask: Self) -> bool {
        self.0 & mask.0 == net.0
    }

    #[inline(always)]
    fn to_ip(self) -> Ip {
        Ip::v4(self)
    }

    #[inline(always)]
    fn from_ip(ip: Ip) -> Option<Self> {
        ip.to_v4()
    }

    #[inline(always)]
    fn mark(self) -> u32 {
        self.0
    }

    #[inline(always)]
    fn pod_mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.octets();
        [0x0e, 0x70, a, b, c, d]
    }

    #[inline(always)]
    fn words(tuple: &Tuple) -> [u64; 2] {
        [tuple.src.0 as u64 | (tuple.dst.0 as u64) << 32, ports_word(tuple)]
    }

    #[inline(always)]
    fn from_words([addresses, rest]: [u64; 2]) -> Tuple {
        tuple(Ip4(addresses as u32), Ip4((addresses >> 32) as u32), rest)
    }

    #[inline(always)]
    fn reversed([addresses, rest]: [u64; 2]) -> [u64; 2] {
        [addresses.rotate_left(32), reversed_ports(rest)]
    }

    #[inline(always)]
    fn tag(key: [u64; 2], to: [u64; 2]) -> u64 {
        let first = (key[0] ^ to[1].rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let second = (key[1] ^ to[0].rotate_left(17)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        first ^ second.rotate_left(32)
    }

    #[inline(always)]
    fn end(self, port: Port, protocol: u8) -> u64 {
        self.0 as u64 | (port.0 as u64) << 32 | (protocol as u64) << 48
    }

    #[inline(always)]
    fn end_mark(self, port: Port, protocol: u8) -> u64 {
        self.end(port, protocol) | 1 << 56
    }

    #[inline(always)]
    fn exposed(Exposed { addr, port, epoch }: Exposed<Self>) -> u64 {
        addr.0 as u64 | (port.0 as u64) << 32 | (epoch as u64) << 48
    }

    #[inline(always)]
    fn from_exposed(bits: u64) -> Exposed<Self> {
        Exposed { addr: Ip4(bits as u32), port: Port((bits >> 32) as u16), epoch: (bits >> 48) as u16 }
    }

    #[inline(always)]
    fn fragment_key(tuple: &Tuple, id: u32) -> FragmentKey {
        FragmentKey { src: tuple.src, dst: tuple.dst, id: id as u16, protocol: tuple.protocol, pad: 0 }
    }
}

impl Addr for Ip {
    const FAMILY: Family = Family::V6;
    const GATEWAY: Self = crate::GATEWAY6;
    const ICMP: u8 = crate::ICMP6;
    const SNAT_WAYS: usize = 4;
    type Words = [u64; 5];
    type End = [u64; 3];
    type Spare = [u64; 1];
    type FragmentKey = FragmentKey6;

    #[inline(always)]
    fn is_within(self, net: Self, mask: Self) -> bool {
        let ([a, b], [c, d], [e, f]) = (self.halves(), net.halves(), mask.halves());
        (a & e == c) & (b & f == d)
    }

    #[inline(always)]
    fn to_ip(self) -> Ip {
        self
    }

    #[inline(always)]
    fn from_ip(ip: Ip) -> Option<Self> {
        if ip.to_v4().is_some() { None } else { Some(ip) }
    }

    #[inline(always)]
    fn mark(self) -> u32 {
        self.folded()
    }

    /// Nobody looks at it but who dumps packets: a frame goes straight into the one pod behind its link.
    #[inline(always)]
    fn pod_mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.folded().to_ne_bytes();
        [0x0e, 0x71, a, b, c, d]
    }

    #[inline(always)]
    fn words(tuple: &Tuple<Self>) -> [u64; 5] {
        let ([a, b], [c, d]) = (tuple.src.halves(), tuple.dst.halves());
        [a, b, c, d, ports_word(tuple)]
    }

    #[inline(always)]
    fn from_words([a, b, c, d, rest]: [u64; 5]) -> Tuple<Self> {
        tuple(Ip::from_halves([a, b]), Ip::from_halves([c, d]), rest)
    }

    #[inline(always)]
    fn reversed([a, b, c, d, rest]: [u64; 5]) -> [u64; 5] {
        [c, d, a, b, reversed_ports(rest)]
    }

    #[inline(always)]
    fn tag(key: [u64; 5], to: [u64; 5]) -> u64 {
        let first = (key[0] ^ key[1].rotate_left(13) ^ to[4].rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let second = (key[4] ^ to[0].rotate_left(17) ^ to[1].rotate_left(43)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let third = (key[2] ^ key[3].rotate_left(23) ^ to[2].rotate_left(37) ^ to[3].rotate_left(53))
            .wrapping_mul(0x1656_67b1_9e37_79f9);
        first ^ second.rotate_left(32) ^ third.rotate_left(16)
    }

    #[inline(always)]
    fn end(self, port: Port, protocol: u8) -> [u64; 3] {
        let [high, low] = self.halves();
        [high, low, port.0 as u64 | (protocol as u64) << 16]
    }

    #[inline(always)]
    fn end_mark(self, port: Port, protocol: u8) -> u64 {
        let [high, low, rest] = self.end(port, protocol);
        let mixed =
            high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (low ^ rest.rotate_left(40)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        mixed ^ mixed >> 29 | 1 << 63
    }

    #[inline(always)]
    fn exposed(Exposed { addr, port, epoch }: Exposed<Self>) -> [u64; 3] {
        let [high, low] = addr.halves();
        [high, low, port.0 as u64 | (epoch as u64) << 16]
    }

    #[inline(always)]
    fn from_exposed([high, low, rest]: [u64; 3]) -> Exposed<Self> {
        Exposed { addr: Ip::from_halves([high, low]), port: Port(rest as u16), epoch: (rest >> 16) as u16 }
    }

    #[inline(always)]
    fn fragment_key(tuple: &Tuple<Self>, id: u32) -> FragmentKey6 {
        FragmentKey6 { src: tuple.src, dst: tuple.dst, id, protocol: tuple.protocol, pad: [0; 3] }
    }
}

impl<A: Addr> Tuple<A> {
    /// The far end of packets to somebody who shows a port of the range: what tells two users of one port apart.
    #[inline(always)]
    pub fn remote(&self) -> u64 {
        self.dst.end_mark(self.dport, self.protocol)
    }

    /// The end that answers, as a key of `EXPOSED`.
    #[inline(always)]
    pub fn answering(&self) -> A::End {
        self.src.end(self.sport, self.protocol)
    }

    /// The end that is asked, as such a key.
    #[inline(always)]
    pub fn answerer(&self) -> A::End {
        self.dst.end(self.dport, self.protocol)
    }
}

#[inline(always)]
fn ports_word<A: Addr>(tuple: &Tuple<A>) -> u64 {
    tuple.ports() as u64 | (tuple.protocol as u64) << 32
}

#[inline(always)]
fn tuple<A>(src: A, dst: A, rest: u64) -> Tuple<A> {
    let (sport, dport) = (Port(rest as u16), Port((rest >> 16) as u16));
    Tuple { src, dst, sport, dport, protocol: (rest >> 32) as u8, pad: 0, rest: 0 }
}

#[inline(always)]
fn reversed_ports(rest: u64) -> u64 {
    (rest & !0xffff_ffff) | (rest as u32).rotate_left(16) as u64
}
