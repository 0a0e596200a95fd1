//! Whose pods are whose, by their labels.

use anyhow::{Result, ensure};
use e2e::{Space, until};

const LABEL: &str = "app=my-nginx-pods-label";

pub fn relabelled(space: &Space<'_>) -> Result<()> {
    space.apply("replicaset-nginx.yaml")?;
    until(
        "the set is whole",
        || Ok(space.get(&["replicaset", "replicaset-nginx"], "{.status.readyReplicas}")? == "3"),
    )?;
    let first = space.get(&["pods", "-l", LABEL], "{.items[0].metadata.name}")?;
    space.kubectl(&["label", "pod", &first, "app=set-aside", "--overwrite"])?;
    until("it is replaced", || {
        Ok(space.get(&["replicaset", "replicaset-nginx"], "{.status.readyReplicas}")? == "3"
            && space.count("pods", LABEL)? == 3)
    })?;
    let owners = space.get(&["pod", &first], "{.metadata.ownerReferences}/{.status.phase}")?;
    ensure!(owners == "/Running", "the pod set aside has owners or does not run: {owners}");
    // Back again it is one too many.
    space.kubectl(&["label", "pod", &first, LABEL, "--overwrite"])?;
    until("one of four goes", || Ok(space.count("pods", LABEL)? == 3))
}
