//! `amphipod doctor`: what this machine lacks to be a node, each with its remedy. `up` and `agent` hold themselves to the same table.
//!
//! [`facts`] looks at the machine; the rows of [`CHECKS`] judge what it found and touch nothing.

use std::fmt;

use anyhow::{Result, bail};
use ipnetwork::IpNetwork;
use proxy_userspace::OLDEST_KERNEL;

use crate::claim::{self, ClaimError};
use crate::machine::is_link_local;
use crate::pod_ranges::overlap;
use facts::{Facts, Hierarchy};

pub use facts::{Reached, Subject};

pub mod facts;

/// What a row says of the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Ok(String),
    /// It will work, with something missing or slow.
    Warn {
        found: String,
        remedy: String,
    },
    /// It cannot work.
    Fail {
        found: String,
        remedy: String,
    },
}

impl Verdict {
    fn ok(found: impl Into<String>) -> Self {
        Verdict::Ok(found.into())
    }

    fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Verdict::Warn { found: found.into(), remedy: remedy.into() }
    }

    fn fail(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Verdict::Fail { found: found.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ok(found) => f.write_str(found),
            Verdict::Warn { found, remedy } | Verdict::Fail { found, remedy } => write!(f, "{found}: {remedy}"),
        }
    }
}

/// One row: its name, and its judgement.
type Check = (&'static str, fn(&Facts) -> Verdict);

const CHECKS: &[Check] = &[
    ("user", user),
    ("kernel", kernel),
    ("BTF", btf),
    ("BPF hooks", bpf_hooks),
    ("BPF compiler", compiler),
    ("BPF file system", bpf_file_system),
    ("cgroup2", cgroup2),
    ("cgroup controllers", controllers),
    ("cgroup folders", cgroup_folders),
    ("device rules", device_rules),
    ("overlayfs", overlay),
    ("disk", disk),
    ("disk latency", disk_latency),
    ("node address", node_address),
    ("address ranges", ranges),
    ("IPv6 forwarding", forwarding),
    ("API port", api_port),
    ("API server", api_server),
    ("NodePorts", node_ports),
    ("kernel settings", settings_writable),
    ("open files", open_files),
    ("processes", processes),
    ("inotify", inotify),
    ("clock", clock),
];

/// `amphipod doctor`: prints every row; fails when one does.
///
/// # Errors
/// The number of rows that fail, when any does.
pub fn run(subject: &Subject) -> Result<()> {
    let agent_runs = matches!(claim::claim_namespace(), Err(ClaimError::Held));
    let verdicts = judge(&Facts { agent_runs, ..facts::gather(subject) });
    for (name, verdict) in &verdicts {
        let word = match verdict {
            Verdict::Ok(_) => "OK",
            Verdict::Warn { .. } => "WARN",
            Verdict::Fail { .. } => "FAIL",
        };
        println!("{word:<4}  {name:<18}  {verdict}");
    }
    match verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Fail { .. })).count() {
        0 => Ok(()),
        1 => bail!("this machine cannot be a node: 1 check failed"),
        failed => bail!("this machine cannot be a node: {failed} checks failed"),
    }
}

/// The same for `up` and `agent`: refuses with the first failure, logs what is only missing.
///
/// # Errors
/// The first row that fails.
pub fn admit(subject: &Subject) -> Result<()> {
    for (check, verdict) in judge(&facts::gather(subject)) {
        match verdict {
            Verdict::Ok(found) => tracing::debug!(check, found, "machine checked"),
            Verdict::Warn { found, remedy } => tracing::warn!(check, found, remedy, "machine checked"),
            Verdict::Fail { .. } => bail!("{check}: {verdict} (`amphipod doctor` lists everything)"),
        }
    }
    Ok(())
}

fn judge(facts: &Facts) -> Vec<(&'static str, Verdict)> {
    CHECKS.iter().map(|(name, check)| (*name, check(facts))).collect()
}

