//! The end-to-end suite: one cluster in network namespaces, real kubectl, real containers. Cases run in order; after
//! them the machine must hold what it held before.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use e2e::{Cluster, Inventory};

mod access;
mod definitions;
mod mistakes;
mod pods;
mod restart;
mod soak;
mod traffic;
mod workloads;

type Case = (&'static str, fn(&Cluster) -> Result<()>);

const CASES: &[Case] = &[
    ("every example is accepted and its pods run", workloads::examples),
    ("the first day's manifests run unchanged", workloads::first_day),
    ("get and describe show what is there", workloads::shown),
    ("logs, exec, exit codes and standard input", pods::logs_and_exec),
    ("a service is reached by ClusterIP, NodePort and name", access::three_ways),
    ("pods and services are reached through the API server", access::through_the_server),
    ("a NodePort serves the outside on the packet path", access::packet_path),
    ("several endpoints share the load", access::balanced),
    ("a service without endpoints refuses at once", access::refused),
    ("names resolve from pods and node, services of every kind", access::names),
    ("nothing of the firewall is used", access::no_firewall),
    ("an update rolls without one failed request", workloads::rolling_update),
    ("history and rollback", workloads::rollback),
    ("scale and edit", workloads::scale_and_edit),
    ("a relabelled pod is left alone and replaced", workloads::relabelled),
    ("a killed container starts again", pods::killed_container),
    ("probes decide about endpoints and restarts", pods::probes),
    ("a service changes its type in every direction", access::type_changes),
    ("bad manifests get Kubernetes' own words", mistakes::manifests),
    ("a missing image is said, and a pod recovers when it comes", mistakes::images),
    ("a killed pod process is replaced, and describe tells", restart::pod_process_killed),
    ("killed, stopped, upgraded, downgraded: pods, logs and connections go on", restart::adopted),
    ("kinds are defined, used and undefined; replication controllers keep pods", definitions::all),
    ("deleting takes everything away", workloads::deleted),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let after =
        |flag: &str| arguments.iter().skip_while(|word| *word != flag).nth(1).and_then(|word| word.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let outcome = match after("--soak-minutes") {
        Some(minutes) => {
            whole("soak", |cluster| vec![told("soak", || soak::soak(cluster, minutes, after("--seed").unwrap_or(now)))])
        }
        // Cargo passes the flags of its own test runner; a word among them selects cases.
        None => whole("e2e", |cluster| {
            let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
            let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
            CASES.iter().filter(|(name, _)| wanted(name)).map(|(name, case)| told(name, || case(cluster))).collect()
        }),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            println!("\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case and tells; whether it passed.
fn told(name: &str, case: impl FnOnce() -> Result<()>) -> bool {
    let started = Instant::now();
    match case() {
        Ok(()) => println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f32()),
        Err(error) => {
            println!("test {name} ... FAILED\n    {error:#}");
            return false;
        }
    }
    true
}

/// A cluster from its beginning to its end, and a count of what is left.
fn whole(name: &str, cases: impl FnOnce(&Cluster) -> Vec<bool>) -> Result<bool> {
    let before = Inventory::take()?;
    let cluster = Cluster::up(name)?;
    let mut passed = cases(&cluster);
    if passed.contains(&false) {
        let log = std::fs::read_to_string(cluster.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("the node's last words:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
    }
    cluster.down()?;
    passed.push(told("nothing is left behind", || nothing_left(&before)));
    let failed = passed.iter().filter(|passed| !**passed).count();
    println!("\n{} passed, {failed} failed", passed.len() - failed);
    Ok(failed == 0)
}

fn nothing_left(before: &Inventory) -> Result<()> {
    // Programs and namespaces are freed by the kernel a moment after their last user.
    let deadline = Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let differences = Inventory::take()?.differences(before);
        if differences.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{}", differences.join("\n    "));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
