//! The loop's decisions, fed by hand; then against a real server, and how fast that is.

use std::time::Duration;

use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use client::{Resource, Selector};
use futures::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::controllers::views::{NODES, PODS};

/// A scheduler whose caches are written by the test.
struct World {
    scheduler: Scheduler,
    now: Instant,
}

fn pod(name: &str, cpu: &str, more: Value) -> Value {
    let mut spec = json!({"schedulerName": NAME, "containers": [{"resources": {"requests": {"cpu": cpu}}}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": name}, "spec": spec})
}

impl World {
    fn new() -> Self {
        Self { scheduler: Scheduler::new(Arc::new(Caches::new(READS.iter().copied()))), now: Instant::now() }
    }

    fn node(&mut self, name: &str, cpu: &str, heartbeat: u32) {
        let status = json!({"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "1000"},
            "conditions": [{"type": "Ready", "status": "True", "message": heartbeat.to_string()}]});
        let node = json!({"metadata": {"name": name}, "status": status});
        let node = Arc::new(serde_json::from_value(node).unwrap());
        self.scheduler.caches.of::<Node>().apply(&Key::new("", name), Some(node));
        self.scheduler.take_in(Changed::Node(name.into()), self.now);
    }

    fn pod(&mut self, pod: Value) {
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        let key = Key::of(&pod.metadata.meta);
        self.scheduler.caches.of::<Pod>().apply(&key, Some(pod));
        self.scheduler.take_in(Changed::Pod(key), self.now);
    }

    fn gone(&mut self, name: &str) {
        let key = Key::new("ns", name);
        self.scheduler.caches.of::<Pod>().apply(&key, None);
        self.scheduler.take_in(Changed::Pod(key), self.now);
    }

    /// `pod → node`, `pod ✗`, or `pod ✗ node -victim`.
    fn step(&mut self) -> Option<String> {
        self.scheduler.step(self.now).map(|step| match step {
            Step::Bind { pod, node } => format!("{} → {node}", pod.metadata.meta.name),
            Step::Refuse { pod, .. } => format!("{} ✗", pod.metadata.meta.name),
            Step::Preempt { pod, node, victims, .. } => {
                let victims: Vec<_> = victims.iter().map(|victim| &*victim.metadata.meta.name).collect();
                format!("{} ✗ {node} -{}", pod.metadata.meta.name, victims.join(" -"))
            }
        })
    }

    fn steps(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.step()).collect()
    }

    fn later(&mut self) {
        self.now += Duration::from_secs(60);
    }
}

#[tokio::test]
async fn what_was_decided_counts_before_it_is_written() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.pod(pod("a", "600m", json!({})));
    world.pod(pod("b", "600m", json!({})));
    assert_eq!(world.steps(), ["a → n", "b ✗"]);
    // News that was under way before the decision.
    world.pod(pod("a", "600m", json!({"labels": "x"})));
    assert_eq!(world.steps(), [""; 0]);
    // Then it is seen there, and does not count twice.
    world.pod(pod("a", "600m", json!({"nodeName": "n"})));
    assert_eq!(world.scheduler.snapshot.get("n").unwrap().used.cpu, 600);
    assert!(world.scheduler.assumed.is_empty());
}

#[tokio::test]
async fn a_binding_that_failed_gives_its_place_back() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.pod(pod("a", "600m", json!({})));
    let Some(Step::Bind { pod: bound, .. }) = world.scheduler.step(world.now) else { panic!() };
    world.pod(pod("b", "600m", json!({})));
    assert_eq!(world.steps(), ["b ✗"]);
    world.later();
    world.scheduler.written(Bound::Failed(bound), world.now);
    assert_eq!(world.steps(), ["b → n"], "the place is free, and the one that failed rests");
    assert_eq!(world.scheduler.pending.next_deadline(), Some(world.now + Duration::from_secs(1)));
    world.later();
    assert_eq!(world.steps(), ["a ✗"]);
}

