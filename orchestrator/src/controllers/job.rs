//! Job: pods that run to their end, as many as asked for. Each that ended is named in the status before its finalizer goes and
//! is in a number after it went, so that a crash between any two writes counts none twice and none never.

use std::collections::HashMap;
use std::sync::Arc;

use client::events::EventType;
use client::{Caches, Kept, Key};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::given::{Account, Given};
use super::ownership;
use super::replicaset::usefulness;
use super::runtime::{Act, Action, Controller, Failure, Plan, Queue};
use super::views::{JOB_TRACKING, PODS, Pod, tracked_by, tracked_entry};
use count::{Count, number};
use make::{Failures, Place, about, owner};

mod backoff;
mod count;
mod indexes;
mod make;
mod rules;
mod verdict;
pub mod view;

pub use view::{JOBS, Job};

/// Pods made or removed by one plan.
const BURST: usize = 500;
/// Who keeps a Job that names nobody.
const MANAGER: &str = "kubernetes.io/job-controller";

pub struct Jobs;

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";
    const ACCOUNT: Account = Account::Service("job-controller");
    const READS: &'static [Kept] = &[Kept::of::<Job>(), Kept::of::<Pod>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<Job>().on_change(move |old, new| {
            if let Some(job) = new.or(old) {
                own.add(Key::of(&job.metadata.meta));
            }
        });
        let (queue, jobs) = (queue.clone(), caches.of::<Job>());
        caches.of::<Pod>().on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let namespace = &pod.metadata.meta.namespace;
                match pod.metadata.owned.controller() {
                    Some(owner) if owner.kind == "Job" => queue.add(Key::new(namespace, &owner.name)),
                    Some(_) => {}
                    None => jobs
                        .namespace(namespace)
                        .iter()
                        .filter(|job| job.labels().is_some_and(|labels| ownership::selects(&labels, pod)))
                        .for_each(|job| queue.add(Key::of(&job.metadata.meta))),
                }
                // Nobody counts it: its finalizer goes under a name that no Job has.
                if let Some("") = tracked_by(pod) {
                    queue.add(Key::new(namespace, ""));
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let pods = caches.of::<Pod>();
        let tracked = pods.indexed(&tracked_entry(&key.namespace, &key.name));
        let Some(job) = caches.of::<Job>().get(&key.namespace, &key.name) else {
            return tracked.iter().filter_map(|pod| free(pod)).collect();
        };
        let mut plan: Plan = tracked.iter().filter(|pod| !is_owned(&job, pod)).filter_map(|pod| free(pod)).collect();
        if job.spec.managed_by.as_deref().is_some_and(|other| other != MANAGER) {
            return plan;
        }
        let owned = pods.indexed(&format!("owner/{}", job.metadata.meta.uid));
        let orphans = pods.indexed(&format!("orphan/{}", key.namespace));
        plan.extend(self::plan(&job, &owned, &orphans, Timestamp::now()));
        plan
    }

    fn failed(&self, key: &Key, caches: &Caches, failure: &Failure) -> Plan {
        let job = caches.of::<Job>().get(&key.namespace, &key.name);
        job.map(|job| say_failure(&job, failure)).unwrap_or_default()
    }
}

fn is_owned(job: &Job, pod: &Pod) -> bool {
    pod.metadata.owned.controller().is_some_and(|owner| owner.uid == job.metadata.meta.uid)
}

/// The pod's metadata without our finalizer.
fn unfinalized(pod: &Pod) -> Value {
    let left: Vec<_> = pod.metadata.owned.finalizers.iter().filter(|finalizer| *finalizer != JOB_TRACKING).collect();
    if left.is_empty() { Value::Null } else { json!(left) }
}

/// Takes the finalizer away, where it is.
fn free(pod: &Pod) -> Option<Action> {
    pod.is_tracked().then(|| Action::Patch {
        resource: PODS,
        key: Key::of(&pod.metadata.meta),
        subresource: "",
        version: Some(pod.metadata.meta.resource_version.clone()),
        patch: json!({"metadata": {"finalizers": unfinalized(pod)}}),
    })
}