fn user(facts: &Facts) -> Verdict {
    match facts.uid {
        0 => Verdict::ok("root"),
        uid => Verdict::fail(format!("uid {uid}"), "start as root: pods need namespaces, mounts and BPF"),
    }
}

fn kernel(facts: &Facts) -> Verdict {
    let mut numbers = facts.kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Verdict::ok(&*facts.kernel);
    }
    let (major, minor) = OLDEST_KERNEL;
    Verdict::fail(format!("Linux {}", facts.kernel), format!("boot Linux {major}.{minor} or newer"))
}

fn btf(facts: &Facts) -> Verdict {
    if facts.btf.is_some() {
        return Verdict::ok("/sys/kernel/btf/vmlinux");
    }
    Verdict::fail("no /sys/kernel/btf/vmlinux", "boot a kernel with CONFIG_DEBUG_INFO_BTF=y")
}

fn bpf_hooks(facts: &Facts) -> Verdict {
    match &facts.btf {
        None => Verdict::warn("not known without BTF", "see BTF"),
        Some(features) if !features.cgroup_links => {
            Verdict::fail("the kernel has no BPF at cgroups", "boot a kernel with CONFIG_CGROUP_BPF=y")
        }
        Some(features) if features.tcx => Verdict::ok("devices (tcx) and cgroups"),
        Some(_) => Verdict::ok("devices (clsact, for the kernel has no tcx) and cgroups"),
    }
}

fn compiler(facts: &Facts) -> Verdict {
    match facts.jit {
        Some(0) => Verdict::warn(
            "BPF programs are interpreted, so every packet is slow",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        _ => Verdict::ok("on"),
    }
}

fn bpf_file_system(facts: &Facts) -> Verdict {
    if facts.file_systems.contains("bpf") {
        return Verdict::ok(format!("for {}", facts.bpf_root.display()));
    }
    Verdict::fail("the kernel has no BPF file system", "boot a kernel with CONFIG_BPF_SYSCALL=y")
}

fn cgroup2(facts: &Facts) -> Verdict {
    let root = facts.cgroup_root.display();
    if facts.cgroup_root_is_v2 {
        return Verdict::ok(format!("{root}"));
    }
    Verdict::fail(
        format!("{root} is no cgroup2 folder"),
        "mount -t cgroup2 none /sys/fs/cgroup/unified, or name another with --cgroup-root",
    )
}

/// Without these a pod's limits would be words.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

fn controllers(facts: &Facts) -> Verdict {
    let has = |name: &str| facts.hierarchies.iter().any(|hierarchy| hierarchy.controllers.contains(name));
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        let remedy = "boot with them (cgroup_enable=memory on some machines), or have them delegated to this cgroup";
        return Verdict::fail(format!("missing: {}", missing.join(", ")), remedy);
    }
    let (one, two): (Vec<&Hierarchy>, Vec<&Hierarchy>) = facts.hierarchies.iter().partition(|found| !found.v2);
    let limits =
        |found: &[&Hierarchy]| found.iter().any(|found| NEEDED.iter().any(|name| found.controllers.contains(*name)));
    Verdict::ok(match (limits(&one), limits(&two)) {
        (true, _) if two.is_empty() => "version 1",
        (true, _) => "version 1 for limits, version 2 for sockets (hybrid)",
        _ => "version 2",
    })
}

fn cgroup_folders(facts: &Facts) -> Verdict {
    match facts.hierarchies.iter().find_map(|found| Some((&found.mount, found.refused.as_ref()?))) {
        None => Verdict::ok("can be made"),
        Some((mount, why)) => Verdict::fail(
            format!("no folder can be made in {}: {why}", mount.display()),
            "mount it writable; under systemd set Delegate=yes",
        ),
    }
}

