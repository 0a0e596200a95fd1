//! What the binary tells the agent at its start.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

#[derive(Clone, Debug)]
pub struct Config {
    /// Images, volumes, logs, records. Survives a reboot.
    pub data_dir: PathBuf,
    /// Sockets, bundles, mounts. Emptied after a reboot; keep it short, socket paths have 107 bytes.
    pub run_dir: PathBuf,
    pub node_name: String,
    /// One, or one of each family: what pods of the host's network have. The first is the one by which it is known.
    pub node_ips: Vec<IpAddr>,
    /// What pods have their addresses from, one of each, in this order.
    pub pod_cidrs: Vec<IpNetwork>,
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
