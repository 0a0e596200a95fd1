//! What a Job's pods and its status say together: who runs, who ended, who was counted already.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::uid::Uid;
use jiff::Timestamp;

use super::super::views::Pod;
use super::backoff;
use super::indexes::Indexes;
use super::make::{Failures, index_of};
use super::rules::{self, Outcome};
use super::view::{Job, JobStatus, Uncounted};

/// Ended pods that a status names one by one; the others wait for the next.
const NAMED: usize = 500;

pub struct Count<'a> {
    job: &'a Job,
    /// In the order of their indexes, then of their names.
    pods: Vec<&'a Arc<Pod>>,
    pub active: Vec<&'a Arc<Pod>>,
    pub terminating: i64,
    pub ready: i64,
    /// With those that are in no number yet.
    pub succeeded: i64,
    pub failed: i64,
    /// Of an Indexed Job.
    pub done: Indexes,
    /// Where failures are limited for each index.
    pub failed_indexes: Option<Indexes>,
    /// The last failure of each index that is to be tried again.
    tries: HashMap<i64, Try<'a>>,
}

/// How an index failed last.
struct Try<'a> {
    pod: &'a Pod,
    /// With this pod's own.
    failures: Failures,
}

impl<'a> Count<'a> {
    pub fn of(job: &'a Job, pods: &'a [Arc<Pod>]) -> Self {
        let mut sorted: Vec<_> = pods.iter().collect();
        sorted.sort_by_cached_key(|pod| (index_of(pod), pod.metadata.meta.name.clone()));
        let active: Vec<_> = sorted.iter().copied().filter(|pod| pod.is_active()).collect();
        let terminating = sorted.iter().filter(|pod| pod.is_deleting() && !pod.has_ended()).count();
        let ready = active.iter().filter(|pod| pod.is_ready()).count();
        let end = job.spec.completions.unwrap_or(0);
        let limited = job.spec.backoff_limit_per_index.is_some();
        let mut count = Self {
            job,
            pods: sorted,
            active,
            terminating: number(terminating),
            ready: number(ready),
            succeeded: 0,
            failed: 0,
            done: Indexes::parse(&job.status.completed_indexes, end),
            failed_indexes: limited
                .then(|| Indexes::parse(job.status.failed_indexes.as_deref().unwrap_or_default(), end)),
            tries: HashMap::new(),
        };
        count.add_ended();
        count.add_tries();
        count
    }