#[tokio::test]
async fn a_pod_that_waits_is_woken_by_what_helps_it_alone() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.node("m", "1", 0);
    world.pod(pod("big", "3", json!({})));
    world.pod(pod("elsewhere", "100m", json!({"nodeSelector": {"zone": "z"}})));
    assert_eq!(world.steps(), ["big ✗", "elsewhere ✗"]);
    world.later();
    world.node("n", "1", 1);
    world.node("n", "2", 1);
    world.pod(pod("small", "100m", json!({})));
    assert_eq!(world.steps().len(), 1, "a heartbeat, a node still too small, another pod");
    world.gone("small");
    assert_eq!(world.steps(), [""; 0]);
    world.node("m", "4", 0);
    assert_eq!(world.steps(), ["big → m"]);
}

#[tokio::test]
async fn thousands_that_wait_cost_as_much_as_one() {
    let mut world = World::new();
    world.node("n", "1", 0);
    for index in 0..5000 {
        world.pod(pod(&format!("p{index:04}"), "1", json!({})));
    }
    assert_eq!(world.steps().len(), 5000, "each is told");
    assert_eq!(world.scheduler.snapshot.get("n").unwrap().count(), 1);
    assert_eq!(world.scheduler.pending.demands().count(), 1);
    world.later();
    // One place becomes free: one takes it, the next finds none, and nobody else is tried.
    world.pod(pod("p0000", "1", json!({"nodeName": "n"})));
    world.gone("p0000");
    assert_eq!(world.steps(), ["p0001 → n", "p0002 ✗"]);
    // Three places become free: each success wakes the next.
    world.later();
    world.node("n", "4", 0);
    assert_eq!(world.steps(), ["p0002 → n", "p0003 → n", "p0004 → n", "p0005 ✗"]);
}

#[tokio::test]
async fn the_first_node_changes_what_is_said_to_everybody() {
    let mut world = World::new();
    for name in ["a", "b"] {
        world.pod(pod(name, "2", json!({})));
    }
    assert_eq!(world.steps(), ["a ✗", "b ✗"]);
    world.later();
    world.node("n", "1", 0);
    let said: Vec<_> = std::iter::from_fn(|| world.scheduler.step(world.now)).collect();
    let told = |step: &Step| matches!(step, Step::Refuse { why, .. } if why.0.starts_with("0/1 nodes are available: 1 Insufficient cpu."));
    assert!(said.len() == 2 && said.iter().all(told), "{said:?}");
}

#[tokio::test]
async fn the_more_important_pod_has_others_sent_away_and_waits_for_that() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.pod(pod("low", "600m", json!({})));
    world.pod(pod("rest", "400m", json!({})));
    assert_eq!(world.steps(), ["low → n", "rest → n"]);
    world.pod(pod("low", "600m", json!({"nodeName": "n"})));
    world.pod(pod("high", "600m", json!({"priority": 5})));
    assert_eq!(world.steps(), ["high ✗ n -low"]);
    world.later();
    // Room is kept for it: neither one like those that went nor one of its own rank comes before.
    world.pod(pod("low2", "600m", json!({})));
    world.pod(pod("rival", "600m", json!({"priority": 5})));
    assert_eq!(world.steps(), ["rival ✗", "low2 ✗"]);
    world.later();
    world.gone("low");
    assert_eq!(world.steps(), ["high → n", "rival ✗"]);
    assert!(world.scheduler.ending.is_empty());
    // Once it is away its place is anybody's.
    world.later();
    world.pod(pod("high", "600m", json!({"nodeName": "n", "priority": 5})));
    world.gone("high");
    assert_eq!(world.steps(), ["rival → n", "low2 ✗"]);
}

#[tokio::test]
async fn a_promise_that_was_not_needed_helps_others() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.pod(pod("low", "1", json!({"nodeName": "n"})));
    world.pod(pod("high", "1", json!({"priority": 5})));
    world.pod(pod("next", "1", json!({})));
    assert_eq!(world.steps(), ["high ✗ n -low", "next ✗"]);
    world.later();
    world.gone("low");
    // Somebody else has found it a place.
    world.pod(pod("high", "1", json!({"priority": 5, "nodeName": "elsewhere"})));
    assert_eq!(world.steps(), ["next → n"]);
}

