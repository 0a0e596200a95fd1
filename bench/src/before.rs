//! Two releases beside each other, in alternating rounds of one run: what the changes between them cost or gave.
//!
//! Each release runs a cluster of its own; while one is measured, the other is idle. Every ratio is written so that more is
//! better: times and sizes as before / after, rates as after / before.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::{Cluster, Wanted};

use crate::footprint::{self, From};
use crate::http::{Api, Connection, Watch, block_on};
use crate::processes::activity;
use crate::report::{Goal, Report, Row};
use crate::service::load::{Client, Server};
use crate::stats::{median, paired, quantile};
use crate::{api, host, pods, service};

/// The bound of the ratio's interval that no figure may fall below.
const FLOOR: f64 = 0.95;
const BURSTS: usize = 4;
/// Services among which a connection picks.
const SERVICES: usize = 100;
/// Quiet time before idleness counts.
const SETTLE: Duration = Duration::from_secs(10);
/// Three heartbeats: what comes only with every other one is in each window.
const IDLE_WINDOW: Duration = Duration::from_secs(30);

/// A release and its cluster.
struct Side {
    cluster: Cluster,
    api: Api,
}

/// Before and after, in this order.
type Sides = [Side; 2];
/// What each side measured, round by round.
type Both = [Vec<f64>; 2];

/// Which of two figures is the better one.
#[derive(Clone, Copy)]
enum Better {
    More,
    Less,
}

/// What is compared, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The process from nothing, and from its data
    Starts,
    /// Memory, CPU time and wake-ups with 10 pods
    Idle,
    /// Updates by 32 clients
    Updates,
    /// One pod, and 50 at once
    Pods,
    /// Connections through Services
    Services,
    /// Updates and long lists after all that
    Used,
}

/// Compares these parts, or all.
pub fn run(before: &Path, rounds: usize, parts: &[Part]) -> Result<Report> {
    ensure!(rounds >= 4, "at least 4 rounds are wanted");
    let after = e2e::workspace().join("target/release/amphipod");
    let mut report = Report::new("before")?;
    report.note(format!("before: {}; after: {}", described(before)?, described(&after)?));
    report.note(
        "ratios: more is better (times and sizes: before / after; rates: after / before); 95 % intervals of pairs",
    );
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    if wanted(Part::Starts) {
        for from in [From::Nothing, From::ItsData] {
            let sides = bring_up(before, &after)?;
            starts(&mut report, &sides, from, rounds)?;
            take_down(sides)?;
        }
    }
    let sides = bring_up(before, &after)?;
    let processes = [footprint::idle_pods(&sides[0].cluster)?, footprint::idle_pods(&sides[1].cluster)?];
    if wanted(Part::Idle) {
        idleness(&mut report, &processes, rounds)?;
    }
    if wanted(Part::Updates) {
        updates(&mut report, &sides, rounds, "kube-public", "new cluster, namespace without pods")?;
        updates(&mut report, &sides, rounds, api::NAMESPACE, "new cluster, beside pods")?;
    }
    if wanted(Part::Pods) {
        workloads(&mut report, &sides, rounds)?;
    }
    if wanted(Part::Services) {
        services(&mut report, &sides, rounds)?;
    }
    if wanted(Part::Used) {
        // Hundreds of pods came and went, and their events are there.
        updates(&mut report, &sides, rounds, "kube-system", "used cluster, namespace without pods")?;
        lists(&mut report, &sides, rounds)?;
    }
    take_down(sides)?;
    Ok(report)
}

fn described(binary: &Path) -> Result<String> {
    let version = crate::processes::command(&binary.display().to_string(), &["--version"])?;
    Ok(format!("{} ({})", binary.display(), version.trim()))
}

fn bring_up(before: &Path, after: &Path) -> Result<Sides> {
    let side = |name, binary| {
        let cluster = Cluster::up_as(name, Wanted { binary: Some(binary), ..Wanted::default() })?;
        let api = Api::from_kubeconfig(&Path::new(cluster.data_dir()).join("admin.kubeconfig"))?;
        anyhow::Ok(Side { cluster, api })
    };
    Ok([side("before", before)?, side("after", after)?])
}

fn take_down(sides: Sides) -> Result<()> {
    sides.into_iter().try_for_each(|side| side.cluster.down())
}