fn device_rules(facts: &Facts) -> Verdict {
    match &facts.device_rules_refused {
        None => Verdict::ok("cgroup2 asks before a device is opened"),
        // Without a folder there is no program to attach: that row says so.
        Some(_) if facts.hierarchies.iter().any(|found| found.v2 && found.refused.is_some()) => {
            Verdict::warn("not known without a cgroup folder", "see cgroup folders")
        }
        Some(why) => Verdict::fail(
            format!("no device program can be attached to a cgroup: {why}"),
            "boot a kernel with CONFIG_CGROUP_BPF=y and CONFIG_BPF_SYSCALL=y, and allow bpf(2)",
        ),
    }
}

fn overlay(facts: &Facts) -> Verdict {
    let place = facts.data_dir.display();
    if facts.disk.overlayfs {
        let remedy = "name a folder on a disk with --data-dir (in a container: a volume)";
        return Verdict::fail(format!("{place} is itself on overlayfs, which cannot hold containers"), remedy);
    }
    match &facts.overlay_refused {
        // A node that is there already goes on, as far as it can.
        Some(_) if facts.disk.free < LEAST_SPACE && facts.store_exists => Verdict::warn("not tried", "see disk"),
        None => Verdict::ok(format!("mounts on {place}")),
        Some(why) => {
            let remedy = "modprobe overlay, or name a folder on ext4, xfs or btrfs with --data-dir";
            Verdict::fail(format!("cannot be mounted on {place}: {why}"), remedy)
        }
    }
}

const MEBIBYTE: u64 = 1 << 20;
/// Less than this and not even the store can grow.
const LEAST_SPACE: u64 = 64 * MEBIBYTE;
/// A few images of the usual size.
const GOOD_SPACE: u64 = 2048 * MEBIBYTE;
const LEAST_FILES: u64 = 10_000;

fn disk(facts: &Facts) -> Verdict {
    let (place, disk) = (facts.data_dir.display(), &facts.disk);
    let free = format!("{} MiB free at {place}", disk.free / MEBIBYTE);
    let elsewhere = "free some space, or name another disk with --data-dir";
    if disk.free < LEAST_SPACE && facts.store_exists {
        return Verdict::warn(format!("{free}: writes to the API may be refused"), elsewhere);
    }
    if let Some(why) = &disk.refused {
        return Verdict::fail(
            format!("nothing can be written at {place}: {why}"),
            "name another folder with --data-dir",
        );
    }
    match disk.free {
        0..LEAST_SPACE => Verdict::fail(free, elsewhere),
        LEAST_SPACE..GOOD_SPACE => Verdict::warn(free, elsewhere),
        _ if disk.files.is_some_and(|files| files < LEAST_FILES) => {
            Verdict::warn(format!("room for {} files at {place}", disk.files.unwrap_or(0)), elsewhere)
        }
        _ => Verdict::ok(free),
    }
}

/// A write takes two syncs.
const SLOW_SYNC: u128 = 20;

fn disk_latency(facts: &Facts) -> Verdict {
    match facts.disk.sync {
        None => Verdict::warn("not measured", "see disk"),
        Some(sync) if sync.as_millis() >= SLOW_SYNC => Verdict::warn(
            format!("a sync takes {} ms, a write to the API twice that", sync.as_millis()),
            "put --data-dir on a faster disk",
        ),
        Some(sync) => Verdict::ok(format!("a sync takes {:.1} ms", sync.as_secs_f64() * 1e3)),
    }
}

fn node_address(facts: &Facts) -> Verdict {
    for (ip, is_here) in &facts.node_ips {
        if ip.is_loopback() || ip.is_unspecified() || is_link_local(*ip) {
            return Verdict::fail(
                format!("{ip}"),
                "give an address that pods and other machines reach, with --node-ip",
            );
        }
        if !is_here {
            return Verdict::fail(format!("{ip} is no address of this machine"), "give one that is with --node-ip");
        }
    }
    let ranges = facts.ranges.iter().flatten().enumerate();
    for (place, (pods, _)) in ranges {
        if facts.node_ips.iter().any(|(ip, _)| ip.is_ipv4() == pods.is_ipv4()) {
            continue;
        }
        let found = format!("none of {}, as the cluster's pods have in {pods}", family(*pods));
        return match place {
            0 => Verdict::fail(found, "give one with --node-ip"),
            _ => Verdict::warn(found, "give one too with --node-ip; without, pods here have none either"),
        };
    }
    let all: Vec<String> = facts.node_ips.iter().map(|(ip, _)| ip.to_string()).collect();
    Verdict::ok(all.join(", "))
}

