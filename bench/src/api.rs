//! The API server beside a real etcd: durable single-object updates, reads under them, a long list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use e2e::Cluster;
use serde_json::{Value, json};

use crate::host;
use crate::http::{Api, Connection, block_on, create_all};
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired, quantile};

pub mod etcd;

/// As many clients write at once.
pub const CLIENTS: usize = 32;
/// Text in each object written, bytes.
const PAYLOAD: usize = 2048;
const ROUND: Duration = Duration::from_secs(4);
pub const PODS: usize = 5000;
/// JSON text of each pod of the long list, bytes.
const POD_BYTES: usize = 1960;
const LISTS: usize = 30;

/// Where writers have their objects.
pub const NAMESPACE: &str = "default";
const POD_LIST: &str = "/api/v1/namespaces/default/pods";

pub fn run(rounds: usize) -> Result<Report> {
    let mut report = Report::new("api")?;
    report.note(format!(
        "{CLIENTS} clients on a connection each (HTTPS; etcd: gRPC without TLS), {PAYLOAD} bytes in each object, every \
         write acknowledged after its fsync; server, etcd and clients share this machine's processors and disk"
    ));
    report.note("etcd's figure is its plain Put; a Kubernetes API server would add a transaction and its own work");
    let cluster = Cluster::up(host::CLUSTER)?;
    let etcd = etcd::Etcd::start(Some(&host::node(host::CLUSTER)))?;
    let api = Api::from_kubeconfig(&std::path::Path::new(cluster.data_dir()).join("admin.kubeconfig"))?;
    let endpoint = etcd.endpoint();
    let reader = api.clone();
    let figures =
        host::join(host::inside(&host::node(host::CLUSTER), move || block_on(writes(api, endpoint, rounds))))?;
    drop(etcd);
    let ratio = paired(&figures.ours, &figures.etcd);
    report.row(
        Row::new(format!("updates, {CLIENTS} clients"), median(&figures.ours), "1/s")
            .beside("etcd", median(&figures.etcd), ratio)
            .goal(Goal::RatioAtLeast(0.6)),
    );
    report.row(
        Row::new(format!("updates, {CLIENTS} clients, by itself"), median(&figures.ours), "1/s")
            .goal(Goal::ValueAtLeast(2600.0)),
    );
    report.row(Row::new("updates, 1 client", figures.single, "1/s"));
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        let row = Row::new(format!("get under {CLIENTS} writers, {name}"), quantile(&figures.gets, share), "ms");
        report.row(if share > 0.9 { row.goal(Goal::ValueAtMost(10.0)) } else { row });
    }
    let (lists, size) = host::join(host::inside(&host::node(host::CLUSTER), move || block_on(long_list(reader))))?;
    let what = format!("list of {PODS} pods, {:.1} MB", size as f64 / 1e6);
    report.row(Row::new(format!("{what}, p50"), median(&lists), "ms").goal(Goal::ValueAtMost(60.0)));
    report.row(Row::new(format!("{what}, p99"), quantile(&lists, 0.99), "ms"));
    report.samples.extend([
        ("updates/s by round".to_owned(), figures.ours),
        ("etcd puts/s by round".to_owned(), figures.etcd),
        ("lists, ms".to_owned(), lists),
    ]);
    cluster.down()?;
    Ok(report)
}

struct Figures {
    ours: Vec<f64>,
    etcd: Vec<f64>,
    single: f64,
    /// Milliseconds.
    gets: Vec<f64>,
}

async fn writes(api: Api, endpoint: String, rounds: usize) -> Result<Figures> {
    let mut writers = Vec::new();
    for index in 0..CLIENTS {
        writers.push(Writer::new(&api, NAMESPACE, &format!("bench-{index}")).await?);
    }
    let mut putters = etcd::putters(&endpoint, CLIENTS, PAYLOAD).await?;
    let (mut ours, mut theirs, mut gets) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each warms up.
    for round in 0..=rounds {
        let our_turn_first = round % 2 == 0;
        for ours_now in [our_turn_first, !our_turn_first] {
            if ours_now {
                let stop = Arc::new(AtomicBool::new(false));
                let reader = tokio::spawn(read_until(api.connect().await?, NAMESPACE, "bench-0".into(), stop.clone()));
                let rate;
                (writers, rate) = race(writers, Writer::write).await?;
                stop.store(true, Ordering::Relaxed);
                let seen = reader.await??;
                if round > 0 {
                    ours.push(rate);
                    gets.extend(seen);
                }
            } else {
                let rate;
                (putters, rate) = race(putters, etcd::Putter::put).await?;
                if round > 0 {
                    theirs.push(rate);
                }
            }
        }
        println!(
            "  round {round} of {rounds}: {:.0}/s, etcd {:.0}/s",
            ours.last().unwrap_or(&0.0),
            theirs.last().unwrap_or(&0.0)
        );
    }
    writers.truncate(1);
    let (_, single) = race(writers, Writer::write).await?;
    Ok(Figures { ours, etcd: theirs, single, gets })
}

