//! From the API write to running containers, one at a time and many at once; one container beside runc.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use serde_json::{Value, json};

use crate::host;
use crate::http::{Api, Connection, Watch, block_on};
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired, quantile};

mod runtime;

const PODS: &str = "/api/v1/namespaces/default/pods";
pub const AT_ONCE: usize = 50;
const BURSTS: usize = 5;
const CONTAINER_ROUNDS: usize = 24;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(count: usize) -> Result<Report> {
    let mut report = Report::new("pods")?;
    report.note(
        "from sending the Pod to the API server until a watch shows its container running: scheduling, volumes (with the \
         service account token), network, container and status included; the image is there",
    );
    let cluster = Cluster::up(host::CLUSTER)?;
    let (ip, _) = host::idle_pod(&cluster, "first")?; // the image is pulled
    ensure!(!ip.is_empty(), "the first pod has no address");
    let kubeconfig = std::path::Path::new(cluster.data_dir()).join("admin.kubeconfig");
    let api = Api::from_kubeconfig(&kubeconfig)?;
    let (singles, bursts) =
        host::join(host::inside(&host::node(host::CLUSTER), move || block_on(measure(api, count))))?;
    report.row(Row::new("create → running, p50", median(&singles), "ms").goal(Goal::ValueAtMost(80.0)));
    report.row(Row::new("create → running, p99", quantile(&singles, 0.99), "ms").goal(Goal::ValueAtMost(150.0)));
    let burst = median(&bursts);
    report.row(Row::new(format!("{AT_ONCE} pods at once, all running"), burst, "s").goal(Goal::ValueAtMost(3.0)));
    let uid = cluster.get(&["pod", "first"], "{.metadata.uid}")?;
    let (ours, runc) = runtime::compare(&uid, CONTAINER_ROUNDS)?;
    report
        .note("one container, create and start of the same bundle: through a pod process, and by runc's two commands");
    report.row(
        Row::new("one container: create + start", median(&ours), "ms")
            .beside("runc", median(&runc), paired(&ours, &runc))
            .goal(Goal::RatioAtMost(0.2)),
    );
    report.samples.extend([
        ("create → running, ms".to_owned(), singles),
        (format!("{AT_ONCE} at once, s"), bursts),
        ("container, ms".to_owned(), ours),
        ("container by runc, ms".to_owned(), runc),
    ]);
    cluster.down()?;
    Ok(report)
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"bench": "pods"}},
        "spec": {
            // Not 0: such a pod's object is gone before its containers are, and the next round would pay for that.
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}],
        },
    })
}

async fn measure(api: Api, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut connection = api.connect().await?;
    let mut watch = watch(&api).await?;
    let mut singles = Vec::new();
    for index in 0..count + 3 {
        let took = burst(&mut connection, &mut watch, &[format!("single-{index}")]).await?;
        if index >= 3 {
            singles.push(took * 1e3); // the first ones warm up
        }
    }
    println!("  one at a time: p50 {:.0} ms", median(&singles));
    let mut bursts = Vec::new();
    for round in 0..BURSTS {
        let names: Vec<String> = (0..AT_ONCE).map(|index| format!("burst-{round}-{index}")).collect();
        bursts.push(burst(&mut connection, &mut watch, &names).await?);
        println!("  {AT_ONCE} at once: {:.2} s", bursts[round]);
    }
    Ok((singles, bursts))
}

/// Events of the pods that this bench makes.
pub async fn watch(api: &Api) -> Result<Watch> {
    Watch::start(api.connect().await?, &format!("{PODS}?watch=true&labelSelector=bench%3Dpods")).await
}

/// Seconds until all of these pods run; then they are deleted and awaited to be gone.
pub async fn burst(connection: &mut Connection, watch: &mut Watch, names: &[String]) -> Result<f64> {
    let began = Instant::now();
    for name in names {
        connection.create(PODS, &pod(name)).await?;
    }
    let mut waiting: HashMap<&str, ()> = names.iter().map(|name| (name.as_str(), ())).collect();
    while !waiting.is_empty() {
        let event = next(watch).await?;
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        if event["object"]["status"]["containerStatuses"][0]["state"]["running"].is_object() {
            waiting.remove(name);
        }
    }
    let took = began.elapsed().as_secs_f64();
    for name in names {
        connection.call("DELETE", &format!("{PODS}/{name}"), Vec::new().into()).await?;
    }
    let mut left = names.len();
    while left > 0 {
        if next(watch).await?["type"] == "DELETED" {
            left -= 1;
        }
    }
    Ok(took)
}

async fn next(watch: &mut Watch) -> Result<Value> {
    tokio::time::timeout(PATIENCE, watch.next()).await.context("no pod changed for a minute")?
}
