//! Latency through services, relative to the same pod's own address; kube-proxy's layouts and a plain bridge beside it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::Cluster;

use crate::host;
use crate::http::{Api, block_on};
use crate::objects;
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired};

mod changes;
pub mod load;
mod peers;

use load::{Client, Server};

/// Where servers listen: two that answer with their own letter.
pub const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
/// Connections, and requests on an open one, in each round and of each kind.
pub const CONNECTS: usize = 300;
pub const EXCHANGES: usize = 1500;

/// A client and a server in namespaces, and the addresses between them.
pub struct Setting {
    name: &'static str,
    client: Client,
    _servers: Vec<Server>,
    direct: SocketAddrV4,
    services: Vec<SocketAddrV4>,
}

/// Microseconds, median of each round, by what was measured.
type Rounds = BTreeMap<(&'static str, Target, Kind), Vec<f64>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Direct,
    Service,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Connect,
    Open,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect + request + close",
            Self::Open => "request on an open connection",
        }
    }
}

pub fn run(most: usize, rounds: usize) -> Result<Report> {
    ensure!(rounds >= 4, "at least 4 rounds are wanted");
    let mut report = Report::new("service")?;
    report.note(format!(
        "client and server both bound to processor {}; each round measures every case, in alternating order; figures are \
         medians of {rounds} rounds' medians; services are picked at random",
        load::CPU
    ));
    report.note("kube-proxy's layouts: the chains it publishes for one endpoint per service, over routed veth pairs");
    let cluster = Cluster::up(host::CLUSTER)?;
    let (_, client) = host::idle_pod(&cluster, "client")?;
    let (server_ip, server) = host::idle_pod(&cluster, "server")?;
    let api = Api::from_kubeconfig(&Path::new(cluster.data_dir()).join("admin.kubeconfig"))?;
    let ours = Setting {
        name: "amphipod",
        client: Client::enter(&client)?,
        _servers: vec![Server::start(&server, PORT, b'A')?, Server::start(&server, OTHER_PORT, b'B')?],
        direct: SocketAddrV4::new(server_ip.parse()?, PORT),
        services: Vec::new(),
    };
    let peers = peers::Peers::make()?;
    let mut settings = vec![ours];
    settings.extend(peers.settings()?);
    let mut scales: Vec<usize> = [1, 1000, most].into_iter().filter(|scale| *scale <= most).collect();
    scales.dedup();
    let mut made = 0;
    for scale in scales {
        println!("  {scale} services");
        settings[0].services = fill(&cluster, &api, made..scale, &server_ip)?;
        made = scale;
        for setting in &mut settings[1..] {
            setting.services = peers.fill(setting.name, scale)?;
        }
        for setting in &settings {
            setting.client.wait(setting.services.last().copied().unwrap_or(setting.direct))?;
        }
        let figures = measure(&settings, rounds)?;
        rows(&mut report, &figures, scale);
        for ((name, target, kind), values) in figures {
            let to = if target == Target::Direct { "pod address" } else { "service" };
            report.samples.push((format!("{name}, {scale} services, {}, {to}, µs", kind.name()), values));
        }
    }
    changes::measure(&mut report, &api, &settings[0], &server_ip)?;
    packets(&mut report)?;
    drop(settings);
    drop(peers);
    cluster.down()?;
    Ok(report)
}

/// Makes services of these numbers; the addresses of all there are.
pub fn fill(
    cluster: &Cluster,
    api: &Api,
    numbers: std::ops::Range<usize>,
    endpoint: &str,
) -> Result<Vec<SocketAddrV4>> {
    let (api, endpoint) = (api.clone(), endpoint.to_owned());
    let addresses: Vec<Ipv4Addr> = host::join(host::inside(&host::node(cluster.name()), move || {
        block_on(async {
            objects::create(&api, numbers, &endpoint, PORT).await?;
            objects::addresses(&api).await
        })
    }))?;
    Ok(addresses.into_iter().map(|address| SocketAddrV4::new(address, 80)).collect())
}