/// What brings a Job on, and its status to the truth.
fn plan(job: &Job, owned: &[Arc<Pod>], orphans: &[Arc<Pod>], now: Timestamp) -> Plan {
    if job.is_finished() {
        return owned.iter().filter_map(|pod| free(pod)).collect();
    }
    let Some(labels) = job.labels() else { return Plan::new() };
    let (mine, strangers): (Vec<_>, Vec<_>) = owned.iter().cloned().partition(|pod| ownership::selects(&labels, pod));
    let mut plan = Plan::new();
    if !job.is_deleting() {
        plan.extend(strangers.iter().filter(|pod| !pod.is_deleting()).map(|pod| release(job, pod)));
        let adopted = orphans.iter().filter(|pod| pod.is_active() && ownership::selects(&labels, pod));
        plan.extend(adopted.map(|pod| adopt(job, pod)));
        // They count when they are ours.
        if !plan.is_empty() {
            return plan;
        }
    }
    let count = Count::of(job, &mine);
    let verdict = verdict::verdict(job, &count, now);
    match &verdict {
        _ if job.is_deleting() => {}
        // Said before it is done.
        Some(verdict) if job.status.has(&verdict.type_) => {
            plan.extend(count.active.iter().take(BURST).flat_map(|pod| remove(job, pod)));
        }
        Some(_) => {}
        None => {
            plan.extend(manage(job, &count, now));
            let left = verdict::until_deadline(job, now);
            plan.extend(left.map(|after| Action::Again { key: Key::of(&job.metadata.meta), after }));
        }
    }
    plan.extend(count.recorded().into_iter().filter_map(|pod| free(pod)));
    let (status, told) = verdict::status(job, &count, verdict.as_ref(), now);
    if status != job.status {
        let write = Action::Patch {
            resource: JOBS,
            key: Key::of(&job.metadata.meta),
            subresource: "status",
            version: Some(job.metadata.meta.resource_version.clone()),
            patch: status.patch(),
        };
        plan.push(if told.is_empty() { write } else { Action::InTurn([vec![write], told].concat()) });
    }
    plan
}

/// A pod that the Job does not select any more is nobody's, and is not counted.
fn release(job: &Job, pod: &Pod) -> Action {
    let mut action = ownership::release(PODS, &pod.metadata, &job.metadata.meta.uid);
    if let Action::Patch { patch, .. } = &mut action {
        patch["metadata"]["finalizers"] = unfinalized(pod);
    }
    action
}

fn adopt(job: &Job, pod: &Pod) -> Action {
    let mut action = ownership::adopt(PODS, &pod.metadata, owner(job));
    if let (Action::Patch { patch, .. }, false) = (&mut action, pod.is_tracked()) {
        let all: Vec<&str> = pod.metadata.owned.finalizers.iter().map(String::as_str).chain([JOB_TRACKING]).collect();
        patch["metadata"]["finalizers"] = json!(all);
    }
    action
}

/// Makes what is missing or removes what is too much.
fn manage(job: &Job, count: &Count<'_>, now: Timestamp) -> Plan {
    let wanted = wanted(job, count);
    let gone = surplus(job, count, wanted);
    if !gone.is_empty() {
        // Who goes because nobody needs it has not failed: it is not counted.
        let send = |pod: &&Arc<Pod>| Action::InTurn(free(pod).into_iter().chain(remove(job, pod)).collect());
        return gone.iter().take(BURST).map(send).collect();
    }
    if job.spec.suspend {
        return Plan::new();
    }
    let going = if job.replaces_failed_only() { count.terminating } else { 0 };
    let missing = usize::try_from(wanted - going - number(count.active.len())).unwrap_or(0).min(BURST);
    if missing == 0 {
        return Plan::new();
    }
    let again = |after| Action::Again { key: Key::of(&job.metadata.meta), after };
    if job.spec.backoff_limit_per_index.is_some() {
        return per_index(job, count, missing, now);
    }
    if let Some(after) = backoff::of_pods(count.failures(), count.successes(), now) {
        return vec![again(after)];
    }
    let made: Plan = match job.is_indexed() {
        true => {
            let place = |index| Some(Place { index, failures: None });
            count.pending(missing).into_iter().map(|index| make::create(job, place(index))).collect()
        }
        false => (0..missing).map(|_| make::create(job, None)).collect(),
    };
    if made.is_empty() { made } else { vec![Action::Slowly(made)] }
}

