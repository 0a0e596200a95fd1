//! The scheduler: a node for each pod.
//!
//! [`snapshot`] keeps the nodes and what is placed on them, [`pending`] the pods that wait, [`decide`] chooses (over
//! [`filter`] and [`score`]), all of them pure; [`bind`] writes. The loop here takes in what changed, decides for one pod at
//! a time and goes on at once: a pod that was given a node counts there before that is written. What a decision costs grows
//! with the nodes it looks at, and with nothing else. A pod that no node takes may have others of less importance sent away
//! ([`preempt`]); it is nominated for their node then, and decided for again when they are gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::uid::Uid;
use client::events::Recorder;
use client::{Caches, Client, Kept, Key};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::controllers::views::{Budget, Namespace, Node, Pod};
use bind::{Bound, Nomination, Writer};
use decide::{Unschedulable, decide};
use demand::{Demand, Demands};
use filter::{Asker, obstacle};
use pending::{Candidate, Pending};
use preempt::{Declined, Plan, preempt};
use snapshot::{News, Resident, Snapshot};
use surroundings::minds;

mod bind;
mod company;
mod decide;
pub mod demand;
pub mod filter;
mod pending;
mod preempt;
mod score;
pub mod snapshot;
mod surroundings;

const NAME: &str = "default-scheduler";
/// Writes under way at once; the store commits them in groups.
const WRITES: usize = 256;

pub const READS: &[Kept] = &[Kept::of::<Pod>(), Kept::of::<Node>(), Kept::of::<Budget>(), Kept::of::<Namespace>()];

/// What changed: looked up when it is its turn, so that many changes of one object are one.
enum Changed {
    Pod(Key),
    Node(String),
    Namespace(String),
}

/// Runs the scheduler for ever.
pub async fn run(client: Client, caches: Arc<Caches>) {
    let (tell, mut changes) = mpsc::unbounded_channel();
    watch(&caches, &tell);
    caches.synced().await;
    let writer = Arc::new(Writer { recorder: Recorder::new(client.clone(), NAME, ""), client });
    let mut scheduler = Scheduler::new(caches);
    // Tasks, so that writes do not wait for decisions.
    let mut writes = JoinSet::new();
    loop {
        while let Ok(changed) = changes.try_recv() {
            scheduler.take_in(changed, Instant::now());
        }
        if writes.len() < WRITES
            && let Some(step) = scheduler.step(Instant::now())
        {
            writes.spawn(writer.clone().write(step));
            continue;
        }
        let deadline = scheduler.pending.next_deadline().filter(|_| writes.len() < WRITES);
        let rested = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender lives in the caches' handlers.
            Some(changed) = changes.recv() => scheduler.take_in(changed, Instant::now()),
            Some(bound) = writes.join_next() => match bound {
                Ok(bound) => scheduler.written(bound, Instant::now()),
                // Nobody aborts them: it panicked, and so do we.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = rested => {}
        }
    }
}

fn watch(caches: &Caches, tell: &mpsc::UnboundedSender<Changed>) {
    let pods = tell.clone();
    caches.of::<Pod>().on_change(move |old, new| {
        if let Some(pod) = new.or(old).filter(|_| concerns(old, new)) {
            // A scheduler that is gone needs no news.
            let _ = pods.send(Changed::Pod(Key::of(&pod.metadata.meta)));
        }
    });
    let nodes = tell.clone();
    caches.of::<Node>().on_change(move |old, new| {
        if let Some(node) = new.or(old) {
            let _ = nodes.send(Changed::Node(node.metadata.meta.name.clone()));
        }
    });
    let namespaces = tell.clone();
    caches.of::<Namespace>().on_change(move |old, new| {
        if let Some(namespace) = new.or(old) {
            let _ = namespaces.send(Changed::Namespace(namespace.metadata.meta.name.clone()));
        }
    });
}

/// A status that is written again and again says nothing new.
fn concerns(old: Option<&Pod>, new: Option<&Pod>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    old.spec != new.spec
        || old.metadata.meta.labels != new.metadata.meta.labels
        || old.metadata.meta.uid != new.metadata.meta.uid
        || old.has_ended() != new.has_ended()
        || old.is_deleting() != new.is_deleting()
}

