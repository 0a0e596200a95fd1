//! Map keys and values shared by the BPF programs and user space.
//!
//! Everything that a program decides on at once is packed into one aligned `u64`, so that one load reads it whole: a hash element
//! may be recycled under a reader, and a slot may be flipped while a program runs. Addresses and ports keep the byte order of the
//! wire and say so in their type.
//!
//! Maps outlive the process that made them: whoever changes a key, a value or its meaning adds the step from the old layout to the
//! new one in `proxy-userspace/src/layout.rs`.
#![no_std]

mod counter;

pub use counter::Counter;

/// Frontends: every address, port, protocol and scope that is translated.
pub const MAX_FRONTENDS: usize = 131_072;
/// Slots: one endpoint set each. A service port has one, or two when its external policy differs.
pub const MAX_SLOTS: usize = 131_072;
/// Endpoints of all sets together: 2 MiB.
pub const MAX_BACKENDS: usize = 262_144;
/// Network namespaces whose sockets are translated: the node's own and one per pod.
pub const MAX_NETNS: usize = 4_096;
pub const MAX_PODS: usize = 4_096;
/// Addresses of all nodes of the cluster.
pub const MAX_NODE_ADDRESSES: usize = 16_384;
/// Directions of confirmed flows, two per connection.
pub const MAX_FLOWS: usize = 131_072;
/// Confirmed flows of one pod, a quarter of all: whoever opens more is refused, and its neighbours go on.
pub const MAX_POD_FLOWS: u64 = MAX_FLOWS as u64 / 2 / 4;
/// Directions of flows without a reply yet; the oldest give way, which is harmless.
pub const MAX_NEW_FLOWS: usize = 32_768;
pub const MAX_AFFINITY: usize = 65_536;
pub const MAX_FRAGMENTS: usize = 8_192;
/// Destinations that one unconnected UDP socket talks to through services at a time; further ones go the packet path.
pub const PEERS_PER_SOCKET: usize = 8;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

/// Ethernet address of every host end, so that a pod's neighbour entry never changes.
pub const HOST_MAC: [u8; 6] = [0x0e, 0x68, 0, 0, 0, 1];
/// Ethernet address of the far end of the service link.
pub const SERVICE_MAC: [u8; 6] = [0x0e, 0x68, 0, 0, 0, 2];
/// Every pod's gateway, and the source that a pod sees when it reaches itself through a service: 169.254.1.1.
pub const GATEWAY: Ip4 = Ip4::new([169, 254, 1, 1]);

/// An IPv4 address in the byte order of the wire.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

    pub const fn is_within(self, net: Self, mask: Self) -> bool {
        self.0 & mask.0 == net.0
    }
}

/// A port in the byte order of the wire.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Port(pub u16);

impl Port {
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// The Ethernet address of a pod's own end.
pub const fn pod_mac(ip: Ip4) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0e, 0x70, a, b, c, d]
}

/// Whose view of a frontend it is.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Pods and nodes of the cluster.
    Internal = 0,
    /// Clients outside, on the packet path.
    External = 1,
}

/// What a client addresses. The unspecified address stands for every address of a node (NodePort).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontendKey {
    pub addr: Ip4,
    pub port: Port,
    pub protocol: u8,
    pub scope: u8,
}

impl FrontendKey {
    /// Stored beside the slot, so that a reader notices when the element it holds was recycled for another key.
    pub const fn tag(&self) -> u32 {
        let low = self.port.0 as u32 | (self.protocol as u32) << 16 | (self.scope as u32) << 24;
        self.addr.0 ^ low.rotate_left(7)
    }

    pub const fn value(&self, slot: u32) -> u64 {
        slot as u64 | (self.tag() as u64) << 32
    }

    /// The slot of a value that belongs to this key.
    pub const fn slot_of(&self, value: u64) -> Option<u32> {
        if (value >> 32) as u32 == self.tag() { Some(value as u32) } else { None }
    }
}

/// One endpoint; sets are kept sorted by `bits`, so that membership is a binary search.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backend {
    pub addr: Ip4,
    pub port: Port,
    pub pad: u16,
}

impl Backend {
    pub const fn new(addr: Ip4, port: Port) -> Self {
        Self { addr, port, pad: 0 }
    }

    pub const fn bits(self) -> u64 {
        self.addr.0 as u64 | (self.port.0 as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self::new(Ip4(bits as u32), Port((bits >> 32) as u16))
    }
}

/// An endpoint set: where it lies among the backends, how many, and what to know before choosing one.
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

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityKey {
    pub id: u32,
    pub client: Ip4,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityValue {
    pub backend: u64,
    /// Monotonic nanoseconds of the last use.
    pub used: u64,
}

/// Whose sockets a network namespace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netns {
    pub kind: u32,
    /// The pod's address, or the node's.
    pub ip: Ip4,
}

impl Netns {
    pub const NODE: u32 = 1;
    pub const POD: u32 = 2;

