//! A server killed at any moment loses nothing it acknowledged, and gives no version twice.
//!
//! The test runs its own executable again as the server: that child says on its standard output what it finds and
//! what was acknowledged, until the parent kills it. Lines in the pipe outlive the child.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::client::Resource;
use apiserver::engine::{ListOptions, ServiceNetwork};
use apiserver::identity::User;
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use serde_json::json;

const ROUNDS: usize = 4;
const WRITERS: usize = 8;
/// Acknowledged writes of a round before the kill: each round is hit at another place.
const ACKNOWLEDGED: [usize; ROUNDS] = [1, 40, 97, 230];
/// A round takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);
const FOLDER: &str = "DURABILITY_FOLDER";
const CONFIG_MAPS: Resource = Resource::core("configmaps");

/// The child. Without its folder in the environment it is no test and does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let config = Config {
        store: Path::new(&folder).join("store.redb"),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        services: ServiceNetwork { base: Ipv4Addr::new(10, 96, 0, 0), prefix: 12, node_ports: 30000..=32767 },
        domain: "cluster.local".into(),
        names: Vec::new(),
    };
    let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
    let client = server.client(User::new("writer", &["system:masters"]), "writer");
    for object in client.list(CONFIG_MAPS, "default", &ListOptions::default()).await.unwrap().objects {
        say(&format!("has {} {}", object.key.name(), object.revision));
    }
    say("ready 0 0");
    let writers = (0..WRITERS).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                let name = uuid::Uuid::new_v4().to_string();
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v".repeat(500)}});
                let made = client.create(CONFIG_MAPS, "default", object).await.unwrap();
                say(&format!("made {name} {}", made["metadata"]["resourceVersion"].as_str().unwrap()));
            }
        })
    });
    futures::future::join_all(writers).await;
}

/// One line, written at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@ {line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn start(folder: &Path) -> Child {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(this);
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(FOLDER, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// What a child said until it was killed, after `enough` acknowledged writes.
#[derive(Default)]
struct Said {
    has: BTreeMap<String, u64>,
    made: BTreeMap<String, u64>,
}

fn listen(mut child: Child, enough: usize) -> Said {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Mutex::new(child);
    std::thread::scope(|scope| {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        // A child that says nothing any more must not hang the test.
        let (wait, slow) = (wait, &child);
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                slow.lock().unwrap().kill().unwrap();
            }
        });
        let said = hear(lines, &child, enough);
        drop(done);
        child.lock().unwrap().wait().unwrap();
        said
    })
}

/// Reads to the end of the pipe; kills on the way.
fn hear(lines: impl Iterator<Item = std::io::Result<String>>, child: &Mutex<Child>, enough: usize) -> Said {
    let mut said = Said::default();
    let mut killed = false;
    for line in lines.map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["@", "has", name, version] => drop(said.has.insert((*name).into(), version.parse().unwrap())),
            ["@", "made", name, version] => drop(said.made.insert((*name).into(), version.parse().unwrap())),
            _ => {}
        }
        let ready = words.get(1) == Some(&"ready");
        if !killed && (said.made.len() >= enough && (enough > 0 || ready)) {
            child.lock().unwrap().kill().unwrap();
            killed = true;
        }
    }
    said
}

#[test]
fn a_kill_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    for enough in ACKNOWLEDGED.into_iter().chain([0]) {
        let said = listen(start(folder.path()), enough);
        for (name, version) in &acknowledged {
            assert_eq!(said.has.get(name), Some(version), "{name} was acknowledged at {version}");
        }
        let newest = said.has.values().max().copied().unwrap_or(0);
        assert!(said.made.values().all(|version| *version > newest), "a version was given twice");
        assert!(said.made.len() >= enough);
        acknowledged.extend(said.made);
    }
    assert!(acknowledged.len() >= ACKNOWLEDGED.iter().sum());
}