/// What is to be written of a decision.
#[derive(Debug)]
pub enum Step {
    Bind {
        pod: Arc<Pod>,
        node: String,
    },
    Refuse {
        pod: Arc<Pod>,
        why: Unschedulable,
        nomination: Nomination,
    },
    /// Others go so that the pod can come.
    Preempt {
        pod: Arc<Pod>,
        why: Unschedulable,
        node: String,
        victims: Vec<Arc<Pod>>,
        /// Nominated for the same node, and less important.
        outdone: Vec<Arc<Pod>>,
    },
}

/// What is decided of a pod.
enum Verdict {
    Goes(String),
    Stays(Unschedulable, Nomination),
    Preempts(Unschedulable, Plan),
}

/// Everything between two decisions. Does nothing but decide.
struct Scheduler {
    caches: Arc<Caches>,
    snapshot: Snapshot,
    pending: Pending,
    demands: Demands,
    /// By key, the uid under which a pod counts in the snapshot.
    placed: HashMap<Key, Uid>,
    /// Given a node by us, and not yet seen there.
    assumed: HashSet<Uid>,
    /// Sent away by us, and not yet seen to be ending.
    ending: HashSet<Uid>,
    /// Where the next look at the nodes begins.
    next: usize,
    /// What no node took, since the last change that may help anybody.
    hopeless: HashMap<Arc<Demand>, Unschedulable>,
}

impl Scheduler {
    fn new(caches: Arc<Caches>) -> Self {
        Self {
            caches,
            snapshot: Snapshot::default(),
            pending: Pending::default(),
            demands: Demands::default(),
            placed: HashMap::new(),
            assumed: HashSet::new(),
            ending: HashSet::new(),
            next: 0,
            hopeless: HashMap::new(),
        }
    }

    fn take_in(&mut self, changed: Changed, now: Instant) {
        match changed {
            Changed::Pod(key) => {
                let pod = self.pod(&key);
                self.take_in_pod(key, pod, now);
            }
            Changed::Node(name) => match self.caches.of::<Node>().get("", &name) {
                Some(node) => {
                    let were = self.snapshot.nodes();
                    if self.snapshot.set_node(node) == News::MayHelp {
                        self.help(&name, now);
                        self.stir(|demand| demand.company.is_some(), now);
                    }
                    // That there is no node at all is true of nobody any more.
                    if were == 0 {
                        self.pending.wake_all(now);
                    }
                }
                None => {
                    // Fewer nodes help nobody, and yet what is said of them changes.
                    self.hopeless.clear();
                    let nominees = self.snapshot.get(&name).map(|place| place.nominees.clone()).unwrap_or_default();
                    for nominee in nominees {
                        self.snapshot.withdraw(&nominee.uid);
                        self.pending.wake(&nominee.key, now);
                    }
                    self.snapshot.remove_node(&name);
                    // With it a domain may have gone over which others are spread.
                    self.stir(|demand| demand.company.is_some(), now);
                }
            },
            Changed::Namespace(name) => {
                let namespace = self.caches.of::<Namespace>().get("", &name);
                let labels = namespace.map(|namespace| namespace.metadata.meta.labels.clone());
                if self.snapshot.set_namespace(&name, labels) == News::MayHelp {
                    self.stir(|_| true, now);
                }
            }
        }
    }

    fn take_in_pod(&mut self, key: Key, pod: Option<Arc<Pod>>, now: Instant) {
        let uid = pod.as_ref().map(|pod| &pod.metadata.meta.uid);
        // It, or the one that had its name before, counts no longer.
        if let Some(before) = self.placed.get(&key).filter(|before| uid != Some(*before)).cloned() {
            self.free(&key, &before, now);
        }
        let Some(pod) = pod else { return self.dismiss(&key, now) };
        let uid = &pod.metadata.meta.uid;
        if pod.is_deleting() {
            self.ending.remove(uid);
            self.snapshot.ends(uid);
        }
        if pod.has_ended() {
            self.dismiss(&key, now);
            self.free(&key, uid, now);
        } else if !pod.spec.node_name.is_empty() {
            self.assumed.remove(uid);
            let resident = self.resident(&pod);
            // It may be elsewhere than we thought, if somebody else bound it.
            let left = self.snapshot.home(uid).filter(|home| *home != pod.spec.node_name).map(str::to_owned);
            self.place(resident, &pod.spec.node_name, now);
            self.dismiss(&key, now);
            self.placed.insert(key, uid.clone());
            if let Some(left) = left {
                self.help(&left, now);
            }
        } else if self.assumed.contains(uid) {
            // Its own binding is under way.
        } else if is_ours(&pod) {
            let resident = self.resident(&pod);
            let (created, demand) = (pod.metadata.owned.creation_timestamp.clone(), resident.demand.clone());
            // What an earlier scheduler promised it.
            if !pod.status.nominated_node_name.is_empty() && !self.pending.knows(&key) {
                self.snapshot.nominate(resident, &pod.status.nominated_node_name);
            }
            self.pending.set(Candidate { key, uid: uid.clone(), demand, created }, now);
        } else {
            self.dismiss(&key, now);
        }
    }

