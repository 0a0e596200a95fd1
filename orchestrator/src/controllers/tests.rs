//! The controllers against a real server: what their pure parts cannot show.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use apiserver::identity::{AUTHENTICATED, MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use client::{Caches, Client, DeleteOptions, Propagation, Resource, Selector};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::given::Facts;
use super::views::{
    CONFIG_MAPS, DEPLOYMENTS, LEASES, NAMESPACES, PODS, REPLICA_SETS, SERVICE_ACCOUNTS, SIGNING_REQUESTS,
};
use super::*;
use crate::pod_ranges::PodRanges;

mod workloads;

const PATIENCE: Duration = Duration::from_secs(60);
const CHOSEN: [&str; 2] = ["*", "-scheduler"];

/// A control plane without a scheduler or nodes.
struct World {
    client: Client,
    /// Of a machine that wants to join.
    joining: Client,
    /// Of a node's agent.
    node: Client,
    _folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        Self::of(&CHOSEN).await
    }

    /// With these controllers.
    async fn of(chosen: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let chosen: Vec<String> = chosen.iter().map(|name| (*name).to_owned()).collect();
        let chosen = Selection::parse(&chosen).unwrap();
        let mut tasks = JoinSet::new();
        let facts = Facts {
            authority: server.authority().clone(),
            address: server.address(),
            services: config.services.clone(),
            pods: vec![PodRanges::usual()],
            servers: crate::servers::alone(server.address()),
        };
        let ready = table::ready(&server, &facts, &chosen);
        let caches = Arc::new(Caches::new(table::reads(&ready)));
        caches.start(&server.client(User::new("tester", &[MASTERS]), "tester"), &mut tasks);
        table::start(&ready, &caches, &mut tasks);
        let client = server.client(User::new("tester", &[MASTERS]), "tester");
        let joining = server.client(
            User::new("system:bootstrap:abcdef", &["system:bootstrappers:amphipod:nodes", AUTHENTICATED]),
            "tester",
        );
        let node = server.client(User::node("n"), "tester");
        let serving = server.serve(CancellationToken::new());
        tasks.spawn(async { serving.await.expect("the store does not fail") });
        let world = Self { client, joining, node, _folder: folder, _tasks: tasks };
        world.until("the account of pods", || world.account("default")).await;
        world
    }

    /// Waits until something is there.
    async fn until<T, F: Future<Output = Result<T, Status>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        let found = async {
            loop {
                match look().await {
                    Ok(found) => return found,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never seen: {what}"))
    }

    async fn account(&self, namespace: &str) -> Result<Value, Status> {
        self.client.get(&SERVICE_ACCOUNTS, namespace, "default").await
    }

    /// Waits until an object is as wanted.
    async fn becomes(&self, resource: Resource, place: (&str, &str), wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || async {
            let found = self.client.get(&resource, place.0, place.1).await?;
            if wanted(&found) { Ok(found) } else { Err(Status::internal("not yet")) }
        };
        self.until(place.1, look).await
    }

    async fn gone(&self, resource: Resource, place: (&str, &str)) {
        let look = || async {
            match self.client.get(&resource, place.0, place.1).await {
                Err(status) if status.code == 404 => Ok(()),
                _ => Err(Status::internal("still there")),
            }
        };
        self.until(&format!("the end of {}", place.1), look).await;
    }

    async fn make(&self, resource: Resource, namespace: &str, object: Value) -> Value {
        self.client.create(&resource, namespace, object).await.unwrap()
    }

    async fn replica_set(&self, name: &str, replicas: i64) {
        let labels = json!({"app": name});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template});
        self.make(REPLICA_SETS, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
        self.sized(name, replicas).await;
    }

    async fn scale(&self, name: &str, replicas: i64) {
        let change = |current: &Value| {
            let mut next = current.clone();
            next["spec"]["replicas"] = json!(replicas);
            Ok(next)
        };
        self.client.update(&REPLICA_SETS, "default", name, "", change).await.unwrap();
    }

    async fn sized(&self, name: &str, replicas: i64) {
        self.becomes(REPLICA_SETS, ("default", name), |set| {
            set["status"]["replicas"] == replicas
                && set["status"]["observedGeneration"] == set["metadata"]["generation"]
        })
        .await;
    }
}

fn owned_by(owner: &Value) -> Value {
    json!([{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}])
}