fn measure(settings: &[Setting], rounds: usize) -> Result<Rounds> {
    let mut cases = Vec::new();
    for (index, setting) in settings.iter().enumerate() {
        for kind in [Kind::Connect, Kind::Open] {
            cases.push((index, Target::Direct, kind));
            if !setting.services.is_empty() {
                cases.push((index, Target::Service, kind));
            }
        }
    }
    let mut figures = Rounds::new();
    for round in 0..=rounds {
        for &(index, target, kind) in &cases {
            let setting = &settings[index];
            // Which of a pair comes first changes from round to round.
            let target = match (round % 2, target) {
                _ if setting.services.is_empty() => Target::Direct,
                (0, target) => target,
                (_, Target::Direct) => Target::Service,
                (_, Target::Service) => Target::Direct,
            };
            let direct = [setting.direct];
            let addresses = if target == Target::Direct { direct.to_vec() } else { setting.services.clone() };
            let times = match kind {
                Kind::Connect => setting.client.connects(addresses, CONNECTS, round as u64)?,
                Kind::Open => setting.client.exchanges(addresses, EXCHANGES, round as u64)?,
            };
            if round > 0 {
                figures.entry((setting.name, target, kind)).or_default().push(median(&times));
            }
        }
        if round % 8 == 0 {
            println!("  round {round} of {rounds}");
        }
    }
    Ok(figures)
}

fn rows(report: &mut Report, figures: &Rounds, scale: usize) {
    let empty = Vec::new();
    let get = |name: &str, target, kind| {
        let found = figures.iter().find(|((known, to, what), _)| *known == name && (*to, *what) == (target, kind));
        found.map_or(&empty, |(_, values)| values)
    };
    for kind in [Kind::Connect, Kind::Open] {
        let goal = if kind == Kind::Connect { 1.05 } else { 1.02 };
        let row = |name: &str, base: &'static str, beside: &str| {
            let (service, direct) = (get(name, Target::Service, kind), get(base, Target::Direct, kind));
            let what = format!("{name}: {}, pod → ClusterIP, {scale} services", kind.name());
            Row::new(what, median(service), "µs").beside(beside, median(direct), paired(service, direct))
        };
        report.row(row("amphipod", "amphipod", "pod address").goal(Goal::RatioAtMost(goal)));
        // Their own direct connections pass the rules too: the same hops without rules are what they add to.
        report.row(row(peers::IPTABLES, peers::ROUTED, "pod address, no rules"));
        report.row(row(peers::NFTABLES, peers::ROUTED, "pod address, no rules"));
    }
    if scale != 1 {
        return;
    }
    for (kind, goal) in [(Kind::Connect, 0.95), (Kind::Open, 0.90)] {
        let (ours, bridge) = (get("amphipod", Target::Direct, kind), get(peers::BRIDGE, Target::Direct, kind));
        report.row(
            Row::new(format!("{}, pod → pod", kind.name()), median(ours), "µs")
                .beside("plain bridge", median(bridge), paired(ours, bridge))
                .goal(Goal::RatioAtMost(goal)),
        );
    }
}

/// What the programs themselves take, run by the kernel's own test harness (which is in the figures).
fn packets(report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for pins")?;
    let (costs, _) =
        proxy_userspace::cost::measure(&folder.path().join("bpf")).context("cannot run the packet programs")?;
    for cost in costs {
        let row = Row::new(format!("packet program: {}", cost.what), f64::from(cost.median), "ns");
        let goal = [("known flow", 150.0), ("new flow", 300.0)].into_iter().find(|(what, _)| cost.what.contains(what));
        report.row(match goal {
            Some((_, most)) => row.goal(Goal::ValueAtMost(most)),
            None => row,
        });
    }
    Ok(())
}
