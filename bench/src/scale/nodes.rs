//! Thousands of nodes that are not there: each with its lease, its own pods, and a client of its own, as an agent has.
//!
//! Deployments are made until the cluster is full, by the server's own controllers and scheduler; a simulated node says of each of
//! its pods that it runs, and lets it go when it is told to. Then pods are deleted at a rate, and what comes in their place is
//! followed. Simulator and server share the machine: what each took of it is in the report.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use client::follow::{self, Scope, Step};
use client::https::Identity;
use client::views::{LEASES, NODES, PODS};
use client::{Client, DeleteOptions, Key};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::Server;
use super::resources::many_files;
use crate::http::Api;
use crate::objects::SERVICES;
use crate::processes::{Activity, activity};
use crate::report::{Goal, Report, Row};
use crate::stats::quantile;

/// Of these nodes' pods, and of the time: what a whole run has; a smaller one has its share.
pub const ALL_NODES: usize = 5000;
const PODS_PER_NODE: usize = 20;
/// Pods of a Deployment, and so endpoints of a Service.
const REPLICAS: usize = 100;
/// One node in so many watches Services and slices as well.
const FOLLOWS: usize = 10;
/// Pods that are to run a second while the cluster fills, and that are asked for: what comes at the goal's own pace cannot reach it.
const FILL: f64 = 300.0;
const ASKED: f64 = 330.0;
const REPLACEMENTS: f64 = 20.0;
const STEADY: Duration = Duration::from_secs(600);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Nodes that begin at a time: a handshake costs more than a heartbeat.
const AT_ONCE: usize = 32;
/// The cluster has to be full after this many times what it should take.
const PATIENCE: f64 = 6.0;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// What the simulator sees, of all nodes together.
#[derive(Default)]
struct Seen {
    /// Milliseconds of calls for single objects.
    calls: Mutex<Vec<f64>>,
    /// Milliseconds by which the latest lease was late.
    latest: AtomicU64,
    running: AtomicUsize,
    /// Pods that run, by name.
    pods: Mutex<HashSet<Key>>,
    /// Bytes that followers of Services and slices were sent.
    followed: AtomicU64,
    failed: AtomicUsize,
}

