//! What every controller shares: its work queue, its workers, and the one way in which a plan takes effect.
//!
//! `reconcile(key, caches) -> plan` is pure and told which key, never why; [`Action`]s leave no choice open. A worker
//! reads its own writes: a key comes back only when the caches show what its last reconcile wrote.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use api::uid::Uid;
use api::view::Meta;
use client::events::{EventType, Recorder, Reference};
use client::queue::Outcome;
use client::{Caches, Client, DeleteOptions, Kept, Key, Propagation, Resource, Wrote};
use futures::StreamExt;
use serde_json::{Value, json};

use super::given::{Account, Given};
use super::pods;
use super::views::PODS;

/// Workers of one controller: different keys at the same time, never one key twice.
const WORKERS: usize = 4;
/// Actions of one plan under way at once; the store commits them in groups.
const CONCURRENT: usize = 32;

const ACCESS_REVIEWS: Resource = Resource::new("authorization.k8s.io", "subjectaccessreviews");

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
        uid: Option<Uid>,
        propagation: Option<Propagation>,
    },
    /// The end of a pod for others' sake, with the reason and message of the condition that says so.
    SendAway {
        pod: Meta,
        reason: &'static str,
        message: String,
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
    /// What is done where a review (`spec` of a SubjectAccessReview) says that somebody may do something, and where it says no.
    IfAllowed {
        review: Value,
        then: Plan,
        otherwise: Plan,
    },
    /// One, then two, then four … at once, until one fails: what refuses one would refuse them all.
    Slowly(Vec<Action>),
    /// One after the other, until one fails: each stands on the one before.
    InTurn(Vec<Action>),
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
    /// What its events say they come from.
    const SOURCE: &'static str = Self::NAME;
    /// The service account of kube-system whose default role it uses.
    const ACCOUNT: Account;
    /// The views it reads.
    const READS: &'static [Kept];

    fn new(given: &Given) -> Self;

    /// Says which keys a change concerns.
    fn watch(&self, caches: &Caches, queue: &Queue);
    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan;
    /// What is to be said of a plan that failed; it is tried again in any case.
    fn failed(&self, _key: &Key, _caches: &Caches, _failure: &Failure) -> Plan {
        Plan::new()
    }
}

/// The keys of one controller.
pub type Queue = client::queue::Queue<Key>;

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
    let recorder = Recorder::new(client.clone(), C::SOURCE, "");
    let hands = Hands { client, queue, recorder };
    loop {
        let key = hands.queue.take().await;
        let mut applied = hands.apply(controller.reconcile(&key, &caches)).await;
        if let Some(failure) = &applied.failure {
            tell(C::NAME, &key, &failure.status);
            let said = hands.apply(controller.failed(&key, &caches, failure)).await;
            if let Some(unsaid) = &said.failure {
                tell(C::NAME, &key, &unsaid.status);
            }
            applied.written.extend(said.written);
        }
        hands.queue.done(&key, if applied.failure.is_some() { Outcome::Failed } else { Outcome::Done });
        for (resource, wrote) in &applied.written {
            caches.show(resource, wrote).await;
        }
        hands.queue.settled(&key);
    }
}

fn tell(controller: &str, key: &Key, error: &Status) {
    // Two writers met: routine, and the retry sees the other's state.
    match error.code {
        409 => tracing::debug!(controller, %key, %error, "will retry"),
        _ => tracing::warn!(controller, %key, %error, "will retry"),
    }
}

/// What came of actions: each write, and the first failure. The others were tried all the same.
#[derive(Debug, Default)]
struct Applied {
    written: Vec<(Resource, Wrote)>,
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

    async fn in_turn(&self, actions: Vec<Action>) -> Applied {
        let mut all = Applied::default();
        for action in actions {
            if all.failure.is_none() {
                all.add(self.act(action).await);
            }
        }
        all
    }

    async fn act(&self, action: Action) -> Applied {
        let outcome = match action {
            Action::Create { resource, namespace, object, announce } => {
                let created = self.client.create(&resource, &namespace, object).await;
                self.created(resource, created, announce).await.map_err(|status| Failure { act: Act::Create, status })
            }
            Action::Patch { resource, key, subresource, version, patch } => {
                let change = |current: &Value| {
                    if let Some(version) = &version
                        && current["metadata"]["resourceVersion"] != json!(version)
                    {
                        return Err(Status::modified(&resource.group, &resource.plural, &key.name));
                    }
                    Ok(api::patch::merge(current, &patch))
                };
                match self.client.update(&resource, &key.namespace, &key.name, subresource, change).await {
                    Ok(changed) => Ok(Some((resource, Wrote::of(&changed)))),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(Failure { act: Act::Change, status }),
                }
            }
            Action::Delete { resource, key, uid, propagation } => {
                let options = DeleteOptions { uid, propagation, ..DeleteOptions::default() };
                match self.client.delete(&resource, &key.namespace, &key.name, &options).await {
                    Ok(deleted) => Ok(Some((resource, deleted.wrote(key)))),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(Failure { act: Act::Delete, status }),
                }
            }
            Action::SendAway { pod, reason, message } => {
                let sent = pods::send_away(&self.client, &pod, reason, message).await;
                let wrote = |wrote: Option<Wrote>| wrote.map(|wrote| (PODS, wrote));
                sent.map(wrote).map_err(|status| Failure { act: Act::Delete, status })
            }
            Action::Again { key, after } => {
                self.queue.add_after(key, after);
                Ok(None)
            }
            Action::Event { about, type_, reason, message } => {
                self.recorder.record(&about, type_, reason, &message).await;
                Ok(None)
            }
            Action::IfAllowed { review, then, otherwise } => match self.allows(review).await {
                Ok(true) => return Box::pin(self.apply(then)).await,
                Ok(false) => return Box::pin(self.apply(otherwise)).await,
                Err(status) => Err(Failure { act: Act::Create, status }),
            },
            Action::Slowly(actions) => return Box::pin(self.slowly(actions)).await,
            Action::InTurn(actions) => return Box::pin(self.in_turn(actions)).await,
        };
        match outcome {
            Ok(written) => Applied { written: written.into_iter().collect(), failure: None },
            Err(failure) => Applied { written: Vec::new(), failure: Some(failure) },
        }
    }

    async fn allows(&self, review: Value) -> Result<bool, Status> {
        let answer = self.client.create(&ACCESS_REVIEWS, "", json!({"spec": review})).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    async fn created(
        &self,
        resource: Resource,
        created: Result<Value, Status>,
        announce: Option<Reference>,
    ) -> Result<Option<(Resource, Wrote)>, Status> {
        match created {
            Ok(created) => {
                if let Some(about) = announce {
                    let kind = created["kind"].as_str().unwrap_or_default().to_lowercase();
                    let name = created["metadata"]["name"].as_str().unwrap_or_default();
                    let message = format!("Created {kind}: {name}");
                    self.recorder.record(&about, EventType::Normal, "SuccessfulCreate", &message).await;
                }
                Ok(Some((resource, Wrote::of(&created))))
            }
            // Its namespace goes, and this object's owner with it.
            Err(status) if status.has_cause("NamespaceTerminating") => Ok(None),
            Err(status) => Err(status),
        }
    }
}

#[cfg(test)]
mod tests;
