//! The long form: a cluster that works while it is disturbed at random, with a checker that knows what was acknowledged.
//!
//! Writers keep a ledger of what the API server said yes to. Between disturbances everything must come together again:
//! what was acknowledged is there, deployments are whole, connections that were opened at the start still carry requests.
//! At the end nothing may be left on the machine.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Space, until, workspace};

use crate::restart::{end_agent, start_agent};
use crate::traffic::{Traffic, processes_of};

mod ledger;

use ledger::Ledger;

const WRITERS: usize = 2;
/// The deployment that is disturbed; the one that carries connections is left alone.
const VICTIM: &str = "victim";
/// What lies between two disturbances, at least.
const PAUSE: Duration = Duration::from_millis(500);

/// Something that goes wrong, or changes.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    KillAgent,
    StopAgent,
    /// Killed again while it is starting.
    KillAgentTwice,
    KillPodProcess,
    KillContainer,
    DeletePod,
    Rollout,
    Scale,
}

impl Disturbance {
    const ALL: [Self; 8] = [
        Self::KillAgent,
        Self::StopAgent,
        Self::KillAgentTwice,
        Self::KillPodProcess,
        Self::KillContainer,
        Self::DeletePod,
        Self::Rollout,
        Self::Scale,
    ];
}

/// Disturbs a cluster for some minutes. The seed makes the same choices again; times differ all the same.
pub fn soak(space: &Space<'_>, minutes: u64, seed: u64) -> Result<()> {
    println!("soak: {minutes} minutes, seed {seed}");
    prepare(space)?;
    let traffic = Traffic::open(space)?;
    let ledgers: Vec<_> = (0..WRITERS).map(|writer| Arc::new(Mutex::new(Ledger::new(writer)))).collect();
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        for ledger in &ledgers {
            scope.spawn(|| write(space, ledger, &stop));
        }
        let outcome = disturb(space, traffic, &ledgers, minutes, seed);
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    let rounds = outcome?;
    let written: usize = ledgers.iter().map(|ledger| lock(ledger).acknowledged()).sum();
    println!("soak: {rounds} disturbances, {written} acknowledged writes, nothing lost");
    Ok(())
}

fn lock(ledger: &Mutex<Ledger>) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prepare(space: &Space<'_>) -> Result<()> {
    space.web_servers()?;
    space.asker()?;
    space.kubectl(&[
        "create",
        "deployment",
        VICTIM,
        "--image=busybox:latest",
        "--replicas=3",
        "--",
        "sleep",
        "1000000",
    ])?;
    until("the deployments are whole", || whole(space))
}

fn write(space: &Space<'_>, ledger: &Mutex<Ledger>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // Held during the write, so that whoever checks finds no write under way.
        lock(ledger).write(space);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn disturb(
    space: &Space<'_>,
    mut traffic: Traffic,
    ledgers: &[Arc<Mutex<Ledger>>],
    minutes: u64,
    seed: u64,
) -> Result<usize> {
    let mut choice = Choice(seed);
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let disturbance = Disturbance::ALL[choice.below(Disturbance::ALL.len())];
        let began = Instant::now();
        let come_together = apply(space, disturbance, round, &mut choice)
            .and_then(|()| until("the deployments are whole", || whole(space)))
            .and_then(|()| traffic.goes_on("after it"))
            .and_then(|()| ledgers.iter().try_for_each(|ledger| lock(ledger).check(space)));
        come_together.with_context(|| format!("disturbance {round}, {disturbance:?}; {}", kernel_says(space)))?;
        println!("  {round}: {disturbance:?}, whole again after {:.1} s", began.elapsed().as_secs_f32());
        std::thread::sleep(PAUSE);
    }
    let made = traffic.close()?;
    println!("  {made} short connections, none failed");
    Ok(round)
}

/// What the programs of the service path have counted.
fn kernel_says(space: &Space<'_>) -> String {
    let counters = space.cluster.node().kernel().and_then(|kernel| Ok(kernel.counters()?));
    match counters {
        Ok(counters) => {
            let counted = counters.iter().filter(|(_, count)| *count > 0);
            counted.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
        }
        Err(error) => format!("{error:#}"),
    }
}

