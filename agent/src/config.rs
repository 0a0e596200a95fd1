//! What the binary tells the agent at its start.

use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct Config {
    /// Images, volumes, logs, records. Survives a reboot.
    pub data_dir: PathBuf,
    /// Sockets, bundles, mounts. Emptied after a reboot; keep it short, socket paths have 107 bytes.
    pub run_dir: PathBuf,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub pod_cidr: PodCidr,
    /// Below each cgroup controller's mount: `<cgroup_root>/kubepods/…` holds the containers.
    pub cgroup_root: String,
    /// Below the cgroup2 mount: `<pod_cgroup>/pod<uid>` holds the pod processes (and, on hybrid machines, their
    /// containers).
    pub pod_cgroup: String,
    pub cluster_dns: Option<IpAddr>,
    pub cluster_domain: String,
    /// YAML file with registry endpoints; see [`crate::image::Registries`].
    pub registries: Option<PathBuf>,
    /// How many processes a pod may have; `None` for as many as the machine.
    pub pod_max_pids: Option<u64>,
    /// Kernel settings that pods may choose beside the safe ones; a trailing `*` stands for any end.
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// Enough for every server there is, too few to take the machine's processes away from the others.
pub const DEFAULT_POD_MAX_PIDS: u64 = 4096;

/// The addresses a node gives to its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCidr {
    pub base: std::net::Ipv4Addr,
    pub prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no IPv4 CIDR such as 10.244.0.0/24")]
pub struct BadCidr(String);

impl std::str::FromStr for PodCidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<PodCidr, BadCidr> {
        let bad = || BadCidr(text.to_owned());
        let (base, prefix) = text.split_once('/').ok_or_else(bad)?;
        let (base, prefix) = (base.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
        if prefix > 30 { Err(bad()) } else { Ok(PodCidr { base, prefix }) }
    }
}

impl PodCidr {
    /// Usable addresses in order: not the network's own, not the first (the gateway's by custom), not the last.
    pub fn addresses(self) -> impl Iterator<Item = std::net::Ipv4Addr> {
        let size = 1_u32 << (32 - u32::from(self.prefix));
        let base = u32::from(self.base) & !(size - 1);
        (2..size - 1).map(move |offset| (base + offset).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr() {
        let cidr: PodCidr = "10.244.1.7/29".parse().unwrap();
        let addresses: Vec<_> = cidr.addresses().map(|ip| ip.to_string()).collect();
        assert_eq!(addresses, ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"]);
        assert!("10.244.0.0".parse::<PodCidr>().is_err());
        assert!("10.244.0.0/31".parse::<PodCidr>().is_err());
    }
}
