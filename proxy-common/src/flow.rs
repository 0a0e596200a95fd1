//! Connections on the packet path: one entry each, and the ways from an answer back to it.

use crate::{Addr, Ip, Ip4, Member, TCP, Tuple, UDP};

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
pub struct Flow<A = Ip4> {
    /// What the client's packets become.
    pub to: Tuple<A>,
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

impl<A: Addr> Flow<A> {
    pub fn tag_of(key: &Tuple<A>, to: &Tuple<A>) -> u64 {
        A::tag(A::words(key), A::words(to))
    }
}

impl<A> Flow<A> {
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

/// One of the ways of a port of the range for translated sources. A line of a processor's cache or half of one, and so never in two.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnatPlace<A: Addr = Ip4> {
    /// `Tuple::remote` of the user; zero is free. Claimed by compare-and-swap.
    pub remote: u64,
    /// The flow's key, as words.
    pub key: A::Words,
    /// Not zero: a program of the node may have bound the port.
    pub bound: u64,
    pub spare: A::Spare,
}

impl<A: Addr> SnatPlace<A> {
    /// The one way that a far end has on every port: so a port is free towards it, or taken, at one look.
    #[inline(always)]
    pub fn way(remote: u64) -> u32 {
        (remote as u32 ^ (remote >> 29) as u32).wrapping_mul(0x9e37_79b9) >> (32 - A::SNAT_WAYS.trailing_zeros())
    }

    /// The index of a place, by the port's number within the range.
    #[inline(always)]
    pub fn index(port: u32, way: u32) -> u32 {
        port * A::SNAT_WAYS as u32 + way
    }

    /// The port's number of a place.
    #[inline(always)]
    pub fn port(index: u32) -> u32 {
        index / A::SNAT_WAYS as u32
    }
}

const _: () = {
    assert!(size_of::<Flow>() == 80);
    assert!(size_of::<SnatPlace>() == 32);
    assert!(size_of::<Flow<Ip>>() == 104);
    assert!(size_of::<SnatPlace<Ip>>() == 64);
    assert!(Ip4::SNAT_WAYS.is_power_of_two() && Ip::SNAT_WAYS.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exposed, Port};

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

    fn tuple6() -> Tuple<Ip> {
        let address = |first: u8| Ip::from_octets(core::array::from_fn(|byte| first + byte as u8));
        let Tuple { sport, dport, protocol, pad, rest, .. } = tuple();
        Tuple { src: address(1), dst: address(101), sport, dport, protocol, pad, rest }
    }

    fn reverses<A: Addr>(tuple: Tuple<A>) {
        assert_eq!((tuple.reversed().src, tuple.reversed().reversed()), (tuple.dst, tuple));
        assert_eq!(A::from_words(A::words(&tuple)), tuple);
        assert_eq!(A::reversed(A::words(&tuple)), A::words(&tuple.reversed()));
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        reverses(tuple());
        reverses(tuple6());
    }

    #[test]
    #[expect(unsafe_code, reason = "bytes as the kernel keeps them")]
    fn the_words_of_a_key_are_its_bytes() {
        // SAFETY: both are plain bytes of one size.
        let words = unsafe { core::mem::transmute::<Tuple, [u64; 2]>(tuple()) };
        assert_eq!(words, Ip4::words(&tuple()));
        // SAFETY: as above.
        let words = unsafe { core::mem::transmute::<Tuple<Ip>, [u64; 5]>(tuple6()) };
        assert_eq!(words, Ip::words(&tuple6()));
    }

    #[test]
    fn a_connection_waits_as_long_as_its_stage_says() {
        const SECOND: u64 = 1_000_000_000;
        let new: Flow = Flow::default();
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

    fn tags<A: Addr>(key: Tuple<A>, others: impl IntoIterator<Item = Tuple<A>>) {
        let to = Tuple { dst: A::GATEWAY, ..key };
        let tag = Flow::tag_of(&key, &to);
        assert_ne!(tag, Flow::tag_of(&to, &key));
        let moved = [Tuple { sport: Port::new(3), ..to }, to.reversed()];
        for other in others.into_iter().map(|other| Tuple { dst: A::GATEWAY, ..other }).chain(moved) {
            assert_ne!(tag, Flow::tag_of(&key, &other));
        }
    }

    #[test]
    fn a_tag_is_of_key_and_contents() {
        tags(tuple(), [Tuple { src: Ip4::new([1, 2, 3, 5]), ..tuple() }]);
        // Every byte of a longer address counts.
        tags(
            tuple6(),
            (0..16).map(|byte| {
                let mut octets = tuple6().src.octets();
                octets[byte] ^= 0x80;
                Tuple { src: Ip::from_octets(octets), ..tuple6() }
            }),
        );
    }

    fn packs<A: Addr>(tuple: Tuple<A>) {
        let exposed = Exposed { addr: tuple.src, port: Port::new(443), epoch: 65_535 };
        assert_eq!(A::from_exposed(A::exposed(exposed)), exposed);
        let ways = A::SNAT_WAYS as u32;
        assert_eq!(SnatPlace::<A>::port(SnatPlace::<A>::index(14_999, ways - 1)), 14_999);
        assert!((0..1000u64).all(|far| SnatPlace::<A>::way(far.wrapping_mul(0x1234_5678_9abc_def1)) < ways));
        assert_ne!(tuple.remote(), 0);
        assert_ne!(tuple.remote(), tuple.reversed().remote());
        assert_eq!(tuple.reversed().answering(), tuple.answerer());
    }

    #[test]
    fn packed_ends_and_places_survive_a_round_trip() {
        packs(tuple());
        packs(tuple6());
    }
}