/// Pods of a ReplicationController: made, adopted, given up, counted, and left alone when it goes without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_pods() {
    const CONTROLLERS: Resource = super::replication_controller::REPLICATION_CONTROLLERS;
    let world = World::new().await;
    let pods =
        |labels: Value| json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let mut orphan = pods(json!({"app": "rc"}));
    orphan["metadata"]["name"] = json!("orphan");
    world.make(PODS, "default", orphan).await;
    let spec = json!({"replicas": 2, "template": pods(json!({"app": "rc"}))});
    let made = world.make(CONTROLLERS, "default", json!({"metadata": {"name": "rc"}, "spec": spec})).await;
    assert_eq!(made["spec"]["selector"], json!({"app": "rc"}), "of its template's labels");
    let counted = |count: i64| {
        move |found: &Value| {
            found["status"]["replicas"] == count
                && found["status"]["observedGeneration"] == found["metadata"]["generation"]
        }
    };
    world.becomes(CONTROLLERS, ("default", "rc"), counted(2)).await;
    let owned = world.becomes(PODS, ("default", "orphan"), |pod| pod["metadata"]["ownerReferences"].is_array()).await;
    let owner = &owned["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["apiVersion"]), (&json!("ReplicationController"), &json!("v1")));
    let selected = Selector { labels: "app=rc".into(), ..Selector::default() };
    assert_eq!(world.client.list(&PODS, "default", &selected).await.unwrap().items.len(), 2);
    let events = Resource::core("events");
    let created = || async {
        let all = world.client.list(&events, "default", &Selector::default()).await?;
        let texts = all.items.iter().map(|item| String::from_utf8_lossy(&item.json).into_owned());
        let said = |text: &String| {
            text.contains("SuccessfulCreate") && text.contains("\"component\":\"replication-controller\"")
        };
        texts.into_iter().find(said).ok_or_else(|| Status::internal("not yet"))
    };
    world.until("its event", created).await;
    let scaled = |current: &Value| {
        let mut next = current.clone();
        next["spec"]["replicas"] = json!(3);
        Ok(next)
    };
    world.client.update(&CONTROLLERS, "default", "rc", "", scaled).await.unwrap();
    world.becomes(CONTROLLERS, ("default", "rc"), counted(3)).await;
    let relabelled = |current: &Value| {
        let mut next = current.clone();
        next["metadata"]["labels"]["app"] = json!("else");
        Ok(next)
    };
    world.client.update(&PODS, "default", "orphan", "", relabelled).await.unwrap();
    world.becomes(PODS, ("default", "orphan"), |pod| pod["metadata"]["ownerReferences"].is_null()).await;
    // Its count may still be the one from before: what took the orphan's place is there when it is listed.
    let replaced = || async {
        let count = world.client.list(&PODS, "default", &selected).await?.items.len();
        if count == 3 { Ok(()) } else { Err(Status::internal("not yet")) }
    };
    world.until("a third pod", replaced).await;
    world.becomes(CONTROLLERS, ("default", "rc"), counted(3)).await;
    // Nobody says what becomes of its pods: they stay, as ever with this kind.
    world.client.delete(&CONTROLLERS, "default", "rc", &DeleteOptions::default()).await.unwrap();
    world.gone(CONTROLLERS, ("default", "rc")).await;
    let left = world.client.list(&PODS, "default", &selected).await.unwrap().items;
    let free = left.iter().filter(|item| !String::from_utf8_lossy(&item.json).contains("ownerReferences"));
    assert_eq!((left.len(), free.count()), (3, 3));
}

/// Kinds that are defined while controllers run: collected with their owners, emptied with their namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_defined_kinds_go_like_others() {
    let world = World::new().await;
    let things = things("v1");
    world.define(&[("v1", true, true)]).await;
    let owner = world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": "owner"}})).await;
    let thing = |name: &str, owner: &Value| json!({"apiVersion": "things.example/v1", "kind": "Thing", "metadata": {"name": name, "ownerReferences": owned_by(owner)}});
    let owned = world.make(things.clone(), "default", thing("owned", &owner)).await;
    let below = json!({"metadata": {"name": "below", "ownerReferences": owned_by(&owned)}});
    world.make(CONFIG_MAPS, "default", below).await;
    world.client.delete(&CONFIG_MAPS, "default", "owner", &DeleteOptions::default()).await.unwrap();
    world.gone(things.clone(), ("default", "owned")).await;
    world.gone(CONFIG_MAPS, ("default", "below")).await;
    world.make(NAMESPACES, "", json!({"metadata": {"name": "short"}})).await;
    let free = json!({"apiVersion": "things.example/v1", "kind": "Thing", "metadata": {"name": "free"}});
    world.make(things.clone(), "short", free).await;
    world.client.delete(&NAMESPACES, "", "short", &DeleteOptions::default()).await.unwrap();
    world.gone(NAMESPACES, ("", "short")).await;
    assert_eq!(world.client.get(&things, "short", "free").await.unwrap_err().code, 404);
    world.client.delete(&DEFINITIONS, "", "things.things.example", &DeleteOptions::default()).await.unwrap();
    world.gone(DEFINITIONS, ("", "things.things.example")).await;
}

