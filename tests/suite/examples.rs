//! What the project shows its users, and what they write themselves on the first day.

use anyhow::{Result, ensure};
use e2e::{CLUSTER_IP, Space, workspace};

pub fn examples(space: &Space<'_>) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(workspace().join("examples"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yaml") && name != "two-container-pod.yaml")
        .collect();
    names.sort();
    ensure!(names.len() >= 9, "examples are missing: {names:?}");
    for name in &names {
        space.apply(name)?;
    }
    space.rolled_out("my-nginx-deployment")?;
    space.rolled_out("hostname-deployment")?;
    space.wait_ready(&["pod", "--all"])?;
    // The two-container pod has the single one's name: it takes its place.
    space.kubectl(&["delete", "pod", "my-nginx-pod", "--grace-period=1", "--timeout=30s"])?;
    space.apply("two-container-pod.yaml")?;
    space.wait_ready(&["pod/my-nginx-pod"])?;
    let pending = space.kubectl(&["get", "service", "hostname-svc-lb"])?;
    ensure!(pending.contains("<pending>"), "a load balancer without a pool stays pending: {pending}");
    // A second apply changes nothing.
    let again = space.apply("deployment-nginx.yaml")?;
    ensure!(again.contains("unchanged"), "{again}");
    Ok(())
}

/// The objects that a user writes on the first day, as they were written.
pub fn first_day(space: &Space<'_>) -> Result<()> {
    let folder = workspace().join("tests/manifests");
    let apply = |name: &str| space.kubectl(&["apply", "-f", &folder.join(name).display().to_string()]);
    for name in
        ["deployment-nginx.yaml", "replicaset-nginx.yaml", "webserver-deployment.yaml", "two-container-pod.yaml"]
    {
        apply(name)?;
    }
    for name in ["clusterip", "nodeport", "lb", "lb-local"] {
        apply(&format!("hostname-svc-{name}.yaml"))?;
    }
    apply("externalname-svc.yaml")?;
    space.wait_ready(&["pod", "--all"])?;
    let address = space.address(CLUSTER_IP)?;
    let name = space.cluster.node().fetch(&format!("http://{address}:8080/"))?;
    ensure!(name.starts_with("hostname-deployment-"), "the server answers with its host name: {name}");
    Ok(())
}
