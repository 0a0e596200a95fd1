//! Connections on the packet path: one entry each, and the ways from an answer back to it.

use crate::{Ip4, Member, Port, TCP, UDP};

/// A packet's ends as a hook sees them on the wire. ICMP echoes have their identifier as the asking side's port. Two words, so that
/// copying and comparing take two instructions each.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tuple {
    pub src: Ip4,
    pub dst: Ip4,
    pub sport: Port,
    pub dport: Port,
    pub protocol: u8,
    pub pad: u8,
    pub rest: u16,
}

impl Tuple {
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }

    pub const fn ports(&self) -> u32 {
        self.sport.0 as u32 | (self.dport.0 as u32) << 16
    }

    /// The key as two words.
    pub const fn words(&self) -> [u64; 2] {
        [self.addresses(), self.second()]
    }

    pub const fn from_words(words: [u64; 2]) -> Self {
        let [addresses, second] = words;
        Self {
            src: Ip4(addresses as u32),
            dst: Ip4((addresses >> 32) as u32),
            sport: Port(second as u16),
            dport: Port((second >> 16) as u16),
            protocol: (second >> 32) as u8,
            pad: 0,
            rest: 0,
        }
    }

    /// The words of the tuple that goes the other way.
    pub const fn reversed_words(words: [u64; 2]) -> [u64; 2] {
        let [addresses, second] = words;
        [addresses.rotate_left(32), (second & !0xffff_ffff) | (second as u32).rotate_left(16) as u64]
    }

    const fn addresses(&self) -> u64 {
        self.src.0 as u64 | (self.dst.0 as u64) << 32
    }

    const fn second(&self) -> u64 {
        self.ports() as u64 | (self.protocol as u64) << 32
    }

    /// The far end of packets to somebody who shows a port of the range: what tells two users of one port apart.
    pub const fn remote(&self) -> u64 {
        end(self.dst, self.dport, self.protocol) | 1 << 56
    }

    /// The end that answers, as a key of `EXPOSED`.
    pub const fn answering(&self) -> u64 {
        end(self.src, self.sport, self.protocol)
    }
}

/// An end of a connection in one word.
pub const fn end(addr: Ip4, port: Port, protocol: u8) -> u64 {
    addr.0 as u64 | (port.0 as u64) << 32 | (protocol as u64) << 48
}

/// The address under which an endpoint is exposed, and when that was last made sure of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposed {
    pub addr: Ip4,
    pub port: Port,
    /// In units of `EPOCH_NS`, and wrapping.
    pub epoch: u16,
}

impl Exposed {
    const EPOCH_SHIFT: u32 = 36;
    /// About 69 seconds.
    pub const EPOCH_NS: u64 = 1 << Self::EPOCH_SHIFT;

    pub const fn epoch_of(now: u64) -> u16 {
        (now >> Self::EPOCH_SHIFT) as u16
    }

    pub const fn bits(self) -> u64 {
        self.addr.0 as u64 | (self.port.0 as u64) << 32 | (self.epoch as u64) << 48
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { addr: Ip4(bits as u32), port: Port((bits >> 32) as u16), epoch: (bits >> 48) as u16 }
    }
}

/// Which way a packet of a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the side that began it.
    Forward = 0,
    Reply = 1,
}

/// A connection. The key is what its client's packets show.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// What the client's packets become.
    pub to: Tuple,
    /// Monotonic nanoseconds of the last packet, at most a second late.
    pub seen: u64,
    /// Of key and `to`: an element that was recycled under its reader shows another.
    pub tag: u64,
    /// `Member` bits of the endpoint.
    pub member: u64,
    /// Where packets of each direction go, once known, with the address that lies there.
    pub exits: [u64; 2],
    /// The index of the place among the shared ports that is this flow's, plus one.
    pub snat: u32,
    /// As of when `exits` are right.
    pub epoch: u32,
    /// For policies: who began it.
    pub identity: u32,
    /// For policies: what was decided about it.
    pub verdict: u8,
    /// This and the four after it are bytes, each set by one direction: so both may write at once. The last four are taken back when
    /// the endpoint accepts a connection anew.
    pub replied: u8,
    pub assured: u8,
    pub client_fin: u8,
    pub server_fin: u8,
    pub reset: u8,
    pub pad: u16,
    /// The kernel's ticks when `seen` was written: they cost a packet nothing to read, the time does.
    pub tick: u32,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    New,
    Replied,
    /// The client has shown that it hears the answers.
    Assured,
    HalfClosed,
    Closed,
}

impl Flow {
    pub const fn tag_of(key: &Tuple, to: &Tuple) -> u64 {
        Self::tag_of_words(key.words(), to.words())
    }

