//! Stores of every format that was ever released, and a disk that is full.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::status::Status;
use apiserver::identity::User;
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use apiserver::store_tools;
use client::{Client, Resource, Selector};
use serde_json::json;

const CONFIG_MAPS: Resource = Resource::core("configmaps");

async fn open(folder: &Path) -> Server {
    let config = Config::on_loopback(folder.join("store.redb"));
    Server::open(&config, Arc::new(NoNodes)).await.unwrap()
}

fn client(server: &Server) -> Client {
    server.client(User::new("tester", &["system:masters"]), "tester")
}

/// `tests/formats` holds one store of each format: namespace `shop` with a Deployment, a Service, a Secret and a
/// ConfigMap that was changed once, written by the release that wrote the format last.
#[tokio::test]
async fn stores_of_every_released_format_are_opened() {
    for format in 1..=2 {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store.redb");
        let packed =
            std::fs::File::open(format!("{}/tests/formats/format-{format}.redb.gz", env!("CARGO_MANIFEST_DIR")));
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed.unwrap()).read_to_end(&mut bytes).unwrap();
        std::fs::write(&store, bytes).unwrap();
        let before = store_tools::check(&store).unwrap();
        assert_eq!(before.objects["deployments.apps"], 1);
        let server = open(folder.path()).await;
        let client = client(&server);
        let settings = client.get(&CONFIG_MAPS, "shop", "settings").await.unwrap();
        assert_eq!(settings["data"], json!({"colour": "green", "text": "Grüße, 世界"}));
        assert_eq!(settings["metadata"]["labels"], json!({"tier": "front"}));
        assert_eq!(client.get(&CONFIG_MAPS, "shop", "gone").await.unwrap_err().code, 404);
        // The identity of the cluster is in the store as well: a new one would lock everybody out.
        let found: u64 = settings["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let made = client.create(&CONFIG_MAPS, "shop", json!({"metadata": {"name": "new"}})).await.unwrap();
        let made: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(found <= before.revision && made > before.revision, "{found} {} {made}", before.revision);
        drop((client, server));
    }
}

/// A small file system, unmounted however the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success(), "mounting needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

async fn create(client: &Client, name: &str) -> Result<String, Status> {
    let data = json!({"filling": "x".repeat(20_000)});
    client.create(&CONFIG_MAPS, "default", json!({"metadata": {"name": name}, "data": data})).await.map(|_| name.into())
}

async fn names(client: &Client) -> Vec<String> {
    let all = client.list(&CONFIG_MAPS, "default", &Selector::default()).await.unwrap();
    let mut names: Vec<String> = all.items.iter().map(|item| item.key.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_until_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let _disk = SmallDisk::mount(folder.path());
    let server = open(folder.path()).await;
    let client = client(&server);
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let mut acknowledged = Vec::new();
    let refused = loop {
        match create(&client, &format!("c{:04}", acknowledged.len())).await {
            Ok(name) => acknowledged.push(name),
            Err(status) => break status,
        }
        assert!(acknowledged.len() < 1000, "4 MiB hold more than 20");
    };
    assert_eq!((refused.code, refused.reason), (507, "InsufficientStorage"), "{refused}");
    assert!(refused.message.contains("free some space"), "{refused}");
    assert_eq!(names(&client).await, acknowledged);
    std::fs::remove_file(&ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let after = loop {
        match create(&client, "d").await {
            Ok(name) => break name,
            Err(status) => assert!(status.code == 507 && Instant::now() < deadline, "{status}"),
        }
        tokio::task::yield_now().await;
    };
    acknowledged.push(after);
    assert_eq!(names(&client).await, acknowledged);
    drop((client, server));
    let report = store_tools::check(&folder.path().join("store.redb"));
    assert!(report.unwrap().objects["configmaps"] >= acknowledged.len());
}
