//! The ConfigMaps and Secrets that this node's pods refer to: each watched by its name, while some pod here uses it.
//!
//! 1. An object is watched once, however many pods use it, and no longer when the last of them is gone.
//! 2. What a pod gets is no older than the pod: an object that was changed before its pod was made is seen changed.
//! 3. A change is told to the pods that use the object, and to no others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::boundary::PodRef;
use api::references::Referent;
use api::status::Status;
use api::uid::Uid;
use client::follow::{self, Scope, Step};
use client::{Client, Item, Key, Resource, Revision};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use uses::{Object, Uses};

mod uses;

/// How long the first state of an object is waited for, before it is asked for by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a watch shows of one object.
#[derive(Debug, Clone, Default)]
struct Shown {
    /// The revision up to which it was looked at; 0 until the first state is complete.
    seen: Revision,
    /// A pod may have got it past this watch, before the first state: that is news then.
    asked: bool,
    item: Option<Item>,
}

/// How a pod came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// With the first state: it may run already, with what it asked for before anything was watched.
    Running,
    New,
}

struct Watched {
    shown: watch::Sender<Shown>,
    task: AbortHandle,
}

impl Watched {
    /// What is shown, once something is; `None` when the watch does not begin in time.
    async fn first(&self) -> Option<Shown> {
        let mut shown = self.shown.subscribe();
        let first = tokio::time::timeout(PATIENCE, shown.wait_for(|shown| shown.seen > 0)).await;
        // The sender lives as long as we do.
        Some(first.ok()?.ok()?.clone())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
struct State {
    uses: Uses,
    watched: HashMap<Object, Arc<Watched>>,
}

/// See the module's text.
pub struct Content {
    client: Client,
    state: Arc<Mutex<State>>,
    /// UIDs of pods that use what changed.
    changed: mpsc::UnboundedSender<Uid>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resource(kind: Referent) -> Resource {
    Resource::core(kind.plural())
}

impl Content {
    /// The other end tells the UIDs of pods whose content changed.
    pub fn new(client: Client) -> (Self, mpsc::UnboundedReceiver<Uid>) {
        let (changed, told) = mpsc::unbounded_channel();
        (Self { client, state: Arc::default(), changed }, told)
    }

    /// A pod of this node as it is now.
    pub fn use_by(&self, uid: &Uid, pod: &Item, spec: &Value, met: Met) {
        let mut state = lock(&self.state);
        let change = state.uses.add(uid, &pod.key.namespace, pod.revision, spec);
        state.watched.retain(|object, _| !change.unused.contains(object));
        for object in change.new {
            let watched = Arc::new(self.watch(&object, met));
            state.watched.insert(object, watched);
        }
    }

    /// A pod that needs nothing any more.
    pub fn release(&self, uid: &Uid) {
        let mut state = lock(&self.state);
        let unused = state.uses.remove(uid);
        state.watched.retain(|object, _| !unused.contains(object));
    }

    /// How many objects are watched.
    pub fn watched(&self) -> usize {
        lock(&self.state).watched.len()
    }

    fn watch(&self, object: &Object, met: Met) -> Watched {
        let shown = watch::Sender::new(Shown { asked: met == Met::Running, ..Shown::default() });
        let scope =
            Scope { namespace: object.namespace.clone(), ..Scope::fields(format!("metadata.name={}", object.name)) };
        let (place, told) = (Place { object: object.clone(), shown: shown.clone() }, self.changed.clone());
        let state = Arc::downgrade(&self.state);
        let follow = follow::run(self.client.clone(), resource(object.kind), scope, move |step| {
            if place.take(step) == News::Changed
                && let Some(state) = state.upgrade()
            {
                // Nobody listens to a node that ends.
                lock(&state).uses.of(&place.object).for_each(|uid| drop(told.send(uid.clone())));
            }
        });
        Watched { shown, task: tokio::spawn(follow).abort_handle() }
    }

    /// An object as a pod needs it.
    ///
    /// # Errors
    /// 404 where it is not there; what the server says.
    pub async fn get(&self, kind: Referent, pod: &PodRef, name: &str) -> Result<Arc<Value>, Status> {
        let object = Object { kind, namespace: pod.namespace.clone(), name: name.to_owned() };
        let (since, watched) = {
            let state = lock(&self.state);
            (state.uses.since(&pod.uid), state.watched.get(&object).cloned())
        };
        let (Some(since), Some(watched)) = (since, watched) else { return self.ask(&object).await };
        let Some(known) = watched.first().await else {
            watched.shown.send_modify(|shown| shown.asked = true);
            return self.ask(&object).await;
        };
        if known.seen >= since {
            return known.item.map(|item| Arc::new(item.value())).ok_or_else(|| not_found(&object));
        }
        let fresh = self.ask(&object).await;
        if is_as_known(&fresh, known.item.as_ref()) {
            watched.shown.send_if_modified(|shown| {
                // What came meanwhile was looked at later still.
                shown.seen = shown.seen.max(since);
                false
            });
        }
        fresh
    }

    async fn ask(&self, object: &Object) -> Result<Arc<Value>, Status> {
        self.client.get(&resource(object.kind), &object.namespace, &object.name).await.map(Arc::new)
    }
}

fn not_found(object: &Object) -> Status {
    Status::not_found("", object.kind.plural(), &object.name)
}

/// The server's answer is what the watch showed: the watch had seen that much, and did not know.
fn is_as_known(fresh: &Result<Arc<Value>, Status>, known: Option<&Item>) -> bool {
    match (fresh, known) {
        (Ok(fresh), Some(known)) => {
            let revision = fresh["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
            revision == Some(known.revision)
        }
        (Err(refused), None) => refused.code == 404,
        _ => false,
    }
}

/// What a step meant to those who use the object.
#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    Changed,
}

/// Where the steps of one watch go.
struct Place {
    object: Object,
    shown: watch::Sender<Shown>,
}

impl Place {
    fn take(&self, step: Step) -> News {
        let key = Key::new(&self.object.namespace, &self.object.name);
        match step {
            Step::Set(item) if item.key == key => self.set(Some(item)),
            Step::Remove(gone) if gone == key => self.set(None),
            Step::Retain(there) if !there.contains(&key) => self.set(None),
            Step::Seen(revision) => self.see(revision),
            _ => News::None,
        }
    }

    fn see(&self, revision: Revision) -> News {
        let mut news = News::None;
        self.shown.send_modify(|shown| {
            if shown.seen == 0 && std::mem::take(&mut shown.asked) {
                news = News::Changed;
            }
            shown.seen = shown.seen.max(revision);
        });
        news
    }

    fn set(&self, item: Option<Item>) -> News {
        let mut news = News::None;
        self.shown.send_modify(|shown| {
            let revision = |item: &Option<Item>| item.as_ref().map(|item| item.revision);
            // The first state is nobody's news: who needs it waits for it.
            if shown.seen > 0 && revision(&shown.item) != revision(&item) {
                news = News::Changed;
            }
            shown.item = item;
        });
        news
    }
}

#[cfg(test)]
mod tests;
