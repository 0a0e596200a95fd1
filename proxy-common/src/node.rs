//! The node, its pods and their network namespaces.

use crate::{Ip, Ip4};

/// Whose sockets a network namespace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netns {
    pub kind: u32,
    /// The pod's IPv4 address, or the node's; unspecified where it has none.
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

/// A local pod's host end, with the mark of the pod's address as a frontend has its key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLink {
    pub ifindex: u32,
    /// `Addr::mark`.
    pub mark: u32,
}

impl PodLink {
    pub const fn bits(self) -> u64 {
        self.ifindex as u64 | (self.mark as u64) << 32
    }

    pub const fn from_bits(bits: u64) -> Self {
        Self { ifindex: bits as u32, mark: (bits >> 32) as u32 }
    }
}

/// What the packet programs know of their node in one family; without an uplink where it has no address of that. User space writes it at its
/// start, and `epoch` whenever a pod or a node address comes or goes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeConfig<A = Ip4> {
    pub node_ip: A,
    pub uplink: u32,
    /// The near end of the service link: packets put into it reach the host as if the service had sent them.
    pub service_link: u32,
    pub pod_net: A,
    pub pod_mask: A,
    pub cluster_net: A,
    pub cluster_mask: A,
    pub service_net: A,
    pub service_mask: A,
    /// First port of the range for translated sources, in the machine's byte order, and how many.
    pub snat_first: u16,
    pub snat_count: u16,
    /// Never 0: what flows remember of devices holds as long as it stays.
    pub epoch: u32,
    /// Not zero: nobody marks ports that programs bind, so each is looked up before it is used.
    pub probe_ports: u32,
    /// Flows that a pod may have: answered, and not over.
    pub pod_flows: u32,
    pub reserved: [u32; 2],
    pub more: A,
}

const _: () = {
    assert!(size_of::<NodeConfig>() == 64);
    assert!(size_of::<NodeConfig<Ip>>() == 160);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_survive_a_round_trip() {
        let netns = Netns { kind: Netns::POD, ip: Ip4::new([10, 244, 0, 7]) };
        assert_eq!(Netns::from_bits(netns.bits()), netns);
        let link = PodLink { ifindex: 9, mark: 7 };
        assert_eq!(PodLink::from_bits(link.bits()), link);
    }
}
