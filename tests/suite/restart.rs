//! The agent ends and comes back, as it was or as another release; pods and connections do not notice.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, LIMIT, next_release, text, workspace, xtask};

use crate::traffic::{Traffic, count_is_whole, processes_of, start_counting, volume};

/// SIGTERM ends the agent within this.
const POLITE: Duration = Duration::from_secs(2);

/// What must be the same before and after.
fn facts(cluster: &Cluster) -> Result<String> {
    cluster.get(&["pods", "-l", "app in (webserver, echo)"], "{range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}")
}

/// Killed, stopped and upgraded with connections of every kind open; downgraded with its pods running.
pub fn adopted(cluster: &Cluster) -> Result<()> {
    let next = next_release()?;
    let this = workspace().join("target/release/amphipod");
    start_counting(cluster)?;
    let mut traffic = Traffic::open(cluster)?;
    let before = facts(cluster)?;
    for (way, binary) in [("kill", &this), ("stop", &this), ("kill", &next)] {
        restart(cluster, way, binary, &mut |when| traffic.goes_on(when))?;
        cluster.until("the pods are as they were", |cluster| Ok(facts(cluster)? == before))?;
        traffic.goes_on(&format!("after {way}"))?;
    }
    let made = traffic.close()?;
    ensure!(made > 100, "only {made} short connections were made");
    // The older release knows nothing of the newer one's tables of connections, but takes its pods.
    restart(cluster, "stop", &this, &mut |_| Ok(()))?;
    cluster.until("the pods are as they were", |cluster| Ok(facts(cluster)? == before))?;
    let counted = count_is_whole(cluster)?;
    ensure!(counted > 100, "only {counted} lines were written");
    println!("    {made} short connections, {counted} lines of log, none lost");
    // And new things still work.
    cluster.kubectl(&["run", "after", "--image=busybox:latest", "--restart=Never", "--", "true"])?;
    cluster.until("a new pod runs to its end", |cluster| {
        Ok(cluster.get(&["pod", "after"], "{.status.phase}")? == "Succeeded")
    })?;
    cluster
        .kubectl(&[
            "delete",
            "service/echo",
            "pod/echo-0",
            "pod/echo-1",
            "pod/counter",
            "--grace-period=1",
            "--timeout=60s",
        ])
        .map(drop)
}

/// Ends the agent, lets a container end while it is away, and starts `binary`. What the service path carries meanwhile is
/// `goes_on`'s to check.
fn restart(cluster: &Cluster, way: &str, binary: &Path, goes_on: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    start_ending(cluster, "ending")?;
    let go = volume(cluster, "ending", "go")?.join("now");
    end_agent(cluster, way)?;
    // No agent, no API server: the service path is in the kernel, and containers come to their ends.
    goes_on("while the agent is away")?;
    std::fs::write(&go, "").with_context(|| format!("cannot write {}", go.display()))?;
    start_agent(cluster, binary)?;
    goes_on("right after the start")?;
    at_once(cluster)?;
    cluster.until("an exit code from the time without an agent is there", |cluster| {
        Ok(cluster.get(&["pod", "ending"], "{.status.containerStatuses[0].state.terminated.exitCode}")? == "7")
    })?;
    cluster.kubectl(&["delete", "pod", "ending", "--timeout=30s"]).map(drop)
}

/// A pod that ends with 7 when a file appears.
fn start_ending(cluster: &Cluster, name: &str) -> Result<()> {
    let script = "while [ ! -e /go/now ]; do sleep 0.05; done; exit 7";
    cluster.apply_text(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, volumes: [{{name: go, emptyDir: {{}}}}], containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{script}'], volumeMounts: [{{name: go, mountPath: /go}}]}}]}}}}"
    ))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]).map(drop)
}

/// Ends the node's `amphipod up`: by SIGKILL (`kill`) or SIGTERM (`stop`).
pub fn end_agent(cluster: &Cluster, way: &str) -> Result<()> {
    let began = Instant::now();
    xtask(&["cluster", way, cluster.name(), "node1"])?;
    ensure!(began.elapsed() < POLITE, "{way} took {:?}", began.elapsed());
    Ok(())
}

pub fn start_agent(cluster: &Cluster, binary: &Path) -> Result<()> {
    xtask(&["cluster", "start", cluster.name(), "node1", "--binary", &binary.display().to_string()])
}

/// As soon as the API server answers, commands run and logs are followed: none is told that its container isn't there.
fn at_once(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = cluster.try_kubectl(&["exec", "asker", "--", "echo", "still here"])?;
        if output.status.success() {
            ensure!(text(&output.stdout) == "still here\n", "{}", text(&output.stdout));
            break;
        }
        let said = text(&output.stderr);
        ensure!(!said.contains("not found") && !said.contains("not running"), "exec right after the start: {said}");
        ensure!(Instant::now() < deadline, "exec after the start: {said}");
    }
    let log = cluster.follow(&["logs", "counter", "--follow", "--tail=1"], 3)?;
    ensure!(log.iter().all(|line| line.starts_with("line ")), "{log:?}");
    Ok(())
}

/// A pod process that is killed takes its containers with it: a new sandbox is built, and `describe` tells why.
pub fn pod_process_killed(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["run", "shot", "--image=busybox:latest", "--", "sleep", "100000"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/shot", "--timeout=60s"])?;
    let pids = processes_of(cluster, "shot")?;
    let first = pids.first().context("a process")?.to_string();
    ensure!(Command::new("kill").args(["-9", &first]).status()?.success(), "kill {first}");
    cluster.until("it runs again", |cluster| {
        let status = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        Ok(cluster.get(&["pod", "shot"], status)? == "1 true")
    })?;
    cluster.until("describe tells what happened", |cluster| {
        let told = cluster.kubectl(&["describe", "pod", "shot"])?;
        let words = ["ContainerStatusUnknown", "Exit Code:    137", "SandboxChanged", "Pod sandbox changed"];
        Ok(words.iter().all(|word| told.contains(word)))
    })?;
    ensure!(cluster.kubectl(&["exec", "shot", "--", "echo", "again"])? == "again\n", "exec in the new sandbox");
    cluster.kubectl(&["delete", "pod", "shot", "--grace-period=1", "--timeout=30s"]).map(drop)
}
