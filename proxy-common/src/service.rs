//! Services: what clients address, the endpoints behind it, and who stays with which.

use crate::{Family, Ip, Port, SCTP, TCP, UDP};

/// Whose view of a frontend it is.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Pods and nodes of the cluster.
    Internal = 0,
    /// Clients outside, on the packet path.
    External = 1,
}

/// What a client addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendKey {
    pub addr: Ip,
    pub port: Port,
    pub protocol: u8,
    pub scope: u8,
    pub pad: u32,
}

impl FrontendKey {
    pub const fn new(addr: Ip, port: Port, protocol: u8, scope: Scope) -> Self {
        Self { addr, port, protocol, scope: scope as u8, pad: 0 }
    }

    /// Stored beside the slot, so that a reader notices when the element it holds was recycled for another key.
    pub const fn tag(&self) -> u32 {
        let low = self.port.0 as u32 | (self.protocol as u32) << 16 | (self.scope as u32) << 24;
        self.addr.folded() ^ low.rotate_left(7)
    }

    pub const fn value(&self, slot: u32) -> u64 {
        slot as u64 | (self.tag() as u64) << 32
    }

    /// The slot of a value that belongs to this key.
    pub const fn slot_of(&self, value: u64) -> Option<u32> {
        if (value >> 32) as u32 == self.tag() { Some(value as u32) } else { None }
    }
}

/// What a port of the node's own addresses leads to, by who asks. Zero: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodePort(pub u64);

impl NodePort {
    /// The place of a port among `NODE_PORTS`; none for a protocol without ports.
    pub const fn index(family: Family, protocol: u8, port: Port) -> Option<u32> {
        let kind = match protocol {
            TCP => 0,
            UDP => 1,
            SCTP => 2,
            _ => return None,
        };
        Some((family as u32 * 3 + kind) << 16 | port.get() as u32)
    }

    /// Family, protocol and port of a place.
    pub const fn at(index: u32) -> (Family, u8, Port) {
        let row = index >> 16;
        let family = if row < 3 { Family::V4 } else { Family::V6 };
        let protocol = match row % 3 {
            0 => TCP,
            1 => UDP,
            _ => SCTP,
        };
        (family, protocol, Port::new(index as u16))
    }

    pub const fn slot(self, scope: Scope) -> Option<u32> {
        ((self.0 >> (32 * scope as u32)) as u32).checked_sub(1)
    }

    pub const fn with(self, scope: Scope, slot: Option<u32>) -> Self {
        let shift = 32 * scope as u32;
        let half = match slot {
            Some(slot) => slot + 1,
            None => 0,
        };
        Self(self.0 & !(0xffff_ffff << shift) | (half as u64) << shift)
    }
}

/// An endpoint of one service port. Its place in the array may get another one later, under another generation.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backend {
    pub addr: Ip,
    /// Port, protocol, flags and generation, in one word that is read and written whole.
    pub state: u64,
    /// For later: which node, and in which zone.
    pub node: u32,
    pub zone: u16,
    pub pad: u16,
}

impl Backend {
    /// It belongs to a set.
    pub const ALIVE: u8 = 1;

    pub const fn new(addr: Ip, port: Port, protocol: u8, generation: u32) -> Self {
        Self { addr, state: state(port, protocol, Self::ALIVE, generation), node: 0, zone: 0, pad: 0 }
    }

    pub const fn port(&self) -> Port {
        Port(self.state as u16)
    }

    pub const fn is_alive(&self) -> bool {
        (self.state >> 24) as u8 & Self::ALIVE != 0
    }

    pub const fn generation(&self) -> u32 {
        generation_of(self.state)
    }

    /// The state of this place once its endpoint is in no set any more.
    pub const fn retired(&self) -> u64 {
        state(self.port(), (self.state >> 16) as u8, 0, self.generation().wrapping_add(1))
    }
}

const fn state(port: Port, protocol: u8, flags: u8, generation: u32) -> u64 {
    port.0 as u64 | (protocol as u64) << 16 | (flags as u64) << 24 | (generation as u64) << 32
}

/// The generation in a backend's state.
pub const fn generation_of(state: u64) -> u32 {
    (state >> 32) as u32
}

/// A backend as sets, flows and sockets hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Member {
    pub index: u32,
    pub generation: u32,
}

impl Member {
    /// Of a flow that leads to no endpoint of a service.
    pub const NONE: Self = Self { index: u32::MAX, generation: u32::MAX };

    /// In the order of indexes.
    pub const fn bits(self) -> u64 {
        self.generation as u64 | (self.index as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 32) as u32, generation: bits as u32 }
    }
}

/// An endpoint set: where it lies among the members, how many, and what to know before choosing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot {
    pub base: u32,
    pub count: u16,
    pub flags: u16,
}

impl Slot {
    /// Clients stay with their endpoint for a while (`sessionAffinity: ClientIP`).
    pub const AFFINITY: u16 = 1;
    /// The client's address is kept (`externalTrafficPolicy: Local`).
    pub const KEEP_SOURCE: u16 = 2;
    /// Empty here but not elsewhere: silence instead of a refusal.
    pub const DROP_WHEN_EMPTY: u16 = 4;
    /// Of a pod, not of a Service: it stays while the pod has its address. Nothing to the programs; it tells the next process.
    pub const HOST_PORT: u16 = 8;
    /// Only for clients of its ranges (`loadBalancerSourceRanges`).
    pub const SOURCE_RANGES: u16 = 16;