/// Which side comes first changes from round to round.
fn order(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

/// Measures both sides in each round, in changing order. The first round warms up.
fn alternate(rounds: usize, mut measure: impl FnMut(usize, usize) -> Result<f64>) -> Result<Both> {
    let mut both = Both::default();
    for round in 0..=rounds {
        for side in order(round) {
            let value = measure(side, round)?;
            if round > 0 {
                both[side].push(value);
            }
        }
    }
    Ok(both)
}

fn compare(report: &mut Report, what: &str, unit: &'static str, better: Better, both: Both) {
    let [before, after] = &both;
    let ratio = match better {
        Better::More => paired(after, before),
        Better::Less => paired(before, after),
    };
    let row = Row::new(what, median(after), unit).beside("before", median(before), ratio);
    report.row(row.goal(Goal::RatioAtLeast(FLOOR)));
    let [before, after] = both;
    report.samples.push((format!("{what}, before"), before));
    report.samples.push((format!("{what}, after"), after));
}

fn starts(report: &mut Report, sides: &Sides, from: From, rounds: usize) -> Result<()> {
    let words = [footprint::halt(&sides[0].cluster)?, footprint::halt(&sides[1].cluster)?];
    let mut resolves = Both::default();
    let ready = alternate(rounds, |side, round| {
        let start = footprint::start(&sides[side].cluster, &words[side], from)?;
        if round > 0 {
            resolves[side].push(start.resolves);
        }
        Ok(start.ready)
    })?;
    let name = if from == From::Nothing { "fresh" } else { "again" };
    compare(report, &format!("start ({name}) → node Ready"), "s", Better::Less, ready);
    compare(report, &format!("start ({name}) → a name resolves"), "s", Better::Less, resolves);
    Ok(())
}

/// Both at the same time: each is as idle as the other.
fn idleness(report: &mut Report, processes: &[Vec<u32>; 2], rounds: usize) -> Result<()> {
    std::thread::sleep(SETTLE);
    let (mut resident, mut cpu, mut wakeups) = (Both::default(), Both::default(), Both::default());
    for _ in 0..rounds {
        let (began, first) = (Instant::now(), [activity(&processes[0])?, activity(&processes[1])?]);
        std::thread::sleep(IDLE_WINDOW);
        let elapsed = began.elapsed();
        for side in 0..2 {
            let now = activity(&processes[side])?;
            cpu[side].push((now.cpu_ns - first[side].cpu_ns) as f64 / elapsed.as_nanos() as f64 * 100.0);
            wakeups[side].push((now.wakeups - first[side].wakeups) as f64 / elapsed.as_secs_f64());
            resident[side].push(footprint::resident(&processes[side])?);
        }
    }
    let what = format!("resident (PSS), all processes, {} pods", footprint::PODS);
    compare(report, &what, "MiB", Better::Less, resident);
    compare(report, "idle CPU, all processes", "% of a core", Better::Less, cpu);
    compare(report, "idle wake-ups, all processes", "1/s", Better::Less, wakeups);
    Ok(())
}

/// Runs asynchronous work of both sides on one thread, whose connections are made in the namespace of each.
fn async_thread<T: Send + 'static, F: Future<Output = Result<T>>>(
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T> {
    host::join(std::thread::spawn(move || block_on(work())))
}

/// The name of a side's cluster, and its API.
fn places(sides: &Sides) -> [(std::path::PathBuf, Api); 2] {
    [0, 1].map(|side| (host::node(sides[side].cluster.name()), sides[side].api.clone()))
}

fn workloads(report: &mut Report, sides: &Sides, rounds: usize) -> Result<()> {
    struct Ends {
        connection: Connection,
        watch: Watch,
    }
    let places = places(sides);
    let (singles, bursts) = async_thread(move || async move {
        let mut ends = Vec::new();
        for (netns, api) in &places {
            host::enter(netns)?;
            ends.push(Ends { connection: api.connect().await?, watch: pods::watch(api).await? });
        }
        let mut took: [Both; 2] = Default::default();
        for (kind, (count, rounds)) in [(1, 6 * rounds), (pods::AT_ONCE, BURSTS)].into_iter().enumerate() {
            for round in 0..=rounds {
                for side in order(round) {
                    let names: Vec<String> = (0..count).map(|index| format!("p-{kind}-{round}-{index}")).collect();
                    let Ends { connection, watch } = &mut ends[side];
                    let seconds = pods::burst(connection, watch, &names).await?;
                    if round > 0 {
                        took[kind][side].push(seconds);
                    }
                }
            }
        }
        let [singles, bursts] = took;
        Ok((singles.map(|times| times.into_iter().map(|seconds| seconds * 1e3).collect()), bursts))
    })?;
    compare(report, "create → running", "ms", Better::Less, singles);
    compare(report, &format!("{} pods at once, all running", pods::AT_ONCE), "s", Better::Less, bursts);
    Ok(())
}

fn services(report: &mut Report, sides: &Sides, rounds: usize) -> Result<()> {
    let (mut clients, mut servers, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for side in sides {
        let (_, client) = host::idle_pod(&side.cluster, "client")?;
        let (ip, server) = host::idle_pod(&side.cluster, "server")?;
        servers.push(Server::start(&server, service::PORT, b'A')?);
        clients.push(Client::enter(&client)?);
        let found = service::fill(&side.cluster, &side.api, 0..SERVICES, &ip)?;
        clients.last().context("no client")?.wait(*found.last().context("no service")?)?;
        addresses.push(found);
    }
    let connects = alternate(2 * rounds, |side, round| {
        Ok(median(&clients[side].connects(addresses[side].clone(), service::CONNECTS, round as u64)?))
    })?;
    compare(report, "connect + request + close, pod → ClusterIP", "µs", Better::Less, connects);
    let exchanges = alternate(2 * rounds, |side, round| {
        Ok(median(&clients[side].exchanges(addresses[side].clone(), service::EXCHANGES, round as u64)?))
    })?;
    compare(report, "request on an open connection, pod → ClusterIP", "µs", Better::Less, exchanges);
    Ok(())
}

/// Updates by many clients at once, and reads beside them. `place` says what the clusters have behind them, and the
/// namespace beside the objects.
fn updates(report: &mut Report, sides: &Sides, rounds: usize, namespace: &'static str, place: &str) -> Result<()> {
    let places = places(sides);
    let (updates, gets) = async_thread(move || async move {
        let (mut updates, mut gets) = (Both::default(), Both::default());
        let mut writers = Vec::new();
        for (netns, api) in &places {
            host::enter(netns)?;
            let mut all = Vec::new();
            for index in 0..api::CLIENTS {
                all.push(api::Writer::new(api, namespace, &format!("bench-{index}")).await?);
            }
            writers.push(Some(all));
        }
        for round in 0..=rounds {
            for side in order(round) {
                let (netns, api) = &places[side];
                host::enter(netns)?;
                let stop = Arc::new(AtomicBool::new(false));
                let reader =
                    tokio::spawn(api::read_until(api.connect().await?, namespace, "bench-0".into(), stop.clone()));
                let (back, rate) = api::race(writers[side].take().unwrap_or_default(), api::Writer::write).await?;
                writers[side] = Some(back);
                stop.store(true, Ordering::Relaxed);
                let seen = reader.await??;
                if round > 0 {
                    updates[side].push(rate);
                    gets[side].push(quantile(&seen, 0.99));
                }
            }
        }
        Ok((updates, gets))
    })?;
    compare(report, &format!("updates, {} clients, {place}", api::CLIENTS), "1/s", Better::More, updates);
    compare(report, &format!("get under {} writers, p99, {place}", api::CLIENTS), "ms", Better::Less, gets);
    Ok(())
}

fn lists(report: &mut Report, sides: &Sides, rounds: usize) -> Result<()> {
    let places = places(sides);
    let lists = async_thread(move || async move {
        let mut lists = Both::default();
        let mut readers = Vec::new();
        for (netns, api) in &places {
            host::enter(netns)?;
            let mut connection = api.connect().await?;
            api::waiting_pods(api, &mut connection).await?;
            readers.push(connection);
        }
        for round in 0..=3 * rounds {
            for side in order(round) {
                let (took, _) = api::list(&mut readers[side]).await?;
                if round > 0 {
                    lists[side].push(took);
                }
            }
        }
        Ok(lists)
    })?;
    compare(report, &format!("list of {} pods", api::PODS), "ms", Better::Less, lists);
    Ok(())
}
