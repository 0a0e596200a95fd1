//! What this machine is like. Probes leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnetwork::{IpNetwork, Ipv4Network};
use pod::mounts::Mount;
use rustix::fs::statvfs;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Resource, getrlimit};

use crate::cluster::Cluster;
use crate::machine::Machine;
use crate::store_command::store_of;

/// Whose machine is looked at.
#[derive(Debug, Clone)]
pub struct Subject {
    pub machine: Machine,
    /// Not known before a machine has joined.
    pub cluster: Option<Cluster>,
    /// Where a server of this machine shall listen.
    pub listen: Option<SocketAddr>,
    /// The server that is elsewhere.
    pub server: Option<Reached>,
}

/// A server elsewhere (`host:port`), and why it cannot be used.
#[derive(Debug, Clone)]
pub struct Reached {
    pub address: String,
    pub refused: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Facts {
    pub uid: u32,
    pub kernel: String,
    /// What the kernel's type information names; `None` without it.
    pub btf: Option<Features>,
    pub jit: Option<u32>,
    /// That the kernel knows.
    pub file_systems: BTreeSet<String>,
    pub bpf_root: PathBuf,
    pub cgroup_root: PathBuf,
    pub cgroup_root_is_v2: bool,
    pub hierarchies: Vec<Hierarchy>,
    /// Why no program that holds containers to their devices can be attached to a cgroup2 folder.
    pub device_rules_refused: Option<String>,
    pub data_dir: PathBuf,
    pub store_exists: bool,
    pub disk: Disk,
    pub overlay_refused: Option<String>,
    /// Those that count, and whether each is an address of this machine.
    pub node_ips: Vec<(IpAddr, bool)>,
    /// Of pods and Services, once they are known: of one family, or of each.
    pub ranges: Option<Vec<(IpNetwork, IpNetwork)>>,
    /// Of other devices than ours, without default routes.
    pub routes: Vec<(String, IpNetwork)>,
    /// Whether the kernel sends packets of IPv6 on that come in by our devices.
    pub forwards_v6: bool,
    pub listen: Option<SocketAddr>,
    pub listen_refused: Option<String>,
    pub server: Option<Reached>,
    pub agent_runs: bool,
    /// Once they are known.
    pub node_ports: Option<(u16, u16)>,
    /// Ports of `node_ports` that programs listen on.
    pub listening: Vec<u16>,
    pub sysctl_writable: bool,
    pub open_files: u64,
    pub processes: u64,
    /// Instances and watches of one user.
    pub inotify: (u64, u64),
    pub clock: Clock,
}

#[derive(Debug, Clone)]
pub struct Features {
    pub tcx: bool,
    pub cgroup_links: bool,
}

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    pub mount: PathBuf,
    pub v2: bool,
    pub controllers: BTreeSet<String>,
    /// Why no folder can be made there.
    pub refused: Option<String>,
}

/// The disk of the data folder.
#[derive(Debug, Clone)]
pub struct Disk {
    pub overlayfs: bool,
    pub free: u64,
    /// Files that may still be made; `None` where the file system does not count them.
    pub files: Option<u64>,
    pub refused: Option<String>,
    /// How long a sync takes; the middle of several.
    pub sync: Option<Duration>,
}

/// Seconds since 1970.
#[derive(Debug, Clone)]
pub struct Clock {
    pub now: i64,
    /// Of the store, when there is one.
    pub last_use: Option<i64>,
    pub synchronised: bool,
}

