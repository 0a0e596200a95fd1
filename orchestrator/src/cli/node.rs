//! What a machine says of itself as a node: the same flags whether its server is in the same process or elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use agent::config::DEFAULT_POD_MAX_PIDS;
use agent::image::Registries;
use anyhow::{Context, Result, bail};
use api::sysctl::Allowed;
use apiserver::engine::Family;
use clap::{ArgAction, Args};
use network::Addresses;

use crate::machine::{Machine, is_link_local};
use crate::names;

#[derive(Args)]
pub struct NodeArguments {
    /// Sockets, namespaces and other run-time state; keep it short
    #[arg(long, default_value = "/run/amphipod")]
    run_dir: PathBuf,
    /// Name of this node [default: the machine's host name]
    #[arg(long)]
    node_name: Option<String>,
    /// Address of this node, or one of each family [default: those that lead to the default routes]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS[,ADDRESS]")]
    node_ip: Vec<IpAddr>,
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
    /// Without the flag, `told` is asked for an address of this machine's that something else says.
    ///
    /// # Errors
    /// The flag, and what is wrong with what it was given. Without `--node-ip`, that no address of this machine is known.
    pub fn machine(&self, data_dir: &Path, told: impl FnOnce() -> Result<Option<IpAddr>>) -> Result<Machine> {
        let ips = match &*self.node_ip {
            [] => known_addresses(told()?)?,
            given => given.iter().copied().collect(),
        };
        if !self.node_ip.is_empty() && ips.iter().count() != self.node_ip.len() {
            let given: Vec<String> = self.node_ip.iter().map(IpAddr::to_string).collect();
            bail!("--node-ip {}: several are of one family: one of each is wanted at most", given.join(","));
        }
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
            ips,
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
pub const fn anywhere(family: Family) -> SocketAddr {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    };
    SocketAddr::new(ip, 9)
}

/// The one told, and of other families those that lead to the default routes.
fn known_addresses(told: Option<IpAddr>) -> Result<Addresses> {
    let [v4, v6] = Family::ALL.map(|family| local_address(anywhere(family)));
    match told.into_iter().chain(v4.as_ref().ok().copied()).chain(v6.ok()).collect::<Addresses>() {
        none if none.is_empty() => v4.map(Addresses::from),
        known => Ok(known),
    }
}

/// The address from which this machine reaches another one; nothing is sent to find it.
///
/// # Errors
/// When no route leads there.
pub fn local_address(to: SocketAddr) -> Result<IpAddr> {
    let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).context("cannot open a socket")?;
    let family = Family::of(&to.ip());
    if family == Family::V6 {
        prefer_lasting(&socket).context("cannot ask for an address that lasts")?;
    }
    match socket.connect(to).and_then(|()| socket.local_addr()) {
        Ok(address) if !is_link_local(address.ip()) => Ok(address.ip()),
        _ if to == anywhere(family) => bail!(
            "this machine has no default route of {} to tell its address by: give one with --advertise-address (or --node-ip)",
            family.name()
        ),
        _ => bail!("no route of this machine leads to {}: give its address with --node-ip", to.ip()),
    }
}

/// Not one of those that the kernel changes every day, to be known by no address.
fn prefer_lasting(socket: &UdpSocket) -> std::io::Result<()> {
    /// RFC 5014; not in the libc crate.
    const IPV6_PREFER_SRC_PUBLIC: libc::c_int = 2;
    let value = IPV6_PREFER_SRC_PUBLIC;
    #[expect(unsafe_code, reason = "a socket option that no safe wrapper has")]
    // SAFETY: an open descriptor, and an integer of the stated size that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_ADDR_PREFERENCES,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
