//! The end-to-end suite: one cluster in network namespaces, real kubectl, real containers. Each case has a namespace of its own
//! and makes all that it looks at, so that any of them run, in any order, several at a time but for those that disturb a node.
//! After them the cluster must hold nothing of theirs, and the machine what it held before.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use e2e::{Cluster, Inventory, Space, Wanted, until};

mod balancer;
mod certificates;
mod definitions;
mod deletion;
mod dns;
mod examples;
mod exec;
mod families;
mod firewall;
mod images;
mod mistakes;
mod ownership;
mod probes;
mod proxy;
mod restart;
mod rollout;
mod scheduling;
mod services;
mod shown;
mod soak;
mod traffic;
mod workloads;

/// Whether a case bears others beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    Beside,
    /// It ends the node's agent, or counts what the whole node does.
    Alone,
}

use Runs::{Alone, Beside};

/// Its namespace, what it shows, how it runs.
type Case = (&'static str, &'static str, Runs, fn(&Space<'_>) -> Result<()>);

const CASES: &[Case] = &[
    ("examples", "every example is accepted and its pods run", Beside, examples::examples),
    ("first-day", "the first day's manifests run unchanged", Beside, examples::first_day),
    ("shown", "get and describe show what is there", Beside, shown::shown),
    ("exec", "logs, exec, exit codes and standard input", Beside, exec::logs_and_exec),
    ("three-ways", "a service is reached by ClusterIP, NodePort and name", Beside, services::three_ways),
    ("proxy", "pods and services are reached through the API server", Beside, proxy::through_the_server),
    ("packet-path", "a NodePort serves the outside on the packet path", Alone, services::packet_path),
    ("balanced", "several endpoints share the load", Beside, services::balanced),
    ("refused", "a service without endpoints refuses at once", Beside, services::refused),
    ("host-port", "a port of the node is a pod's own, without any service", Beside, services::host_port),
    ("balancer", "a balancer's address, its mode, its source ranges and its health checks", Beside, balancer::balancer),
    ("near", "endpoints are meant for their zone, and clients go there first", Alone, balancer::near),
    ("types", "a service changes its type in every direction", Beside, services::type_changes),
    ("names", "names resolve from pods and node, services of every kind", Beside, dns::names),
    ("firewall", "nothing of the firewall is used", Beside, firewall::no_firewall),
    ("rolling", "an update rolls without one failed request", Beside, rollout::rolling_update),
    ("rollback", "history and rollback", Beside, rollout::rollback),
    ("scaled", "scale and edit", Beside, rollout::scale_and_edit),
    ("relabelled", "a relabelled pod is left alone and replaced", Beside, ownership::relabelled),
    ("preempted", "a more important pod has others sent away", Beside, scheduling::preemption),
    ("probes", "probes decide about endpoints and restarts", Beside, probes::probes),
    ("mistakes", "bad manifests get Kubernetes' own words", Beside, mistakes::manifests),
    ("images", "a missing image is said, and a pod recovers when it comes", Beside, images::images),
    ("deleted", "deleting takes everything away", Beside, deletion::deleted),
    ("namespace", "a namespace goes with what it holds", Beside, deletion::namespace),
    ("container", "a killed container starts again", Beside, restart::killed_container),
    ("pod-process", "a killed pod process is replaced, and describe tells", Beside, restart::pod_process_killed),
    ("adopted", "killed, stopped, upgraded, downgraded: pods, logs and connections go on", Alone, restart::adopted),
    ("definitions", "kinds are defined, used and undefined", Beside, definitions::defined),
    ("certificates", "a person asks for a certificate and is given it", Beside, certificates::given),
    ("controllers", "a replication controller keeps pods", Beside, definitions::replicated),
    ("jobs", "jobs run to their end, fail, wait and go", Beside, workloads::jobs),
    ("cron-jobs", "a cron job makes jobs when their time comes", Beside, workloads::cron_jobs),
    ("daemons", "a daemon set is on the node, rolls and goes back", Beside, workloads::daemons),
    ("stateful", "a stateful set keeps names and order", Beside, workloads::stateful),
];

/// A cluster's name, its families, and the cases that are shown on it.
type Group = (&'static str, &'static str, &'static [Case]);

const GROUPS: &[Group] = &[("e2e", "ipv4", CASES), ("dual", "dual", families::DUAL), ("v6", "ipv6", families::V6)];

/// Cases at a time, when nobody says otherwise (`--test-threads`).
const THREADS: usize = 3;
/// The cluster's own namespaces.
const OWN: usize = 4;

/// What was asked for on the command line. Cargo passes the flags of its own test runner; a word among them selects cases.
struct Asked {
    words: Vec<String>,
    threads: usize,
    /// The order: cases are shuffled by it. 0 is the table's own.
    shuffle: u64,
    soak: Option<u64>,
    seed: Option<u64>,
    /// Another release than `target/release/amphipod`.
    binary: Option<PathBuf>,
}

impl Asked {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut asked = Self { words: Vec::new(), threads: THREADS, shuffle: 0, soak: None, seed: None, binary: None };
        let mut arguments = arguments.flat_map(|word| match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => vec![flag.to_owned(), value.to_owned()],
            _ => vec![word],
        });
        while let Some(word) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_default();
            match &*word {
                "--test-threads" => asked.threads = value().parse()?,
                "--shuffle" => asked.shuffle = value().parse()?,
                "--soak-minutes" => asked.soak = Some(value().parse()?),
                "--seed" => asked.seed = Some(value().parse()?),
                "--binary" => asked.binary = Some(value().into()),
                flag if flag.starts_with('-') => bail!("no such flag: {flag}"),
                _ => asked.words.push(word),
            }
        }
        Ok(asked)
    }

    fn cases(&self, (cluster, _, all): &Group) -> Vec<&'static Case> {
        let wanted = |name: &str| self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()));
        let is_wanted =
            |(space, name, ..): &&Case| wanted(name) || wanted(space) || self.words.iter().any(|word| word == cluster);
        let mut cases: Vec<&Case> = all.iter().filter(is_wanted).collect();
        if self.shuffle != 0 {
            cases.sort_by_key(|(space, ..)| {
                let mut hasher = DefaultHasher::new();
                (self.shuffle, space).hash(&mut hasher);
                hasher.finish()
            });
        }
        cases
    }
}