/// As for a process that has claimed the namespace, where no other agent runs.
pub fn gather(subject: &Subject) -> Facts {
    let Subject { machine, cluster, listen, server } = subject;
    let near = nearest(&machine.data_dir);
    let node_ports = cluster.as_ref().map(|cluster| (cluster.node_ports.first, cluster.node_ports.last));
    // Of other nodes' parts it has routes itself, which outlive it.
    let was_node = node::state_file(&machine.data_dir).exists();
    let own = cluster.as_ref().filter(|_| was_node).map_or(&[][..], |cluster| &cluster.pods);
    let counts = |ip: &IpAddr| {
        let Some(cluster) = cluster else { return true };
        cluster.pods.iter().any(|range| range.is_ipv4() == ip.is_ipv4())
    };
    Facts {
        uid: rustix::process::geteuid().as_raw(),
        kernel: line("/proc/sys/kernel/osrelease"),
        btf: features(),
        jit: line("/proc/sys/net/core/bpf_jit_enable").parse().ok(),
        file_systems: text("/proc/filesystems")
            .lines()
            .filter_map(|line| Some(line.split('\t').nth(1)?.into()))
            .collect(),
        bpf_root: machine.bpf_root.clone(),
        cgroup_root: machine.cgroup_root.clone(),
        cgroup_root_is_v2: is_of(&machine.cgroup_root, CGROUP2),
        hierarchies: hierarchies(pod::mounts::read().unwrap_or_default(), &machine.pod_cgroup),
        device_rules_refused: said(try_device_rules(&machine.cgroup_root, &machine.pod_cgroup)),
        data_dir: machine.data_dir.clone(),
        store_exists: store_of(&machine.data_dir).exists(),
        disk: disk(near),
        overlay_refused: said(try_overlay(near)),
        node_ips: machine.ips.iter().filter(counts).map(|ip| (ip, UdpSocket::bind((ip, 0)).is_ok())).collect(),
        ranges: cluster
            .as_ref()
            .map(|cluster| cluster.pods.iter().copied().zip(cluster.services.iter().copied()).collect()),
        routes: [routes(&text("/proc/net/route"), own), routes_v6(&text("/proc/net/ipv6_route"), own)].concat(),
        forwards_v6: Path::new("/proc/sys/net/ipv6/conf/default/force_forwarding").exists()
            || number("/proc/sys/net/ipv6/conf/all/forwarding") != 0,
        listen: *listen,
        listen_refused: listen.and_then(|listen| said(TcpListener::bind(listen))),
        server: server.clone(),
        agent_runs: false,
        node_ports,
        listening: node_ports.map(listening).unwrap_or_default(),
        sysctl_writable: rustix::fs::access("/proc/sys/net/ipv4/ip_local_reserved_ports", rustix::fs::Access::WRITE_OK)
            .is_ok(),
        open_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        processes: process_limit(),
        inotify: (number("/proc/sys/fs/inotify/max_user_instances"), number("/proc/sys/fs/inotify/max_user_watches")),
        clock: clock(&store_of(&machine.data_dir)),
    }
}

/// Empty when it cannot be read: what is not there is judged, not reported.
fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn line(path: &str) -> String {
    text(path).trim().to_owned()
}

fn number(path: &str) -> u64 {
    line(path).parse().unwrap_or(0)
}

fn said<T>(outcome: io::Result<T>) -> Option<String> {
    outcome.err().map(|error| error.to_string())
}

/// The folder itself, or the first above it that is there.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

const CGROUP2: i64 = 0x6367_7270;
const OVERLAYFS: i64 = 0x794c_7630;

fn is_of(path: &Path, kind: i64) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == kind)
}

/// Type information names what was built in; its strings are searched as they are.
fn features() -> Option<Features> {
    let btf = fs::read("/sys/kernel/btf/vmlinux").ok()?;
    let mut found = Features { tcx: false, cgroup_links: false };
    for word in btf.split(|byte| *byte == 0) {
        found.tcx |= word == b"tcx_link" || word == b"tcx_link_attach";
        found.cgroup_links |= word == b"bpf_cgroup_link" || word == b"cgroup_bpf_link_attach";
    }
    Some(found)
}

fn hierarchies(mounts: Vec<Mount>, pod_cgroup: &str) -> Vec<Hierarchy> {
    let of_mount = |Mount { point: mount, kind, options, .. }: Mount| {
        let v2 = kind == "cgroup2";
        let controllers = match v2 {
            true => text(mount.join("cgroup.controllers")).split_whitespace().map(str::to_owned).collect(),
            false => options.into_iter().collect(),
        };
        let refused = said(try_folder(nearest(&mount.join(pod_cgroup))));
        Hierarchy { mount, v2, controllers, refused }
    };
    mounts.into_iter().filter(Mount::is_cgroup).map(of_mount).collect()
}

fn probe(place: &Path) -> PathBuf {
    place.join(format!("amphipod-doctor-{}", std::process::id()))
}