    pub const fn tag_of_words(key: [u64; 2], to: [u64; 2]) -> u64 {
        let first = (key[0] ^ to[1].rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let second = (key[1] ^ to[0].rotate_left(17)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        first ^ second.rotate_left(32)
    }

    /// Both sides have closed it, or one has reset it.
    pub const fn is_over(&self) -> bool {
        self.reset != 0 || self.client_fin & self.server_fin != 0
    }

    /// Counts for the share of the pod that began it: answered, and not over.
    pub const fn counts(&self) -> bool {
        self.replied != 0 && !self.is_over()
    }

    pub const fn stage(&self) -> Stage {
        if self.is_over() {
            Stage::Closed
        } else if self.assured == 0 {
            if self.replied == 0 { Stage::New } else { Stage::Replied }
        } else if self.client_fin | self.server_fin != 0 {
            Stage::HalfClosed
        } else {
            Stage::Assured
        }
    }

    /// Longer than an endpoint remembers a connection that it closed (60 s, by a timer that may be 4 s late, and our times are up to
    /// 1 s old): the port it showed must not be another's before.
    const CLOSED_PATIENCE: u64 = 75;

    /// How long it may be silent, in seconds.
    pub const fn patience(&self, protocol: u8) -> u64 {
        match (self.stage(), protocol) {
            (Stage::HalfClosed, _) => 3600,
            (Stage::Assured, TCP) => 24 * 3600,
            (Stage::Assured, UDP) => 180,
            (Stage::New | Stage::Replied, _) => 60,
            (Stage::Closed, _) => Self::CLOSED_PATIENCE,
            (Stage::Assured, _) => 30,
        }
    }

    pub const fn has_expired(&self, protocol: u8, now: u64) -> bool {
        now.saturating_sub(self.seen) > self.patience(protocol) * 1_000_000_000
    }

    pub const fn endpoint(&self) -> Member {
        Member::from_bits(self.member)
    }
}

/// Users of one port at a time, each towards another far end, of which there are so many kinds. As many bits as `way` gives.
pub const SNAT_WAYS: usize = 8;
const _: () = assert!(SNAT_WAYS == 1 << (32 - 29));

/// One of the ways of a port of the range for translated sources. Half a line of a processor's cache, and so never in two.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnatPlace {
    /// `Tuple::remote` of the user; zero is free. Claimed by compare-and-swap.
    pub remote: u64,
    /// The flow's key, as words.
    pub key: [u64; 2],
    /// Not zero: a program of the node may have bound the port.
    pub bound: u64,
}

impl SnatPlace {
    /// The one way that a far end has on every port: so a port is free towards it, or taken, at one look.
    pub const fn way(remote: u64) -> u32 {
        (remote as u32 ^ (remote >> 29) as u32).wrapping_mul(0x9e37_79b9) >> 29
    }

    /// The index of a place, by the port's number within the range.
    pub const fn index(port: u32, way: u32) -> u32 {
        port * SNAT_WAYS as u32 + way
    }

    /// The port's number of a place.
    pub const fn port(index: u32) -> u32 {
        index / SNAT_WAYS as u32
    }
}

pub const NO_TUPLE: Tuple = Tuple {
    src: Ip4::UNSPECIFIED,
    dst: Ip4::UNSPECIFIED,
    sport: Port(0),
    dport: Port(0),
    protocol: 0,
    pad: 0,
    rest: 0,
};

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: u16,
    pub protocol: u8,
    pub pad: u8,
}

const _: () = {
    assert!(size_of::<Tuple>() == 16);
    assert!(size_of::<Flow>() == 80);
    assert!(size_of::<SnatPlace>() == 32);
    assert!(size_of::<FragmentKey>() == 12);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple() -> Tuple {
        Tuple {
            src: Ip4::new([1, 2, 3, 4]),
            dst: Ip4::new([5, 6, 7, 8]),
            sport: Port::new(1),
            dport: Port::new(2),
            protocol: TCP,
            pad: 0,
            rest: 0,
        }
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        assert_eq!(tuple().reversed().src, tuple().dst);
        assert_eq!(tuple().reversed().reversed(), tuple());
    }

    #[test]
    #[expect(unsafe_code, reason = "bytes as the kernel keeps them")]
    fn the_words_of_a_key_are_its_bytes() {
        // SAFETY: both are plain bytes of one size.
        let words = unsafe { core::mem::transmute::<Tuple, [u64; 2]>(tuple()) };
        assert_eq!(words, tuple().words());
        assert_eq!(Tuple::from_words(words), tuple());
        assert_eq!(Tuple::reversed_words(words), tuple().reversed().words());
    }

    #[test]
    fn a_connection_waits_as_long_as_its_stage_says() {
        const SECOND: u64 = 1_000_000_000;
        let new = Flow::default();
        let replied = Flow { replied: 1, ..new };
        let assured = Flow { assured: 1, ..replied };
        let half = Flow { client_fin: 1, ..assured };
        let closed = Flow { server_fin: 1, ..half };
        let reset = Flow { reset: 1, ..assured };
        for (flow, protocol, seconds) in [
            (new, TCP, 60),
            (replied, TCP, 60),
            (assured, TCP, 24 * 3600),
            (half, TCP, 3600),
            (closed, TCP, 75),
            (reset, TCP, 75),
            (replied, UDP, 60),
            (assured, UDP, 180),
            (assured, crate::ICMP, 30),
        ] {
            assert!(!flow.has_expired(protocol, seconds * SECOND), "{flow:?}");
            assert!(flow.has_expired(protocol, (seconds + 1) * SECOND), "{flow:?}");
        }
        // A client that closes before it was ever heard of again is not assured by that.
        assert_eq!(Flow { client_fin: 1, ..replied }.stage(), Stage::Replied);
    }

    #[test]
    fn a_tag_is_of_key_and_contents() {
        let to = Tuple { dst: Ip4::new([9, 9, 9, 9]), ..tuple() };
        let tag = Flow::tag_of(&tuple(), &to);
        assert_ne!(tag, Flow::tag_of(&to, &tuple()));
        for other in [Tuple { sport: Port::new(3), ..to }, Tuple { src: Ip4::new([1, 2, 3, 5]), ..to }, to.reversed()] {
            assert_ne!(tag, Flow::tag_of(&tuple(), &other));
        }
    }

    #[test]
    fn packed_ends_and_places_survive_a_round_trip() {
        let exposed = Exposed { addr: Ip4::new([10, 96, 0, 1]), port: Port::new(443), epoch: 65_535 };
        assert_eq!(Exposed::from_bits(exposed.bits()), exposed);
        assert_eq!(SnatPlace::port(SnatPlace::index(14_999, 7)), 14_999);
        assert_ne!(tuple().remote(), 0);
        assert_eq!(tuple().reversed().answering(), end(tuple().dst, tuple().dport, TCP));
    }
}
