//! Cluster names over UDP beside other servers of the same names, each on one processor, asked by dnsperf from another.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use tempfile::TempDir;

use crate::host;
use crate::http::{Api, block_on};
use crate::objects;
use crate::processes::{Peer, activity, command};
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired};

const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";
const SECONDS: &str = "3";

const THROUGH_SERVICE: &str = "amphipod's service";

/// A server that is asked.
struct Server {
    name: &'static str,
    address: String,
    port: u16,
    pid: u32,
    _process: Option<Peer>,
}

/// Queries a second: as dnsperf counts them, and by the CPU time that the server took for them.
#[derive(Clone, Copy)]
struct Rate {
    asked: f64,
    per_core: f64,
}

fn ask(server: &Server, queries: &Path) -> Result<Rate> {
    let before = activity(&[server.pid])?;
    let netns = format!("--net={}", host::node(host::CLUSTER).display());
    let port = server.port.to_string();
    let output = command(
        "nsenter",
        &[
            &netns,
            "--",
            "taskset",
            "--cpu-list",
            CLIENT_CPU,
            "dnsperf",
            "-s",
            &server.address,
            "-p",
            &port,
            "-d",
            &queries.display().to_string(),
            "-l",
            SECONDS,
            "-c",
            "4",
            "-q",
            "100",
        ],
    )?;
    let figure = |label: &str| {
        let line = output.lines().find(|line| line.trim_start().starts_with(label));
        line.and_then(|line| line.split(':').nth(1)?.split_whitespace().next()?.parse::<f64>().ok())
    };
    let asked = figure("Queries completed").with_context(|| format!("dnsperf says nothing of use: {output}"))?;
    ensure!(output.contains("NOERROR") && asked > 0.0, "{} does not know the names: {output}", server.name);
    ensure!(!output.contains("NXDOMAIN"), "{} does not know all names: {output}", server.name);
    let seconds = (activity(&[server.pid])?.cpu_ns - before.cpu_ns) as f64 / 1e9;
    Ok(Rate { asked: figure("Queries per second").context("dnsperf says no rate")?, per_core: asked / seconds })
}

pub fn run(services: usize, rounds: usize) -> Result<Report> {
    let mut report = Report::new("dns")?;
    report.note(format!(
        "{services} services, A queries of their full names in random order; server bound to processor {SERVER_CPU}, \
         dnsperf to {CLIENT_CPU}, both in the node's network namespace; {SECONDS} s a turn, alternating; dnsperf's processor \
         is the limit, so queries are also divided by the CPU time that the server took"
    ));
    let cluster = Cluster::up(host::CLUSTER)?;
    let api = Api::from_kubeconfig(&Path::new(cluster.data_dir()).join("admin.kubeconfig"))?;
    println!("  {services} services");
    let addresses = host::join(host::inside(&host::node(host::CLUSTER), move || {
        block_on(async {
            objects::create(&api, 0..services, "10.244.0.250", 8080).await?;
            objects::addresses(&api).await
        })
    }))?;
    let folder = tempfile::tempdir().context("cannot make a folder for the servers' files")?;
    let queries = write_queries(folder.path(), services)?;
    // Started again on one processor: it makes as many DNS threads as it has processors, as the others are told to.
    command("cargo", &["xtask", "cluster", "stop", host::CLUSTER, "node1"])?;
    command("taskset", &["--cpu-list", SERVER_CPU, "cargo", "xtask", "cluster", "start", host::CLUSTER, "node1"])?;
    e2e::until("the node serves again", || Ok(own_server(&cluster).is_ok()))?;
    let ours = own_server(&cluster)?;
    let mut peers = peers(&folder, &addresses)?;
    // The way pods take: the same server through the service path, which costs the client two hooks a question.
    peers.push(Server { name: THROUGH_SERVICE, address: "10.96.0.10".into(), port: 53, pid: ours.pid, _process: None });
    wait(&ours, services - 1)?;
    for peer in &peers {
        wait(peer, services - 1)?;
    }
    let mut rates: Vec<Vec<Rate>> = vec![Vec::new(); peers.len() + 1];
    for round in 0..=rounds {
        let mut order: Vec<usize> = (0..=peers.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let server = if index == 0 { &ours } else { &peers[index - 1] };
            let rate = ask(server, &queries)?;
            if round > 0 {
                rates[index].push(rate); // the first round warms up
            }
        }
        println!("  round {round} of {rounds}: {}", shown(&ours, &peers, &rates));
    }
    rows(&mut report, &ours, &peers, &rates);
    drop(peers);
    cluster.down()?;
    Ok(report)
}

/// dnsperf on one processor asks less than the servers can answer, so what counts is the CPU time they take.
fn rows(report: &mut Report, ours: &Server, peers: &[Server], rates: &[Vec<Rate>]) {
    let column = |index: usize, pick: fn(&Rate) -> f64| rates[index].iter().map(pick).collect::<Vec<_>>();
    for (index, peer) in peers.iter().enumerate().map(|(index, peer)| (index + 1, peer)) {
        let pair = |pick: fn(&Rate) -> f64, what: &str| {
            let (mine, theirs) = (column(0, pick), column(index, pick));
            Row::new(format!("{what}, beside {}", peer.name), median(&mine), "1/s").beside(
                peer.name,
                median(&theirs),
                paired(&mine, &theirs),
            )
        };
        let row = pair(|rate| rate.per_core, "queries by a core's worth of server CPU time");
        report.row(if peer.name == "unbound" { row.goal(Goal::RatioAtLeast(1.0)) } else { row });
        report.row(pair(|rate| rate.asked, "queries as dnsperf gets to ask them"));
    }
    for (name, index) in std::iter::once((ours.name, 0)).chain(peers.iter().map(|peer| peer.name).zip(1..)) {
        report.samples.push((format!("{name}, asked"), column(index, |rate| rate.asked)));
        report.samples.push((format!("{name}, per core"), column(index, |rate| rate.per_core)));
    }
}