    fn add_ended(&mut self) {
        let uncounted = self.job.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let fresh = |list: &[Uid], is: &dyn Fn(&Pod) -> bool| -> Vec<&'a Arc<Pod>> {
            let known: HashSet<&Uid> = list.iter().collect();
            let new = self.pods.iter().filter(|pod| pod.is_tracked() && is(pod));
            new.filter(|pod| !known.contains(&pod.metadata.meta.uid)).copied().collect()
        };
        let succeeded = fresh(&uncounted.succeeded, &has_succeeded);
        let failed = fresh(&uncounted.failed, &|pod| self.has_failed(pod));
        let counts = failed.iter().filter(|pod| rules::outcome(self.job, pod) != Outcome::Ignore).count();
        self.failed = self.job.status.failed + number(uncounted.failed.len() + counts);
        self.succeeded = self.job.status.succeeded + number(uncounted.succeeded.len() + succeeded.len());
        if self.job.is_indexed() {
            let indexes: Vec<i64> = succeeded.iter().filter_map(|pod| self.valid_index(pod)).collect();
            indexes.into_iter().for_each(|index| self.done.insert(index));
            self.succeeded = self.done.count();
        }
    }

    fn add_tries(&mut self) {
        let Some(limit) = self.job.spec.backoff_limit_per_index else { return };
        let failed: Vec<&'a Arc<Pod>> =
            self.pods.iter().filter(|pod| pod.is_tracked() && self.has_failed(pod)).copied().collect();
        for pod in failed {
            let Some(index) = self.valid_index(pod).filter(|index| !self.done.has(*index)) else { continue };
            let (before, outcome) = (Failures::before(pod), rules::outcome(self.job, pod));
            if outcome == Outcome::FailIndex || outcome != Outcome::Ignore && before.counted >= limit {
                self.failed_indexes.get_or_insert_default().insert(index);
            }
            let (counted, ignored) = match outcome {
                Outcome::Ignore => (before.counted, before.ignored + 1),
                _ => (before.counted + 1, before.ignored),
            };
            let failures = Failures { counted, ignored };
            if self.tries.get(&index).is_none_or(|known| known.failures < failures) {
                self.tries.insert(index, Try { pod, failures });
            }
        }
    }

    /// Of an Indexed Job's pod, where the Job has such an index.
    pub fn valid_index(&self, pod: &Pod) -> Option<i64> {
        index_of(pod).filter(|index| self.job.spec.completions.is_some_and(|end| *index < end))
    }

    /// It failed, or is taken for one that did: most pods that go are replaced at once, and one that has no node never ends.
    pub fn has_failed(&self, pod: &Pod) -> bool {
        let goes = pod.is_deleting() && (!self.job.replaces_failed_only() || pod.spec.node_name.is_empty());
        pod.status.phase == "Failed" || goes && !has_succeeded(pod)
    }

    /// The message of a failure by which the whole Job fails.
    pub fn fatal(&self) -> Option<String> {
        self.job.spec.pod_failure_policy.as_ref()?;
        let failed = self.pods.iter().filter(|pod| self.has_failed(pod));
        failed.map(|pod| rules::outcome(self.job, pod)).find_map(|outcome| match outcome {
            Outcome::FailJob(message) => Some(message),
            _ => None,
        })
    }

    /// How often containers of running pods were started again, where the kubelet does that.
    pub fn restarts(&self) -> i64 {
        let all = |pod: &&&Arc<Pod>| matches!(&*pod.status.phase, "Running" | "Pending");
        let statuses = self
            .pods
            .iter()
            .filter(all)
            .flat_map(|pod| pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses));
        statuses.map(|status| status.restart_count).sum()
    }

    /// Indexes that have no pod and need one, at most so many.
    pub fn pending(&self, most: usize) -> Vec<i64> {
        let blocks = |pod: &&&Arc<Pod>| {
            pod.is_active() || self.job.replaces_failed_only() && pod.is_deleting() && !pod.has_ended()
        };
        let taken: HashSet<i64> = self.pods.iter().filter(blocks).filter_map(|pod| index_of(pod)).collect();
        let has_failed = |index: i64| self.failed_indexes.as_ref().is_some_and(|failed| failed.has(index));
        let all = 0..self.job.spec.completions.unwrap_or(0);
        all.filter(|index| !taken.contains(index) && !self.done.has(*index) && !has_failed(*index)).take(most).collect()
    }

    /// How an index failed so far, and when it did last.
    pub fn tried(&self, index: i64) -> Option<(Failures, Timestamp)> {
        self.tries.get(&index).map(|last| (last.failures, backoff::ended_at(last.pod)))
    }

    /// Pods that failed and are still there to tell of it: not those that were sent away.
    pub fn failures(&self) -> impl Iterator<Item = &'a Pod> {
        let told = |pod: &Pod| {
            self.has_failed(pod)
                && (!pod.is_deleting() || pod.is_tracked())
                && rules::outcome(self.job, pod) != Outcome::Ignore
        };
        self.pods.iter().map(|pod| &***pod).filter(move |pod| told(pod))
    }

    pub fn successes(&self) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().map(|pod| &***pod).filter(|pod| has_succeeded(pod))
    }

    /// Nobody is left who would have to be counted.
    pub fn is_over(&self) -> bool {
        self.active.is_empty() && self.terminating == 0 && !self.pods.iter().any(|pod| pod.is_tracked())
    }

    /// The pod is its index's last try, and how often that failed is known from nowhere else.
    fn is_needed(&self, pod: &Pod) -> bool {
        let Some(index) = self.valid_index(pod) else { return false };
        let finished = self.done.has(index) || self.failed_indexes.as_ref().is_some_and(|failed| failed.has(index));
        let last = self.tries.get(&index).is_some_and(|last| last.pod.metadata.meta.uid == pod.metadata.meta.uid);
        let replaced = || self.pods.iter().any(|other| other.is_active() && index_of(other) == Some(index));
        last && !finished && !self.job.is_deleting() && !self.job.is_decided() && !replaced()
    }

    /// What the stored status says of pods, they need not wait for any more.
    pub fn recorded(&self) -> Vec<&'a Arc<Pod>> {
        let stored = self.job.status.uncounted_terminated_pods.as_ref();
        let (succeeded, failed): (HashSet<&Uid>, HashSet<&Uid>) = stored
            .map(|stored| (stored.succeeded.iter().collect(), stored.failed.iter().collect()))
            .unwrap_or_default();
        let end = self.job.spec.completions.unwrap_or(0);
        let done = Indexes::parse(&self.job.status.completed_indexes, end);
        let is_recorded = |pod: &Pod| {
            let uid = &pod.metadata.meta.uid;
            if self.job.is_deleting() || failed.contains(uid) {
                return true;
            }
            let index = self.valid_index(pod);
            let stray = self.job.is_indexed() && index.is_none();
            match has_succeeded(pod) {
                true if self.job.is_indexed() => index.is_none_or(|index| done.has(index)),
                true => succeeded.contains(uid),
                false => self.has_failed(pod) && (stray || rules::outcome(self.job, pod) == Outcome::Ignore),
            }
        };
        let tracked = self.pods.iter().filter(|pod| pod.is_tracked());
        tracked.filter(|pod| is_recorded(pod) && !self.is_needed(pod)).copied().collect()
    }

    /// The numbers of the next status: who lost its finalizer is in them, who ended since is named.
    pub fn numbers(&self) -> JobStatus {
        let mut next = self.job.status.clone();
        let tracked: HashSet<&Uid> =
            self.pods.iter().filter(|pod| pod.is_tracked()).map(|pod| &pod.metadata.meta.uid).collect();
        let stored = next.uncounted_terminated_pods.take().unwrap_or_default();
        let (succeeded, more): (Vec<_>, Vec<_>) = stored.succeeded.into_iter().partition(|uid| tracked.contains(uid));
        let (failed, lost): (Vec<_>, Vec<_>) = stored.failed.into_iter().partition(|uid| tracked.contains(uid));
        next.succeeded += number(more.len());
        next.failed += number(lost.len());
        let mut named = Uncounted { succeeded, failed };
        self.name_ended(&mut named);
        if self.job.is_indexed() {
            next.completed_indexes = self.done.to_string();
            next.succeeded = self.done.count();
        }
        next.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        next.uncounted_terminated_pods = Some(named);
        next.active = number(self.active.len());
        next.ready = Some(self.ready);
        next.terminating = Some(self.terminating);
        next
    }

    fn name_ended(&self, named: &mut Uncounted) {
        let (succeeded, failed): (HashSet<Uid>, HashSet<Uid>) =
            (named.succeeded.iter().cloned().collect(), named.failed.iter().cloned().collect());
        let indexed = self.job.is_indexed();
        for pod in self.pods.iter().filter(|pod| pod.is_tracked() && !self.is_needed(pod)) {
            let uid = &pod.metadata.meta.uid;
            if named.len() >= NAMED {
                break;
            }
            if failed.contains(uid) || indexed && self.valid_index(pod).is_none() {
                continue;
            }
            if has_succeeded(pod) {
                if !indexed && !succeeded.contains(uid) {
                    named.succeeded.push(uid.clone());
                }
            } else if self.has_failed(pod) && rules::outcome(self.job, pod) != Outcome::Ignore {
                named.failed.push(uid.clone());
            }
        }
    }
}

fn has_succeeded(pod: &Pod) -> bool {
    pod.status.phase == "Succeeded"
}

pub fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