    fn resident(&mut self, pod: &Pod) -> Resident {
        let meta = &pod.metadata.meta;
        let demand = self.demands.of(pod);
        Resident { key: Key::of(meta), uid: meta.uid.clone(), demand, ending: pod.is_deleting() }
    }

    /// A pod is on a node now, which those may have waited for that ask for its company.
    fn place(&mut self, resident: Resident, node: &str, now: Instant) {
        if self.snapshot.has(&resident, node) {
            return;
        }
        let kept = self.snapshot.withdraw(&resident.uid).filter(|other| other != node);
        self.snapshot.put(resident.clone(), node);
        self.stir_around(&resident, now);
        if let Some(other) = kept {
            self.help(&other, now);
        }
    }

    /// No room is kept for a pod any more, which may help others.
    fn withdraw(&mut self, uid: &Uid, now: Instant) {
        if let Some(node) = self.snapshot.withdraw(uid) {
            self.help(&node, now);
        }
    }

    /// Wakes one pod of each demand for which it matters where this one is.
    fn stir_around(&mut self, resident: &Resident, now: Instant) {
        let namespaces = self.snapshot.namespaces().clone();
        self.stir(|demand| minds(demand, resident, &namespaces), now);
    }

    fn stir(&mut self, which: impl Fn(&Demand) -> bool, now: Instant) {
        let woken: Vec<_> = self.pending.demands().filter(|demand| which(demand)).cloned().collect();
        for demand in woken {
            self.hopeless.remove(&demand);
            self.pending.wake_one(&demand, now);
        }
    }

    /// A pod waits no longer; room that was kept for it may help others.
    fn dismiss(&mut self, key: &Key, now: Instant) {
        let Some(candidate) = self.pending.remove(key) else { return };
        self.withdraw(&candidate.uid, now);
    }

    /// A pod counts no longer: what it had may help others.
    fn free(&mut self, key: &Key, uid: &Uid, now: Instant) {
        self.placed.remove(key);
        self.assumed.remove(uid);
        self.ending.remove(uid);
        if let Some((resident, node)) = self.snapshot.take(uid) {
            self.help(&node, now);
            self.stir_around(&resident, now);
        }
    }

    /// There may be more room on a node: wakes those for whom it is kept, and one pod of each demand that it would take.
    fn help(&mut self, node: &str, now: Instant) {
        self.hopeless.clear();
        let Some(place) = self.snapshot.get(node).filter(|place| place.node.is_some()) else { return };
        let fits =
            |uid: &Uid, demand: &Arc<Demand>| obstacle(&Asker::new(uid, demand, &self.snapshot), place).is_none();
        for nominee in place.nominees.iter().filter(|nominee| fits(&nominee.uid, &nominee.demand)) {
            self.pending.wake(&nominee.key, now);
        }
        let anybody = Uid::default();
        let welcome = |demand: &&Arc<Demand>| may_be(demand, node) && fits(&anybody, demand);
        let woken: Vec<_> = self.pending.demands().filter(welcome).cloned().collect();
        woken.iter().for_each(|demand| self.pending.wake_one(demand, now));
    }

    /// Decides for the next pod.
    fn step(&mut self, now: Instant) -> Option<Step> {
        loop {
            let candidate = self.pending.take(now)?;
            let key = &candidate.key;
            // News of its end is under way.
            let Some(pod) = self.pod(key).filter(|pod| pod.metadata.meta.uid == candidate.uid) else { continue };
            return Some(match self.choose(&candidate, now) {
                Verdict::Goes(node) => {
                    let Candidate { key, uid, demand, .. } = candidate;
                    let resident =
                        Resident { key: key.clone(), uid: uid.clone(), demand: demand.clone(), ending: false };
                    self.place(resident, &node, now);
                    self.placed.insert(key, uid.clone());
                    self.assumed.insert(uid);
                    // Where there was room for one there may be room for the next.
                    self.pending.wake_one(&demand, now);
                    Step::Bind { pod, node }
                }
                Verdict::Stays(why, nomination) => {
                    self.pending.unschedulable(key, now);
                    Step::Refuse { pod, why, nomination }
                }
                Verdict::Preempts(why, plan) => {
                    self.pending.unschedulable(key, now);
                    self.make_room(candidate, pod, why, plan, now)
                }
            });
        }
    }

