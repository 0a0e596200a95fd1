//! How soon it is ready, what it holds in memory, what it costs when nothing happens.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use serde_json::Value;

use crate::host;
use crate::http::{Api, block_on};
use crate::processes::{Peer, activity, command, mapped_maps, memory};
use crate::report::{Goal, Report, Row};
use crate::stats::median;

/// Pods that do nothing, while memory and idleness are measured.
pub const PODS: usize = 10;
const STARTS: usize = 5;
const LIMIT: Duration = Duration::from_secs(30);
/// Quiet time before idleness counts: images settle, first leases are renewed.
const SETTLE: Duration = Duration::from_secs(10);

pub fn run(seconds: u64) -> Result<Report> {
    let mut report = Report::new("footprint")?;
    report.note(format!(
        "starts, median of {STARTS}: polled over HTTPS and with dig from the node every few milliseconds; \"fresh\" is on an \
         empty data folder after `amphipod reset`, \"again\" on its own data after SIGTERM"
    ));
    let cluster = Cluster::up(host::CLUSTER)?;
    let fresh = starts(&cluster, From::Nothing)?;
    cluster.down()?; // its certificates are another cluster's by now
    let cluster = Cluster::up(host::CLUSTER)?;
    let again = starts(&cluster, From::ItsData)?;
    for (name, starts) in [("fresh", &fresh), ("again", &again)] {
        let column = |pick: fn(&Start) -> f64| median(&starts.iter().map(pick).collect::<Vec<_>>());
        let (ready, resolves) = (column(|start| start.ready), column(|start| start.resolves));
        report.row(Row::new(format!("start ({name}) → node Ready"), ready, "s").goal(Goal::ValueAtMost(1.0)));
        report.row(Row::new(format!("start ({name}) → a name resolves"), resolves, "s").goal(Goal::ValueAtMost(1.5)));
    }
    command("cargo", &["xtask", "cluster", "start", host::CLUSTER, "node1"])?;
    let processes = idle_pods(&cluster)?;
    residence(&mut report, &cluster, &processes)?;
    idleness(&mut report, &processes, seconds)?;
    cluster.down()?;
    Ok(report)
}

/// Starts the pods that do nothing; amphipod and then every pod's process.
pub fn idle_pods(cluster: &Cluster) -> Result<Vec<u32>> {
    let replicas = format!("--replicas={PODS}");
    cluster.kubectl(&["create", "deployment", "idle", "--image=busybox", &replicas, "--", "sleep", "1000000"])?;
    cluster.kubectl(&["rollout", "status", "deployment/idle", "--timeout=60s"])?;
    let uids = cluster.get(&["pods", "-l", "app=idle"], "{.items[*].metadata.uid}")?;
    let pods = uids.split_whitespace().map(host::pod_process).collect::<Result<Vec<_>>>()?;
    ensure!(pods.len() == PODS, "{} pods run, not {PODS}", pods.len());
    Ok(std::iter::once(host::amphipod(cluster)?).chain(pods).collect())
}

/// Mebibytes of all these processes (the first is amphipod) without the BPF maps that they have mapped.
pub fn resident(processes: &[u32]) -> Result<f64> {
    let pss: f64 = processes.iter().map(|pid| memory(*pid, "Pss")).sum::<Result<f64>>()?;
    Ok((pss - mapped_maps(processes[0])?) / 1024.0)
}

/// Memory: of processes, of maps, of the pod process that has most of its own.
fn residence(report: &mut Report, cluster: &Cluster, processes: &[u32]) -> Result<()> {
    std::thread::sleep(SETTLE);
    let megabytes = |kib: f64| kib / 1024.0;
    let mapped = mapped_maps(processes[0])?;
    report.note("resident memory is the sum of PSS without mapped BPF maps, which are in the row of their own");
    report.row(
        Row::new(format!("resident (PSS), all processes, {PODS} pods"), resident(processes)?, "MiB")
            .goal(Goal::ValueAtMost(60.0)),
    );
    report.row(Row::new("of it amphipod itself", megabytes(memory(processes[0], "Pss")? - mapped), "MiB"));
    report.row(Row::new("memory of BPF maps", megabytes(map_memory(cluster)?), "MiB").goal(Goal::ValueAtMost(64.0)));
    let dirty: Vec<f64> = processes[1..].iter().map(|pid| memory(*pid, "Private_Dirty")).collect::<Result<_>>()?;
    let most = megabytes(dirty.iter().copied().fold(0.0, f64::max));
    report.row(Row::new("a pod process (Private_Dirty), the largest", most, "MiB").goal(Goal::ValueAtMost(1.0)));
    Ok(())
}

fn idleness(report: &mut Report, processes: &[u32], seconds: u64) -> Result<()> {
    println!("  {seconds} s of idleness");
    let (began, before) = (Instant::now(), activity(processes)?);
    std::thread::sleep(Duration::from_secs(seconds));
    let (elapsed, after) = (began.elapsed(), activity(processes)?);
    let share = (after.cpu_ns - before.cpu_ns) as f64 / elapsed.as_nanos() as f64 * 100.0;
    report.row(Row::new("idle CPU, all processes", share, "% of a core").goal(Goal::ValueAtMost(0.1)));
    let wakeups = (after.wakeups - before.wakeups) as f64 / elapsed.as_secs_f64();
    report.row(Row::new("idle wake-ups, all processes", wakeups, "1/s").goal(Goal::ValueAtMost(10.0)));
    Ok(())
}