/// Each index waits for itself.
fn per_index(job: &Job, count: &Count<'_>, missing: usize, now: Timestamp) -> Plan {
    let (mut made, mut waits) = (Plan::new(), None);
    for index in count.pending(usize::MAX) {
        let tried = count.tried(index);
        let wait = tried.and_then(|(failures, last)| backoff::left(failures.counted + failures.ignored, last, now));
        match wait {
            Some(wait) => waits = Some(waits.map_or(wait, |known: std::time::Duration| known.min(wait))),
            None if made.len() < missing => {
                let failures = tried.map_or_else(Failures::default, |(failures, _)| failures);
                made.push(make::create(job, Some(Place { index, failures: Some(failures) })));
            }
            None => break,
        }
    }
    let mut plan: Plan = if made.is_empty() { made } else { vec![Action::Slowly(made)] };
    plan.extend(waits.map(|after| Action::Again { key: Key::of(&job.metadata.meta), after }));
    plan
}

/// How many pods are to run.
fn wanted(job: &Job, count: &Count<'_>) -> i64 {
    match job.spec.completions {
        _ if job.spec.suspend => 0,
        // One success is enough, and those beside it finish.
        None if count.succeeded > 0 => number(count.active.len()),
        None => job.spec.parallelism,
        Some(completions) => (completions - count.succeeded).clamp(0, job.spec.parallelism),
    }
}

/// Pods that go: of no index or of one that another has, then the least useful.
fn surplus<'a>(job: &Job, count: &Count<'a>, wanted: i64) -> Vec<&'a Arc<Pod>> {
    let mut active = count.active.clone();
    active.sort_by_cached_key(|pod| usefulness(pod, 0));
    let most = number(active.len()) - wanted;
    let (mut gone, mut rest) = (Vec::new(), Vec::new());
    if job.is_indexed() {
        let mut last: HashMap<Option<i64>, usize> = HashMap::new();
        for (place, pod) in active.iter().enumerate() {
            last.insert(count.valid_index(pod), place);
        }
        for (place, pod) in active.into_iter().enumerate() {
            let index = count.valid_index(pod);
            let stays = index.is_some() && last[&index] == place;
            if stays { rest.push(pod) } else { gone.push(pod) }
        }
    } else {
        rest = active;
    }
    let more = usize::try_from(most - number(gone.len())).unwrap_or(0);
    gone.extend(rest.into_iter().take(more));
    gone
}

fn remove(job: &Job, pod: &Pod) -> [Action; 2] {
    let meta = &pod.metadata.meta;
    let said = Action::Event {
        about: about(job),
        type_: EventType::Normal,
        reason: "SuccessfulDelete",
        message: format!("Deleted pod: {}", meta.name),
    };
    [Action::Delete { resource: PODS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }, said]
}

fn say_failure(job: &Job, failure: &Failure) -> Plan {
    let (reason, verb) = match failure.act {
        Act::Create => ("FailedCreate", "creating"),
        Act::Delete => ("FailedDelete", "deleting"),
        Act::Change => return Plan::new(),
    };
    let message = format!("Error {verb}: {}", failure.status);
    vec![Action::Event { about: about(job), type_: EventType::Warning, reason, message }]
}

#[cfg(test)]
mod tests;