fn family(range: IpNetwork) -> &'static str {
    if range.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn forwarding(facts: &Facts) -> Verdict {
    let served = facts.ranges.iter().flatten().any(|(pods, _)| pods.is_ipv6());
    if !served || facts.forwards_v6 {
        return Verdict::ok(if served { "sent on by the kernel" } else { "not asked for" });
    }
    Verdict::warn(
        "the kernel sends no packets on from pods to other devices of this machine than its uplink",
        "set net.ipv6.conf.all.forwarding=1 if they are to be reached, or use Linux 6.17 or newer",
    )
}

const LATER: &str = "known when this machine joins";

fn ranges(facts: &Facts) -> Verdict {
    let Some(ranges) = &facts.ranges else { return Verdict::ok(LATER) };
    for (pods, services) in ranges {
        if overlap(*pods, *services) {
            let both = format!("{pods} and {services}");
            return Verdict::fail(format!("pods and Services share addresses ({both})"), "choose ranges apart");
        }
        for (flag, range) in [("--pod-cidr", *pods), ("--service-cidr", *services)] {
            if facts.node_ips.iter().any(|(ip, _)| range.contains(*ip)) {
                let remedy = format!("choose another {flag} of the server");
                return Verdict::fail(format!("{range} holds this machine's address"), remedy);
            }
            if let Some((device, route)) = facts.routes.iter().find(|(_, route)| overlap(*route, range)) {
                let found = format!("{range} overlaps the route to {route} by {device}");
                return Verdict::warn(found, format!("choose another {flag} if anything there is to be reached"));
            }
        }
    }
    let list = |pick: fn(&(IpNetwork, IpNetwork)) -> IpNetwork| {
        ranges.iter().map(|both| pick(both).to_string()).collect::<Vec<_>>().join(", ")
    };
    Verdict::ok(format!("{} for pods, {} for Services", list(|both| both.0), list(|both| both.1)))
}

fn api_port(facts: &Facts) -> Verdict {
    let Some(listen) = facts.listen else { return Verdict::ok("none: the server is elsewhere") };
    match (&facts.listen_refused, facts.agent_runs) {
        (None, _) => Verdict::ok(format!("{listen}")),
        (Some(_), true) => Verdict::ok(format!("{listen}, amphipod runs already")),
        (Some(why), false) => Verdict::fail(
            format!("cannot listen on {listen}: {why}"),
            "stop what uses it, or choose another with --listen",
        ),
    }
}

fn api_server(facts: &Facts) -> Verdict {
    match &facts.server {
        None => Verdict::ok("in this process"),
        Some(Reached { address, refused: None }) => Verdict::ok(address),
        Some(Reached { refused: Some(why), .. }) => {
            Verdict::fail(why, "start it, let this machine reach its port, or name another with --server")
        }
    }
}

fn node_ports(facts: &Facts) -> Verdict {
    let Some((first, last)) = facts.node_ports else { return Verdict::ok(LATER) };
    let taken: Vec<String> = facts.listening.iter().map(u16::to_string).collect();
    if taken.is_empty() {
        return Verdict::ok(format!("{first}-{last}"));
    }
    let found = format!("in use by programs of this machine: {}", taken.join(", "));
    Verdict::warn(found, "a Service with such a NodePort takes it from them: move them to ports outside the range")
}

fn settings_writable(facts: &Facts) -> Verdict {
    if facts.sysctl_writable {
        return Verdict::ok("can be changed");
    }
    Verdict::fail(
        "/proc/sys/net is read-only",
        "run where it is writable (a privileged container, or the machine itself)",
    )
}

