//! Several servers on one etcd: what one acknowledges the others show, and each may be killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::status::Status;
use apiserver::EtcdSettings;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server, StoreAt};
use client::{Client, Event, Resource, Selector};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

#[path = "processes/etcd.rs"]
mod etcd;

const CONFIG_MAPS: Resource = Resource::core("configmaps");
const SERVICES: Resource = Resource::core("services");
const WRITERS: usize = 32;
/// A writer whose server does not answer goes to another.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server with a runtime of its own: ending that ends the server wherever it is.
struct Running {
    runtime: Option<Runtime>,
    server: Server,
    client: Client,
}

fn start(endpoint: String, folder: &std::path::Path) -> Running {
    let runtime = Runtime::new().unwrap();
    let etcd = EtcdSettings { endpoints: vec![endpoint], tls: None };
    let config = Config { store: StoreAt::Etcd(etcd), ..Config::on_loopback(folder.join("unused")) };
    let server = runtime.block_on(Server::open(&config, Arc::new(NoNodes))).unwrap();
    let client = server.client(User::new("writer", &[MASTERS]), "writer");
    Running { runtime: Some(runtime), server, client }
}

impl Running {
    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn config_map(name: &str, count: usize) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"},
        "data": {"count": count.to_string()}})
}

/// Writes the count into an object, and makes the object when it is not there.
async fn set(client: &Client, name: &str, count: usize) -> Result<Value, Status> {
    let change = |current: &Value| {
        let mut next = current.clone();
        next["data"]["count"] = count.to_string().into();
        Ok(next)
    };
    match client.update(&CONFIG_MAPS, "default", name, "", change).await {
        Err(status) if status.code == 404 => client.create(&CONFIG_MAPS, "default", config_map(name, count)).await,
        outcome => outcome,
    }
}

