//! Which pods get a node when there is not enough for all.

use anyhow::{Result, ensure};
use e2e::{Space, until};

const CLASS: &str = "e2e-important";
/// What there is once: a port of the node.
const PORT: &str = "18099";

/// The more important pod has the other sent away, and its events say so.
pub fn preemption(space: &Space<'_>) -> Result<()> {
    space.apply_text(&pod("lesser", ""))?;
    space.wait_ready(&["pod/lesser"])?;
    space.kubectl(&["create", "priorityclass", CLASS, "--value=1000"])?;
    let outcome = preempted(space);
    space.kubectl(&["delete", "priorityclass", CLASS])?;
    outcome
}

fn preempted(space: &Space<'_>) -> Result<()> {
    space.apply_text(&pod("equal", ""))?;
    let refused = "it waits";
    until(refused, || Ok(space.get(&["pod", "equal"], "{.status.conditions[0].reason}")? == "Unschedulable"))?;
    space.apply_text(&pod("greater", &format!("priorityClassName: {CLASS}, ")))?;
    space.wait_ready(&["pod/greater"])?;
    let left = space.kubectl_fails(&["get", "pod", "lesser"])?;
    ensure!(left.contains("\"lesser\" not found"), "{left}");
    let uid = space.get(&["pod", "greater"], "{.metadata.uid}")?;
    let told = space.get(&["events", "--field-selector", "reason=Preempted"], "{.items[0].message}")?;
    ensure!(told.starts_with(&format!("Preempted by pod {uid} on node ")), "{told}");
    ensure!(space.get(&["pod", "equal"], "{.status.phase}")? == "Pending", "it is no more important than what ran");
    Ok(())
}

fn pod(name: &str, more: &str) -> String {
    let container = format!(
        "{{name: c, image: busybox, command: [sleep, '1000'], ports: [{{containerPort: 80, hostPort: {PORT}}}]}}"
    );
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{more}terminationGracePeriodSeconds: 1, containers: [{container}]}}}}"
    )
}
