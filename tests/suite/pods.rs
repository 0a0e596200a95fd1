//! What happens inside pods.

use anyhow::{Result, ensure};
use e2e::{Cluster, succeeded, text};

pub fn logs_and_exec(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&[
        "run",
        "talker",
        "--image=busybox:latest",
        "--",
        "sh",
        "-c",
        "for i in 1 2 3; do echo line $i; done; echo failing >&2; exec sleep 1000",
    ])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=60s"])?;
    cluster.until("the log is whole", |cluster| {
        Ok(cluster.kubectl(&["logs", "talker"])? == "line 1\nline 2\nline 3\nfailing\n")
    })?;
    let tail = cluster.kubectl(&["logs", "talker", "--tail=1", "--timestamps"])?;
    ensure!(tail.ends_with("failing\n") && tail.starts_with("20"), "{tail}");
    let said = cluster.kubectl(&["exec", "talker", "--", "sh", "-c", "echo out; cat /etc/hostname"])?;
    ensure!(said == "out\ntalker\n", "{said:?}");
    let code = cluster.try_kubectl(&["exec", "talker", "--", "sh", "-c", "exit 3"])?;
    ensure!(code.status.code() == Some(3), "exit code of exec: {:?} {}", code.status, text(&code.stderr));
    for websockets in ["true", "false"] {
        let environment = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)];
        let missing = cluster.kubectl_with(&["exec", "talker", "--", "nope"], "", &environment)?;
        let said = text(&missing.stderr);
        let begins =
            "error: Internal error occurred: error executing command in container: failed to exec in container: ";
        let ends = "exec: \"nope\": executable file not found in $PATH";
        ensure!(missing.status.code() == Some(1), "exec of a command that is not there: {:?}", missing.status.code());
        ensure!(said.starts_with(begins) && said.trim_end().ends_with(ends), "{said}");
    }
    let echoed = succeeded(cluster.kubectl_with(&["exec", "-i", "talker", "--", "cat"], "through\n", &[])?, "exec -i")?;
    ensure!(echoed == "through\n", "{echoed:?}");
    let account = cluster.kubectl(&["exec", "talker", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount"])?;
    ensure!(account == "ca.crt\nnamespace\ntoken\n", "{account:?}");
    let status = cluster.kubectl(&[
        "exec",
        "talker",
        "--",
        "grep",
        "-E",
        "^(Seccomp|NoNewPrivs|CapEff)",
        "/proc/self/status",
    ])?;
    ensure!(status.contains("Seccomp:\t2"), "exec runs without a seccomp filter:\n{status}");
    cluster.kubectl(&["delete", "pod", "talker", "--grace-period=1", "--timeout=30s"]).map(drop)
}

/// Readiness decides about endpoints; a failing liveness probe restarts.
pub fn probes(cluster: &Cluster) -> Result<()> {
    let pod = |name: &str, probe: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: probed}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: 'nginx:1.14.2', {probe}}}]}}}}"
        )
    };
    cluster.apply_text("{apiVersion: v1, kind: Service, metadata: {name: probed}, spec: {selector: {app: probed}, ports: [{port: 80}]}}")?;
    cluster.apply_text(&pod("well", "readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}, livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}"))?;
    cluster.apply_text(&pod("unwell", "readinessProbe: {httpGet: {path: /nonesuch, port: 80}, periodSeconds: 1}"))?;
    cluster.apply_text(&pod(
        "dying",
        "livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1}",
    ))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/well", "--timeout=60s"])?;
    cluster.until("a failed readiness probe is said", |cluster| {
        Ok(cluster
            .kubectl(&["get", "events", "--field-selector", "involvedObject.name=unwell,reason=Unhealthy"])?
            .contains("404"))
    })?;
    let ready = cluster.get(&["pod", "unwell"], "{.status.conditions[?(@.type==\"Ready\")].status}")?;
    ensure!(ready == "False", "a pod whose readiness probe fails is ready");
    let ip = cluster.get(&["pod", "well"], "{.status.podIP}")?;
    let offered = cluster.get(
        &["endpointslices", "-l", "kubernetes.io/service-name=probed"],
        "{range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]} {end}",
    )?;
    ensure!(offered.split_whitespace().any(|address| address == ip), "the ready pod is not offered: {offered}");
    cluster.until("a failing liveness probe restarts", |cluster| {
        Ok(cluster
            .get(&["pod", "dying"], "{.status.containerStatuses[0].restartCount}")?
            .parse::<u32>()
            .is_ok_and(|count| count > 0))
    })?;
    let steady = cluster.get(&["pod", "well"], "{.status.containerStatuses[0].restartCount}")?;
    ensure!(steady == "0", "the healthy pod was restarted");
    cluster.kubectl(&["delete", "pod/well", "pod/unwell", "pod/dying", "service/probed", "--timeout=30s"]).map(drop)
}

/// Ends a container's process from outside; the pod stays and counts it.
pub fn killed_container(cluster: &Cluster) -> Result<()> {
    let pod = "my-nginx-pod";
    let before = cluster.get(
        &["pod", pod],
        "{.status.containerStatuses[?(@.name==\"sidecar-container\")].restartCount}/{.status.podIP}",
    )?;
    // PID 1 ignores signals it has no handler for, but for SIGKILL from outside; `tail` gets it from its own parent.
    let uid = cluster.get(&["pod", pod], "{.metadata.uid}")?;
    let pid = container_pid(&uid, "tail")?;
    succeeded(std::process::Command::new("kill").args(["-KILL", &pid]).output()?, "kill")?;
    cluster.until("the restart is counted", |cluster| {
        let now = cluster.get(
            &["pod", pod],
            "{.status.containerStatuses[?(@.name==\"sidecar-container\")].restartCount}/{.status.podIP}",
        )?;
        let (count, ip) = now.split_once('/').unwrap_or_default();
        let (old, old_ip) = before.split_once('/').unwrap_or_default();
        Ok(count.parse::<u32>().ok() > old.parse::<u32>().ok() && ip == old_ip)
    })?;
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"])?;
    let last = cluster.get(
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
    anyhow::bail!("no process {command} in the cgroups of pod {uid}")
}