const DEFINITIONS: Resource = Resource::new("apiextensions.k8s.io", "customresourcedefinitions");

fn things(version: &str) -> Resource {
    Resource::named("things.example", version, "things")
}

impl World {
    /// Defines things in these versions: (name, served, stored); waits until they are seen so.
    async fn define(&self, versions: &[(&str, bool, bool)]) {
        let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
        let schema = json!({"openAPIV3Schema": {"type": "object"}});
        let version = |(name, served, storage): &(&str, bool, bool)| json!({"name": name, "served": served, "storage": storage, "schema": schema});
        let wanted: Vec<Value> = versions.iter().map(version).collect();
        let spec = json!({"group": "things.example", "scope": "Namespaced", "names": names, "versions": wanted});
        let name = "things.things.example";
        if self.client.get(&DEFINITIONS, "", name).await.is_ok() {
            let patch = json!({"spec": {"versions": wanted}});
            self.client.patch(&DEFINITIONS, "", name, "", &patch).await.unwrap();
        } else {
            self.make(DEFINITIONS, "", json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        let seen = || async {
            for (version, served, _) in versions {
                let listed = self.client.list(&things(version), "default", &Selector::default()).await;
                if listed.is_ok() != *served {
                    return Err(Status::internal("not yet"));
                }
            }
            Ok(())
        };
        self.until("the versions", seen).await;
    }

    async fn thing(&self, version: &str, namespace: &str, metadata: Value) -> Value {
        let thing = json!({"apiVersion": format!("things.example/{version}"), "kind": "Thing", "metadata": metadata});
        self.make(things(version), namespace, thing).await
    }

    /// Until the collector did what came after everything before.
    async fn collected(&self) {
        for round in 0..3 {
            let owner = self.make(CONFIG_MAPS, "default", json!({"metadata": {"generateName": "owner-"}})).await;
            let metadata = json!({"generateName": format!("owned-{round}-"), "ownerReferences": owned_by(&owner)});
            let owned = self.make(CONFIG_MAPS, "default", json!({"metadata": metadata})).await;
            let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
            self.client.delete(&CONFIG_MAPS, "default", &name(&owner), &DeleteOptions::default()).await.unwrap();
            self.gone(CONFIG_MAPS, ("default", &name(&owned))).await;
        }
    }
}

/// An owner that is not shown any more is not gone: nobody can tell, and what it owns stays until somebody can.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_owners_of_kinds_that_are_not_served_own_stays() {
    let world = World::new().await;
    world.define(&[("v1", true, true)]).await;
    let owner = world.thing("v1", "default", json!({"name": "owner"})).await;
    let owned = |name: &str| json!({"metadata": {"name": name, "ownerReferences": owned_by(&owner)}});
    for index in 0..30 {
        world.make(CONFIG_MAPS, "default", owned(&format!("below-{index}"))).await;
    }
    let all_stand = async |world: &World, what: &str| {
        world.collected().await;
        for index in 0..30 {
            let found = world.client.get(&CONFIG_MAPS, "default", &format!("below-{index}")).await;
            assert!(found.is_ok_and(|map| map["metadata"]["deletionTimestamp"].is_null()), "{what}: {index} went");
        }
    };
    all_stand(&world, "served").await;
    world.define(&[("v1", false, true)]).await;
    all_stand(&world, "not served").await;
    world.define(&[("v1", true, true)]).await;
    world.define(&[("v1", true, false), ("v2", true, true)]).await;
    all_stand(&world, "stored in another version").await;
    world.define(&[("v1", false, false), ("v2", true, true)]).await;
    all_stand(&world, "served in another version").await;
    // The owner's version is unknown where its dependents are judged by it alone, but its end is seen.
    world.client.delete(&things("v2"), "default", "owner", &DeleteOptions::default()).await.unwrap();
    for index in 0..30 {
        world.gone(CONFIG_MAPS, ("default", &format!("below-{index}"))).await;
    }
}

/// What a namespace has goes with it, also what nobody is shown; a namespace of the same name has nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_namespace_takes_what_is_not_served_along() {
    const NAMESPACE: &str = "short";
    let world = World::new().await;
    let (both, one, none) = (
        [("v1beta1", true, true), ("v1", true, false)],
        [("v1beta1", false, true), ("v1", true, false)],
        [("v1beta1", false, true), ("v1", false, false)],
    );
    for hidden in [one, none] {
        world.define(&both).await;
        world.make(NAMESPACES, "", json!({"metadata": {"name": NAMESPACE}})).await;
        world.thing("v1", NAMESPACE, json!({"name": "left"})).await;
        world.define(&hidden).await;
        world.client.delete(&NAMESPACES, "", NAMESPACE, &DeleteOptions::default()).await.unwrap();
        world.gone(NAMESPACES, ("", NAMESPACE)).await;
        world.define(&both).await;
        let left = world.client.list(&things("v1"), "", &Selector::default()).await.unwrap();
        assert!(left.items.is_empty(), "{hidden:?}: {:?}", left.items);
    }
    // Nobody can take this finalizer away until it is shown again: the namespace stays, and says so.
    world.make(NAMESPACES, "", json!({"metadata": {"name": NAMESPACE}})).await;
    world.thing("v1", NAMESPACE, json!({"name": "held", "finalizers": ["example.com/held"]})).await;
    world.define(&none).await;
    world.client.delete(&NAMESPACES, "", NAMESPACE, &DeleteOptions::default()).await.unwrap();
    world
        .becomes(NAMESPACES, ("", NAMESPACE), |found| {
            found["status"]["conditions"].to_string().contains("things.things.example has 1 resource instances")
        })
        .await;
    // A definition takes them along as well.
    world.define(&both).await;
    let let_go = json!({"metadata": {"finalizers": null}});
    world.client.patch(&things("v1"), NAMESPACE, "held", "", &let_go).await.unwrap();
    world.gone(NAMESPACES, ("", NAMESPACE)).await;
    world.thing("v1", "default", json!({"name": "defined"})).await;
    world.define(&none).await;
    let name = "things.things.example";
    world.client.delete(&DEFINITIONS, "", name, &DeleteOptions::default()).await.unwrap();
    world.gone(DEFINITIONS, ("", name)).await;
    world.define(&both).await;
    let left = world.client.list(&things("v1"), "", &Selector::default()).await.unwrap();
    assert!(left.items.is_empty(), "{:?}", left.items);
}

