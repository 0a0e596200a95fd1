//! Deployments, ReplicaSets and the examples.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, succeeded, workspace};

/// A shell as PID 1 hears no SIGTERM: it would take the whole grace of 30 seconds.
const QUICK: &str = r#"--overrides={"apiVersion":"v1","spec":{"terminationGracePeriodSeconds":1}}"#;
const DEPLOYMENT: &str = "deployment/my-nginx-deployment";

pub fn examples(cluster: &Cluster) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(workspace().join("examples"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yaml") && name != "two-container-pod.yaml")
        .collect();
    names.sort();
    ensure!(names.len() >= 9, "examples are missing: {names:?}");
    for name in &names {
        cluster.apply(name)?;
    }
    cluster.kubectl(&["rollout", "status", DEPLOYMENT, "--timeout=60s"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hostname-deployment", "--timeout=60s"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    // The two-container pod has the single one's name: it takes its place.
    cluster.kubectl(&["delete", "pod", "my-nginx-pod", "--grace-period=1", "--timeout=30s"])?;
    cluster.apply("two-container-pod.yaml")?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/my-nginx-pod", "--timeout=60s"])?;
    let pending = cluster.kubectl(&["get", "service", "hostname-svc-lb"])?;
    ensure!(pending.contains("<pending>"), "a load balancer without a pool stays pending: {pending}");
    // A second apply changes nothing.
    let again = cluster.apply("deployment-nginx.yaml")?;
    ensure!(again.contains("unchanged"), "{again}");
    Ok(())
}

/// The objects that a user writes on the first day, as they were written.
pub fn first_day(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "first-day"])?;
    let folder = workspace().join("tests/manifests");
    let apply =
        |name: &str| cluster.kubectl(&["apply", "-n", "first-day", "-f", &folder.join(name).display().to_string()]);
    for name in
        ["deployment-nginx.yaml", "replicaset-nginx.yaml", "webserver-deployment.yaml", "two-container-pod.yaml"]
    {
        apply(name)?;
    }
    for name in ["clusterip", "nodeport", "lb", "lb-local"] {
        apply(&format!("hostname-svc-{name}.yaml"))?;
    }
    apply("externalname-svc.yaml")?;
    cluster.kubectl(&["wait", "-n", "first-day", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let address = cluster.get(&["service", "hostname-svc-clusterip", "-n", "first-day"], "{.spec.clusterIP}")?;
    let name = cluster.fetch("node1", &format!("http://{address}:8080/"))?;
    ensure!(name.starts_with("hostname-deployment-"), "the server answers with its host name: {name}");
    cluster.kubectl(&["delete", "namespace", "first-day", "--timeout=60s"]).map(drop)
}

pub fn shown(cluster: &Cluster) -> Result<()> {
    let all = cluster.kubectl(&["get", "all", "-o", "wide"])?;
    for part in [
        "pod/my-nginx-pod",
        "service/kubernetes",
        "deployment.apps/my-nginx-deployment",
        "3/3",
        "replicaset.apps/replicaset-nginx",
    ] {
        ensure!(all.contains(part), "{part} is missing:\n{all}");
    }
    let pod = cluster.kubectl(&["describe", "pod", "my-nginx-pod"])?;
    for part in ["sidecar-container", "Scheduled", "Pulled", "Created", "Started", "Status:", "Running"] {
        ensure!(pod.contains(part), "{part} is missing:\n{pod}");
    }
    for what in ["deployment", "replicaset", "service", "node", "namespace"] {
        cluster.kubectl(&["describe", what])?;
    }
    let node = cluster.kubectl(&["describe", "node"])?;
    for part in ["Starting kubelet.", "status is now: NodeReady"] {
        ensure!(node.contains(part), "{part} is missing:\n{node}");
    }
    let disk = cluster.get(&["nodes"], "{.items[0].status.capacity.ephemeral-storage}")?;
    ensure!(disk.ends_with("Ki"), "the disk's size is {disk}");
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"])?;
    ensure!(nodes.contains(" Ready ") && nodes.contains("amphipod://"), "{nodes}");
    ensure!(nodes.contains(" control-plane "), "the node's role is not shown: {nodes}");
    let generation = cluster.get(&["pod", "my-nginx-pod"], "{.metadata.generation}/{.status.observedGeneration}")?;
    ensure!(generation == "1/1", "generation and observed generation: {generation}");
    Ok(())
}

/// Asks the service all the while the deployment rolls from one image to the next.
pub fn rolling_update(cluster: &Cluster) -> Result<()> {
    cluster.apply_text(SERVICE)?;
    let address = cluster.get(&["service", "rolling"], "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    cluster.until("the service answers", |cluster| {
        Ok(cluster.fetch("node1", &url).is_ok_and(|page| page.contains("1.14.2")))
    })?;
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let reason = std::sync::Mutex::new(String::new());
    let rolled = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = cluster.fetch("node1", &url) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        *reason.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = format!("{error:#}");
                    }
                }
            });
        }
        let rolled = cluster
            .kubectl(&["set", "image", DEPLOYMENT, "nginx=nginx:1.16.1"])
            .and_then(|_| cluster.kubectl(&["rollout", "status", DEPLOYMENT, "--timeout=90s"]))
            .and_then(|_| {
                cluster.until("only new pods are left", |cluster| {
                    Ok(cluster.kubectl(&["get", "pods", "-l", "app=my-nginx", "--no-headers"])?.lines().count() == 3)
                })
            });
        stop.store(true, Ordering::Relaxed);
        rolled
    });
    rolled?;
    let (asked, failed) = (asked.into_inner(), failed.into_inner());
    ensure!(asked > 20, "only {asked} requests were made");
    ensure!(
        failed == 0,
        "{failed} of {asked} requests failed while it rolled, the last: {}",
        reason.into_inner().unwrap_or_default()
    );
    let page = cluster.fetch("node1", &url)?;
    ensure!(page.contains("1.16.1"), "the new page is not there: {page}");
    Ok(())
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: rolling}
spec:
  selector: {app: my-nginx}
  ports: [{port: 80}]