    fn pod(&self, key: &Key) -> Option<Arc<Pod>> {
        self.caches.of::<Pod>().get(&key.namespace, &key.name)
    }

    fn choose(&mut self, candidate: &Candidate, now: Instant) -> Verdict {
        let Candidate { uid, demand, .. } = candidate;
        let nominated = self.snapshot.nomination(uid).is_some();
        if let Some(why) = self.hopeless.get(demand).filter(|_| !nominated) {
            return Verdict::Stays(why.clone(), Nomination::Stands);
        }
        let asker = Asker::new(uid, demand, &self.snapshot);
        let refused = match decide(&asker, &self.snapshot, self.next) {
            Ok(choice) => {
                self.next = choice.next;
                return Verdict::Goes(choice.node);
            }
            Err(refused) => refused,
        };
        let declined = if self.snapshot.nodes() == 0 {
            None
        } else {
            let budgets = self.caches.of::<Budget>().all();
            let world = preempt::World { pod: &|key| self.pod(key), budgets: &budgets, ending: &self.ending };
            match preempt(&asker, &self.snapshot, &refused, &world) {
                Ok(plan) => return Verdict::Preempts(Unschedulable(refused.why), plan),
                Err(declined) => Some(declined),
            }
        };
        let why = Unschedulable(match &declined {
            Some(declined) => format!("{} no new claims to deallocate, preemption: {declined}", refused.why),
            None => refused.why,
        });
        if nominated && matches!(declined, Some(Declined::NotEligible(_))) {
            return Verdict::Stays(why, Nomination::Stands);
        }
        self.withdraw(uid, now);
        self.hopeless.insert(demand.clone(), why.clone());
        Verdict::Stays(why, Nomination::Ends)
    }

    /// Keeps room for a pod while others leave it.
    fn make_room(&mut self, candidate: Candidate, pod: Arc<Pod>, why: Unschedulable, plan: Plan, now: Instant) -> Step {
        let Plan { node, victims } = plan;
        let nominees = self.snapshot.get(&node).map(|place| place.nominees.clone()).unwrap_or_default();
        let outdone: Vec<Resident> =
            nominees.into_iter().filter(|other| other.demand.priority < candidate.demand.priority).collect();
        for other in &outdone {
            self.snapshot.withdraw(&other.uid);
            self.pending.wake(&other.key, now);
        }
        let Candidate { key, uid, demand, .. } = candidate;
        self.snapshot.nominate(Resident { key, uid, demand, ending: false }, &node);
        self.ending.extend(victims.iter().map(|victim| victim.uid.clone()));
        let pods = |all: Vec<Resident>| all.iter().filter_map(|other| self.pod(&other.key)).collect();
        Step::Preempt { pod, why, node, victims: pods(victims), outdone: pods(outdone) }
    }

    /// A write ended.
    fn written(&mut self, bound: Bound, now: Instant) {
        let pod = match bound {
            Bound::Done => return,
            Bound::Failed(pod) => pod,
            Bound::Kept { pod, victims } => {
                for victim in &victims {
                    self.ending.remove(&victim.metadata.meta.uid);
                }
                self.withdraw(&pod.metadata.meta.uid, now);
                return self.pending.failed(&Key::of(&pod.metadata.meta), now);
            }
        };
        let (key, uid) = (Key::of(&pod.metadata.meta), &pod.metadata.meta.uid);
        if !self.assumed.contains(uid) {
            // Seen where it is: somebody else was quicker, or it was bound all the same.
            return;
        }
        self.free(&key, uid, now);
        self.take_in_pod(key.clone(), self.pod(&key), now);
        self.pending.failed(&key, now);
    }
}

/// A pod that names its nodes can only be on one of them.
fn may_be(demand: &Demand, node: &str) -> bool {
    demand.named().is_none_or(|names| names.contains(node))
}

fn is_ours(pod: &Pod) -> bool {
    pod.spec.scheduler_name == NAME && pod.is_active() && pod.spec.scheduling_gates.is_empty()
}

#[cfg(test)]
mod tests;
