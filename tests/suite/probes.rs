//! Probes decide.

use anyhow::{Result, ensure};
use e2e::{Space, until};

/// Readiness decides about endpoints; a failing liveness probe restarts.
pub fn probes(space: &Space<'_>) -> Result<()> {
    let pod = |name: &str, probe: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: probed}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: 'nginx:1.14.2', {probe}}}]}}}}"
        )
    };
    space.apply_text("{apiVersion: v1, kind: Service, metadata: {name: probed}, spec: {selector: {app: probed}, ports: [{port: 80}]}}")?;
    space.apply_text(&pod("well", "readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}, livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}"))?;
    space.apply_text(&pod("unwell", "readinessProbe: {httpGet: {path: /nonesuch, port: 80}, periodSeconds: 1}"))?;
    space.apply_text(&pod(
        "dying",
        "livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1}",
    ))?;
    space.wait_ready(&["pod/well"])?;
    until("a failed readiness probe is said", || {
        Ok(space
            .kubectl(&["get", "events", "--field-selector", "involvedObject.name=unwell,reason=Unhealthy"])?
            .contains("404"))
    })?;
    let ready = space.get(&["pod", "unwell"], "{.status.conditions[?(@.type==\"Ready\")].status}")?;
    ensure!(ready == "False", "a pod whose readiness probe fails is ready");
    let ip = space.get(&["pod", "well"], "{.status.podIP}")?;
    let offered = space.get(
        &["endpointslices", "-l", "kubernetes.io/service-name=probed"],
        "{range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]} {end}",
    )?;
    ensure!(offered.split_whitespace().any(|address| address == ip), "the ready pod is not offered: {offered}");
    until("a failing liveness probe restarts", || {
        Ok(space
            .get(&["pod", "dying"], "{.status.containerStatuses[0].restartCount}")?
            .parse::<u32>()
            .is_ok_and(|count| count > 0))
    })?;
    let steady = space.get(&["pod", "well"], "{.status.containerStatuses[0].restartCount}")?;
    ensure!(steady == "0", "the healthy pod was restarted");
    Ok(())
}