fn open_files(facts: &Facts) -> Verdict {
    match facts.open_files {
        0..1024 => {
            Verdict::fail(format!("at most {}", facts.open_files), "ulimit -n 65536, or LimitNOFILE=65536 in the unit")
        }
        1024..8192 => Verdict::warn(
            format!("at most {}: enough for about {} pods", facts.open_files, facts.open_files / 32),
            "ulimit -n 65536, or LimitNOFILE=65536 in the unit",
        ),
        found => Verdict::ok(format!("at most {found}")),
    }
}

fn processes(facts: &Facts) -> Verdict {
    match facts.processes {
        0..4096 => Verdict::warn(
            format!("at most {}", facts.processes),
            "raise kernel.pid_max, or TasksMax=infinity in the unit",
        ),
        found => Verdict::ok(format!("at most {found}")),
    }
}

fn inotify(facts: &Facts) -> Verdict {
    let (instances, watches) = facts.inotify;
    if instances >= 128 && watches >= 8192 {
        return Verdict::ok(format!("{instances} instances, {watches} watches"));
    }
    Verdict::warn(
        format!("{instances} instances and {watches} watches for all containers of a user"),
        "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=65536",
    )
}

/// Certificates made before this date would be older than the program.
const EARLIEST: i64 = 1_767_225_600; // 2026-01-01

fn clock(facts: &Facts) -> Verdict {
    let set = "set the clock (chrony, systemd-timesyncd, or date -s)";
    if facts.clock.now < EARLIEST {
        let now = jiff::Timestamp::from_second(facts.clock.now).map_or_else(|_| "?".into(), |now| now.to_string());
        return Verdict::fail(format!("it says {now}"), set);
    }
    if let Some(before) = facts.clock.last_use.filter(|last| *last > facts.clock.now + 300) {
        let minutes = (before - facts.clock.now) / 60;
        return Verdict::warn(format!("it is {minutes} minutes behind the last write to the store"), set);
    }
    if !facts.clock.synchronised {
        return Verdict::warn("the kernel says that nothing keeps it right", "run chrony or systemd-timesyncd");
    }
    Verdict::ok("plausible and kept right")
}

#[cfg(test)]
mod tests {
    use super::facts::{Clock, Disk, Features};
    use super::*;
    use std::time::Duration;

    const SERVICES: &str = "10.96.0.0/12";

    /// A machine with nothing to say about.
    fn good() -> Facts {
        let controllers = ["cpu", "memory", "pids", "io"].map(str::to_owned).into();
        Facts {
            uid: 0,
            kernel: "6.12.9-1-default".into(),
            btf: Some(Features { tcx: true, cgroup_links: true }),
            jit: Some(1),
            file_systems: ["bpf", "overlay"].map(str::to_owned).into(),
            bpf_root: "/run/amphipod/bpf".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            cgroup_root_is_v2: true,
            hierarchies: vec![Hierarchy { mount: "/sys/fs/cgroup".into(), v2: true, controllers, refused: None }],
            device_rules_refused: None,
            data_dir: "/var/lib/amphipod".into(),
            store_exists: false,
            disk: Disk {
                overlayfs: false,
                free: 40 << 30,
                files: Some(1 << 20),
                refused: None,
                sync: Some(Duration::from_millis(1)),
            },
            overlay_refused: None,
            node_ips: vec![([192, 0, 2, 7].into(), true)],
            ranges: Some(vec![("10.244.0.0/16".parse().unwrap(), SERVICES.parse().unwrap())]),
            routes: vec![("eth0".into(), "192.0.2.0/24".parse().unwrap())],
            forwards_v6: false,
            listen: Some("0.0.0.0:6443".parse().unwrap()),
            listen_refused: None,
            server: None,
            agent_runs: false,
            node_ports: Some((30000, 32767)),
            listening: Vec::new(),
            sysctl_writable: true,
            open_files: 524_288,
            processes: 32_768,
            inotify: (128, 65_536),
            clock: Clock { now: EARLIEST + 1, last_use: None, synchronised: true },
        }
    }