impl Seen {
    async fn call<T>(&self, call: impl Future<Output = Result<T, api::status::Status>>) -> Option<T> {
        let began = Instant::now();
        let outcome = call.await;
        self.calls().push(began.elapsed().as_secs_f64() * 1e3);
        match outcome {
            Ok(answer) => Some(answer),
            Err(error) => {
                // The first few say what is wrong.
                if self.failed.fetch_add(1, Ordering::Relaxed) < 5 {
                    println!("  a call failed: {error}");
                }
                None
            }
        }
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashSet<Key>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn run(report: &mut Report, nodes: usize) -> Result<()> {
    many_files()?;
    let mut server = Server::start(&["--pod-cidr", "100.64.0.0/10"])?;
    let identities = server.identities(nodes, |index| format!("system:node:{}", name(index)), "system:nodes")?;
    let share = nodes as f64 / ALL_NODES as f64;
    let pods = nodes * PODS_PER_NODE;
    let services = pods / REPLICAS;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let api = server.api()?;
    let seen = Arc::new(Seen::default());
    let both = [server.pid()?, std::process::id()];
    let cores = |before: [Activity; 2], since: Instant| -> Result<[f64; 2]> {
        let now = [activity(&both[..1])?, activity(&both[1..])?];
        let time = since.elapsed().as_nanos() as f64;
        Ok([0, 1].map(|of| (now[of].cpu_ns - before[of].cpu_ns) as f64 / time))
    };
    let begin =
        || -> Result<([Activity; 2], Instant)> { Ok(([activity(&both[..1])?, activity(&both[1..])?], Instant::now())) };
    let most = Arc::new(AtomicU64::new(0));
    let outcome = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let (start, since) = begin()?;
        for from in (0..nodes).step_by(AT_ONCE) {
            let some = identities.iter().enumerate().take(nodes.min(from + AT_ONCE)).skip(from);
            let made = some.map(|(index, identity)| join(&api, index, identity.clone(), seen.clone()));
            for node in futures::future::try_join_all(made).await? {
                tasks.spawn(node);
            }
        }
        let joined = (since.elapsed(), cores(start, since)?);
        println!(
            "  {nodes} nodes joined in {:.0} s; {:.2} + {:.2} cores",
            joined.0.as_secs_f64(),
            joined.1[0],
            joined.1[1]
        );
        tasks.spawn(watch_memory(both[0], most.clone()));
        seen.calls().clear();

        let (start, since) = begin()?;
        let mut connection = api.connect().await?;
        for number in 0..services {
            connection.create(SERVICES, &service(number)).await?;
            let due = Duration::from_secs_f64((number * REPLICAS) as f64 / (ASKED * share));
            tokio::time::sleep_until((since + due).into()).await;
            connection.create(DEPLOYMENTS, &deployment(number)).await?;
        }
        let limit = Duration::from_secs_f64(pods as f64 / (FILL * share) * PATIENCE);
        let mut told = Instant::now();
        while seen.running.load(Ordering::Relaxed) < pods {
            ensure!(
                since.elapsed() < limit,
                "{} of {pods} pods run after {limit:?}",
                seen.running.load(Ordering::Relaxed)
            );
            if told.elapsed() > Duration::from_secs(20) {
                println!(
                    "  {} of {pods} pods run after {:.0} s",
                    seen.running.load(Ordering::Relaxed),
                    since.elapsed().as_secs_f64()
                );
                told = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let rate = pods as f64 / since.elapsed().as_secs_f64();
        let filled = (rate, cores(start, since)?, quantile(&std::mem::take(&mut *seen.calls()), 0.99));
        println!("  full: {rate:.0} pods/s; {:.2} + {:.2} cores", filled.1[0], filled.1[1]);

        let (start, since) = begin()?;
        let before = seen.running.load(Ordering::Relaxed);
        let deleter = Client::new(client::https::Https::new(api.client("bench", None))?);
        let all = (STEADY.as_secs_f64() * REPLACEMENTS * share) as usize;
        let mut deletions = JoinSet::new();
        for count in 0..all {
            let due = Duration::from_secs_f64(count as f64 / (REPLACEMENTS * share));
            tokio::time::sleep_until((since + due).into()).await;
            // Whichever comes first: the order of a set is nobody's.
            let Some(key) = seen.pods().iter().next().cloned() else { continue };
            seen.pods().remove(&key);
            // None waits for the one before: a slow answer must not lower the rate.
            let (deleter, seen) = (deleter.clone(), seen.clone());
            deletions.spawn(async move {
                let options = DeleteOptions::default();
                seen.call(deleter.delete(&PODS, &key.namespace, &key.name, &options)).await;
            });
            while deletions.try_join_next().is_some() {}
        }
        deletions.join_all().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let replaced = (seen.running.load(Ordering::Relaxed) - before) as f64;
        let steady = (replaced / all as f64, cores(start, since)?, quantile(&seen.calls(), 0.99));
        tasks.shutdown().await;
        Ok::<_, anyhow::Error>((joined, filled, steady))
    });
    let (joined, filled, steady) =
        outcome.with_context(|| format!("the server's last words: {}", last_words(&server)))?;
    let used = |cores: [f64; 2]| format!("server {:.2}, simulator {:.2} cores", cores[0], cores[1]);
    report.note(format!(
        "{nodes} simulated nodes, {pods} pods of {services} Deployments with a Service each; joining: {}, filling: {}, steady: {}; \
         one node in {FOLLOWS} watches Services and slices and was sent {:.0} MB; {} calls failed",
        used(joined.1),
        used(filled.1),
        used(steady.1),
        seen.followed.load(Ordering::Relaxed) as f64 / 1e6,
        seen.failed.load(Ordering::Relaxed)
    ));
    let second = Goal::ValueAtMost(1000.0);
    report.row(
        Row::new("nodes: pods a second while the cluster fills", filled.0, "1/s")
            .goal(Goal::ValueAtLeast(FILL * share)),
    );
    report.row(Row::new("nodes: single-object calls while it fills, p99", filled.2, "ms").goal(second));
    report.row(
        Row::new(
            format!("nodes: single-object calls with {:.0} replacements/s, p99", REPLACEMENTS * share),
            steady.2,
            "ms",
        )
        .goal(second),
    );
    report.row(Row::new("nodes: replacements that run", steady.0 * 100.0, "%").goal(Goal::ValueAtLeast(99.0)));
    report.row(
        Row::new("nodes: a lease late by at most", seen.latest.load(Ordering::Relaxed) as f64 / 1e3, "s")
            .goal(Goal::ValueAtMost(10.0)),
    );
    let gib = most.load(Ordering::Relaxed) as f64 / f64::from(1 << 20);
    report.row(Row::new("nodes: resident, most", gib, "GiB").goal(Goal::ValueAtMost(4.0)));
    Ok(())
}

fn last_words(server: &Server) -> String {
    let log = server.log();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Kibibytes that the server holds at most.
async fn watch_memory(pid: u32, most: Arc<AtomicU64>) {
    while let Ok(now) = crate::processes::memory(pid, "Pss") {
        most.fetch_max(now as u64, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn name(index: usize) -> String {
    format!("node-{index:05}")
}

/// Registers a node; the future is its life.
async fn join(
    api: &Api,
    index: usize,
    identity: Identity,
    seen: Arc<Seen>,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let name = name(index);
    let client = Client::new(client::https::Https::new(api.client(&name, Some(identity)))?);
    let failed = |status: api::status::Status| anyhow!("{name} cannot join: {status}");
    client.create(&NODES, "", node(&name)).await.map_err(failed)?;
    client.create(&LEASES, "kube-node-lease", lease(&name)).await.map_err(failed)?;
    let follower = index.is_multiple_of(FOLLOWS).then(|| api.clone());
    Ok(live(client, name, follower, seen))
}

async fn live(client: Client, name: String, follower: Option<Api>, seen: Arc<Seen>) {
    let (news, pods) = unbounded_channel();
    let own = Scope::fields(format!("spec.nodeName={name}"));
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::run(client.clone(), PODS, own, move |step| tell(&news, step)));
    tasks.spawn(keep(client.clone(), pods, seen.clone()));
    for path in [SERVICES, "/apis/discovery.k8s.io/v1/endpointslices"] {
        if let Some(api) = &follower {
            tasks.spawn(hear(api.clone(), path, seen.clone()));
        }
    }
    beat(&client, &name, &seen).await;
}

/// What the watch of its own pods says.
enum News {
    Pod(Value),
    Gone(Key),
}

fn tell(news: &UnboundedSender<News>, step: Step) {
    let told = match step {
        Step::Set(item) => news.send(News::Pod(item.value())),
        Step::Remove(key) => news.send(News::Gone(key)),
        Step::Retain(_) | Step::Seen(_) => return,
    };
    // Nobody listens any more when the node ends.
    drop(told);
}

/// Renews the lease for ever.
async fn beat(client: &Client, name: &str, seen: &Seen) {
    tokio::time::sleep(HEARTBEAT.mul_f64(f64::from(fastrand::u16(..)) / 65536.0)).await;
    let mut last = Instant::now();
    loop {
        let due = tokio::time::Instant::now() + HEARTBEAT;
        let renewed = json!({"spec": {"renewTime": now()}});
        if seen.call(client.patch(&LEASES, "kube-node-lease", name, "", &renewed)).await.is_some() {
            let late = last.elapsed().saturating_sub(HEARTBEAT);
            seen.latest.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            last = Instant::now();
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Says of each pod that it runs, and lets go what is to go.
async fn keep(client: Client, mut pods: UnboundedReceiver<News>, seen: Arc<Seen>) {
    let mut next_address = 1u8;
    while let Some(news) = pods.recv().await {
        let pod = match news {
            News::Gone(key) => {
                seen.pods().remove(&key);
                continue;
            }
            News::Pod(pod) => pod,
        };
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        if pod["metadata"]["deletionGracePeriodSeconds"] == 0 {
            // It was let go: its end follows.
        } else if pod["metadata"]["deletionTimestamp"].is_string() {
            let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
            seen.call(client.delete(&PODS, namespace, name, &now)).await;
        } else if pod["status"]["phase"] == "Pending" {
            next_address = next_address.wrapping_add(1).max(1);
            let running = running(name, next_address);
            if seen.call(client.patch(&PODS, namespace, name, "status", &running)).await.is_some() {
                seen.running.fetch_add(1, Ordering::Relaxed);
                seen.pods().insert(Key::new(namespace, name));
            }
        }
    }
}

/// Follows a kind for ever, and counts.
async fn hear(api: Api, path: &str, seen: Arc<Seen>) {
    loop {
        let follow = async {
            let watch = format!("{path}?watch=true&allowWatchBookmarks=true");
            let mut body = api.connect().await?.send("GET", &watch, Bytes::new()).await?.into_body();
            while let Some(frame) = body.frame().await {
                let bytes = frame?.data_ref().map_or(0, Bytes::len);
                seen.followed.fetch_add(u64::try_from(bytes)?, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        if follow.await.is_err() {
            seen.failed.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn now() -> String {
    api::time::micro(jiff::Timestamp::now())
}

fn node(name: &str) -> Value {
    let size = json!({"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {
            "capacity": size,
            "allocatable": size,
            "addresses": [{"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
        },
    })
}

fn lease(name: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()},
    })
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("app-{number:04}")},
        "spec": {"selector": {"app": format!("app-{number:04}")}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn deployment(number: usize) -> Value {
    let labels = json!({"app": format!("app-{number:04}")});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": format!("app-{number:04}")},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "main",
                    "image": "busybox",
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                }]},
            },
        },
    })
}

/// What a node says of a pod that runs. Addresses are unlike enough: nobody connects to them.
fn running(name: &str, address: u8) -> Value {
    let time = api::time::rfc3339(jiff::Timestamp::now());
    let spread = name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let ip = format!("10.{}.{}.{address}", spread >> 8 & 0xff, spread & 0xff);
    let condition = |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": time});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"status": {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": time,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "main",
            "image": "busybox",
            "imageID": "sha256:0",
            "containerID": "amphipod://0",
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": {"running": {"startedAt": time}},
        }],
    }})
}
