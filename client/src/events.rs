//! Events: what happened to an object, said once and counted when it happens again.

use std::sync::{Arc, Mutex, PoisonError};

use api::uid::Uid;
use api::view::Meta;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::Client;
use crate::object::Resource;
use correlator::{Correlator, Known};

mod correlator;

const EVENTS: Resource = Resource::core("events");

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
    pub field_path: String,
}

impl Reference {
    pub fn pod(meta: &Meta) -> Self {
        Self::new("v1", "Pod", meta)
    }

    pub fn new(api_version: &str, kind: &str, meta: &Meta) -> Self {
        Self {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            field_path: String::new(),
        }
    }
}

/// What kind of news it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Writes events under one component's name; clones share what was said before.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    component: String,
    host: String,
    correlator: Arc<Mutex<Correlator>>,
}

impl Recorder {
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        Self { client, component: component.into(), host: host.into(), correlator: Arc::default() }
    }

    pub async fn normal(&self, about: &Reference, reason: &str, message: &str) {
        self.record(about, EventType::Normal, reason, message).await;
    }

    pub async fn warning(&self, about: &Reference, reason: &str, message: &str) {
        self.record(about, EventType::Warning, reason, message).await;
    }

    /// An event that cannot be written is logged: it must not stop what it is about.
    pub async fn record(&self, about: &Reference, type_: EventType, reason: &str, message: &str) {
        let Some(news) = self.correlate(|all| all.take(about, type_, reason, message, Instant::now())) else {
            tracing::debug!(
                reason,
                object = about.name,
                message,
                "event held back: there were too many of this object"
            );
            return;
        };
        if let Some(known) = &news.known
            && self.count(&namespace(about), known, &news.message).await
        {
            return;
        }
        match self.client.create(&EVENTS, &namespace(about), self.event(about, type_, reason, &news.message)).await {
            Ok(created) => {
                let name = created["metadata"]["name"].as_str().unwrap_or_default();
                self.correlate(|all| all.remember(news.key, Known { name: name.to_owned(), count: 1 }));
            }
            // Its namespace is on its way out: nobody will ask.
            Err(error) if matches!(error.code, 403 | 404) => {
                tracing::debug!(reason, object = about.name, %error, "event not written")
            }
            Err(error) => tracing::warn!(reason, object = about.name, %error, "event not written"),
        }
    }

    /// The correlator stays usable after a panic: no change to it is ever half done.
    fn correlate<R>(&self, act: impl FnOnce(&mut Correlator) -> R) -> R {
        act(&mut self.correlator.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts an event once more; false when it is gone.
    async fn count(&self, namespace: &str, known: &Known, message: &str) -> bool {
        let now = api::time::rfc3339(Timestamp::now());
        let again = json!({"count": known.count, "lastTimestamp": now, "message": message});
        self.client.patch(&EVENTS, namespace, &known.name, "", &again).await.is_ok()
    }

    fn event(&self, about: &Reference, type_: EventType, reason: &str, message: &str) -> Value {
        let now = Timestamp::now();
        let time = api::time::rfc3339(now);
        let mut source = json!({"component": self.component});
        if !self.host.is_empty() {
            source["host"] = json!(self.host);
        }
        let mut involved =
            json!({"apiVersion": about.api_version, "kind": about.kind, "name": about.name, "uid": about.uid});
        if !about.namespace.is_empty() {
            involved["namespace"] = json!(about.namespace);
        }
        if !about.field_path.is_empty() {
            involved["fieldPath"] = json!(about.field_path);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("{}.{:x}", about.name, now.as_nanosecond()), "namespace": namespace(about)},
            "involvedObject": involved,
            "type": type_.as_str(),
            "reason": reason,
            "message": message,
            "source": source,
            "reportingComponent": self.component,
            "reportingInstance": self.host,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        })
    }
}

/// Events of cluster-scoped objects live in `default`.
fn namespace(about: &Reference) -> String {
    if about.namespace.is_empty() { "default".into() } else { about.namespace.clone() }
}
