//! The node, its pods and their network namespaces.

use crate::Ip4;

/// The Ethernet address of a pod's own end.
pub const fn pod_mac(ip: Ip4) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0e, 0x70, a, b, c, d]
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

/// What the packet programs know of their node. User space writes it at its start, and `epoch` whenever a pod or a node address
/// comes or goes.
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
    /// Never 0: what flows remember of devices holds as long as it stays.
    pub epoch: u32,
    /// Not zero: nobody marks ports that programs bind, so each is looked up before it is used.
    pub probe_ports: u32,
    pub reserved: [u32; 4],
}

const _: () = assert!(size_of::<NodeConfig>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_survive_a_round_trip() {
        let netns = Netns { kind: Netns::POD, ip: Ip4::new([10, 244, 0, 7]) };
        assert_eq!(Netns::from_bits(netns.bits()), netns);
        let link = PodLink { ifindex: 9, ip: netns.ip };
        assert_eq!(PodLink::from_bits(link.bits()), link);
    }
}
