//! The agent ends and comes back; pods do not notice.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, workspace};

pub fn adopted(cluster: &Cluster) -> Result<()> {
    let facts = |cluster: &Cluster| {
        cluster.get(&["pods", "-l", "app=webserver"], "{range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}")
    };
    let before = facts(cluster)?;
    let ip = cluster.get(&["service", "hostname-svc-clusterip"], "{.spec.clusterIP}")?;
    let url = format!("http://{ip}:8080/");
    for way in ["kill", "stop"] {
        restart(cluster, way, || {
            // No agent, no API server: the service path is in the kernel.
            cluster.fetch("node1", &url).context("while the agent is away").map(drop)
        })?;
        cluster.until("the API is back", |cluster| Ok(cluster.try_kubectl(&["get", "nodes"])?.status.success()))?;
        cluster.until("the pods are as they were", |cluster| Ok(facts(cluster)? == before))?;
        cluster.fetch("node1", &url)?;
        cluster.until("a command runs in a pod taken up again", |cluster| {
            Ok(cluster.kubectl(&["exec", "asker", "--", "echo", "still here"])? == "still here\n")
        })?;
    }
    // And new things still work.
    cluster.kubectl(&["run", "after", "--image=busybox:latest", "--restart=Never", "--", "true"])?;
    cluster.until("a new pod runs to its end", |cluster| {
        Ok(cluster.get(&["pod", "after"], "{.status.phase}")? == "Succeeded")
    })
}

/// Ends the node's `amphipod up` (`kill` or `stop`), does something, and starts it again by the project's own command.
fn restart(cluster: &Cluster, way: &str, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let xtask = |words: &[&str]| -> Result<()> {
        let status =
            Command::new(&cargo).arg("xtask").args(words).current_dir(workspace()).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "cargo xtask {} failed", words.join(" "));
        Ok(())
    };
    ensure!(!cluster.data_dir().is_empty(), "the cluster has a node");
    xtask(&["cluster", way, "e2e", "node1"])?;
    let outcome = meanwhile();
    xtask(&["cluster", "start", "e2e", "node1"])?;
    outcome
}