    pub const fn bits(self) -> u64 {
        self.base as u64 | (self.count as u64) << 32 | (self.flags as u64) << 48
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { base: bits as u32, count: (bits >> 32) as u16, flags: (bits >> 48) as u16 }
    }

    pub const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Beside a slot with affinity: whose it is (shared by all ways of access to one service port) and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Affinity {
    pub id: u32,
    pub seconds: u32,
}

impl Affinity {
    pub const fn bits(self) -> u64 {
        self.id as u64 | (self.seconds as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { id: bits as u32, seconds: (bits >> 32) as u32 }
    }
}

/// Who asks which slot, as ranges are matched: the slot whole, and then the address from its first byte on.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub slot: u32,
    /// Of an [`Ip`].
    pub quads: [u32; 4],
}

/// A range of sources that a slot is for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRange {
    /// Bits of the source that count.
    length: u32,
    source: Source,
}

impl SourceRange {
    /// All bits of a source.
    pub const WHOLE: u32 = size_of::<Source>() as u32 * 8;
    /// Those of the slot.
    const SLOT: u32 = 32;

    /// `length` bits of a mapped address count, none of which is set behind them.
    pub const fn new(slot: u32, net: Ip, length: u8) -> Self {
        Self { length: Self::SLOT + length as u32, source: Source { slot, quads: net.quads() } }
    }

    /// Slot, network and its length among the 128 bits of an address.
    pub const fn parts(&self) -> (u32, Ip, u8) {
        (self.source.slot, Ip::from_quads(self.source.quads), self.length.saturating_sub(Self::SLOT) as u8)
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityKey {
    pub client: Ip,
    pub id: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityValue {
    /// `Member` bits.
    pub member: u64,
    /// Monotonic nanoseconds of the last use.
    pub used: u64,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 24);
    assert!(size_of::<Backend>() == 32);
    assert!(size_of::<SourceRange>() == 24);
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<AffinityValue>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    #[test]
    fn packed_values_survive_a_round_trip() {
        let slot = Slot { base: 200_000, count: 65_535, flags: Slot::AFFINITY | Slot::KEEP_SOURCE };
        assert_eq!(Slot::from_bits(slot.bits()), slot);
        let member = Member { index: 7, generation: 9 };
        assert_eq!(Member::from_bits(member.bits()), member);
        let affinity = Affinity { id: 77, seconds: 10_800 };
        assert_eq!(Affinity::from_bits(affinity.bits()), affinity);
        let backend = Backend::new(Ip::v4(Ip4::new([10, 244, 0, 7])), Port::new(8080), UDP, 5);
        assert_eq!((backend.port(), backend.generation(), backend.is_alive()), (Port::new(8080), 5, true));
        let retired = Backend { state: backend.retired(), ..backend };
        assert_eq!((retired.port(), retired.generation(), retired.is_alive()), (Port::new(8080), 6, false));
    }

    #[test]
    fn a_range_counts_the_slot_and_the_front_of_an_address() {
        let range = SourceRange::new(7, Ip::v4(Ip4::new([10, 8, 0, 0])), 96 + 16);
        assert_eq!((range.length, range.parts()), (144, (7, Ip::v4(Ip4::new([10, 8, 0, 0])), 112)));
        assert_eq!(SourceRange::WHOLE, 160);
    }

    #[test]
    fn members_sort_by_index() {
        let bits = |index, generation| Member { index, generation }.bits();
        assert!(bits(1, 9) < bits(2, 0));
    }

    #[test]
    fn a_port_of_the_node_has_a_slot_for_each_side() {
        for (family, protocol, port) in [(Family::V4, TCP, 1), (Family::V4, UDP, 65_535), (Family::V6, SCTP, 30_000)] {
            let index = NodePort::index(family, protocol, Port::new(port)).unwrap();
            assert_eq!(NodePort::at(index), (family, protocol, Port::new(port)));
        }
        let both = NodePort::default().with(Scope::Internal, Some(0)).with(Scope::External, Some(131_071));
        assert_eq!((both.slot(Scope::Internal), both.slot(Scope::External)), (Some(0), Some(131_071)));
        let one = both.with(Scope::Internal, None);
        assert_eq!((one.slot(Scope::Internal), one.slot(Scope::External)), (None, Some(131_071)));
    }

    #[test]
    fn a_recycled_frontend_is_noticed() {
        let a = FrontendKey::new(Ip::v4(Ip4::new([10, 96, 0, 1])), Port::new(443), TCP, Scope::Internal);
        let b = FrontendKey { port: Port::new(80), ..a };
        assert_eq!(a.slot_of(a.value(9)), Some(9));
        assert_eq!(a.slot_of(b.value(9)), None);
        let external = FrontendKey { scope: Scope::External as u8, ..a };
        assert_eq!(a.slot_of(external.value(9)), None);
    }
}
