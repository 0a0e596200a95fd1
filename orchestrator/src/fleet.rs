//! Clusters of many nodes without machines: the control plane as it runs, and what each node asks of it, over HTTPS with a
//! certificate of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::status::Status;
use api::uid::Uid;
use apiserver::StoreError;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::pki::Authority;
use apiserver::server::{Config, Server, ServerError};
use async_trait::async_trait;
use client::https::{Config as HttpsConfig, Https, Identity};
use client::views::{LEASES, NODES, PEERS, PODS};
use client::{
    Caches, Change, Client, DeleteOptions, Deleted, Event, EventStream, List, Revision, Selector, ServedKind, Target,
    Transport,
};
use node::outlook::Outlook;
use node::pods::{Follower, Runner};
use node::registration;
use node::services::Settled;
use node::status::{Readiness, Rhythm};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::controllers::given::Facts;
use crate::controllers::{Selection, table};
use crate::pod_ranges::PodRanges;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Server and controllers of one process, over a folder that outlives them.
pub struct ControlPlane {
    pub admin: Client,
    server: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    pub authority: Arc<Authority>,
    pub address: std::net::SocketAddr,
    tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl ControlPlane {
    pub async fn start(folder: &Path, ranges: PodRanges) -> Self {
        let config = Config::on_loopback(folder.join("store.redb"));
        let opened = async {
            loop {
                match Server::open(&config, Arc::new(NoNodes)).await {
                    Ok(server) => return server,
                    // The one before lets go of the file a moment after it is dropped.
                    Err(ServerError::Store(StoreError::InUse { .. })) => {
                        tokio::time::sleep(Duration::from_millis(20)).await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let server = soon("the store", opened).await;
        let facts = Facts {
            authority: server.authority().clone(),
            address: server.address(),
            services: config.services.clone(),
            pods: vec![ranges],
            servers: crate::servers::alone(server.address()),
        };
        let mut tasks = JoinSet::new();
        let ready = table::ready(&server, &facts, &Selection::parse(&["*".to_owned()]).unwrap());
        let caches = Arc::new(Caches::new(table::reads(&ready)));
        caches.start(&server.client(User::new("tester", &[MASTERS]), "tester"), &mut tasks);
        table::start(&ready, &caches, &mut tasks);
        let (authority, address) = (server.authority().clone(), server.address());
        let stop = CancellationToken::new();
        let server = Arc::new(server);
        let admin = server.client(User::new("tester", &[MASTERS]), "tester");
        // In process: made while the server is still here to make them.
        let local: BTreeMap<String, Client> =
            (0..60).map(|n| (name(n), server.client(User::node(&name(n)), "kubelet"))).collect();
        let guard = stop.clone().drop_guard();
        let server = Arc::into_inner(server).expect("nobody else holds it");
        tasks.spawn(async move { server.serve(stop).await.unwrap() });
        Self { admin, server: Arc::new(move |name| local[name].clone()), authority, address, tasks, _stop: guard }
    }

    fn remote(&self, name: &str) -> Https {
        let identity = self.authority.client(&format!("system:node:{name}"), &["system:nodes"]).unwrap();
        Https::new(HttpsConfig {
            server: format!("localhost:{}", self.address.port()),
            ca: self.authority.ca_certificate.clone(),
            identity: Identity::Certificate { chain: identity.certificate, key: identity.key },
            manager: "kubelet".into(),
        })
        .unwrap()
    }

    async fn ranges(&self) -> BTreeMap<String, String> {
        let nodes = self.admin.list(&NODES, "", &Selector::default()).await.unwrap();
        let range =
            |node: Value| Some((node["metadata"]["name"].as_str()?.into(), node["spec"]["podCIDR"].as_str()?.into()));
        nodes.items.iter().filter_map(|node| range(node.value())).collect()
    }

    async fn ranges_of(&self, count: usize) -> BTreeMap<String, String> {
        let all = async {
            loop {
                let ranges = self.ranges().await;
                if ranges.len() == count {
                    return ranges;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the ranges", all).await
    }
}

fn name(number: usize) -> String {
    format!("node-{number}")
}

fn facts(number: usize) -> Value {
    let address = format!("192.0.2.{number}");
    json!({"capacity": {"cpu": "4", "pods": "110"}, "allocatable": {"cpu": "4", "pods": "110"},
        "addresses": [{"type": "InternalIP", "address": address}]})
}

fn distinct(ranges: &BTreeMap<String, String>) -> bool {
    ranges.values().collect::<BTreeSet<_>>().len() == ranges.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_nodes_at_once_get_ranges_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path(), PodRanges::usual()).await;
    let mut registered = JoinSet::new();
    for number in 0..50 {
        let client = (plane.server)(&name(number));
        registered.spawn(async move {
            let mut tasks = JoinSet::new();
            let (mut outlook, _changed) = Outlook::open(&client, &name(number), &mut tasks);
            registration::register(&name(number), None, &client, &facts(number)).await.unwrap();
            registration::ranges(&name(number), &mut outlook.own).await.unwrap()[0].to_string()
        });
    }
    let told: BTreeSet<String> = soon("all registered", registered.join_all()).await.into_iter().collect();
    assert_eq!(told.len(), 50, "two nodes were told one range");
    let ranges = plane.ranges_of(50).await;
    assert_eq!(ranges.into_values().collect::<BTreeSet<_>>(), told);
}

/// A choice that another controller made too: without a leader, or by one who does not know yet that he leads no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_given_once_whoever_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path(), PodRanges::usual()).await;
    let make = async |name: &str, range: Option<&str>| {
        let spec = range.map_or_else(|| json!({}), |range| json!({"podCIDR": range, "podCIDRs": [range]}));
        plane.admin.create(&NODES, "", json!({"metadata": {"name": name}, "spec": spec})).await
    };
    make("a", Some("10.244.9.0/24")).await.unwrap();
    for range in ["10.244.9.0/24", "10.244.8.0/22", "10.244.9.128/25"] {
        let refused = make("b", Some(range)).await.unwrap_err();
        assert_eq!(refused.code, 409, "{refused}");
        assert!(refused.message.contains("overlaps 10.244.9.0/24, which node \"a\" has"), "{refused}");
    }
    plane.admin.delete(&NODES, "", "a", &DeleteOptions::default()).await.unwrap();
    make("b", Some("10.244.9.0/24")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_range_is_lost_with_who_gave_it() {
    let folder = tempfile::tempdir().unwrap();
    // 32 parts for 32 nodes: one that were lost would be missed.
    let few = PodRanges::new("10.244.0.0/19".parse().unwrap(), None).unwrap();
    let mut plane = ControlPlane::start(folder.path(), few).await;
    for round in 0..4 {
        let mut made = JoinSet::new();
        for number in round * 8..(round + 1) * 8 {
            let client = (plane.server)(&name(number));
            made.spawn(async move { registration::register(&name(number), None, &client, &facts(number)).await });
        }
        // Some have their range by now, some are being given one, some are not there yet.
        tokio::time::sleep(Duration::from_millis(5)).await;
        plane.tasks.shutdown().await;
        made.shutdown().await;
        drop(plane);
        plane = ControlPlane::start(folder.path(), few).await;
        for number in round * 8..(round + 1) * 8 {
            registration::register(&name(number), None, &(plane.server)(&name(number)), &facts(number)).await.unwrap();
        }
    }
    let full = plane.ranges_of(32).await;
    assert!(distinct(&full), "{full:?}");
    // Nothing is left for another, until one goes.
    registration::register(&name(40), None, &(plane.server)(&name(40)), &facts(40)).await.unwrap();
    let freed = full[&name(7)].clone();
    plane.admin.delete(&NODES, "", &name(7), &DeleteOptions::default()).await.unwrap();
    let after = async {
        while plane.ranges().await.get(&name(40)) != Some(&freed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the freed range", after).await;
}

/// Counts what its watches bring after their first state.
struct Counting {
    inner: Https,
    heard: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
}

struct Counted {
    inner: Box<dyn EventStream>,
    resource: String,
    complete: bool,
    heard: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl EventStream for Counted {
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        let events = self.inner.next().await?;
        for event in &events {
            match event {
                Event::Synced(_) => self.complete = true,
                Event::Applied(item) | Event::Deleted(item) if self.complete => {
                    self.heard.lock().unwrap().push(format!("{} {}", self.resource, item.key));
                }
                _ => {}
            }
        }
        Ok(events)
    }
}

#[async_trait]
impl Transport for Counting {
    async fn get(&self, target: Target<'_>) -> Result<Value, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.get(target).await
    }

    async fn list(&self, target: Target<'_>, selector: &Selector) -> Result<List, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.list(target, selector).await
    }

    async fn watch(
        &self,
        target: Target<'_>,
        selector: &Selector,
        after: Option<Revision>,
    ) -> Result<Box<dyn EventStream>, Status> {
        let resource = target.resource.plural.to_string();
        let inner = self.inner.watch(target, selector, after).await?;
        Ok(Box::new(Counted { inner, resource, complete: false, heard: self.heard.clone() }))
    }

    async fn create(&self, target: Target<'_>, object: Value) -> Result<Value, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.create(target, object).await
    }

    async fn update(&self, target: Target<'_>, change: &Change<'_>) -> Result<Value, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.update(target, change).await
    }

    async fn patch(&self, target: Target<'_>, patch: &Value) -> Result<Value, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.patch(target, patch).await
    }

    async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        self.inner.delete(target, options).await
    }

    async fn kinds(&self) -> Result<Vec<ServedKind>, Status> {
        self.inner.kinds().await
    }
}

/// Runs no pods, and knows which it should.
#[derive(Default)]
struct NoPods(Mutex<BTreeSet<String>>);

impl Runner for NoPods {
    fn sync(&self, pod: Arc<Value>) {
        self.0.lock().unwrap().insert(pod["metadata"]["name"].as_str().unwrap().to_owned());
    }

    fn gone(&self, _: &Uid) {}

    fn resync(&self, pods: Vec<Arc<Value>>) {
        pods.into_iter().for_each(|pod| self.sync(pod));
    }

    fn content_changed(&self, _: &Uid) {}
}

struct Agent {
    runner: Arc<NoPods>,
    heard: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
    outlook: Outlook,
}

const BEAT: Duration = Duration::from_millis(500);
/// A kubelet's, twenty times as fast.
const RHYTHM: Rhythm = Rhythm { look: BEAT, spacing: BEAT, repeat: Duration::from_secs(3600) };

impl Agent {
    /// All that a node asks of the API, on a machine that is nothing.
    async fn start(plane: &ControlPlane, number: usize) -> (Self, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let (heard, requests): (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) = Default::default();
        let client = Client::new(Counting {
            inner: plane.remote(&name(number)),
            heard: heard.clone(),
            requests: requests.clone(),
        });
        let (mut outlook, changed) = Outlook::open(&client, &name(number), &mut tasks);
        registration::register(&name(number), None, &client, &facts(number)).await.unwrap();
        registration::ranges(&name(number), &mut outlook.own).await.unwrap();
        let (runner, own) = (Arc::new(NoPods::default()), outlook.own.clone());
        tasks.spawn(node::pods::follow(Follower {
            client: client.clone(),
            node: name(number),
            runner: runner.clone(),
            outlook: outlook.clone(),
            changed,
            settled: Settled::nothing(),
        }));
        node::heartbeat::renew_once(&name(number), &own, &client).await.unwrap();
        registration::report(&name(number), &client, &facts(number), Readiness::Ready).await.unwrap();
        tasks.spawn(node::heartbeat::renew(name(number), client.clone(), own.clone(), BEAT));
        tasks.spawn(node::heartbeat::keep(name(number), client, own, RHYTHM, facts(number), move || Ok(facts(number))));
        (Self { runner, heard, requests, outlook }, tasks)
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

async fn leases(admin: &Client) -> BTreeMap<String, Value> {
    let all = admin.list(&LEASES, "kube-node-lease", &Selector::default()).await.unwrap();
    all.items.iter().map(|lease| (lease.key.name.clone(), lease.value()["spec"]["renewTime"].clone())).collect()
}

/// Waits until the agents hear nothing for a while.
async fn quiet(agents: &[Agent]) {
    let still = async {
        loop {
            // On a busy machine what follows from a start comes late.
            tokio::time::sleep(BEAT * 4).await;
            if agents.iter().map(|agent| agent.heard().len()).sum::<usize>() == 0 {
                return;
            }
        }
    };
    soon("quiet", still).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_of_a_hundred_nodes_is_silent() {
    const NODES_MADE: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(folder.path(), PodRanges::usual()).await;
    let (mut agents, mut tasks) = (Vec::new(), Vec::new());
    // As many at once as a machine bears.
    for ten in (0..NODES_MADE).collect::<Vec<_>>().chunks(10) {
        let started = futures::future::join_all(ten.iter().map(|number| Agent::start(&plane, *number))).await;
        for (agent, own) in started {
            agents.push(agent);
            tasks.push(own);
        }
    }
    let known = async {
        while agents.iter().any(|agent| agent.outlook.views.of::<api::view::Peer>().all().len() < NODES_MADE) {
            tokio::time::sleep(BEAT).await;
        }
    };
    soon("all peers", known).await;
    quiet(&agents).await;

    // Six heartbeats of each node: a minute of a kubelet's life.
    let (before, since) =
        (leases(&plane.admin).await, agents.iter().map(|agent| agent.requests.load(Ordering::Relaxed)));
    let since: Vec<usize> = since.collect();
    let began = std::time::Instant::now();
    let renewed = async {
        loop {
            tokio::time::sleep(BEAT * 6 + BEAT / 2).await;
            let after = leases(&plane.admin).await;
            if after.len() == NODES_MADE && after.iter().all(|(name, time)| before[name] != *time) {
                return;
            }
        }
    };
    soon("all leases renewed", renewed).await;
    let most = usize::try_from(began.elapsed().as_millis() / BEAT.as_millis()).unwrap() + 1;
    for (number, agent) in agents.iter().enumerate() {
        assert_eq!(agent.heard(), Vec::<String>::new(), "{} heard something", name(number));
        let asked = agent.requests.load(Ordering::Relaxed) - since[number];
        assert!(asked <= most, "{} asked {asked} times in {most} heartbeats", name(number));
    }

    // What concerns one node is heard by that one.
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": name(7), "containers": [{"name": "c", "image": "i"}]}});
    plane.admin.create(&PODS, "default", pod).await.unwrap();
    let arrived = async {
        while agents[7].runner.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the pod", arrived).await;
    let zone = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z"}}});
    plane.admin.patch(&NODES, "", &name(8), "", &zone).await.unwrap();
    // Two have something of their own to hear, too.
    let has_heard = |(number, agent): (usize, &Agent)| {
        let heard: BTreeSet<String> = agent.heard.lock().unwrap().iter().cloned().collect();
        heard.len() > usize::from(matches!(number, 7 | 8))
    };
    let told = async {
        while !agents.iter().enumerate().all(has_heard) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("a peer in another zone", told).await;
    tokio::time::sleep(BEAT).await;
    for (number, agent) in agents.iter().enumerate() {
        let mut heard = agent.heard();
        heard.sort();
        heard.dedup();
        let peer = format!("peers {}", name(8));
        let want = match number {
            7 => vec![peer, "pods default/p".to_owned()],
            8 => vec![format!("nodes {}", name(8)), peer],
            _ => vec![peer],
        };
        assert_eq!(heard, want, "{}", name(number));
    }
    // And somebody who says of it what is not so is contradicted.
    let silent = |current: &Value| {
        let mut next = current.clone();
        next["status"]["conditions"][3]["status"] = json!("Unknown");
        Ok(next)
    };
    plane.admin.update(&NODES, "", &name(9), "status", silent).await.unwrap();
    let back = async {
        loop {
            let node = plane.admin.get(&NODES, "", &name(9)).await.unwrap();
            if node["status"]["conditions"][3]["status"] == "True" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("ready again", back).await;
    let peers = plane.admin.list(&PEERS, "", &Selector::default()).await.unwrap();
    assert_eq!(peers.items.len(), NODES_MADE);
    let peer = peers.items.iter().find(|peer| peer.key.name == name(8)).unwrap().value();
    assert_eq!(peer["spec"]["zone"], "z");
}
