//! This machine: what it is, its processors, and threads inside network namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::Cluster;
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};

/// Name of the cluster that benches bring up.
pub const CLUSTER: &str = "bench";

/// Kernel, processors, memory.
pub fn describe() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let cpus = std::thread::available_parallelism()?.get();
    let memory = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    Ok(format!("Linux {}, {cpus} × {model}, {} GiB", kernel.trim(), kib.div_ceil(1 << 20)))
}

/// Binds the calling thread to one processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot bind a thread to processor {cpu}"))
}

/// Runs `work` on a thread of its own inside a network namespace.
pub fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    let netns = netns.to_owned();
    std::thread::spawn(move || {
        enter(&netns)?;
        work()
    })
}

/// The outcome of a thread.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a measuring thread panicked"))?
}

/// The network namespace of a cluster's node.
pub fn node(cluster: &str) -> PathBuf {
    PathBuf::from(format!("/run/netns/amp-{cluster}-node1"))
}

/// Takes the calling thread into a network namespace; its sockets stay where they were made.
pub fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    move_into_link_name_space(rustix::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", netns.display()))
}

/// Where the node's agent keeps its run-time state.
pub fn run_dir() -> PathBuf {
    PathBuf::from(format!("/run/amphipod-{CLUSTER}/node1"))
}

/// The process of a pod, by its UID.
pub fn pod_process(uid: &str) -> Result<u32> {
    let (group, setup) = (format!("pod{uid}"), format!("/{uid}/setup.json"));
    let found = processes().find(|(pid, line)| {
        let named = line.starts_with("amphipod-pod\0")
            && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&group));
        // Releases before the name was given show the pod's file instead.
        named || line.contains(&setup)
    });
    found.map(|(pid, _)| pid).with_context(|| format!("pod {uid} has no process"))
}

/// The running `amphipod up` of a cluster.
pub fn amphipod(cluster: &Cluster) -> Result<u32> {
    let data_dir = format!("\0--data-dir\0{}\0", cluster.data_dir());
    // What nsenter starts becomes the process itself.
    let runs = |line: &str| !line.starts_with("nsenter") && line.contains("\0up\0") && line.contains(&data_dir);
    processes().find(|(_, line)| runs(line)).map(|(pid, _)| pid).context("amphipod does not run")
}

/// Every process's id and command line.
fn processes() -> impl Iterator<Item = (u32, String)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, fs::read_to_string(entry.path().join("cmdline")).ok()?))
    })
}

/// A pod of the test image that does nothing; its network namespace.
pub fn idle_pod(cluster: &Cluster, name: &str) -> Result<(String, PathBuf)> {
    cluster.kubectl(&["run", name, "--image=busybox", "--restart=Never", "--", "sleep", "1000000"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")])?;
    let ip = cluster.get(&["pod", name], "{.status.podIP}")?;
    let uid = cluster.get(&["pod", name], "{.metadata.uid}")?;
    ensure!(!ip.is_empty(), "pod {name} has no address");
    Ok((ip, PathBuf::from(format!("/proc/{}/ns/net", pod_process(&uid)?))))
}
