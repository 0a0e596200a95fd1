//! What `get` and `describe` show.

use anyhow::{Result, ensure};
use e2e::Space;

pub fn shown(space: &Space<'_>) -> Result<()> {
    space.nginx()?;
    space.apply("replicaset-nginx.yaml")?;
    space.apply("two-container-pod.yaml")?;
    space.apply("hostname-svc-clusterip.yaml")?;
    space.wait_ready(&["pod", "--all"])?;
    let all = space.kubectl(&["get", "all", "-o", "wide"])?;
    for part in [
        "pod/my-nginx-pod",
        "service/hostname-svc-clusterip",
        "deployment.apps/my-nginx-deployment",
        "3/3",
        "replicaset.apps/replicaset-nginx",
    ] {
        ensure!(all.contains(part), "{part} is missing:\n{all}");
    }
    let pod = space.kubectl(&["describe", "pod", "my-nginx-pod"])?;
    for part in ["sidecar-container", "Scheduled", "Pulled", "Created", "Started", "Status:", "Running"] {
        ensure!(pod.contains(part), "{part} is missing:\n{pod}");
    }
    for what in ["deployment", "replicaset", "service", "node"] {
        space.kubectl(&["describe", what])?;
    }
    // By its name: those of other cases come and go between kubectl's list and its look at each.
    space.kubectl(&["describe", "namespace", space.namespace()])?;
    let node = space.kubectl(&["describe", "node"])?;
    for part in ["Starting kubelet.", "status is now: NodeReady"] {
        ensure!(node.contains(part), "{part} is missing:\n{node}");
    }
    let cluster = space.kubectl(&["cluster-info", "--namespace", "kube-system"])?;
    // kubectl may colour the names.
    for part in ["Kubernetes control plane", "DNS", "/services/kube-dns:dns/proxy"] {
        ensure!(cluster.contains(part), "{part} is missing:\n{cluster}");
    }
    ensure!(!cluster.contains("CoreDNS"), "a server that is not there: {cluster}");
    let disk = space.get(&["nodes"], "{.items[0].status.capacity.ephemeral-storage}")?;
    ensure!(disk.ends_with("Ki"), "the disk's size is {disk}");
    let nodes = space.kubectl(&["get", "nodes", "-o", "wide"])?;
    ensure!(nodes.contains(" Ready ") && nodes.contains("amphipod://"), "{nodes}");
    ensure!(nodes.contains(" control-plane "), "the node's role is not shown: {nodes}");
    let generation = space.get(&["pod", "my-nginx-pod"], "{.metadata.generation}/{.status.observedGeneration}")?;
    ensure!(generation == "1/1", "generation and observed generation: {generation}");
    Ok(())
}
