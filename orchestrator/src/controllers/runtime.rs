//! What every controller shares: its work queue, its workers, and the one way in which a plan takes effect.
//!
//! `reconcile(key, caches) -> plan` is pure and told which key, never why; [`Action`]s leave no choice open. A worker
//! reads its own writes: before a reconcile it waits until the caches hold everything this controller wrote.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::status::Status;
use apiserver::Revision;
use apiserver::client::{Client, Resource};
use apiserver::engine::{DeleteOptions, Propagation};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Caches;
use super::informer::Key;
use crate::events::{EventType, Recorder, Reference};

/// Workers of one controller: different keys at the same time, never one key twice.
const WORKERS: usize = 4;
/// Actions of one plan under way at once; the store commits them in groups.
const CONCURRENT: usize = 32;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// With `announce`, an event on that object names what was made.
    Create {
        resource: Resource,
        namespace: String,
        object: Value,
        announce: Option<Reference>,
    },
    /// A JSON merge patch; with `version` only if the object is still at it.
    Patch {
        resource: Resource,
        key: Key,
        subresource: &'static str,
        version: Option<String>,
        patch: Value,
    },
    Delete {
        resource: Resource,
        key: Key,
        uid: Option<String>,
        propagation: Option<Propagation>,
    },
    /// Reconcile this key again after a while.
    Again {
        key: Key,
        after: Duration,
    },
    /// Says what the rest of the plan does.
    Event {
        about: Reference,
        type_: EventType,
        reason: &'static str,
        message: String,
    },
    /// One, then two, then four … at once, until one fails: what refuses one would refuse them all.
    Slowly(Vec<Action>),
}

/// What kind of write it was that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create,
    Change,
    Delete,
}

/// The first write of a plan that was refused.
#[derive(Debug, Clone)]
pub struct Failure {
    pub act: Act,
    pub status: Status,
}

pub type Plan = Vec<Action>;

/// A controller: pure.
pub trait Controller: Send + Sync + 'static {
    /// As kube-controller-manager's `--controllers` names it.
    const NAME: &'static str;
    /// The service account of kube-system whose default role it uses.
    const ACCOUNT: &'static str;
    /// Says which keys a change concerns.
    fn watch(&self, caches: &Caches, queue: &Queue);
    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan;
    /// What is to be said of a plan that failed; it is tried again in any case.
    fn failed(&self, _key: &Key, _caches: &Caches, _failure: &Failure) -> Plan {
        Plan::new()
    }
}

#[derive(Default)]
struct QueueState {
    ready: VecDeque<Key>,
    waiting: HashSet<Key>,
    running: HashSet<Key>,
    failures: HashMap<Key, u32>,
}

/// Keys to reconcile, each at most once, never the same one twice at a time; clones share it.
#[derive(Clone, Default)]
pub struct Queue {
    state: Arc<Mutex<QueueState>>,
    wake: Arc<Notify>,
}

impl Queue {
    fn with<R>(&self, act: impl FnOnce(&mut QueueState) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn add(&self, key: Key) {
        let new = self.with(|state| {
            let new = state.waiting.insert(key.clone());
            // A key that is being worked on comes back when that is done.
            if new && !state.running.contains(&key) {
                state.ready.push_back(key);
            }
            new
        });
        if new {
            self.wake.notify_one();
        }
    }

    pub fn add_after(&self, key: Key, after: Duration) {
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            queue.add(key);
        });
    }

    async fn take(&self) -> Key {
        loop {
            let woken = self.wake.notified();
            let taken = self.with(|state| {
                let key = state.ready.pop_front()?;
                state.waiting.remove(&key);
                state.running.insert(key.clone());
                Some(key)
            });
            match taken {
                Some(key) => {
                    // One wake-up may stand for several keys.
                    self.wake.notify_one();
                    return key;
                }
                None => woken.await,
            }
        }
    }

    fn done(&self, key: Key, failed: bool) {
        let retry = self.with(|state| {
            state.running.remove(&key);
            if state.waiting.contains(&key) {
                state.ready.push_back(key.clone());
                self.wake.notify_one();
            }
            if !failed {
                state.failures.remove(&key);
                return None;
            }
            let count = state.failures.entry(key.clone()).or_insert(0);
            *count += 1;
            Some(FIRST_RETRY.saturating_mul(1 << (*count - 1).min(16)).min(LAST_RETRY))
        });
        if let Some(after) = retry {
            self.add_after(key, after);
        }
    }
}

/// Runs a controller's workers for ever.
pub async fn run<C: Controller>(controller: C, client: Client, caches: Arc<Caches>) {
    let queue = Queue::default();
    let controller = Arc::new(controller);
    controller.watch(&caches, &queue);
    caches.synced().await;
    let workers = (0..WORKERS).map(|_| work(controller.clone(), client.clone(), caches.clone(), queue.clone()));
    futures::future::join_all(workers).await;
}

async fn work<C: Controller>(controller: Arc<C>, client: Client, caches: Arc<Caches>, queue: Queue) {
    let recorder = Recorder::new(client.clone(), C::NAME, "");
    let hands = Hands { client, queue, recorder };
    let mut written: HashMap<Resource, Revision> = HashMap::new();
    loop {
        let key = hands.queue.take().await;
        for (resource, revision) in written.drain() {
            caches.caught_up(resource, revision).await;
        }
        let mut applied = hands.apply(controller.reconcile(&key, &caches)).await;
        if let Some(failure) = &applied.failure {
            tell(C::NAME, &key, &failure.status);
            let said = hands.apply(controller.failed(&key, &caches, failure)).await;
            if let Some(unsaid) = &said.failure {
                tell(C::NAME, &key, &unsaid.status);
            }
            applied.written.extend(said.written);
        }
        for (resource, revision) in applied.written {
            let last = written.entry(resource).or_insert(0);
            *last = revision.max(*last);
        }
        hands.queue.done(key, applied.failure.is_some());
    }
}