/// Kinds that one server defines are the others' too, and so is what their objects are selected by.
#[test]
fn a_kind_defined_by_one_server_is_served_by_the_others() {
    let (etcd, folder) = (etcd::Etcd::start(&[]), tempfile::tempdir().unwrap());
    let servers = [start(etcd.endpoint(), folder.path()), start(etcd.endpoint(), folder.path())];
    let definitions = Resource::new("apiextensions.k8s.io", "customresourcedefinitions");
    let things = Resource::named("things.example", "v1", "things");
    let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
    let spec = json!({"type": "object", "properties": {"color": {"type": "string"}}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": schema, "selectableFields": [{"jsonPath": ".spec.color"}]});
    let spec = json!({"group": "things.example", "scope": "Namespaced", "names": names, "versions": [version]});
    let definition = json!({"metadata": {"name": "things.things.example"}, "spec": spec});
    let [one, other] = [&servers[0].client, &servers[1].client];
    let found = async |client: &Client, count: usize| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let blue = client.list(&things, "default", &Selector::fields("spec.color=blue")).await;
            if blue.is_ok_and(|blue| blue.items.len() == count) {
                return;
            }
            assert!(Instant::now() < deadline, "the kind, or its objects, are never seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Runtime::new().unwrap().block_on(async {
        one.create(&definitions, "", definition).await.unwrap();
        // Nobody serves here, so nobody settles it.
        let settle = |current: &Value| {
            let mut next = current.clone();
            let established = json!([{"type": "Established", "status": "True", "reason": "r", "message": "m"}]);
            (next["status"]["acceptedNames"], next["status"]["conditions"]) = (names.clone(), established);
            Ok(next)
        };
        one.update(&definitions, "", "things.things.example", "status", settle).await.unwrap();
        found(other, 0).await;
        let thing = json!({"apiVersion": "things.example/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"color": "blue"}});
        other.create(&things, "default", thing).await.unwrap();
        found(one, 1).await;
        found(other, 1).await;
    });
}

#[test]
fn servers_that_start_together_are_one_cluster() {
    let (etcd, folder) = (etcd::Etcd::start(&[]), tempfile::tempdir().unwrap());
    let starting: Vec<_> = (0..3)
        .map(|_| {
            let (endpoint, folder) = (etcd.endpoint(), folder.path().to_owned());
            std::thread::spawn(move || start(endpoint, &folder))
        })
        .collect();
    let servers: Vec<Running> = starting.into_iter().map(|starting| starting.join().unwrap()).collect();
    let authorities: BTreeSet<_> = servers.iter().map(|one| one.server.authority().ca_certificate.clone()).collect();
    assert_eq!(authorities.len(), 1, "one authority for all");
    Runtime::new().unwrap().block_on(async {
        // Nothing is allocated in memory: addresses are given once whoever gives them.
        let create = (0..60).map(|index| {
            let client = servers[index % 3].client.clone();
            async move {
                let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": format!("s{index}")},
                    "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
                client.create(&SERVICES, "default", service).await.unwrap()
            }
        });
        let made = futures::future::join_all(create).await;
        let distinct = |pointer: &str| {
            made.iter().map(|service| service.pointer(pointer).unwrap().to_string()).collect::<BTreeSet<_>>().len()
        };
        assert_eq!((distinct("/spec/clusterIP"), distinct("/spec/ports/0/nodePort")), (60, 60));
        // Read anywhere at once what was acknowledged anywhere.
        for round in 0..30 {
            let (writer, reader) = (&servers[round % 3].client, &servers[(round + 1) % 3].client);
            let name = format!("c{round}");
            writer.create(&CONFIG_MAPS, "default", config_map(&name, round)).await.unwrap();
            assert_eq!(reader.get(&CONFIG_MAPS, "default", &name).await.unwrap()["data"]["count"], round.to_string());
            let found = reader.list(&CONFIG_MAPS, "default", &Selector::default()).await.unwrap().items.len();
            assert_eq!(found, round + 1);
            set(reader, &name, 1000).await.unwrap();
            writer.delete(&CONFIG_MAPS, "default", &name, &Default::default()).await.unwrap();
            writer.create(&CONFIG_MAPS, "default", config_map(&name, 0)).await.unwrap();
        }
    });
}

/// Raises its own object's count through one server after another, until told to stop.
async fn write(
    index: usize,
    clients: Vec<Client>,
    acknowledged: Arc<Mutex<Vec<(usize, Instant)>>>,
    stop: Arc<AtomicUsize>,
) {
    let name = format!("w{index}");
    let mut at = index;
    for count in 1.. {
        loop {
            if stop.load(Ordering::Relaxed) > 0 {
                return;
            }
            let client = &clients[at % clients.len()];
            let call = set(client, &name, count);
            match tokio::time::timeout(PATIENCE, call).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) | Err(_) => at += 1,
            }
        }
        acknowledged.lock().unwrap()[index] = (count, Instant::now());
    }
}

#[test]
fn a_killed_server_takes_nothing_acknowledged_with_it() {
    let (etcd, folder) = (etcd::Etcd::start(&[]), tempfile::tempdir().unwrap());
    let mut servers: Vec<Running> = (0..3).map(|_| start(etcd.endpoint(), folder.path())).collect();
    let clients: Vec<Client> = servers.iter().map(|one| one.client.clone()).collect();
    let acknowledged = Arc::new(Mutex::new(vec![(0, Instant::now()); WRITERS]));
    let stop = Arc::new(AtomicUsize::new(0));
    let runtime = Runtime::new().unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|index| runtime.spawn(write(index, clients.clone(), acknowledged.clone(), stop.clone())))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let before = acknowledged.lock().unwrap().clone();
    assert!(before.iter().all(|(count, _)| *count > 0), "everybody writes: {before:?}");
    let killed = Instant::now();
    servers[0].kill();
    // Each goes on: something later than the kill is acknowledged to everybody.
    let longest = loop {
        let now = acknowledged.lock().unwrap().clone();
        if now
            .iter()
            .zip(&before)
            .all(|((count, at), (then, _))| count > then && *at > killed + Duration::from_millis(50))
        {
            break killed.elapsed();
        }
        assert!(killed.elapsed() < Duration::from_secs(30), "writers stand still: {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    println!("all {WRITERS} writers went on within {longest:?}");
    assert!(longest < Duration::from_secs(5));
    stop.store(1, Ordering::Relaxed);
    runtime.block_on(async { futures::future::join_all(writers).await });
    let last = acknowledged.lock().unwrap().clone();
    let late = start(etcd.endpoint(), folder.path());
    runtime.block_on(async {
        for client in [&servers[1].client, &servers[2].client, &late.client] {
            for (index, (count, _)) in last.iter().enumerate() {
                let found = client.get(&CONFIG_MAPS, "default", &format!("w{index}")).await.unwrap();
                let found: usize = found["data"]["count"].as_str().unwrap().parse().unwrap();
                // One more may have been under way.
                assert!((*count..=count + 1).contains(&found), "w{index}: {found}, acknowledged {count}");
            }
        }
    });
}

#[test]
fn an_etcd_that_was_away_is_no_reason_to_start_again() {
    let (mut etcd, folder) = (etcd::Etcd::start(&[]), tempfile::tempdir().unwrap());
    let server = start(etcd.endpoint(), folder.path());
    let runtime = Runtime::new().unwrap();
    runtime.block_on(set(&server.client, "a", 1)).unwrap();
    etcd.kill();
    let began = Instant::now();
    let refused = runtime.block_on(set(&server.client, "a", 2)).unwrap_err();
    assert_eq!(refused.code, 500, "{refused}");
    assert!(!refused.message.contains("server stops"), "{refused}");
    assert!(refused.message.contains("did not answer") && began.elapsed() < Duration::from_secs(15), "{refused}");
    // What this server knows is there all the same, for those who watch.
    let known = runtime.block_on(async {
        let mut watch = server.client.watch(&CONFIG_MAPS, "default", &Selector::default()).await.unwrap();
        watch.next().await.unwrap().remove(0)
    });
    assert!(matches!(known, Event::Applied(item) if item.key.name == "a"));
    etcd.start_again();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(status) = runtime.block_on(set(&server.client, "a", 3)) {
        assert!(Instant::now() < deadline, "{status}");
    }
    let found = runtime.block_on(server.client.get(&CONFIG_MAPS, "default", "a")).unwrap();
    assert_eq!(found["data"]["count"], "3");
}