/// A worker waits for its own writes, not for whatever else was written meanwhile: other kinds never stop being written.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_of_other_kinds_stop_no_worker() {
    let world = World::new().await;
    world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": "busy"}})).await;
    let writer = {
        let client = world.client.clone();
        tokio::spawn(async move {
            for round in 0.. {
                let change = |current: &Value| {
                    let mut next = current.clone();
                    next["data"] = json!({"round": format!("{round}")});
                    Ok(next)
                };
                client.update(&CONFIG_MAPS, "default", "busy", "", change).await.unwrap();
            }
        })
    };
    let names: Vec<_> = (0..6).map(|index| format!("set-{index}")).collect();
    for name in &names {
        world.replica_set(name, 3).await;
    }
    for name in &names {
        world.scale(name, 0).await;
        world.sized(name, 0).await;
    }
    writer.abort();
    // Nothing changes any more but what this asks for.
    world.replica_set("last", 2).await;
}

/// The collector does not wait for a pause of the writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn steady_writes_do_not_keep_what_lost_its_owner() {
    let world = World::new().await;
    world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": "busy"}})).await;
    let writer = {
        let client = world.client.clone();
        tokio::spawn(async move {
            for round in 0.. {
                let patch = json!({"data": {"round": format!("{round}")}});
                client.patch(&CONFIG_MAPS, "default", "busy", "", &patch).await.unwrap();
            }
        })
    };
    for index in 0..10 {
        let owner = world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": format!("owner-{index}")}})).await;
        let metadata = json!({"name": format!("owned-{index}"), "ownerReferences": owned_by(&owner)});
        world.make(CONFIG_MAPS, "default", json!({"metadata": metadata})).await;
    }
    let keeps = world.client.get(&CONFIG_MAPS, "default", "owned-9").await;
    assert!(keeps.is_ok(), "its owner is there, though its news may come later");
    for index in 0..10 {
        let owner = format!("owner-{index}");
        world.client.delete(&CONFIG_MAPS, "default", &owner, &DeleteOptions::default()).await.unwrap();
    }
    for index in 0..10 {
        world.gone(CONFIG_MAPS, ("default", &format!("owned-{index}"))).await;
    }
    writer.abort();
}

