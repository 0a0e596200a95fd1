//! A server on loopback and clients of it, for tests that ask as clients do.

use std::sync::Arc;

use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "client.rs"]
pub mod client;

use client::{Client, Credentials, Identity};

/// A server, and clients of it.
pub struct World {
    pub admin: Client,
    pub server: Arc<Keys>,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

pub struct Keys {
    address: std::net::SocketAddr,
    authority: Arc<apiserver::pki::Authority>,
}

impl Keys {
    pub fn client(&self, user: &str, group: &str) -> Client {
        let identity = self.authority.client(user, &[group]).unwrap();
        let (certificate, key) = (&identity.certificate, &identity.key);
        Client::new(Arc::new(Credentials::new(self.address, &self.authority.ca_certificate, certificate, key)))
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With settings of its own.
    pub async fn with(settings: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::on_loopback(folder.path().join("store.redb"));
        settings(&mut config);
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let keys = Keys { address: server.address(), authority: server.authority().clone() };
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone()));
        let mut admin = keys.client("admin", "system:masters");
        let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
        let made = send(&mut admin, "POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
        assert_eq!(made.code, 201);
        Self { admin, server: Arc::new(keys), _stop: stop.drop_guard(), _folder: folder }
    }

    pub async fn admin(&mut self, method: &str, path: &str, body: Value) -> Answer {
        send(&mut self.admin, method, path, body).await
    }
}

pub struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

pub async fn send(client: &mut Client, method: &str, path: &str, body: Value) -> Answer {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    send_as(client, method, path, media, body).await
}

pub async fn send_as(client: &mut Client, method: &str, path: &str, media: &str, body: Value) -> Answer {
    let headers = [("content-type", media.to_owned())];
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(Identity::Admin, method, path, &headers, text.as_bytes()).await;
    let warnings = answer.headers.get_all("warning").iter().map(|value| {
        let text = value.to_str().unwrap().strip_prefix("299 - \"").unwrap().strip_suffix('"').unwrap();
        text.replace("\\\"", "\"")
    });
    let warnings = warnings.collect();
    Answer { code: answer.code, body: serde_json::from_slice(&answer.body).unwrap_or_default(), warnings }
}
