//! What a machine says of itself as a node: the same flags whether its server is in the same process or elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use agent::config::DEFAULT_POD_MAX_PIDS;
use agent::image::Registries;
use anyhow::{Context, Result, bail};
use api::sysctl::Allowed;
use clap::{ArgAction, Args};

use crate::machine::Machine;
use crate::names;

#[derive(Args)]
pub struct NodeArguments {
    /// Sockets, namespaces and other run-time state; keep it short
    #[arg(long, default_value = "/run/amphipod")]
    run_dir: PathBuf,
    /// Name of this node [default: the machine's host name]
    #[arg(long)]
    node_name: Option<String>,
    /// IPv4 address of this node [default: the one that leads to the default route]
    #[arg(long)]
    pub node_ip: Option<Ipv4Addr>,
    /// The cgroup2 folder where socket hooks attach [default: the cgroup2 mount]
    #[arg(long)]
    cgroup_root: Option<PathBuf>,
    /// Parent of the pods' cgroups, below each hierarchy's mount
    #[arg(long, default_value = "amphipod")]
    pod_cgroup: String,
    /// Folder of pinned BPF objects; a BPF file system is mounted there if none is [default: bpf in the run folder]
    #[arg(long)]
    bpf_root: Option<PathBuf>,
    /// YAML file that says where registries are and how to reach them
    #[arg(long)]
    registries: Option<PathBuf>,
    /// How many processes a pod may have; -1 for as many as the machine
    #[arg(long, default_value_t = DEFAULT_POD_MAX_PIDS as i64, allow_negative_numbers = true)]
    pod_max_pids: i64,
    /// Kernel settings that pods may choose beside the safe ones; a trailing * stands for any end
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
    /// Name servers for names outside the cluster: ADDRESS[:PORT] [default: those of /etc/resolv.conf]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    dns_upstream: Vec<String>,
    /// Name servers of one zone and all names below it; may be given again for others
    #[arg(long, value_delimiter = ',', value_name = "ZONE=ADDRESS[,ADDRESS…]")]
    dns_stub: Vec<String>,
    /// Write every question to DNS into the log
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    dns_log: bool,
    /// Answer names that pods find along their search lists in one go; wrong for programs that ask for whole names of services
    /// that are not there
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", action = ArgAction::Set)]
    dns_autopath: bool,
}

impl NodeArguments {
    /// With the address that the flag does not name.
    ///
    /// # Errors
    /// The flag, and what is wrong with what it was given.
    pub fn machine(&self, data_dir: &Path, ip: impl FnOnce() -> Result<Ipv4Addr>) -> Result<Machine> {
        let ip = self.node_ip.map_or_else(ip, Ok)?;
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        if !is_subdomain(&name) {
            bail!("node name {name:?}: lower case letters, digits, '-' and '.' are wanted; give one with --node-name");
        }
        Ok(Machine {
            data_dir: data_dir.to_owned(),
            run_dir: self.run_dir.clone(),
            name,
            ip,
            cgroup_root: self.cgroup_root.clone().map_or_else(cgroup2_mount, Ok)?,
            pod_cgroup: pod_cgroup(&self.pod_cgroup)?,
            bpf_root: self.bpf_root.clone().unwrap_or_else(|| self.run_dir.join("bpf")),
            registries: self.registries()?,
            pod_max_pids: pod_max_pids(self.pod_max_pids)?,
            allowed_unsafe_sysctls: self.allowed_unsafe_sysctls()?,
            names: names::settings(&self.dns_upstream, &self.dns_stub, self.dns_log.into(), self.dns_autopath.into())?,
        })
    }

    /// Read again by the agent: here a mistake is told before anything begins.
    fn registries(&self) -> Result<Option<PathBuf>> {
        if let Some(path) = &self.registries {
            Registries::load(path).with_context(|| format!("--registries {}", path.display()))?;
        }
        Ok(self.registries.clone())
    }

    fn allowed_unsafe_sysctls(&self) -> Result<Vec<String>> {
        Allowed::parse(&self.allowed_unsafe_sysctls).context("--allowed-unsafe-sysctls")?;
        Ok(self.allowed_unsafe_sysctls.clone())
    }
}

fn pod_max_pids(number: i64) -> Result<Option<u64>> {
    match number {
        -1 => Ok(None),
        1.. => Ok(Some(number.unsigned_abs())),
        _ => bail!(
            "--pod-max-pids {number}: a number of processes from 1 on is wanted, or -1 for as many as the machine"
        ),
    }
}

/// A folder of our own: at the root itself the pods of other kubelets would count as strays, and be ended.
fn pod_cgroup(text: &str) -> Result<String> {
    let own = text.trim_start_matches('/').trim_end_matches('/');
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !own.split('/').all(plain) {
        bail!("--pod-cgroup {text:?}: a folder below the hierarchies' root is wanted, such as amphipod");
    }
    Ok(own.to_owned())
}

fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    Ok(name.trim().to_lowercase())
}

/// An RFC 1123 subdomain.
pub fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
        ends && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(|part| part.len() <= 63 && label(part))
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = pod::mounts::read().context("cannot read the mount table")?;
    let found = mounts.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.point);
    found.context("no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

/// A documentation address: only the route to it is looked up.
pub const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The address from which this machine reaches another one; nothing is sent to find it.
///
/// # Errors
/// When no route leads there.
pub fn local_address(to: SocketAddr) -> Result<IpAddr> {
    let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).context("cannot open a socket")?;
    match socket.connect(to).and_then(|()| socket.local_addr()) {
        Ok(address) => Ok(address.ip()),
        Err(_) if to == ANYWHERE => bail!(
            "this machine has no default route to tell its address by: give one with --advertise-address (or --node-ip)"
        ),
        Err(_) => bail!("no route of this machine leads to {}: give its address with --node-ip", to.ip()),
    }
}

/// # Errors
/// When it is none of IPv4.
pub fn v4(address: IpAddr) -> Result<Ipv4Addr> {
    match address {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => bail!("this machine is reached at {ip}: give an IPv4 address with --node-ip"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_checked() {
        assert!(is_subdomain("node-1.example") && !is_subdomain("Node") && !is_subdomain("-a") && !is_subdomain("a_b"));
    }

    #[test]
    fn pods_have_a_cgroup_of_their_own() {
        assert_eq!(pod_cgroup("/system.slice/amphipod.service/").unwrap(), "system.slice/amphipod.service");
        for bad in ["", "/", "a//b", "../a", "."] {
            assert!(pod_cgroup(bad).unwrap_err().to_string().starts_with("--pod-cgroup"), "{bad}");
        }
    }
}