/// Pods that are refused are asked for one by one, and the ReplicaSet and its Deployment say why there are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused_pods_are_said_and_not_insisted_on() {
    let world = World::new().await;
    // No account of that name: admission refuses the pods.
    let pods = json!({"serviceAccountName": "absent", "containers": [{"name": "c", "image": "i"}]});
    let labels = json!({"app": "refused"});
    let template = json!({"metadata": {"labels": labels}, "spec": pods});
    let spec = json!({"replicas": 100, "selector": {"matchLabels": labels}, "template": template});
    world.make(DEPLOYMENTS, "default", json!({"metadata": {"name": "refused"}, "spec": spec})).await;
    let failure = |object: &Value| {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == "ReplicaFailure").unwrap_or_default()
    };
    let said = world.becomes(DEPLOYMENTS, ("default", "refused"), |found| failure(found)["status"] == "True").await;
    assert_eq!(failure(&said)["reason"], "FailedCreate");
    let message = failure(&said)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("serviceaccount \"absent\" not found"), "{message}");
    let events = world.client.list(&Resource::core("events"), "default", &Selector::default()).await.unwrap();
    let events: Vec<Value> = events.items.iter().map(|event| event.value()).collect();
    let told = |event: &&Value| event["reason"] == "FailedCreate" && event["type"] == "Warning";
    let told: Vec<_> = events.iter().filter(told).collect();
    assert!(
        told.iter().all(|event| event["message"].as_str().unwrap().starts_with("Error creating: pods \"refused-")),
        "{told:?}"
    );
    let writes: i64 = told.iter().map(|event| event["count"].as_i64().unwrap()).sum();
    assert!((1..20).contains(&writes), "one pod is tried before a hundred are: {writes}");
    // The account comes, and so do the pods; the failure is over.
    world.make(SERVICE_ACCOUNTS, "default", json!({"metadata": {"name": "absent"}})).await;
    world
        .becomes(DEPLOYMENTS, ("default", "refused"), |found| {
            found["status"]["replicas"] == 100 && failure(found).is_null()
        })
        .await;
}

/// `kubectl delete --cascade=orphan`, and `kubectl apply` of the same name, then of another template.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deployment_takes_over_what_the_one_before_it_left() {
    let world = World::new().await;
    let labels = json!({"app": "web"});
    let deployment = |image: &str| {
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}});
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 4, "selector": {"matchLabels": labels}, "template": template}})
    };
    let sets = async |world: &World| -> Vec<Value> {
        let all = world.client.list(&REPLICA_SETS, "default", &Selector::default()).await.unwrap();
        all.items.iter().map(client::Item::value).collect()
    };
    for (image, count) in [("a", 1), ("a", 1), ("b", 2)] {
        world.make(DEPLOYMENTS, "default", deployment(image)).await;
        let settled = world
            .becomes(DEPLOYMENTS, ("default", "web"), |web| {
                let complete = web["status"]["updatedReplicas"].as_i64().unwrap_or(0) > 0;
                complete && web["status"]["observedGeneration"] == web["metadata"]["generation"]
            })
            .await;
        assert!(settled["status"]["collisionCount"].is_null(), "{}", settled["status"]);
        let found = sets(&world).await;
        let sizes: i64 = found.iter().filter_map(|set| set["spec"]["replicas"].as_i64()).sum();
        // One more than wanted is what a rollout may have.
        assert!(found.len() == count && sizes <= 5, "{image}: {found:?}");
        let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
        world.client.delete(&DEPLOYMENTS, "default", "web", &orphan).await.unwrap();
        world.gone(DEPLOYMENTS, ("default", "web")).await;
        let left = sets(&world).await;
        assert!(left.iter().all(|set| set["metadata"]["ownerReferences"].is_null()), "{left:?}");
    }
}

