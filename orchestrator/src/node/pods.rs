//! The pods bound to this node, from the API to the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use api::selector::Fields;
use api::view::Endpoint;
use apiserver::ObjectKey;
use apiserver::client::Client;
use apiserver::engine::{Event, EventKind, WatchOptions};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::controllers::Caches;
use crate::controllers::views::PODS;
use crate::node::services::Settled;

/// Tells the agent when something changed that pods may have mounted.
pub fn tell_content(caches: &Caches, agent: &Arc<Agent>) {
    let maps = agent.clone();
    caches.config_maps.on_change(move |old, new| {
        if let Some(map) = new.or(old) {
            maps.content_changed(&map.metadata.meta.namespace);
        }
    });
    let secrets = agent.clone();
    caches.secrets.on_change(move |old, new| {
        if let Some(secret) = new.or(old) {
            secrets.content_changed(&secret.metadata.meta.namespace);
        }
    });
}

/// A pod is told to stop only when this node sends it no new connections, but never later than this.
const DRAIN: Duration = Duration::from_secs(1);

/// What [`follow`] works with.
pub struct Follower {
    pub client: Client,
    pub node: String,
    pub agent: Arc<Agent>,
    pub caches: Arc<Caches>,
    pub settled: Settled,
}

/// The pods of this node as one watch sees them.
struct Relay<'a> {
    follower: &'a Follower,
    /// Collects the first state; `None` afterwards.
    initial: Option<Vec<Arc<Value>>>,
    uids: BTreeMap<ObjectKey, String>,
    drained: mpsc::UnboundedSender<Arc<Value>>,
}

impl Relay<'_> {
    /// Has a pod that is on its way out come back when the service path has let go of it.
    fn drain(&self, pod: Arc<Value>) {
        let (caches, mut settled, done) =
            (self.follower.caches.clone(), self.follower.settled.clone(), self.drained.clone());
        tokio::spawn(async move {
            let _in_time = tokio::time::timeout(DRAIN, drained(&pod, &caches, &mut settled)).await;
            // A relay that ended starts over with the whole state.
            let _ = done.send(pod);
        });
    }

    /// Gives a drained pod to the agent, unless it is gone by now.
    fn stop(&self, pod: Arc<Value>) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        if self.uids.values().any(|known| known == uid) {
            self.follower.agent.sync(pod);
        }
    }

    fn take(&mut self, event: Event) {
        let agent = &self.follower.agent;
        let Some(object) = event.object else {
            if let (EventKind::InitialEnd, Some(pods)) = (event.kind, self.initial.take()) {
                agent.resync(pods);
            }
            return;
        };
        if event.kind == EventKind::Deleted {
            self.uids.remove(&object.key);
            agent.gone(&object.header.uid);
            return;
        }
        // A namesake may have taken the place between two looks.
        if let Some(before) = self
            .uids
            .insert(object.key.clone(), object.header.uid.clone())
            .filter(|before| *before != object.header.uid)
        {
            agent.gone(&before);
        }
        let pod = Arc::new(object.value());
        match &mut self.initial {
            Some(pods) => pods.push(pod),
            None if pod["metadata"]["deletionTimestamp"].is_string() => self.drain(pod),
            None => agent.sync(pod),
        }
    }
}

/// Waits until no slice offers the pod for new connections, and the kernel knows.
async fn drained(pod: &Value, caches: &Caches, settled: &mut Settled) {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let mut seen = caches.slices.subscribe();
    loop {
        seen.mark_unchanged();
        let offers = |endpoint: &Endpoint| {
            endpoint.conditions.is_ready() && endpoint.target_ref.as_ref().is_some_and(|target| target.uid == uid)
        };
        let offered = caches
            .slices
            .namespace(pod["metadata"]["namespace"].as_str().unwrap_or_default())
            .iter()
            .any(|slice| slice.endpoints.iter().any(offers));
        if !offered {
            return settled.caught_up(caches).await;
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Follows them for ever; starts over from the whole state when it fell behind.
pub async fn follow(follower: Follower) {
    loop {
        match watch(&follower.client, &follower.node) {
            Ok(watch) => relay(watch, &follower).await,
            Err(error) => tracing::error!(%error, "pods of this node cannot be watched"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn watch(client: &Client, node: &str) -> Result<apiserver::engine::Watch, api::status::Status> {
    let kind = client.engine().registry().find("", "v1", "pods").ok_or_else(api::status::Status::no_route)?;
    let fields = Fields::parse(&kind, &format!("spec.nodeName={node}")).map_err(api::status::Status::bad_request)?;
    client.watch(PODS, "", WatchOptions { fields, initial_events: true, ..WatchOptions::default() })
}

async fn relay(mut watch: apiserver::engine::Watch, follower: &Follower) {
    let (drained, mut done) = mpsc::unbounded_channel();
    let mut relay = Relay { follower, initial: Some(Vec::new()), uids: BTreeMap::new(), drained };
    loop {
        tokio::select! {
            events = watch.next() => match events {
                Ok(events) => events.into_iter().for_each(|event| relay.take(event)),
                Err(_) => return, // fell behind: the next watch brings the whole state
            },
            Some(pod) = done.recv() => relay.stop(pod),
        }
    }
}