fn apply(space: &Space<'_>, disturbance: Disturbance, round: usize, choice: &mut Choice) -> Result<()> {
    let binary = workspace().join("target/release/amphipod");
    match disturbance {
        Disturbance::KillAgent => end_agent(space.cluster, "kill").and_then(|()| start_agent(space.cluster, &binary)),
        Disturbance::StopAgent => end_agent(space.cluster, "stop").and_then(|()| start_agent(space.cluster, &binary)),
        Disturbance::KillAgentTwice => {
            end_agent(space.cluster, "kill")?;
            start_agent(space.cluster, &binary)?;
            std::thread::sleep(Duration::from_millis(choice.below(400) as u64));
            end_agent(space.cluster, "kill")?;
            start_agent(space.cluster, &binary)
        }
        Disturbance::KillPodProcess => {
            kill(*processes_of(space, &victim(space, choice)?)?.first().context("no process")?)
        }
        Disturbance::KillContainer => {
            kill(*processes_of(space, &victim(space, choice)?)?.last().context("no process")?)
        }
        Disturbance::DeletePod => {
            let pod = victim(space, choice)?;
            space.kubectl(&["delete", "pod", &pod, "--grace-period=1", "--wait=false"]).map(drop)
        }
        Disturbance::Rollout => {
            let deployment = format!("deployment/{VICTIM}");
            space.kubectl(&["set", "env", &deployment, &format!("ROUND={round}")]).map(drop)
        }
        Disturbance::Scale => {
            let replicas = format!("--replicas={}", 2 + choice.below(4));
            space.kubectl(&["scale", "deployment", VICTIM, &replicas]).map(drop)
        }
    }
}

/// One of the pods that were disturbed least: others may be in a back-off of minutes. Those that are leaving may be gone when they
/// are.
fn victim(space: &Space<'_>, choice: &mut Choice) -> Result<String> {
    let fields = "{.metadata.name}/{.status.containerStatuses[0].restartCount}/{.metadata.deletionTimestamp}";
    let shown = format!("{{range .items[?(@.status.phase==\"Running\")]}}{fields} {{end}}");
    let running = space.get(&["pods", "-l", &format!("app={VICTIM}")], &shown)?;
    let staying = running.split_whitespace().filter_map(|pod| pod.strip_suffix('/'));
    let mut pods: Vec<(u32, &str)> = staying
        .map(|pod| {
            let (name, restarts) = pod.split_once('/').context("a name and a count")?;
            Ok((restarts.parse()?, name))
        })
        .collect::<Result<_>>()?;
    let least = pods.iter().map(|(restarts, _)| *restarts).min().with_context(|| format!("no pod of {VICTIM} runs"))?;
    pods.retain(|(restarts, _)| *restarts == least);
    Ok(pods[choice.below(pods.len())].1.to_owned())
}

fn kill(pid: u32) -> Result<()> {
    ensure!(Command::new("kill").args(["-9", &pid.to_string()]).status()?.success(), "cannot kill {pid}");
    Ok(())
}

/// Every deployment has what it wants, of its newest form, and nothing else runs in its name.
fn whole(space: &Space<'_>) -> Result<bool> {
    let fields = "{.metadata.generation}={.status.observedGeneration} {.spec.replicas}={.status.replicas} \
                  {.spec.replicas}={.status.updatedReplicas} {.spec.replicas}={.status.availableReplicas}";
    let said = space.get(&["deployments"], &format!("{{range .items[*]}}{fields} {{end}}"))?;
    let pods = space.get(&["pods", "-l", &format!("app={VICTIM}")], "{.items[*].status.containerStatuses[0].ready}")?;
    let all_equal = said.split_whitespace().all(|pair| pair.split_once('=').is_some_and(|(a, b)| a == b));
    if !all_equal || pods.split_whitespace().any(|ready| ready != "true") {
        bail!("{said}; ready: {pods}");
    }
    Ok(true)
}

/// xorshift: the same choices for the same seed, which is not 0.
struct Choice(u64);

impl Choice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap_or(0)
    }
}