/// What a start finds.
#[derive(Clone, Copy, PartialEq)]
pub enum From {
    Nothing,
    ItsData,
}

/// Seconds from starting the process.
pub struct Start {
    pub ready: f64,
    pub resolves: f64,
}

/// Stops the node's amphipod; the words it was started with.
pub fn halt(cluster: &Cluster) -> Result<Vec<String>> {
    let running = host::amphipod(cluster)?;
    let words = command_line(running)?;
    stop(running)?;
    Ok(words)
}

/// Starts the node's amphipod with these words, follows it until it is there, and stops it.
pub fn start(cluster: &Cluster, words: &[String], from: From) -> Result<Start> {
    let netns = format!("--net={}", host::node(cluster.name()).display());
    if from == From::Nothing {
        command("nsenter", &[&netns, "--", &words[0], "reset", "--data-dir", cluster.data_dir()])?;
    }
    let log = Path::new(cluster.data_dir()).with_extension("log");
    let mut command = Command::new("nsenter");
    command.arg(netns).arg("--").args(words);
    let (began, before) = (Instant::now(), jiff::Timestamp::now());
    let process = Peer::start(&mut command, &log)?;
    let start = follow(cluster, began, before)?;
    stop(process.pid())?;
    Ok(start)
}

/// Starts the node's amphipod again and again; it is stopped at the end.
fn starts(cluster: &Cluster, from: From) -> Result<Vec<Start>> {
    let words = halt(cluster)?;
    let one = |index| {
        let start = start(cluster, &words, from)?;
        println!(
            "  start {index} of {STARTS}: Ready after {:.2} s, resolves after {:.2} s",
            start.ready, start.resolves
        );
        Ok(start)
    };
    (1..=STARTS).map(one).collect()
}

fn stop(pid: u32) -> Result<()> {
    command("kill", &["-TERM", &pid.to_string()])?;
    until("amphipod ends", || has_ended(pid))
}

/// Follows a process that has just been started.
fn follow(cluster: &Cluster, began: Instant, before: jiff::Timestamp) -> Result<Start> {
    // The record of readiness may be older than this start: only a heartbeat after it counts.
    let kubeconfig = Path::new(cluster.data_dir()).join("admin.kubeconfig");
    let ready = host::join(host::inside(&host::node(cluster.name()), move || {
        block_on(async {
            loop {
                ensure!(began.elapsed() < LIMIT, "the node is not ready after {} s", LIMIT.as_secs());
                if let Ok(api) = Api::from_kubeconfig(&kubeconfig)
                    && let Ok(mut connection) = api.connect().await
                    && let Ok(node) = connection.get("/api/v1/nodes/node1").await
                    && is_ready_since(&node, before)
                {
                    return Ok(began.elapsed().as_secs_f64());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }))?;
    let resolved = || {
        let asked = ["+short", "+time=1", "+tries=1", "@10.96.0.10", "kubernetes.default.svc.cluster.local"];
        let output = cluster.node().command("dig", &asked).output();
        output.is_ok_and(|output| output.stdout.starts_with(b"10.96.0.1"))
    };
    until("a name resolves", resolved)?;
    Ok(Start { ready, resolves: began.elapsed().as_secs_f64() })
}

/// Ready, said by the process that runs now.
fn is_ready_since(node: &Value, since: jiff::Timestamp) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| {
        let heard = condition["lastHeartbeatTime"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        // Written with whole seconds.
        condition["type"] == "Ready"
            && condition["status"] == "True"
            && heard.is_some_and(|at| at.as_second() >= since.as_second())
    })
}

fn command_line(pid: u32) -> Result<Vec<String>> {
    let line =
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).context("cannot read amphipod's command line")?;
    Ok(line.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// Gone, or a zombie without living threads, which would still hold its files.
fn has_ended(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z ") && threads <= 1)
}

fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        ensure!(Instant::now() < deadline, "waiting until {what}: not within {} s", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Kibibytes that the kernel counts for the pinned maps.
fn map_memory(cluster: &Cluster) -> Result<f64> {
    let text = std::fs::read_to_string(Path::new(cluster.data_dir()).join("places.json"))?;
    let places: Value = serde_json::from_str(&text)?;
    let folder = Path::new(places["bpf_root"].as_str().context("places.json names no bpf_root")?).join("maps");
    let mut sum = 0.0;
    for pin in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let shown = command("bpftool", &["--json", "map", "show", "pinned", &pin?.path().display().to_string()])?;
        let map: Value = serde_json::from_str(&shown)?;
        sum += map["bytes_memlock"].as_f64().unwrap_or(0.0) / 1024.0;
    }
    Ok(sum)
}