#[tokio::test]
async fn a_promise_ends_with_the_pod_or_the_node_or_a_write_that_failed() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.pod(pod("low", "1", json!({"nodeName": "n"})));
    world.pod(pod("high", "1", json!({"priority": 5})));
    let Some(Step::Preempt { pod: kept, victims, .. }) = world.scheduler.step(world.now) else { panic!() };
    world.scheduler.written(Bound::Kept { pod: kept, victims }, world.now);
    assert!(world.scheduler.ending.is_empty() && world.scheduler.snapshot.nomination(&Uid::new("high")).is_none());
    world.later();
    assert_eq!(world.steps(), ["high ✗ n -low"], "it is tried again");
    world.pod(pod("other", "1", json!({})));
    assert_eq!(world.steps(), ["other ✗"]);
    world.gone("high");
    world.later();
    world.gone("low");
    assert_eq!(world.steps(), ["other → n"]);
    // A scheduler that was started anew keeps what its status says.
    let mut world = World::new();
    world.node("n", "1", 0);
    let mut promised = pod("high", "1", json!({"priority": 5}));
    promised["status"] = json!({"nominatedNodeName": "n"});
    world.pod(promised);
    assert_eq!(world.scheduler.snapshot.nomination(&Uid::new("high")), Some("n"));
    world.scheduler.caches.of::<Node>().apply(&Key::new("", "n"), None);
    world.scheduler.take_in(Changed::Node("n".into()), world.now);
    assert_eq!(world.scheduler.snapshot.nomination(&Uid::new("high")), None);
}

#[tokio::test]
async fn a_pod_that_waits_for_company_is_woken_by_it_alone() {
    let mut world = World::new();
    for name in ["n", "m"] {
        let labels = json!({"host": name});
        let status = json!({"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "1000"}});
        let node = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": status})).unwrap(),
        );
        world.scheduler.caches.of::<Node>().apply(&Key::new("", name), Some(node));
        world.scheduler.take_in(Changed::Node(name.into()), world.now);
    }
    let labelled = |name: &str, app: &str, more: Value| {
        let mut pod = pod(name, "1", more);
        pod["metadata"]["labels"] = json!({"app": app});
        pod
    };
    let term = |app: &str| json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "host"}]);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("web")}}});
    let apart =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("shy")}}});
    world.pod(labelled("fond", "fond", near));
    for name in ["shy1", "shy2", "shy3"] {
        world.pod(labelled(name, "shy", apart.clone()));
    }
    assert_eq!(world.steps(), ["fond ✗", "shy1 → n", "shy2 → m", "shy3 ✗"]);
    world.later();
    world.pod(labelled("other", "other", json!({})));
    assert_eq!(world.steps().len(), 1, "that is nobody's company");
    world.pod(labelled("web", "web", json!({"nodeName": "m"})));
    assert_eq!(world.steps(), ["fond → m"]);
    world.gone("shy2");
    assert_eq!(world.steps(), ["shy3 → m"]);
}

#[tokio::test]
async fn others_bind_and_delete_too() {
    let mut world = World::new();
    world.node("n", "1", 0);
    world.node("m", "1", 0);
    world.pod(pod("a", "1", json!({})));
    assert_eq!(world.steps(), ["a → n"]);
    // Somebody else was quicker.
    world.pod(pod("a", "1", json!({"nodeName": "m"})));
    assert_eq!(world.scheduler.snapshot.home(&Uid::new("a")), Some("m"));
    world.pod(pod("b", "1", json!({})));
    assert_eq!(world.steps(), ["b → n"]);
    world.gone("b");
    world.pod(pod("c", "1", json!({})));
    assert_eq!(world.steps(), ["c → n"], "b was deleted before it was bound");
    // A namesake that has its place already.
    let mut namesake = pod("c", "1", json!({"nodeName": "m"}));
    namesake["metadata"]["uid"] = json!("other");
    world.pod(namesake);
    assert_eq!(
        (world.scheduler.snapshot.home(&Uid::new("c")), world.scheduler.snapshot.home(&Uid::new("other"))),
        (None, Some("m"))
    );
    let foreign = json!({"schedulerName": "own"});
    world.pod(pod("d", "1", foreign));
    world.pod(pod("e", "1", json!({"schedulingGates": [{"name": "g"}]})));
    assert_eq!(world.steps(), [""; 0]);
}

/// A server with nodes, and a scheduler on its own caches.
struct Cluster {
    client: Client,
    _folder: tempfile::TempDir,
    tasks: JoinSet<()>,
}

