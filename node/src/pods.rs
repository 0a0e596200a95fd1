//! The pods bound to this node, from the API to the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use api::view::{Endpoint, EndpointSlice};
use client::{Caches, Client, Event, EventStream, Key, Selector};
use serde_json::Value;
use tokio::sync::mpsc;

use client::views::PODS;

use crate::services::Settled;
use crate::views::{ConfigMap, Secret};

/// Tells the agent when something changed that pods may have mounted.
pub fn tell_content(caches: &Caches, agent: &Arc<Agent>) {
    let maps = agent.clone();
    caches.of::<ConfigMap>().on_change(move |old, new| {
        if let Some(map) = new.or(old) {
            maps.content_changed(&map.metadata.namespace);
        }
    });
    let secrets = agent.clone();
    caches.of::<Secret>().on_change(move |old, new| {
        if let Some(secret) = new.or(old) {
            secrets.content_changed(&secret.metadata.namespace);
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
    uids: BTreeMap<Key, String>,
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
        let item = match event {
            Event::Applied(item) => item,
            Event::Deleted(item) => {
                if let Some(uid) = self.uids.remove(&item.key) {
                    agent.gone(&uid);
                }
                return;
            }
            Event::Synced(_) => {
                if let Some(pods) = self.initial.take() {
                    agent.resync(pods);
                }
                return;
            }
            Event::Bookmark(_) => return,
        };
        let pod = Arc::new(item.value());
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        // A namesake may have taken the place between two looks.
        if let Some(before) = self.uids.insert(item.key, uid.clone()).filter(|before| *before != uid) {
            agent.gone(&before);
        }
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
    let mut seen = caches.of::<EndpointSlice>().subscribe();
    loop {
        seen.mark_unchanged();
        let offers = |endpoint: &Endpoint| {
            endpoint.conditions.is_ready() && endpoint.target_ref.as_ref().is_some_and(|target| target.uid == uid)
        };
        let offered = caches
            .of::<EndpointSlice>()
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
        let own = Selector::fields(format!("spec.nodeName={}", follower.node));
        match follower.client.watch(&PODS, "", &own).await {
            Ok(watch) => relay(watch, &follower).await,
            Err(error) => tracing::error!(%error, "pods of this node cannot be watched"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn relay(mut watch: Box<dyn EventStream>, follower: &Follower) {
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
