//! The agent ends and comes back, as it was or as another release; pods and connections do not notice.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Cluster, LIMIT, Space, next_release, succeeded, text, until, workspace, xtask};

use crate::traffic::{Traffic, count_is_whole, processes_of, start_counting, volume};

/// SIGTERM ends the agent within this.
const POLITE: Duration = Duration::from_secs(2);

/// What must be the same before and after.
fn facts(space: &Space<'_>) -> Result<String> {
    space.get(&["pods", "-l", "app in (webserver, echo)"], "{range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}")
}

/// Killed, stopped and upgraded with connections of every kind open; downgraded with its pods running.
pub fn adopted(space: &Space<'_>) -> Result<()> {
    let next = next_release()?;
    let this = workspace().join("target/release/amphipod");
    space.web_servers()?;
    space.asker()?;
    start_counting(space)?;
    let mut traffic = Traffic::open(space)?;
    let before = facts(space)?;
    for (way, binary) in [("kill", &this), ("stop", &this), ("kill", &next)] {
        restart(space, way, binary, &mut |when| traffic.goes_on(when))?;
        until("the pods are as they were", || Ok(facts(space)? == before))?;
        traffic.goes_on(&format!("after {way}"))?;
    }
    let made = traffic.close()?;
    ensure!(made > 100, "only {made} short connections were made");
    // The older release knows nothing of the newer one's tables of connections, but takes its pods.
    restart(space, "stop", &this, &mut |_| Ok(()))?;
    until("the pods are as they were", || Ok(facts(space)? == before))?;
    let counted = count_is_whole(space)?;
    ensure!(counted > 100, "only {counted} lines were written");
    println!("    {made} short connections, {counted} lines of log, none lost");
    // And new things still work.
    space.kubectl(&["run", "after", "--image=busybox:latest", "--restart=Never", "--", "true"])?;
    until("a new pod runs to its end", || Ok(space.get(&["pod", "after"], "{.status.phase}")? == "Succeeded"))
}

/// Ends the agent, lets a container end while it is away, and starts `binary`. What the service path carries meanwhile is
/// `goes_on`'s to check.
fn restart(space: &Space<'_>, way: &str, binary: &Path, goes_on: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    start_ending(space, "ending")?;
    let go = volume(space, "ending", "go")?.join("now");
    end_agent(space.cluster, way)?;
    // No agent, no API server: the service path is in the kernel, and containers come to their ends.
    goes_on("while the agent is away")?;
    std::fs::write(&go, "").with_context(|| format!("cannot write {}", go.display()))?;
    start_agent(space.cluster, binary)?;
    goes_on("right after the start")?;
    at_once(space)?;
    until("an exit code from the time without an agent is there", || {
        Ok(space.get(&["pod", "ending"], "{.status.containerStatuses[0].state.terminated.exitCode}")? == "7")
    })?;
    space.kubectl(&["delete", "pod", "ending", "--timeout=30s"]).map(drop)
}

/// A pod that ends with 7 when a file appears.
fn start_ending(space: &Space<'_>, name: &str) -> Result<()> {
    let script = "while [ ! -e /go/now ]; do sleep 0.05; done; exit 7";
    space.apply_text(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, volumes: [{{name: go, emptyDir: {{}}}}], containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{script}'], volumeMounts: [{{name: go, mountPath: /go}}]}}]}}}}"
    ))?;
    space.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]).map(drop)
}

/// Ends the node's `amphipod up`: by SIGKILL (`kill`) or SIGTERM (`stop`).
pub fn end_agent(cluster: &Cluster, way: &str) -> Result<()> {
    let began = Instant::now();
    xtask(&["cluster", way, cluster.name(), &cluster.node().name])?;
    ensure!(began.elapsed() < POLITE, "{way} took {:?}", began.elapsed());
    Ok(())
}

pub fn start_agent(cluster: &Cluster, binary: &Path) -> Result<()> {
    xtask(&["cluster", "start", cluster.name(), &cluster.node().name, "--binary", &binary.display().to_string()])
}

/// As soon as the API server answers, commands run and logs are followed: none is told that its container isn't there.
fn at_once(space: &Space<'_>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = space.try_kubectl(&["exec", "asker", "--", "echo", "still here"])?;
        if output.status.success() {
            ensure!(text(&output.stdout) == "still here\n", "{}", text(&output.stdout));
            break;
        }
        let said = text(&output.stderr);
        ensure!(!said.contains("not found") && !said.contains("not running"), "exec right after the start: {said}");
        ensure!(Instant::now() < deadline, "exec after the start: {said}");
    }
    let log = space.follow(&["logs", "counter", "--follow", "--tail=1"], 3)?;
    ensure!(log.iter().all(|line| line.starts_with("line ")), "{log:?}");
    Ok(())
}

/// A pod process that is killed takes its containers with it: a new sandbox is built, and `describe` tells why.
pub fn pod_process_killed(space: &Space<'_>) -> Result<()> {
    space.run_pod("shot", &["sleep", "100000"])?;
    let pids = processes_of(space, "shot")?;
    let first = pids.first().context("a process")?.to_string();
    ensure!(Command::new("kill").args(["-9", &first]).status()?.success(), "kill {first}");
    until("it runs again", || {
        let status = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
        Ok(space.get(&["pod", "shot"], status)? == "1 true")
    })?;
    until("describe tells what happened", || {
        let told = space.kubectl(&["describe", "pod", "shot"])?;
        let words = ["ContainerStatusUnknown", "Exit Code:    137", "SandboxChanged", "Pod sandbox changed"];
        Ok(words.iter().all(|word| told.contains(word)))
    })?;
    ensure!(space.kubectl(&["exec", "shot", "--", "echo", "again"])? == "again\n", "exec in the new sandbox");
    Ok(())
}

/// Ends a container's process from outside; the pod stays and counts it.
pub fn killed_container(space: &Space<'_>) -> Result<()> {
    let pod = "my-nginx-pod";
    space.apply("two-container-pod.yaml")?;
    space.wait_ready(&["pod/my-nginx-pod"])?;
    let before = space.get(
        &["pod", pod],
        "{.status.containerStatuses[?(@.name==\"sidecar-container\")].restartCount}/{.status.podIP}",
    )?;
    // PID 1 ignores signals it has no handler for, but for SIGKILL from outside; `tail` gets it from its own parent.
    let uid = space.get(&["pod", pod], "{.metadata.uid}")?;
    let pid = container_pid(&uid, "tail")?;
    succeeded(Command::new("kill").args(["-KILL", &pid]).output()?, "kill")?;
    until("the restart is counted", || {
        let now = space.get(
            &["pod", pod],
            "{.status.containerStatuses[?(@.name==\"sidecar-container\")].restartCount}/{.status.podIP}",
        )?;
        let (count, ip) = now.split_once('/').unwrap_or_default();
        let (old, old_ip) = before.split_once('/').unwrap_or_default();
        Ok(count.parse::<u32>().ok() > old.parse::<u32>().ok() && ip == old_ip)
    })?;
    space.wait_ready(&["pod/my-nginx-pod"])?;
    let last = space.get(
        &["pod", pod],
        "{.status.containerStatuses[?(@.name==\"sidecar-container\")].lastState.terminated.exitCode}",
    )?;
    ensure!(last == "137", "exit code of the killed container: {last}");
    Ok(())
}

/// The process of a pod's container by its command, found by the pod's cgroup.
fn container_pid(uid: &str, command: &str) -> Result<String> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let cgroup = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if cgroup.contains(&format!("pod{uid}")) && name.trim() == command {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("no process {command} in the cgroups of pod {uid}")
}