impl Cluster {
    async fn new(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let client = server.client(User::new("tester", &[MASTERS]), "tester");
        let account = json!({"metadata": {"name": "default"}});
        client.create(&Resource::core("serviceaccounts"), "default", account).await.unwrap();
        let cluster = Self { client, _folder: folder, tasks: JoinSet::new() };
        let names = (0..nodes).map(|index| format!("n{index:04}"));
        futures::stream::iter(names).for_each_concurrent(64, |name| cluster.make_node(name, "16")).await;
        cluster
    }

    /// A ready node: new ones are tainted until somebody says so.
    async fn make_node(&self, name: String, cpu: &str) {
        let amounts = json!({"cpu": cpu, "memory": "64Gi", "pods": "110"});
        self.client.create(&NODES, "", json!({"metadata": {"name": name}})).await.unwrap();
        let status = json!({"status": {"capacity": amounts, "allocatable": amounts}});
        self.client.patch(&NODES, "", &name, "status", &status).await.unwrap();
        self.client.patch(&NODES, "", &name, "", &json!({"spec": {"taints": null}})).await.unwrap();
    }

    async fn make_pod(&self, name: String, cpu: &str) {
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "10Mi"}}});
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
        self.client.create(&PODS, "default", pod).await.unwrap();
    }

    /// Waits for events.
    async fn tells(&self, patience: Duration, holds: impl Fn(&[Value]) -> bool) {
        let told = async {
            loop {
                let all = self.client.list(&Resource::core("events"), "default", &Selector::default()).await.unwrap();
                if holds(&all.items.iter().map(|event| event.value()).collect::<Vec<_>>()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, told).await.unwrap();
    }

    /// Starts the scheduler; gives its caches.
    async fn schedule(&mut self) -> Arc<Caches> {
        let caches = Arc::new(Caches::new(READS.iter().copied()));
        caches.start(&self.client, &mut self.tasks);
        self.tasks.spawn(run(self.client.clone(), caches.clone()));
        caches.synced().await;
        caches
    }
}

async fn until(caches: &Caches, patience: Duration, holds: impl Fn(&[Arc<Pod>]) -> bool) {
    let pods = caches.of::<Pod>();
    let mut seen = pods.subscribe();
    let wait = async {
        while !holds(&pods.all()) {
            seen.changed().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(patience, wait).await.is_err() {
        let state =
            |pod: &Arc<Pod>| format!("{} on {:?}: {:?}", pod.metadata.meta.name, pod.spec.node_name, pod.status);
        panic!("never: {:#?}", pods.all().iter().map(state).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_get_their_nodes_and_the_others_are_told_why_not() {
    let mut cluster = Cluster::new(3).await;
    let caches = cluster.schedule().await;
    for index in 0..30 {
        cluster.make_pod(format!("p{index}"), "1").await;
    }
    cluster.make_pod("big".into(), "17").await;
    let patience = Duration::from_secs(30);
    let bound = |pods: &[Arc<Pod>]| pods.iter().filter(|pod| !pod.spec.node_name.is_empty()).count();
    until(&caches, patience, |pods| {
        bound(pods) == 30
            && pods.iter().any(|pod| pod.metadata.meta.name == "big" && pod.condition("PodScheduled").is_some())
    })
    .await;
    let on = |node: &str| caches.of::<Pod>().indexed(&format!("node/{node}")).len();
    assert_eq!([on("n0000"), on("n0001"), on("n0002")], [10, 10, 10]);
    let big = caches.of::<Pod>().get("default", "big").unwrap();
    let condition = big.condition("PodScheduled").unwrap();
    assert_eq!((&*condition.status, &*condition.reason), ("False", "Unschedulable"));
    let why = "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.";
    assert_eq!(condition.message, why);
    let is = |event: &Value, reason: &str, message: &str| event["reason"] == reason && event["message"] == message;
    cluster
        .tells(patience, |events| {
            let assigned = events.iter().filter(|event| event["reason"] == "Scheduled").count();
            assigned == 30 && events.iter().any(|event| is(event, "FailedScheduling", why))
        })
        .await;
    // A node that is large enough comes: the pod is bound without anything else happening.
    cluster.make_node("large".into(), "32").await;
    until(&caches, patience, |pods| bound(pods) == 31).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_for_a_more_important_pod_is_told_why() {
    let mut cluster = Cluster::new(1).await;
    let caches = cluster.schedule().await;
    let class = json!({"metadata": {"name": "important"}, "value": 1000});
    cluster.client.create(&Resource::new("scheduling.k8s.io", "priorityclasses"), "", class).await.unwrap();
    cluster.make_pod("low".into(), "10").await;
    let patience = Duration::from_secs(30);
    until(&caches, patience, |pods| pods.iter().any(|pod| !pod.spec.node_name.is_empty())).await;
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "10"}}});
    let high =
        json!({"metadata": {"name": "high"}, "spec": {"priorityClassName": "important", "containers": [container]}});
    let high = cluster.client.create(&PODS, "default", high).await.unwrap();
    until(&caches, patience, |pods| pods.iter().any(|pod| pod.status.nominated_node_name == "n0000")).await;
    let low = caches.of::<Pod>().get("default", "low").unwrap();
    assert!(low.is_deleting(), "with its grace: nobody runs it, so nobody ends it");
    let told = low.condition("DisruptionTarget").unwrap();
    let why = "default-scheduler: preempting to accommodate a higher priority pod";
    assert_eq!((&*told.status, &*told.reason, &*told.message), ("True", "PreemptionByScheduler", why));
    let refused = caches.of::<Pod>().get("default", "high").unwrap().condition("PodScheduled").unwrap().message.clone();
    assert_eq!(refused, "0/1 nodes are available: 1 Insufficient cpu.");
    let options = client::DeleteOptions { grace_seconds: Some(0), ..client::DeleteOptions::default() };
    cluster.client.delete(&PODS, "default", "low", &options).await.unwrap();
    until(&caches, patience, |pods| pods.iter().any(|pod| pod.spec.node_name == "n0000")).await;
    let message = format!("Preempted by pod {} on node n0000", high["metadata"]["uid"].as_str().unwrap());
    let is = |event: &Value| event["reason"] == "Preempted" && event["message"] == *message;
    cluster.tells(patience, |events| events.iter().any(is)).await;
}

/// CPU time of this process so far, to a hundredth of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// Prints how many pods a second get their node in a cluster of 5,000, writes and events included; and how many by a second
/// of CPU time, which says more on a machine that is busy with something else:
/// `cargo test --release -p amphipod -- --ignored --nocapture pods_a_second`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn pods_a_second() {
    const PODS: usize = 20_000;
    let mut cluster = Cluster::new(5000).await;
    let names = (0..PODS).map(|index| format!("p{index:05}"));
    futures::stream::iter(names).for_each_concurrent(64, |name| cluster.make_pod(name, "100m")).await;
    let started = Instant::now();
    let caches = cluster.schedule().await;
    let (synced, before) = (started.elapsed(), cpu());
    until(&caches, Duration::from_secs(600), |pods| pods.iter().all(|pod| !pod.spec.node_name.is_empty())).await;
    let took = started.elapsed();
    let rate = PODS as f64 / (took - synced).as_secs_f64();
    let by_cpu = PODS as f64 / (cpu() - before).as_secs_f64();
    println!(
        "{PODS} pods on 5000 nodes: first look {synced:?}, then bound in {:?}: {rate:.0} pods/s, {by_cpu:.0} by a second of CPU",
        took - synced
    );
}

/// Prints how many decisions a second are made where nothing is written: `… decisions_a_second`, as above.
#[tokio::test]
#[ignore = "a measurement"]
async fn decisions_a_second() {
    const PODS: usize = 50_000;
    let mut world = World::new();
    for index in 0..5000 {
        world.node(&format!("n{index:04}"), "16", 0);
    }
    for index in 0..PODS {
        world.pod(pod(&format!("p{index:05}"), "100m", json!({})));
    }
    let started = std::time::Instant::now();
    let bound = world.steps().iter().filter(|step| step.contains('→')).count();
    let took = started.elapsed();
    assert_eq!(bound, PODS);
    println!("{PODS} decisions over 5000 nodes in {took:?}: {:.0}/s", PODS as f64 / took.as_secs_f64());
}
