//! The pods bound to this node, from the API to the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use api::uid::Uid;
use api::view::{Endpoint, EndpointSlice};
use client::follow::{self, Scope, Step};
use client::views::PODS;
use client::{Caches, Client, Item, Key};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::content::{Content, Met};
use crate::outlook::Outlook;
use crate::services::Settled;

/// Who runs the pods.
pub trait Runner: Send + Sync + 'static {
    /// A pod bound to this node, as it is now.
    fn sync(&self, pod: Arc<Value>);
    /// The pod's object is gone.
    fn gone(&self, uid: &Uid);
    /// All pods bound to this node.
    fn resync(&self, pods: Vec<Arc<Value>>);
    /// Something that the pod uses has changed.
    fn content_changed(&self, uid: &Uid);
}

impl Runner for Agent {
    fn sync(&self, pod: Arc<Value>) {
        Agent::sync(self, pod);
    }

    fn gone(&self, uid: &Uid) {
        Agent::gone(self, uid);
    }

    fn resync(&self, pods: Vec<Arc<Value>>) {
        Agent::resync(self, pods);
    }

    fn content_changed(&self, uid: &Uid) {
        Agent::content_changed(self, uid);
    }
}

/// A pod is told to stop only when this node sends it no new connections, but never later than this.
const DRAIN: Duration = Duration::from_secs(1);

/// What [`follow`] works with.
pub struct Follower<R> {
    pub client: Client,
    pub node: String,
    pub runner: Arc<R>,
    pub outlook: Outlook,
    /// UIDs of pods whose content changed.
    pub changed: mpsc::UnboundedReceiver<Uid>,
    pub settled: Settled,
}

/// The pods of this node as one watch sees them.
struct Relay<R> {
    runner: Arc<R>,
    views: Arc<Caches>,
    content: Arc<Content>,
    settled: Settled,
    /// Collects the first state; `None` afterwards.
    initial: Option<BTreeMap<Key, Arc<Value>>>,
    uids: BTreeMap<Key, Uid>,
    drained: mpsc::UnboundedSender<Arc<Value>>,
}

impl<R: Runner> Relay<R> {
    /// Has a pod that is on its way out come back when the service path has let go of it.
    fn drain(&self, pod: Arc<Value>) {
        let (views, mut settled, done) = (self.views.clone(), self.settled.clone(), self.drained.clone());
        tokio::spawn(async move {
            let _in_time = tokio::time::timeout(DRAIN, drained(&pod, &views, &mut settled)).await;
            // Nobody listens to a node that ends.
            let _ = done.send(pod);
        });
    }

    /// Gives a drained pod to the runner, unless it is gone by now.
    fn stop(&self, pod: Arc<Value>) {
        if self.uids.values().any(|known| pod["metadata"]["uid"] == *known) {
            self.runner.sync(pod);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Set(item) => self.set(item),
            Step::Remove(key) => self.remove(&key),
            Step::Retain(there) => self.retain(&there),
            Step::Seen(_) => {}
        }
    }

    fn set(&mut self, item: Item) {
        let pod = Arc::new(item.value());
        let uid = Uid::of(&pod);
        // A namesake may have taken the place between two looks.
        if let Some(before) = self.uids.insert(item.key.clone(), uid.clone()).filter(|before| *before != uid) {
            self.leave(&before);
        }
        // Before the runner hears of it: what it asks for is watched by then.
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => self.content.release(&uid),
            _ => {
                let met = if self.initial.is_some() { Met::Running } else { Met::New };
                self.content.use_by(&uid, &item, &pod["spec"], met);
            }
        }
        match &mut self.initial {
            Some(pods) => drop(pods.insert(item.key, pod)),
            None if pod["metadata"]["deletionTimestamp"].is_string() => self.drain(pod),
            None => self.runner.sync(pod),
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(uid) = self.uids.remove(key) {
            self.leave(&uid);
        }
    }

    fn leave(&self, uid: &Uid) {
        self.content.release(uid);
        self.runner.gone(uid);
    }

    /// The whole state is here: for the first time, or again after changes that nobody told.
    fn retain(&mut self, there: &BTreeSet<Key>) {
        if let Some(pods) = self.initial.take() {
            let pods = pods.into_iter().filter(|(key, _)| there.contains(key)).map(|(_, pod)| pod);
            self.runner.resync(pods.collect());
        }
        let gone: Vec<Key> = self.uids.keys().filter(|key| !there.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
    }
}

/// Waits until no slice offers the pod for new connections, and the kernel knows.
async fn drained(pod: &Value, views: &Caches, settled: &mut Settled) {
    let uid = Uid::of(pod);
    let mut seen = views.of::<EndpointSlice>().subscribe();
    loop {
        seen.mark_unchanged();
        let offers = |endpoint: &Endpoint| {
            endpoint.conditions.is_ready() && endpoint.target_ref.as_ref().is_some_and(|target| target.uid == uid)
        };
        let offered = views
            .of::<EndpointSlice>()
            .namespace(pod["metadata"]["namespace"].as_str().unwrap_or_default())
            .iter()
            .any(|slice| slice.endpoints.iter().any(offers));
        if !offered {
            return settled.caught_up(views).await;
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Follows them for ever.
pub async fn follow<R: Runner>(follower: Follower<R>) {
    let Follower { client, node, runner, outlook, mut changed, settled } = follower;
    let (drained, mut done) = mpsc::unbounded_channel();
    let (steps, mut coming) = mpsc::unbounded_channel();
    let Outlook { views, content, .. } = outlook;
    let mut relay =
        Relay { runner, views, content, settled, initial: Some(BTreeMap::new()), uids: BTreeMap::new(), drained };
    // Received below, as long as this runs.
    let own = Scope::fields(format!("spec.nodeName={node}"));
    let watch = follow::run(client, PODS, own, move |step| drop(steps.send(step)));
    tokio::pin!(watch);
    loop {
        tokio::select! {
            () = &mut watch => return,
            Some(step) = coming.recv() => relay.take(step),
            Some(pod) = done.recv() => relay.stop(pod),
            Some(uid) = changed.recv() => relay.runner.content_changed(&uid),
        }
    }
}