/// The node's server at its own address and port, as the others are asked.
fn own_server(cluster: &Cluster) -> Result<Server> {
    let netns = format!("--net={}", host::node(host::CLUSTER).display());
    let sockets = command("nsenter", &[&netns, "--", "ss", "--no-header", "--udp", "--listening", "--numeric"])?;
    let prefix = format!("{}:", cluster.node_ip());
    let port = sockets.split_whitespace().find_map(|word| word.strip_prefix(&prefix)?.parse().ok());
    let port = port.context("the node listens on no UDP port")?;
    let pid = host::amphipod(cluster)?;
    Ok(Server { name: "amphipod", address: cluster.node_ip().to_owned(), port, pid, _process: None })
}

fn shown(ours: &Server, peers: &[Server], rates: &[Vec<Rate>]) -> String {
    let names = std::iter::once(ours.name).chain(peers.iter().map(|peer| peer.name));
    let words =
        names.zip(rates).map(|(name, rates)| format!("{name} {:.0}/s", rates.last().map_or(0.0, |rate| rate.asked)));
    words.collect::<Vec<_>>().join(", ")
}

fn full_name(number: usize) -> String {
    format!("{}.default.svc.cluster.local", objects::name(number))
}

/// All names, shuffled in a way that is the same each time.
fn write_queries(folder: &Path, services: usize) -> Result<std::path::PathBuf> {
    let mut numbers: Vec<usize> = (0..services).collect();
    let mut state = 88_172_645_463_325_252_u64; // xorshift's customary seed
    for index in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(index, usize::try_from(state % (index as u64 + 1)).unwrap_or(0));
    }
    let text: String = numbers.iter().map(|number| format!("{} A\n", full_name(*number))).collect();
    let path = folder.join("queries");
    fs::write(&path, text).context("cannot write the queries")?;
    Ok(path)
}

/// Waits until a server knows the last name.
fn wait(server: &Server, last: usize) -> Result<()> {
    let netns = format!("--net={}", host::node(host::CLUSTER).display());
    let (at, port, name) = (format!("@{}", server.address), server.port.to_string(), full_name(last));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let arguments = [&netns, "--", "dig", "+short", "+time=1", "+tries=1", "-p", &port, &at, &name];
        let output = Command::new("nsenter").args(arguments).output().context("cannot run dig")?;
        if output.status.success() && output.stdout.first().is_some_and(u8::is_ascii_digit) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} does not answer at {}:{port}", server.name, server.address);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

// ---- the peers ----

fn peers(folder: &TempDir, addresses: &[Ipv4Addr]) -> Result<Vec<Server>> {
    let mut found = vec![unbound(folder.path(), addresses)?, dnsmasq(folder.path(), addresses)?];
    if Command::new("coredns").arg("-version").output().is_ok_and(|output| output.status.success()) {
        found.push(coredns(folder.path())?);
    } else {
        println!("  no coredns on PATH: it is left out");
    }
    Ok(found)
}

fn start(name: &'static str, port: u16, folder: &Path, arguments: &[String]) -> Result<Server> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", host::node(host::CLUSTER).display()));
    command.args(["--", "taskset", "--cpu-list", SERVER_CPU, name]).args(arguments);
    let process = Peer::start(&mut command, &folder.join(format!("{name}.log")))?;
    Ok(Server { name, address: "127.0.0.1".into(), port, pid: process.pid(), _process: Some(process) })
}

fn unbound(folder: &Path, addresses: &[Ipv4Addr]) -> Result<Server> {
    let mut text =
        "server:\n num-threads: 1\n interface: 127.0.0.1\n port: 5301\n do-daemonize: no\n username: \"\"\n \
                    chroot: \"\"\n directory: \"\"\n pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n verbosity: 0\n \
                    local-zone: \"cluster.local.\" static\n"
            .to_owned();
    for (number, address) in addresses.iter().enumerate() {
        let _ = writeln!(text, " local-data: \"{}. 30 A {address}\"", full_name(number));
    }
    text.push_str("remote-control:\n control-enable: no\n");
    let path = folder.join("unbound.conf");
    fs::write(&path, text).context("cannot write unbound's configuration")?;
    start("unbound", 5301, folder, &["-d".into(), "-c".into(), path.display().to_string()])
}

fn hosts(folder: &Path, addresses: &[Ipv4Addr]) -> Result<std::path::PathBuf> {
    let text: String =
        addresses.iter().enumerate().map(|(number, address)| format!("{address} {}\n", full_name(number))).collect();
    let path = folder.join("hosts");
    fs::write(&path, text).context("cannot write the hosts file")?;
    Ok(path)
}

fn dnsmasq(folder: &Path, addresses: &[Ipv4Addr]) -> Result<Server> {
    let hosts = hosts(folder, addresses)?;
    let mut arguments: Vec<String> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--port=5302",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--local=/cluster.local/",
    ]
    .map(String::from)
    .into();
    arguments.push(format!("--addn-hosts={}", hosts.display()));
    start("dnsmasq", 5302, folder, &arguments)
}

fn coredns(folder: &Path) -> Result<Server> {
    let text = format!(
        "cluster.local:5303 {{\n bind 127.0.0.1\n hosts {} {{\n reload 0\n }}\n}}\n",
        folder.join("hosts").display()
    );
    let path = folder.join("Corefile");
    fs::write(&path, text).context("cannot write CoreDNS's configuration")?;
    start("coredns", 5303, folder, &["-conf".into(), path.display().to_string()])
}
