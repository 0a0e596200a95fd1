//! What a deletion takes with it.

use anyhow::{Context, Result, ensure};
use e2e::{Space, until};

pub fn deleted(space: &Space<'_>) -> Result<()> {
    space.nginx()?;
    space.apply("replicaset-nginx.yaml")?;
    space.run_pod("alone", &["sleep", "1000"])?;
    space.kubectl(&["delete", "deployment,replicaset,pod", "--all", "--grace-period=1", "--timeout=60s"])?;
    until("dependents are gone too", || {
        Ok(space.kubectl(&["get", "pods,replicasets", "--no-headers"]).context("get")?.trim().is_empty())
    })
}

/// A namespace goes with all that it holds.
pub fn namespace(space: &Space<'_>) -> Result<()> {
    // A shell as PID 1 hears no SIGTERM: it would take the whole grace of 30 seconds.
    let quick = r#"--overrides={"apiVersion":"v1","spec":{"terminationGracePeriodSeconds":1}}"#;
    let inner = Space::new(space.cluster, "short-lived")?;
    inner.kubectl(&["run", "inside", "--image=busybox:latest", quick, "--", "sleep", "1000"])?;
    inner.wait_ready(&["pod/inside"])?;
    inner.kubectl(&["delete", "namespace", "short-lived", "--timeout=60s"])?;
    let gone = inner.kubectl_fails(&["get", "namespace", "short-lived"])?;
    ensure!(gone.contains("not found"), "{gone}");
    inner.left();
    Ok(())
}
