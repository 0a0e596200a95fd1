//! A real API server, a node's two ways into it, and a runner of pods that only notes what it is told.
#![allow(dead_code, clippy::unwrap_used, clippy::allow_attributes, reason = "each test file uses its part")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::status::Status;
use api::uid::Uid;
use apiserver::identity::{MASTERS, User};
use apiserver::nodes::NoNodes;
use apiserver::pki::Authority;
use apiserver::server::Config;
use async_trait::async_trait;
use client::https::{Config as HttpsConfig, Https, Identity};
use client::{
    Change, Client, DeleteOptions, Deleted, Event, EventStream, List, Resource, Revision, Selector, ServedKind, Target,
    Transport,
};
use node::pods::Runner;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

pub struct Server {
    pub admin: Client,
    local: Client,
    authority: Arc<Authority>,
    address: SocketAddr,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Serves on loopback; in process it knows the node `a`.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = apiserver::server::Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let admin = server.client(User::new("tester", &[MASTERS]), "tester");
        let local = server.client(User::node("a"), "kubelet");
        let (authority, address) = (server.authority().clone(), server.address());
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        tokio::spawn(server.serve(stop));
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        admin.create(&Resource::core("serviceaccounts"), "default", account).await.unwrap();
        Self { admin, local, authority, address, _stop: guard, _folder: folder }
    }

    /// With the node's own certificate.
    pub fn remote_node(&self, name: &str) -> Https {
        let identity = self.authority.client(&format!("system:node:{name}"), &["system:nodes"]).unwrap();
        Https::new(HttpsConfig {
            server: format!("localhost:{}", self.address.port()),
            ca: self.authority.ca_certificate.clone(),
            identity: Identity::Certificate { chain: identity.certificate, key: identity.key },
            manager: "kubelet".into(),
        })
        .unwrap()
    }

    pub fn node_clients(&self, name: &str) -> [(&'static str, Client); 2] {
        [("in process", self.local.clone()), ("over HTTPS", Client::new(self.remote_node(name)))]
    }
}

/// Notes what it is told: `sync UID`, `gone UID`, `content UID`.
#[derive(Default)]
pub struct Noted {
    told: Mutex<Vec<String>>,
    changed: tokio::sync::Notify,
}

impl Noted {
    fn note(&self, what: String) {
        self.told.lock().unwrap().push(what);
        self.changed.notify_waiters();
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    pub async fn wait(&self, what: &str) {
        let heard = async {
            loop {
                let changed = self.changed.notified();
                if self.told.lock().unwrap().iter().any(|told| told == what) {
                    return;
                }
                changed.await;
            }
        };
        soon(what, heard).await;
    }
}

impl Runner for Noted {
    fn sync(&self, pod: Arc<Value>) {
        self.note(format!("sync {}", pod["metadata"]["uid"].as_str().unwrap()));
    }

    fn gone(&self, uid: &Uid) {
        self.note(format!("gone {uid}"));
    }

    fn resync(&self, pods: Vec<Arc<Value>>) {
        pods.into_iter().for_each(|pod| self.sync(pod));
    }

    fn content_changed(&self, uid: &Uid) {
        self.note(format!("content {uid}"));
    }
}

/// Holds back what watches of one kind bring, after their first state.
#[derive(Clone)]
pub struct Gate {
    plural: &'static str,
    open: watch::Sender<bool>,
}

struct Gated {
    inner: Https,
    gate: Gate,
}

struct Held {
    inner: Box<dyn EventStream>,
    open: watch::Receiver<bool>,
}

impl Gate {
    pub fn new(plural: &'static str) -> Self {
        Self { plural, open: watch::Sender::new(true) }
    }

    pub fn before(&self, inner: Https) -> Client {
        Client::new(Gated { inner, gate: self.clone() })
    }

    pub fn close(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

#[async_trait]
impl EventStream for Held {
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        self.open.wait_for(|open| *open).await.unwrap();
        let events = self.inner.next().await?;
        // What came while it was being closed waits too; nobody cancels in between.
        self.open.wait_for(|open| *open).await.unwrap();
        Ok(events)
    }
}

#[async_trait]
impl Transport for Gated {
    async fn get(&self, target: Target<'_>) -> Result<Value, Status> {
        self.inner.get(target).await
    }

    async fn list(&self, target: Target<'_>, selector: &Selector) -> Result<List, Status> {
        self.inner.list(target, selector).await
    }

    async fn watch(
        &self,
        target: Target<'_>,
        selector: &Selector,
        after: Option<Revision>,
    ) -> Result<Box<dyn EventStream>, Status> {
        let gated = target.resource.plural == self.gate.plural;
        let inner = self.inner.watch(target, selector, after).await?;
        Ok(if gated { Box::new(Held { inner, open: self.gate.open.subscribe() }) } else { inner })
    }

    async fn create(&self, target: Target<'_>, object: Value) -> Result<Value, Status> {
        self.inner.create(target, object).await
    }

    async fn update(&self, target: Target<'_>, change: &Change<'_>) -> Result<Value, Status> {
        self.inner.update(target, change).await
    }

    async fn patch(&self, target: Target<'_>, patch: &Value) -> Result<Value, Status> {
        self.inner.patch(target, patch).await
    }

    async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        self.inner.delete(target, options).await
    }

    async fn kinds(&self) -> Result<Vec<ServedKind>, Status> {
        self.inner.kinds().await
    }
}