    pub const fn bits(self) -> u64 {
        self.kind as u64 | (self.ip.0 as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { kind: bits as u32, ip: Ip4((bits >> 32) as u32) }
    }
}

/// A local pod's host end, tagged with the pod's address like a frontend with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLink {
    pub ifindex: u32,
    pub ip: Ip4,
}

impl PodLink {
    pub const fn bits(self) -> u64 {
        self.ifindex as u64 | (self.ip.0 as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { ifindex: bits as u32, ip: Ip4((bits >> 32) as u32) }
    }
}

/// Values of the map of node addresses.
pub const THIS_NODE: u32 = 1;
pub const OTHER_NODE: u32 = 2;

/// What the packet programs know of their node; written once at start.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeConfig {
    pub node_ip: Ip4,
    pub uplink: u32,
    /// The near end of the service link: packets put into it reach the host as if the service had sent them.
    pub service_link: u32,
    pub pod_net: Ip4,
    pub pod_mask: Ip4,
    pub cluster_net: Ip4,
    pub cluster_mask: Ip4,
    pub service_net: Ip4,
    pub service_mask: Ip4,
    /// First port of the range for translated sources, in the machine's byte order, and how many.
    pub snat_first: u16,
    pub snat_count: u16,
}

/// A flow in one direction, as a hook sees it on the wire. ICMP echoes have their identifier as the asking side's port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub src: Ip4,
    pub dst: Ip4,
    pub sport: Port,
    pub dport: Port,
    pub protocol: u8,
    pub pad: [u8; 3],
}

impl Tuple {
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }
}

/// What becomes of packets of a tuple.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub to: Tuple,
    pub flags: u32,
    /// Monotonic nanoseconds of the last packet, at most a second late.
    pub seen: u64,
}

impl Flow {
    /// The direction towards the client.
    pub const REPLY: u32 = 1;
    /// A FIN or RST passed: short deadline, and a new SYN starts over.
    pub const CLOSING: u32 = 2;
    /// On its way through the map it crossed a reply: it lives in the confirmed table.
    pub const CONFIRMED: u32 = 4;
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: u16,
    pub protocol: u8,
    pub pad: u8,
}

/// Where a connected socket was meant to go, and where it goes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The address the program gave, as `Backend` bits.
    pub service: u64,
    pub backend: u64,
}

/// The same for the destinations of an unconnected UDP socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    pub service: u64,
    pub backend: u64,
    pub used: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peers {
    pub list: [Peer; PEERS_PER_SOCKET],
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 8);
    assert!(size_of::<Backend>() == 8);
    assert!(size_of::<AffinityKey>() == 8);
    assert!(size_of::<AffinityValue>() == 16);
    assert!(size_of::<NodeConfig>() == 40);
    assert!(size_of::<Tuple>() == 16);
    assert!(size_of::<Flow>() == 32);
    assert!(size_of::<FragmentKey>() == 12);
    assert!(size_of::<Origin>() == 16);
    assert!(size_of::<Peers>() == 24 * PEERS_PER_SOCKET);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_survive_a_round_trip() {
        let slot = Slot { base: 200_000, count: 65_535, flags: Slot::AFFINITY | Slot::KEEP_SOURCE };
        assert_eq!(Slot::from_bits(slot.bits()), slot);
        let backend = Backend::new(Ip4::new([10, 244, 0, 7]), Port::new(8080));
        assert_eq!(Backend::from_bits(backend.bits()), backend);
        let netns = Netns { kind: Netns::POD, ip: Ip4::new([10, 244, 0, 7]) };
        assert_eq!(Netns::from_bits(netns.bits()), netns);
        let affinity = Affinity { id: 77, seconds: 10_800 };
        assert_eq!(Affinity::from_bits(affinity.bits()), affinity);
    }

    #[test]
    fn a_recycled_frontend_is_noticed() {
        let a = FrontendKey { addr: Ip4::new([10, 96, 0, 1]), port: Port::new(443), protocol: TCP, scope: 0 };
        let b = FrontendKey { port: Port::new(80), ..a };
        assert_eq!(a.slot_of(a.value(9)), Some(9));
        assert_eq!(a.slot_of(b.value(9)), None);
        let external = FrontendKey { scope: Scope::External as u8, ..a };
        assert_eq!(a.slot_of(external.value(9)), None);
    }

    #[test]
    fn bytes_lie_as_on_the_wire() {
        assert_eq!(Ip4::new([10, 1, 2, 3]).0.to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(Port::new(0x1234).0.to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::new(53).get(), 53);
        assert!(Ip4::new([10, 244, 3, 4]).is_within(Ip4::new([10, 244, 0, 0]), Ip4::new([255, 255, 0, 0])));
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        let tuple = Tuple {
            src: Ip4::new([1, 2, 3, 4]),
            dst: Ip4::new([5, 6, 7, 8]),
            sport: Port::new(1),
            dport: Port::new(2),
            protocol: TCP,
            pad: [0; 3],
        };
        assert_eq!(tuple.reversed().src, tuple.dst);
        assert_eq!(tuple.reversed().reversed(), tuple);
    }
}