fn try_folder(place: &Path) -> io::Result<()> {
    let folder = probe(place);
    fs::create_dir(&folder)?;
    fs::remove_dir(&folder)
}

fn try_device_rules(cgroup2: &Path, pod_cgroup: &str) -> io::Result<()> {
    let folder = probe(nearest(&cgroup2.join(pod_cgroup))).with_extension("devices");
    fs::create_dir(&folder)?;
    let attached = fs::File::open(&folder).and_then(|folder| agent::try_device_rules(&folder));
    fs::remove_dir(&folder)?;
    attached
}

const SYNCS: usize = 5;

fn disk(place: &Path) -> Disk {
    let space = statvfs(place).ok();
    let sync = time_sync(&probe(place));
    Disk {
        overlayfs: is_of(place, OVERLAYFS),
        free: space.as_ref().map_or(0, |space| space.f_bavail * space.f_frsize),
        files: space.filter(|space| space.f_files > 0).map(|space| space.f_favail),
        refused: sync.as_ref().err().map(io::Error::to_string),
        sync: sync.ok(),
    }
}

fn time_sync(path: &Path) -> io::Result<Duration> {
    let mut file = fs::File::create_new(path)?;
    let measured = (0..SYNCS).map(|_| {
        file.write_all(&[0; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        Ok(start.elapsed())
    });
    let measured: io::Result<Vec<Duration>> = measured.collect();
    fs::remove_file(path)?;
    let mut measured = measured?;
    measured.sort();
    Ok(measured[SYNCS / 2])
}

/// Mounts an overlay whose writable layer is at `place`, as every container has one.
fn try_overlay(place: &Path) -> io::Result<()> {
    let folder = probe(place);
    let parts = ["lower", "upper", "work", "merged"].map(|name| folder.join(name));
    let [lower, upper, work, merged] = &parts;
    let mount = || {
        parts.iter().try_for_each(fs::create_dir_all)?;
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount("overlay", merged, "overlay", MountFlags::empty(), options.as_c_str())?;
        Ok(rustix::mount::unmount(merged, UnmountFlags::DETACH)?)
    };
    let outcome = mount();
    // The kernel keeps a folder of its own, without permissions, in `work`.
    match fs::remove_dir_all(&folder) {
        Err(error) if outcome.is_ok() => Err(error),
        _ => outcome,
    }
}

/// Whether a route is this node's: to services, or within `own`, by a gateway to other nodes' pods or to one of its own.
fn is_ours(device: &str, range: IpNetwork, via_gateway: bool, own: &[IpNetwork]) -> bool {
    let to_pods = own.iter().any(|own| own.prefix() <= range.prefix() && own.contains(range.network()));
    let to_one = range.prefix() == if range.is_ipv4() { 32 } else { 128 };
    device.starts_with("amphi") || (to_pods && (via_gateway || to_one))
}

/// Without ours.
fn routes(table: &str, own: &[IpNetwork]) -> Vec<(String, IpNetwork)> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let device = *fields.first()?;
        let word = |at: usize| Some(u32::from_str_radix(fields.get(at)?, 16).ok()?.swap_bytes());
        let (to, via, mask) = (word(1)?, word(2)?, word(7)?);
        let range = IpNetwork::V4(Ipv4Network::with_netmask(to.into(), mask.into()).ok()?);
        (range.prefix() > 0 && !is_ours(device, range, via != 0, own)).then(|| (device.to_owned(), range))
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// Without ours, and without what belongs to the machine or one link alone.
fn routes_v6(table: &str, own: &[IpNetwork]) -> Vec<(String, IpNetwork)> {
    let address = |text: &str| u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from);
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (to, via, device) = (address(fields.first()?)?, address(fields.get(4)?)?, *fields.get(9)?);
        let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let range = IpNetwork::new(to.into(), prefix).ok()?;
        let lesser = prefix == 0 || device == "lo" || to.is_unicast_link_local() || to.is_multicast();
        (!lesser && !is_ours(device, range, !via.is_unspecified(), own)).then(|| (device.to_owned(), range))
    };
    table.lines().filter_map(of_line).collect()
}