/// All clients at once for one round; how many calls a second they made.
pub async fn race<C: Send + 'static>(
    clients: Vec<C>,
    call: impl AsyncFn(&mut C) -> Result<()> + Copy + 'static,
) -> Result<(Vec<C>, f64)> {
    let began = Instant::now();
    let runs = clients.into_iter().map(|mut client| async move {
        let mut calls = 0u32;
        while began.elapsed() < ROUND {
            call(&mut client).await?;
            calls += 1;
        }
        anyhow::Ok((client, calls))
    });
    let done = futures::future::try_join_all(runs).await?;
    let calls: u32 = done.iter().map(|(_, calls)| calls).sum();
    let rate = f64::from(calls) / began.elapsed().as_secs_f64();
    Ok((done.into_iter().map(|(client, _)| client).collect(), rate))
}

/// One client and the object it keeps changing.
pub struct Writer {
    connection: Connection,
    path: String,
    object: Value,
    count: u64,
}

impl Writer {
    pub async fn new(api: &Api, namespace: &str, name: &str) -> Result<Self> {
        let mut connection = api.connect().await?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace},
            "data": {"count": "0", "text": "x".repeat(PAYLOAD)},
        });
        let path = config_maps(namespace);
        connection.create(&path, &object).await?;
        Ok(Self { connection, path: format!("{path}/{name}"), object, count: 0 })
    }

    pub async fn write(&mut self) -> Result<()> {
        self.count += 1;
        self.object["data"]["count"] = self.count.to_string().into();
        self.connection.call("PUT", &self.path, self.object.to_string().into()).await.map(drop)
    }
}

fn config_maps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

/// Reads one object again and again; milliseconds of each.
pub async fn read_until(
    mut connection: Connection,
    namespace: &str,
    name: String,
    stop: Arc<AtomicBool>,
) -> Result<Vec<f64>> {
    let path = format!("{}/{name}", config_maps(namespace));
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        connection.call("GET", &path, Bytes::new()).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(times)
}

/// Milliseconds of each list, and its bytes.
async fn long_list(api: Api) -> Result<(Vec<f64>, usize)> {
    let mut connection = api.connect().await?;
    waiting_pods(&api, &mut connection).await?;
    let (mut times, mut size) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let took;
        (took, size) = list(&mut connection).await?;
        times.push(took);
    }
    Ok((times, size))
}

/// Milliseconds of one list of all pods, and its bytes.
pub async fn list(connection: &mut Connection) -> Result<(f64, usize)> {
    let began = Instant::now();
    let size = connection.call("GET", POD_LIST, Bytes::new()).await?.len();
    Ok((began.elapsed().as_secs_f64() * 1e3, size))
}

/// Creates the pods of the long list.
pub async fn waiting_pods(api: &Api, connection: &mut Connection) -> Result<()> {
    connection.create(POD_LIST, &waiting_pod("list-0000", 0)).await?;
    let plain = connection.call("GET", &format!("{POD_LIST}/list-0000"), Bytes::new()).await?.len();
    let padding = POD_BYTES.saturating_sub(plain);
    create_all(api, POD_LIST, (1..PODS).map(|index| waiting_pod(&format!("list-{index:04}"), padding)).collect()).await
}

/// A pod for a scheduler that does not exist.
pub fn waiting_pod(name: &str, padding: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "list"}, "annotations": {"bench/padding": "x".repeat(padding)}},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "main", "image": "busybox", "env": [{"name": "A", "value": "b"}]}],
        },
    })
}