fn main() -> ExitCode {
    let outcome = Asked::parse(std::env::args().skip(1)).and_then(|asked| match asked.soak {
        Some(minutes) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
            let seed = asked.seed.unwrap_or(now);
            let soak = |space: &Space<'_>| soak::soak(space, minutes, seed);
            whole("soak", "ipv4", &asked, |cluster| vec![told("soak", || in_space(cluster, "soak", soak))])
        }
        None => groups(&asked),
    });
    let outcome = outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        vec![false]
    });
    let failed = outcome.iter().filter(|passed| !**passed).count();
    println!("\n{} passed, {failed} failed", outcome.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A cluster after the other, each where one of its cases is asked for.
fn groups(asked: &Asked) -> Result<Vec<bool>> {
    let groups = GROUPS.iter().map(|group| (group, asked.cases(group))).filter(|(_, cases)| !cases.is_empty());
    let groups: Vec<_> = groups.collect();
    ensure!(!groups.is_empty(), "no case is called {:?}", asked.words);
    let mut passed = Vec::new();
    for ((cluster, families, _), cases) in groups {
        passed.extend(whole(cluster, families, asked, |cluster| run(cluster, &cases, asked.threads))?);
    }
    Ok(passed)
}

/// Runs those that bear company several at a time, then the others one by one; which of them passed.
fn run(cluster: &Cluster, cases: &[&Case], threads: usize) -> Vec<bool> {
    let one = |(space, name, _, case): &Case| told(name, || in_space(cluster, space, *case));
    let (beside, alone): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|(.., runs, _)| *runs == Beside);
    let (waiting, passed) = (Mutex::new(beside.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = { lock(&waiting).next() } {
                    let outcome = one(case);
                    lock(&passed).push(outcome);
                }
            });
        }
    });
    let mut passed = passed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    passed.extend(alone.into_iter().map(one));
    passed
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn in_space(cluster: &Cluster, name: &str, case: impl FnOnce(&Space<'_>) -> Result<()>) -> Result<()> {
    let space = Space::new(cluster, name)?;
    case(&space)?;
    space.leave()
}

/// Runs one case and tells; whether it passed.
fn told(name: &str, case: impl FnOnce() -> Result<()>) -> bool {
    let started = Instant::now();
    let outcome = case();
    match &outcome {
        Ok(()) => println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f32()),
        Err(error) => println!("test {name} ... FAILED\n    {error:#}"),
    }
    outcome.is_ok()
}

/// A cluster from its beginning to its end, and a count of what is left; what passed of all that.
fn whole(name: &str, families: &str, asked: &Asked, cases: impl FnOnce(&Cluster) -> Vec<bool>) -> Result<Vec<bool>> {
    let before = Inventory::take()?;
    let cluster = Cluster::up_as(name, Wanted { families, binary: asked.binary.as_deref(), ..Wanted::default() })?;
    let mut passed = cases(&cluster);
    passed.push(told("what cases made goes with their namespaces", || namespaces_are_gone(&cluster)));
    if passed.contains(&false) {
        for node in cluster.nodes() {
            println!("the last words of {}:\n{}", node.name, node.last_words());
        }
    }
    cluster.down()?;
    passed.push(told("nothing is left behind", || nothing_left(&before)));
    Ok(passed)
}

fn namespaces_are_gone(cluster: &Cluster) -> Result<()> {
    until("only the cluster's own namespaces are left", || {
        let there = cluster.get(&["namespaces"], "{.items[*].metadata.name}")?;
        ensure!(there.split(' ').count() == OWN, "there are {there}");
        Ok(true)
    })
}

fn nothing_left(before: &Inventory) -> Result<()> {
    // Programs and namespaces are freed by the kernel a moment after their last user.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let differences = Inventory::take()?.differences(before);
        if differences.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{}", differences.join("\n    "));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
