//! Map keys and values shared by the BPF programs and user space.
//!
//! Everything that a program decides on at once is packed into one aligned `u64`, so that one load reads it whole: a hash element
//! may be recycled under a reader, and a slot may be flipped while a program runs. Addresses and ports keep the byte order of the
//! wire and say so in their type. Padding is a field of its own, so that every byte of a key or value is written.
//!
//! Maps outlive the process that made them: whoever changes a key, a value or its meaning adds the step from the old layout to the
//! new one in `proxy-userspace/src/layout.rs`.
#![no_std]

mod address;
mod counter;
mod family;
mod flow;
mod node;
mod service;
mod socket;
mod tuple;

pub use address::{Family, Ip, Ip4, Port};
pub use counter::Counter;
pub use family::Addr;
pub use flow::{Direction, Flow, SnatPlace, Stage};
pub use node::{Netns, NodeConfig, PodLink};
pub use service::{
    Affinity, AffinityKey, AffinityValue, Backend, FrontendKey, Member, NodePort, Scope, Slot, generation_of,
};
pub use socket::{Address, Connected, Head, Origin, PEERS_PER_SOCKET, Peer, Peers, Sender, Senders};
pub use tuple::{Exposed, FragmentKey, FragmentKey6, Tuple};

/// Frontends: every address, port, protocol and scope that is translated, ports of all the node's addresses apart.
pub const MAX_FRONTENDS: usize = 131_072;
/// Ports of the node's addresses: two families of three protocols.
pub const MAX_NODE_PORTS: usize = 6 << 16;
/// Slots: one endpoint set each. A service port has one, or two when its external policy differs.
pub const MAX_SLOTS: usize = 131_072;
/// Members of all sets together: 3 MiB. Some endpoints are in two sets, and a set that changes has two places for a moment.
pub const MAX_MEMBERS: usize = 393_216;
/// Endpoints of all service ports: 8 MiB.
pub const MAX_BACKENDS: usize = 262_144;
/// Network namespaces whose sockets are translated: the node's own and one per pod.
pub const MAX_NETNS: usize = 4_096;
pub const MAX_PODS: usize = 4_096;
/// Addresses of all nodes of the cluster.
pub const MAX_NODE_ADDRESSES: usize = 16_384;
/// Connections on the packet path.
pub const MAX_FLOWS: usize = 131_072;
/// Flows that are not assured yet; the oldest give way. A power of two.
pub const MAX_NEW_FLOWS: usize = 32_768;
pub const MAX_NEW_FLOWS6: usize = 16_384;
/// Ports of the range for translated sources that can be used.
pub const MAX_SNAT_PORTS: usize = 16_384;
/// The ways of all of them: 4 MiB in either family.
pub const MAX_SNAT_PLACES: usize = MAX_SNAT_PORTS * <Ip4 as Addr>::SNAT_WAYS;
pub const MAX_SNAT_PLACES6: usize = MAX_SNAT_PORTS * <Ip as Addr>::SNAT_WAYS;
/// Endpoints whose clients keep their address and port.
pub const MAX_EXPOSED: usize = 16_384;
pub const MAX_AFFINITY: usize = 65_536;
pub const MAX_FRAGMENTS: usize = 8_192;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;
pub const SCTP: u8 = 132;

/// Ethernet address of every host end, so that a pod's neighbour entry never changes.
pub const HOST_MAC: [u8; 6] = [0x0e, 0x68, 0, 0, 0, 1];
/// Ethernet address of the far end of the service link.
pub const SERVICE_MAC: [u8; 6] = [0x0e, 0x68, 0, 0, 0, 2];
/// Every pod's gateway, and the source that a pod sees when it reaches itself through a service: 169.254.1.1.
pub const GATEWAY: Ip4 = Ip4::new([169, 254, 1, 1]);
/// The same of IPv6: fd61:6d70:6869::1. No link-local one, which would need a scope wherever it shows, and which routers outside have.
pub const GATEWAY6: Ip = Ip::from_octets([0xfd, 0x61, 0x6d, 0x70, 0x68, 0x69, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Values of the map of node addresses.
pub const THIS_NODE: u32 = 1;
pub const OTHER_NODE: u32 = 2;