";

pub fn rollback(cluster: &Cluster) -> Result<()> {
    let history = cluster.kubectl(&["rollout", "history", DEPLOYMENT])?;
    ensure!(history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2, "{history}");
    cluster.kubectl(&["rollout", "undo", DEPLOYMENT, "--to-revision=1"])?;
    cluster.kubectl(&["rollout", "status", DEPLOYMENT, "--timeout=90s"])?;
    let image = cluster.get(&[DEPLOYMENT], "{.spec.template.spec.containers[0].image}")?;
    ensure!(image == "nginx:1.14.2", "{image}");
    let history = cluster.kubectl(&["rollout", "history", DEPLOYMENT])?;
    ensure!(
        history.lines().any(|line| line.starts_with('3')) && !history.lines().any(|line| line.starts_with('1')),
        "{history}"
    );
    Ok(())
}

pub fn scale_and_edit(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["scale", DEPLOYMENT, "--replicas=5"])?;
    cluster.until("five replicas are ready", |cluster| {
        Ok(cluster.get(&[DEPLOYMENT], "{.status.readyReplicas}")? == "5")
    })?;
    let editor = [("KUBE_EDITOR", "sed -i 's/replicas: 5/replicas: 2/'")];
    succeeded(cluster.kubectl_with(&["edit", DEPLOYMENT], "", &editor)?, "kubectl edit")?;
    cluster.until("two replicas are left", |cluster| {
        Ok(cluster.kubectl(&["get", "pods", "-l", "app=my-nginx", "--no-headers"])?.lines().count() == 2)
    })?;
    cluster.kubectl(&["scale", DEPLOYMENT, "--replicas=3"])?;
    cluster.kubectl(&["rollout", "status", DEPLOYMENT, "--timeout=60s"]).map(drop)
}

pub fn relabelled(cluster: &Cluster) -> Result<()> {
    let first = cluster.get(&["pods", "-l", "app=my-nginx-pods-label"], "{.items[0].metadata.name}")?;
    cluster.kubectl(&["label", "pod", &first, "app=set-aside", "--overwrite"])?;
    cluster.until("it is replaced", |cluster| {
        Ok(cluster.get(&["replicaset", "replicaset-nginx"], "{.status.readyReplicas}")? == "3"
            && cluster.kubectl(&["get", "pods", "-l", "app=my-nginx-pods-label", "--no-headers"])?.lines().count() == 3)
    })?;
    let owners = cluster.get(&["pod", &first], "{.metadata.ownerReferences}/{.status.phase}")?;
    ensure!(owners == "/Running", "the pod set aside has owners or does not run: {owners}");
    // Back again it is one too many.
    cluster.kubectl(&["label", "pod", &first, "app=my-nginx-pods-label", "--overwrite"])?;
    cluster.until("one of four goes", |cluster| {
        Ok(cluster.kubectl(&["get", "pods", "-l", "app=my-nginx-pods-label", "--no-headers"])?.lines().count() == 3)
    })
}

pub fn deleted(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "deployment,replicaset,pod", "--all", "--grace-period=1", "--timeout=60s"])?;
    cluster.until("dependents are gone too", |cluster| {
        Ok(cluster.kubectl(&["get", "pods,replicasets", "--no-headers"]).context("get")?.trim().is_empty())
    })?;
    cluster.kubectl(&["create", "namespace", "short-lived"])?;
    cluster.until("it has its account", |cluster| {
        Ok(cluster.try_kubectl(&["get", "serviceaccount", "default", "-n", "short-lived"])?.status.success())
    })?;
    cluster.kubectl(&["run", "inside", "--image=busybox:latest", "-n", "short-lived", QUICK, "--", "sleep", "1000"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/inside", "-n", "short-lived", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", "short-lived", "--timeout=60s"])?;
    let gone = cluster.kubectl_fails(&["get", "namespace", "short-lived"])?;
    ensure!(gone.contains("not found"), "{gone}");
    Ok(())
}