fn listening(range: (u16, u16)) -> Vec<u16> {
    let tables = ["tcp", "tcp6", "udp", "udp6"].map(|name| text(format!("/proc/net/{name}")));
    let ports: BTreeSet<u16> = tables.iter().flat_map(|table| table.lines().skip(1).filter_map(listener)).collect();
    ports.into_iter().filter(|port| (range.0..=range.1).contains(port)).collect()
}

/// The port of a line that stands for a listening (or unconnected) socket.
fn listener(line: &str) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
    matches!(*fields.get(3)?, "0A" | "07").then_some(port)
}

/// The least of what bounds the number of processes.
fn process_limit() -> u64 {
    let own = text("/proc/self/cgroup");
    let own = own.lines().filter_map(|line| line.rsplit(':').next());
    let of_cgroup = own.flat_map(|path| {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"].map(|mount| line(&format!("{mount}{path}/pids.max")).parse().ok())
    });
    let of_kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(number);
    of_cgroup.flatten().chain(of_kernel).filter(|limit| *limit > 0).min().unwrap_or(u64::MAX)
}

fn clock(store: &Path) -> Clock {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let last_use = fs::metadata(store).and_then(|found| found.modified()).ok().map(seconds);
    Clock { now: seconds(SystemTime::now()), last_use, synchronised: synchronised() }
}

#[expect(unsafe_code, reason = "adjtimex has no safe form")]
fn synchronised() -> bool {
    // SAFETY: all fields are integers.
    let mut facts: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: a structure to fill; without modes nothing is changed.
    let state = unsafe { libc::adjtimex(&raw mut facts) };
    state >= 0 && state != libc::TIME_ERROR && facts.status & libc::STA_UNSYNC == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t0001F40A\t020200C0\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t0500F40A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            amphi-svc\t0000600A\t00000000\t0001\t0\t0\t0\t0000F0FF\t0\t0\t0\n";
        let found = |range: &str| ("eth0".to_owned(), range.parse().unwrap());
        assert_eq!(routes(table, &[]), [found("192.0.2.0/24"), found("10.244.1.0/24"), found("10.244.0.5/32")]);
        let pods = ["10.244.0.0/16".parse().unwrap()];
        assert_eq!(routes(table, &pods), [found("192.0.2.0/24")], "to another node's pods, and to one here");
    }

    #[test]
    fn routes_of_ipv6_are_those_that_lead_somewhere() {
        let zero = "00000000000000000000000000000000";
        let line = |to: &str, bits: &str, via: &str, device: &str| {
            format!("{to} {bits} {zero} 00 {via} 00000400 00000001 00000000 00000001 {device:>8}\n")
        };
        let (link, router) = ("20010db8000000000000000000000000", "20010db8000000000000000000000002");
        let table = [
            line(zero, "00", router, "eth0"),
            line(link, "40", zero, "eth0"),
            line("fd000244000000010000000000000000", "40", router, "eth0"),
            line("fe800000000000000000000000000000", "40", zero, "eth0"),
            line("ff000000000000000000000000000000", "08", zero, "eth0"),
            line(router, "80", zero, "lo"),
            line("fd000096000000000000000000000000", "70", zero, "amphi-svc"),
        ]
        .concat();
        let found = |range: &str| ("eth0".to_owned(), range.parse().unwrap());
        assert_eq!(routes_v6(&table, &[]), [found("2001:db8::/64"), found("fd00:244:0:1::/64")]);
        assert_eq!(routes_v6(&table, &["fd00:244::/56".parse().unwrap()]), [found("2001:db8::/64")]);
    }

    #[test]
    fn listeners_are_told_from_connections() {
        let line = |state: &str| format!("0: 0100007F:7530 00000000:0000 {state} 00000000:00000000");
        assert_eq!(listener(&line("0A")), Some(30000));
        assert_eq!(listener(&line("01")), None);
        assert_eq!(listener("sl local_address rem_address st"), None);
    }

    #[test]
    fn a_disk_is_probed_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let found = disk(nearest(&folder.path().join("not/there")));
        assert!(found.refused.is_none() && found.free > 0 && found.sync.is_some(), "{found:?}");
        // Whether overlays can be mounted here is the machine's affair.
        let _ = try_overlay(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