fn tell(controller: &str, key: &Key, error: &Status) {
    let key = format!("{}/{}", key.namespace, key.name);
    // Two writers met: routine, and the retry sees the other's state.
    match error.code {
        409 => tracing::debug!(controller, key, %error, "will retry"),
        _ => tracing::warn!(controller, key, %error, "will retry"),
    }
}

/// What came of actions: the revision of each write, and the first failure. The others were tried all the same.
#[derive(Debug, Default)]
struct Applied {
    written: Vec<(Resource, Revision)>,
    failure: Option<Failure>,
}

impl Applied {
    fn add(&mut self, other: Applied) {
        self.written.extend(other.written);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Everything that a plan takes effect through.
struct Hands {
    client: Client,
    queue: Queue,
    recorder: Recorder,
}

impl Hands {
    async fn apply(&self, plan: Plan) -> Applied {
        let mut outcomes = futures::stream::iter(plan).map(|action| self.act(action)).buffer_unordered(CONCURRENT);
        let mut all = Applied::default();
        while let Some(outcome) = outcomes.next().await {
            all.add(outcome);
        }
        all
    }

    async fn slowly(&self, mut actions: Vec<Action>) -> Applied {
        let mut all = Applied::default();
        let mut size = 1;
        while !actions.is_empty() && all.failure.is_none() {
            let rest = actions.split_off(size.min(actions.len()));
            all.add(self.apply(std::mem::replace(&mut actions, rest)).await);
            size *= 2;
        }
        all
    }

    async fn act(&self, action: Action) -> Applied {
        let outcome = match action {
            Action::Create { resource, namespace, object, announce } => {
                let created = self.client.create(resource, &namespace, object).await;
                self.created(resource, created, announce).await.map_err(|status| Failure { act: Act::Create, status })
            }
            Action::Patch { resource, key, subresource, version, patch } => {
                let merge = |current: &Value| {
                    if let Some(version) = &version
                        && current["metadata"]["resourceVersion"] != json!(version)
                    {
                        return Err(Status::modified(resource.group, resource.plural, &key.name));
                    }
                    let mut next = current.clone();
                    merge(&mut next, &patch);
                    Ok(next)
                };
                match self.client.update(resource, &key.namespace, &key.name, subresource, merge).await {
                    Ok(changed) => Ok(Some((resource, revision(&changed)))),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(Failure { act: Act::Change, status }),
                }
            }
            Action::Delete { resource, key, uid, propagation } => {
                let options = DeleteOptions { uid, propagation, ..DeleteOptions::default() };
                match self.client.delete(resource, &key.namespace, &key.name, &options).await {
                    Ok(deleted) => Ok(Some((resource, deleted.revision()))),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(Failure { act: Act::Delete, status }),
                }
            }
            Action::Again { key, after } => {
                self.queue.add_after(key, after);
                Ok(None)
            }
            Action::Event { about, type_, reason, message } => {
                self.recorder.record(&about, type_, reason, &message).await;
                Ok(None)
            }
            Action::Slowly(actions) => return Box::pin(self.slowly(actions)).await,
        };
        match outcome {
            Ok(written) => Applied { written: written.into_iter().collect(), failure: None },
            Err(failure) => Applied { written: Vec::new(), failure: Some(failure) },
        }
    }

    async fn created(
        &self,
        resource: Resource,
        created: Result<Value, Status>,
        announce: Option<Reference>,
    ) -> Result<Option<(Resource, Revision)>, Status> {
        match created {
            Ok(created) => {
                if let Some(about) = announce {
                    let kind = created["kind"].as_str().unwrap_or_default().to_lowercase();
                    let name = created["metadata"]["name"].as_str().unwrap_or_default();
                    let message = format!("Created {kind}: {name}");
                    self.recorder.record(&about, EventType::Normal, "SuccessfulCreate", &message).await;
                }
                Ok(Some((resource, revision(&created))))
            }
            // Its namespace goes, and this object's owner with it.
            Err(status) if status.has_cause("NamespaceTerminating") => Ok(None),
            Err(status) => Err(status),
        }
    }
}

fn revision(object: &Value) -> Revision {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(key)),
            value => merge(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_once_at_a_time_and_comes_back_if_it_changed() {
        let queue = Queue::default();
        let key = Key::new("ns", "a");
        queue.add(key.clone());
        queue.add(key.clone());
        assert_eq!(queue.take().await, key);
        queue.add(key.clone());
        let early = tokio::time::timeout(Duration::from_secs(1), queue.take()).await;
        assert!(early.is_err(), "it is being worked on");
        queue.done(key.clone(), false);
        assert_eq!(queue.take().await, key);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off() {
        let queue = Queue::default();
        let key = Key::new("ns", "a");
        queue.add(key.clone());
        let started = tokio::time::Instant::now();
        for _ in 0..4 {
            let taken = queue.take().await;
            queue.done(taken, true);
        }
        queue.take().await;
        assert!(started.elapsed() >= FIRST_RETRY * (1 + 2 + 4 + 8));
    }

    #[test]
    fn merging_follows_the_standard() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut target, &json!({"a": {"b": null, "e": {"f": null, "g": 1}}, "d": [2]}));
        assert_eq!(target, json!({"a": {"c": 2, "e": {"g": 1}}, "d": [2]}));
    }
}
