//! What a machine says of itself as a node; what it has to know of its cluster comes from there.

use std::net::IpAddr;
use std::path::PathBuf;

use network::Addresses;
use node::{Names, Settings};

use crate::cluster::Cluster;

/// Validated settings; see [`Settings`] for what they mean.
#[derive(Debug, Clone)]
pub struct Machine {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub name: String,
    /// Of which a node has those of its cluster's families.
    pub ips: Addresses,
    pub cgroup_root: PathBuf,
    pub pod_cgroup: String,
    pub bpf_root: PathBuf,
    pub registries: Option<PathBuf>,
    pub pod_max_pids: Option<u64>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub names: Names,
}

impl Machine {
    /// As a node of this cluster; `key` is by whose fingerprint its certificate is known, where it has one.
    pub fn in_cluster(&self, cluster: &Cluster, key: Option<String>) -> Settings {
        Settings {
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            name: self.name.clone(),
            key,
            ips: cluster.pods.iter().filter_map(|range| self.ips.beside(range.ip())).collect(),
            pod_cidrs: cluster.pods.clone(),
            service_cidrs: cluster.services.clone(),
            node_ports: cluster.node_ports,
            cluster_dns: cluster.dns,
            domain: cluster.domain.clone(),
            cgroup_root: self.cgroup_root.clone(),
            pod_cgroup: self.pod_cgroup.clone(),
            bpf_root: self.bpf_root.clone(),
            registries: self.registries.clone(),
            external_ips: cluster.external_ips,
            pod_max_pids: self.pod_max_pids,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls.clone(),
            names: self.names.clone(),
        }
    }
}

/// Of the link alone: nobody beyond it can be sent there.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