/// A Service whose selector goes is its owner's to fill: the endpoints that it had stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_service_that_loses_its_selector_keeps_its_endpoints() {
    const SERVICES: Resource = super::views::SERVICES;
    const SLICES: Resource = Resource::new("discovery.k8s.io", "endpointslices");
    let world = World::new().await;
    let labels = json!({"app": "web"});
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    world.make(PODS, "default", json!({"metadata": {"name": "p", "labels": labels}, "spec": spec})).await;
    let status = json!({"phase": "Running", "podIP": "10.1.1.1", "podIPs": [{"ip": "10.1.1.1"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    world.client.patch(&PODS, "default", "p", "status", &json!({"status": status})).await.unwrap();
    let service =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"selector": labels, "ports": [{"port": 80}]}});
    let slices = async |service: &str| -> Result<Vec<Value>, Status> {
        let of = Selector { labels: format!("kubernetes.io/service-name={service}"), ..Selector::default() };
        let all = world.client.list(&SLICES, "default", &of).await?;
        let all: Vec<Value> = all.items.iter().map(client::Item::value).collect();
        let filled = all.iter().any(|slice| slice["endpoints"][0]["addresses"][0] == "10.1.1.1");
        if filled { Ok(all) } else { Err(Status::internal("not yet")) }
    };
    world.make(SERVICES, "default", service("web")).await;
    world.until("its slice", || slices("web")).await;
    world.becomes(Resource::core("endpoints"), ("default", "web"), |found| found["subsets"].is_array()).await;
    world.client.patch(&SERVICES, "default", "web", "", &json!({"spec": {"selector": null}})).await.unwrap();
    // Until the controllers are beyond it.
    world.make(SERVICES, "default", service("other")).await;
    world.until("the other's slice", || slices("other")).await;
    slices("web").await.expect("its endpoints are where they were");
    let endpoints = world.client.get(&Resource::core("endpoints"), "default", "web").await.unwrap();
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.1.1.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_collector_keeps_what_it_cannot_judge_and_stamps_the_present() {
    let world = World::new().await;
    let lease = world.make(LEASES, "default", json!({"metadata": {"name": "holder"}, "spec": {}})).await;
    let unknown = json!([{"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": "u-1"}]);
    let absent = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "u-2"}]);
    let owners = [("leased", owned_by(&lease)), ("custom", unknown), ("orphaned", absent)];
    for (name, owners) in owners {
        let held = json!(["example.com/held"]);
        let metadata = json!({"name": name, "ownerReferences": owners, "finalizers": held});
        world.make(CONFIG_MAPS, "default", json!({"metadata": metadata})).await;
    }
    let started = Timestamp::now();
    let orphaned = world
        .becomes(CONFIG_MAPS, ("default", "orphaned"), |map| map["metadata"]["deletionTimestamp"].is_string())
        .await;
    drop(orphaned);
    // Later, so that a time kept from the start would show.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.client.delete(&LEASES, "default", "holder", &DeleteOptions::default()).await.unwrap();
    world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": "nudge"}})).await;
    let leased =
        world.becomes(CONFIG_MAPS, ("default", "leased"), |map| map["metadata"]["deletionTimestamp"].is_string()).await;
    let stamped: Timestamp = leased["metadata"]["deletionTimestamp"].as_str().unwrap().parse().unwrap();
    assert!(stamped.duration_since(started).as_secs() >= 1, "{stamped} is of the past");
    let custom = world.client.get(&CONFIG_MAPS, "default", "custom").await.unwrap();
    assert!(custom["metadata"]["deletionTimestamp"].is_null(), "its owner's kind is unknown here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owners_in_a_circle_go_all_the_same() {
    let world = World::new().await;
    let made = ["a", "b", "c"].map(|name| world.make(CONFIG_MAPS, "default", json!({"metadata": {"name": name}})));
    let made = futures::future::join_all(made).await;
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        let mut owners = owned_by(&made[(index + 2) % 3]);
        owners[0]["blockOwnerDeletion"] = json!(true);
        let change = |current: &Value| {
            let mut next = current.clone();
            next["metadata"]["ownerReferences"] = owners.clone();
            Ok(next)
        };
        world.client.update(&CONFIG_MAPS, "default", name, "", change).await.unwrap();
    }
    let options = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    world.client.delete(&CONFIG_MAPS, "default", "a", &options).await.unwrap();
    for name in ["a", "b", "c"] {
        world.gone(CONFIG_MAPS, ("default", name)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_namespace_loses_its_pods_first_and_says_what_is_left() {
    let world = World::new().await;
    world.make(NAMESPACES, "", json!({"metadata": {"name": "going"}})).await;
    world.until("its account", || world.account("going")).await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let metadata = json!({"name": "p", "finalizers": ["example.com/held"]});
    world.make(PODS, "going", json!({"metadata": metadata, "spec": spec})).await;
    world.make(CONFIG_MAPS, "going", json!({"metadata": {"name": "m"}})).await;
    world.client.delete(&NAMESPACES, "", "going", &DeleteOptions::default()).await.unwrap();
    let condition = |namespace: &Value, type_: &str| {
        let all = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
    };
    let waiting = world
        .becomes(NAMESPACES, ("", "going"), |found| {
            condition(found, "NamespaceFinalizersRemaining")["status"] == "True"
        })
        .await;
    assert_eq!(
        condition(&waiting, "NamespaceContentRemaining")["message"],
        "Some resources are remaining: pods. has 1 resource instances"
    );
    assert_eq!(
        condition(&waiting, "NamespaceFinalizersRemaining")["message"],
        "Some content in the namespace has finalizers remaining: example.com/held in 1 resource instances"
    );
    let map = world.client.get(&CONFIG_MAPS, "going", "m").await.unwrap();
    assert!(map["metadata"]["deletionTimestamp"].is_null(), "what a pod uses stays until the pod is gone");
    let let_go = |current: &Value| {
        let mut next = current.clone();
        next["metadata"]["finalizers"] = json!([]);
        Ok(next)
    };
    world.client.update(&PODS, "going", "p", "", let_go).await.unwrap();
    world.gone(NAMESPACES, ("", "going")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_namespace_of_node_leases_comes_back() {
    let world = World::new().await;
    let before = world.client.get(&NAMESPACES, "", "kube-node-lease").await.unwrap();
    world.client.delete(&NAMESPACES, "", "kube-node-lease", &DeleteOptions::default()).await.unwrap();
    world
        .becomes(NAMESPACES, ("", "kube-node-lease"), |found| {
            found["metadata"]["uid"] != before["metadata"]["uid"] && found["status"]["phase"] == "Active"
        })
        .await;
    for kept in ["default", "kube-system", "kube-public"] {
        let refused = world.client.delete(&NAMESPACES, "", kept, &DeleteOptions::default()).await.unwrap_err();
        assert_eq!(refused.code, 403, "{kept}");
    }
}

fn parse(items: &[&str]) -> Result<Selection, UnknownController> {
    Selection::parse(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>())
}

#[test]
fn all_but_one() {
    let chosen = parse(&["*", "-scheduler"]).unwrap();
    assert!(chosen.has("replicaset-controller") && !chosen.has("scheduler"));
    assert!(parse(&[]).unwrap().0.is_empty());
    assert!(parse(&["*", "-nonsense"]).unwrap_err().to_string().contains("there is no controller \"nonsense\""));
}

fn signing_request(name: &str, signer: &str, purpose: &str, request: &str) -> Value {
    let usages = ["digital signature", purpose];
    json!({"metadata": {"name": name}, "spec": {"request": request, "signerName": signer, "usages": usages}})
}

/// Whom a certificate names: (user, one group).
fn named(request: &Value) -> (String, String) {
    let decode = |text: &Value| BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&decode(&request["status"]["certificate"])).unwrap();
    let user = apiserver::authn::Certificate::read(&pem.contents).unwrap().user;
    (user.name, user.groups[0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_is_given_a_certificate_once_somebody_approves() {
    let world = World::new().await;
    let pem = certificates::tests::pem("jane", "dev", &[]);
    let asked = |name: &str, purpose: &str| signing_request(name, "kubernetes.io/kube-apiserver-client", purpose, &pem);
    world.make(SIGNING_REQUESTS, "", asked("jane", "client auth")).await;
    world.make(SIGNING_REQUESTS, "", asked("wrong", "server auth")).await;
    let approve = |current: &Value| {
        let mut next = current.clone();
        let condition = json!({"type": "Approved", "status": "True", "reason": "Known", "message": "we know her"});
        next["status"]["conditions"] = json!([condition]);
        Ok(next)
    };
    for name in ["jane", "wrong"] {
        world.client.update(&SIGNING_REQUESTS, "", name, "approval", approve).await.unwrap();
    }
    let has = |request: &Value| request["status"]["certificate"].is_string();
    let signed = world.becomes(SIGNING_REQUESTS, ("", "jane"), has).await;
    assert_eq!(named(&signed), ("jane".to_owned(), "dev".to_owned()));
    let failed = |request: &Value| request["status"]["conditions"][1]["type"] == "Failed";
    let refused = world.becomes(SIGNING_REQUESTS, ("", "wrong"), failed).await;
    let why = &refused["status"]["conditions"][1];
    assert_eq!(why["message"], "invalid usage for client certificate: server auth");
    assert_eq!(why["reason"], "SignerValidationFailure");
    assert!(refused["status"]["certificate"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_may_join_needs_nobody() {
    let world = World::new().await;
    let pem = certificates::tests::pem("system:node:new", "system:nodes", &[]);
    let asked = signing_request("new", "kubernetes.io/kube-apiserver-client-kubelet", "client auth", &pem);
    world.joining.create(&SIGNING_REQUESTS, "", asked).await.unwrap();
    let has = |request: &Value| request["status"]["certificate"].is_string();
    let signed = world.becomes(SIGNING_REQUESTS, ("", "new"), has).await;
    assert_eq!(named(&signed), ("system:node:new".to_owned(), "system:nodes".to_owned()));
    let why = &signed["status"]["conditions"][0];
    assert_eq!((&why["type"], &why["reason"]), (&json!("Approved"), &json!("AutoApproved")));
    assert_eq!(why["message"], "Auto approving kubelet client certificate after SubjectAccessReview.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_server_is_given_a_certificate_of_its_own_addresses_and_no_other() {
    let world = World::new().await;
    let addresses = json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
    world.make(super::views::NODES, "", json!({"metadata": {"name": "n"}, "status": {"addresses": addresses}})).await;
    for (name, address) in [("wrong", "10.0.0.2"), ("right", "10.0.0.1")] {
        let pem = certificates::tests::pem("system:node:n", "system:nodes", &[address]);
        let asked = signing_request(name, "kubernetes.io/kubelet-serving", "server auth", &pem);
        world.node.create(&SIGNING_REQUESTS, "", asked).await.unwrap();
    }
    let has = |request: &Value| request["status"]["certificate"].is_string();
    world.becomes(SIGNING_REQUESTS, ("", "right"), has).await;
    let wrong = world.client.get(&SIGNING_REQUESTS, "", "wrong").await.unwrap();
    assert_eq!(wrong["status"]["conditions"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_token_goes_when_it_ends() {
    let world = World::new().await;
    let end = |seconds: i64| {
        let at = Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        json!({"expiration": BASE64_STANDARD.encode(api::time::rfc3339(at))})
    };
    let secrets = Resource::core("secrets");
    let token = |id: &str, data: Value| json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token", "data": data});
    world.make(secrets.clone(), "kube-system", token("stays0", end(3600))).await;
    world.make(secrets.clone(), "kube-system", token("goes00", end(1))).await;
    world.gone(secrets.clone(), ("kube-system", "bootstrap-token-goes00")).await;
    world.client.get(&secrets, "kube-system", "bootstrap-token-stays0").await.unwrap();
}

/// Every row lists the views that it reads: alone, over a cluster that has something of everything, none of its tasks ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_controller_runs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::on_loopback(folder.path().join("store.redb"));
    let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
    let client = server.client(User::new("tester", &[MASTERS]), "tester");
    let facts = Facts {
        authority: server.authority().clone(),
        address: server.address(),
        services: config.services.clone(),
        pods: vec![PodRanges::usual()],
        servers: crate::servers::alone(server.address()),
    };
    let labels = json!({"app": "a"});
    let pods = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({"replicas": 2, "selector": {"matchLabels": labels}, "template": pods});
    let service = json!({"selector": labels, "ports": [{"port": 80}]});
    let named = |spec: &Value| json!({"metadata": {"name": "a"}, "spec": spec});
    let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "pods": "10"}}});
    let made: [(Resource, &str, Value); 7] = [
        (NAMESPACES, "", json!({"metadata": {"name": "default"}})),
        (SERVICE_ACCOUNTS, "default", json!({"metadata": {"name": "default"}})),
        (super::views::NODES, "", node),
        (DEPLOYMENTS, "default", named(&set)),
        (REPLICA_SETS, "default", json!({"metadata": {"name": "b"}, "spec": set})),
        (super::views::SERVICES, "default", named(&service)),
        (LEASES, "default", named(&json!({}))),
    ];
    for (resource, namespace, object) in made {
        match client.create(&resource, namespace, object).await {
            Err(status) if status.code != 409 => panic!("{}: {status}", resource.plural),
            _ => {}
        }
    }
    for row in &table::TABLE {
        let chosen = Selection::parse(&[row.name.to_owned()]).unwrap();
        let ready = table::ready(&server, &facts, &chosen);
        let (caches, mut tasks) = (Arc::new(Caches::new(table::reads(&ready))), JoinSet::new());
        caches.start(&client, &mut tasks);
        table::start(&ready, &caches, &mut tasks);
        let ended = tokio::time::timeout(Duration::from_millis(500), tasks.join_next()).await;
        assert!(ended.is_err(), "{}: {ended:?}", row.name);
    }
}