    /// The rows that are not OK, as `FAIL name: text`.
    fn complaints(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = good();
        change(&mut facts);
        let complaint = |(name, verdict): (&str, Verdict)| match &verdict {
            Verdict::Ok(_) => None,
            Verdict::Warn { .. } => Some(format!("WARN {name}: {verdict}")),
            Verdict::Fail { .. } => Some(format!("FAIL {name}: {verdict}")),
        };
        judge(&facts).into_iter().filter_map(complaint).collect()
    }

    #[track_caller]
    fn one(change: impl FnOnce(&mut Facts), start: &str, word: &str) {
        let found = complaints(change);
        assert!(found.len() == 1 && found[0].starts_with(start) && found[0].contains(word), "{found:?}");
    }

    #[test]
    fn a_good_machine_has_nothing_to_complain_of() {
        assert_eq!(complaints(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn every_lack_is_named_with_its_remedy() {
        one(|f| f.uid = 1000, "FAIL user", "start as root");
        one(|f| f.kernel = "6.1.0-25-amd64".into(), "FAIL kernel", "6.6 or newer");
        one(|f| f.btf = Some(Features { tcx: true, cgroup_links: false }), "FAIL BPF hooks", "CONFIG_CGROUP_BPF");
        one(|f| f.jit = Some(0), "WARN BPF compiler", "bpf_jit_enable=1");
        one(|f| f.file_systems.clear(), "FAIL BPF file system", "CONFIG_BPF_SYSCALL");
        one(|f| f.cgroup_root_is_v2 = false, "FAIL cgroup2", "--cgroup-root");
        one(
            |f| f.hierarchies[0].controllers.retain(|name| name != "memory"),
            "FAIL cgroup controllers",
            "missing: memory",
        );
        one(|f| f.hierarchies[0].refused = Some("read-only".into()), "FAIL cgroup folders", "Delegate=yes");
        one(|f| f.device_rules_refused = Some("not permitted".into()), "FAIL device rules", "CONFIG_CGROUP_BPF");
        one(|f| f.disk.overlayfs = true, "FAIL overlayfs", "--data-dir");
        one(|f| f.overlay_refused = Some("no such device".into()), "FAIL overlayfs", "modprobe overlay");
        one(|f| f.disk.refused = Some("read-only".into()), "FAIL disk", "--data-dir");
        one(|f| f.disk.free = 1 << 20, "FAIL disk", "1 MiB free");
        one(|f| (f.disk.free, f.store_exists) = (1 << 20, true), "WARN disk", "refused");
        one(|f| f.disk.free = 1 << 30, "WARN disk", "1024 MiB free");
        one(|f| f.disk.files = Some(3), "WARN disk", "room for 3 files");
        one(|f| f.disk.sync = Some(Duration::from_millis(50)), "WARN disk latency", "50 ms");
        one(|f| f.node_ips[0].1 = false, "FAIL node address", "--node-ip");
        one(|f| f.node_ips[0].0 = [127, 0, 0, 1].into(), "FAIL node address", "--node-ip");
        one(|f| f.node_ips.clear(), "FAIL node address", "none of IPv4");
        one(|f| f.listen_refused = Some("in use".into()), "FAIL API port", "--listen");
        one(|f| f.listening = vec![30080, 31000], "WARN NodePorts", "30080, 31000");
        one(|f| f.sysctl_writable = false, "FAIL kernel settings", "privileged");
        one(|f| f.open_files = 512, "FAIL open files", "LimitNOFILE");
        one(|f| f.open_files = 1024, "WARN open files", "LimitNOFILE");
        one(|f| f.processes = 100, "WARN processes", "TasksMax");
        one(|f| f.inotify = (8, 65_536), "WARN inotify", "max_user_instances");
        one(|f| f.clock.now = 0, "FAIL clock", "1970-01-01");
        one(|f| f.clock.last_use = Some(f.clock.now + 7200), "WARN clock", "120 minutes behind");
        one(|f| f.clock.synchronised = false, "WARN clock", "chrony");
    }

    #[test]
    fn without_btf_nothing_is_guessed() {
        let found = complaints(|facts| facts.btf = None);
        assert!(found[0].starts_with("FAIL BTF") && found[1].starts_with("WARN BPF hooks"), "{found:?}");
    }

    #[test]
    fn address_ranges_are_held_against_each_other_and_the_routes() {
        let shared = Some(vec![("10.100.0.0/16".parse().unwrap(), SERVICES.parse().unwrap())]);
        one(|f| f.ranges = shared, "FAIL address ranges", "share addresses");
        one(|f| f.node_ips[0].0 = [10, 244, 0, 9].into(), "FAIL address ranges", "--pod-cidr");
        one(|f| f.routes.push(("vpn".into(), "10.0.0.0/8".parse().unwrap())), "WARN address ranges", "by vpn");
    }

    #[test]
    fn a_second_family_is_judged_like_the_first_but_may_be_missing() {
        fn both(facts: &mut Facts) {
            let v6 = ("fd00:244::/56".parse().unwrap(), "fd00:96::/112".parse().unwrap());
            facts.ranges.as_mut().unwrap().push(v6);
            facts.node_ips.push(("2001:db8::7".parse().unwrap(), true));
            facts.forwards_v6 = true;
        }
        assert_eq!(complaints(both), Vec::<String>::new());
        let with = |change: fn(&mut Facts)| {
            move |facts: &mut Facts| {
                both(facts);
                change(facts);
            }
        };
        one(with(|f| f.node_ips.truncate(1)), "WARN node address", "none of IPv6");
        one(with(|f| f.node_ips.retain(|(ip, _)| ip.is_ipv6())), "FAIL node address", "none of IPv4");
        one(with(|f| f.node_ips[1].0 = "fe80::7".parse().unwrap()), "FAIL node address", "--node-ip");
        one(with(|f| f.node_ips[1].0 = "fd00:244::7".parse().unwrap()), "FAIL address ranges", "--pod-cidr");
        one(with(|f| f.routes.push(("vpn".into(), "fd00::/8".parse().unwrap()))), "WARN address ranges", "by vpn");
        one(with(|f| f.forwards_v6 = false), "WARN IPv6 forwarding", "net.ipv6.conf.all.forwarding=1");
    }

    #[test]
    fn an_agent_wants_its_server_and_no_port() {
        let agent = |refused: Option<&str>| {
            let server = Some(Reached { address: "10.0.0.1:6443".into(), refused: refused.map(str::to_owned) });
            move |f: &mut Facts| (f.listen, f.ranges, f.node_ports, f.server) = (None, None, None, server.clone())
        };
        assert_eq!(complaints(agent(None)), Vec::<String>::new());
        one(agent(Some("10.0.0.1:6443 cannot be reached: refused")), "FAIL API server", "--server");
    }

    #[test]
    fn a_node_that_filled_its_disk_starts_again() {
        let full = |facts: &mut Facts| {
            (facts.disk.free, facts.store_exists) = (0, true);
            facts.disk.refused = Some("no space".into());
            facts.overlay_refused = Some("no space".into());
        };
        assert!(complaints(full).iter().all(|complaint| complaint.starts_with("WARN")));
    }

    #[test]
    fn both_cgroup_versions_are_known() {
        let mut facts = good();
        assert_eq!(controllers(&facts), Verdict::ok("version 2"));
        facts.hierarchies[0].v2 = false;
        assert_eq!(controllers(&facts), Verdict::ok("version 1"));
        let unified = Hierarchy { mount: "/u".into(), v2: true, controllers: Default::default(), refused: None };
        facts.hierarchies.push(unified);
        assert!(matches!(controllers(&facts), Verdict::Ok(found) if found.contains("hybrid")));
    }

    #[test]
    fn a_running_amphipod_may_hold_its_own_port() {
        let running = |facts: &mut Facts| (facts.listen_refused, facts.agent_runs) = (Some("in use".into()), true);
        assert_eq!(complaints(running), Vec::<String>::new());
    }
}
