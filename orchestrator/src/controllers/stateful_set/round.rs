//! Number by number: who is there, who comes next, who goes. With `OrderedReady` each waits for those before it, and a set
//! shrinks from its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Key;
use client::events::EventType;
use jiff::Timestamp;

use super::super::amount::{Rounding, resolve};
use super::super::ownership::is_available;
use super::super::revisions::{POD_LABEL, Revision};
use super::super::runtime::{Action, Plan};
use super::super::views::{PODS, Pod};
use super::claims::{self, Claims, Range};
use super::make::{self, about, name_of, ordinal_of};
use super::view::{StatefulSet, StatefulSetStatus};

pub struct Round<'a> {
    pub set: &'a StatefulSet,
    /// What pods below the partition are made from, and the others.
    pub current: &'a Revision,
    pub update: &'a Revision,
    pub claims: &'a Claims<'a>,
    pub now: Timestamp,
}

/// Whether what comes after it may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Goes,
    Waits,
}

type Numbered<'p> = BTreeMap<i64, &'p Arc<Pod>>;

impl Round<'_> {
    fn is_ordered(&self) -> bool {
        self.set.spec.pod_management_policy != "Parallel"
    }

    fn first(&self) -> i64 {
        self.set.spec.ordinals.start
    }

    fn is_within(&self, ordinal: i64) -> bool {
        (self.first()..self.first() + self.set.spec.replicas).contains(&ordinal)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        runs(pod) && is_available(pod, self.set.spec.min_ready_seconds, self.now)
    }

    fn rolls(&self) -> bool {
        self.set.spec.update_strategy.type_ == "RollingUpdate"
    }

    /// The first ordinal that is updated.
    fn partition(&self) -> i64 {
        self.first() + self.set.spec.update_strategy.rolling_update.as_ref().map_or(0, |rolling| rolling.partition)
    }

    pub fn plan(&self, pods: &[Arc<Pod>]) -> Plan {
        let all: Numbered<'_> = pods.iter().filter_map(|pod| Some((ordinal_of(self.set, pod)?, pod))).collect();
        let (living, condemned): (Numbered<'_>, Numbered<'_>) =
            all.into_iter().partition(|(ordinal, _)| self.is_within(*ordinal));
        let mut plan = Plan::new();
        for ordinal in self.first()..self.first() + self.set.spec.replicas {
            if self.keep(ordinal, living.get(&ordinal).copied(), &mut plan) == Next::Waits {
                return plan;
            }
        }
        let unhealthy = living.values().chain(condemned.values()).find(|pod| !is_healthy(pod)).copied();
        for (ordinal, pod) in condemned.iter().rev() {
            if self.condemn(*ordinal, pod, unhealthy, &mut plan) == Next::Waits {
                return plan;
            }
        }
        if self.rolls() {
            plan.extend(self.roll(&living));
        }
        plan
    }

    /// Sees to one number.
    fn keep(&self, ordinal: i64, pod: Option<&Arc<Pod>>, plan: &mut Plan) -> Next {
        let blocks = if self.is_ordered() { Next::Waits } else { Next::Goes };
        let Some(pod) = pod else {
            // Nothing more can be done in this round while an old claim goes.
            if claims::are_stale(self.set, ordinal, self.claims) {
                return Next::Waits;
            }
            plan.push(self.create(ordinal));
            return blocks;
        };
        if pod.has_ended() {
            if !pod.is_deleting() {
                plan.extend(self.remove(pod));
            }
            return Next::Waits;
        }
        if pod.status.phase == "Pending" {
            let missing = claims::create(self.set, ordinal, self.claims);
            if !missing.is_empty() {
                plan.push(Action::InTurn(missing));
            }
        }
        if self.is_ordered() && (pod.is_deleting() || !self.is_available(pod)) {
            return Next::Waits;
        }
        plan.extend(make::lost_identity(self.set, pod, ordinal).map(|patch| Action::Patch {
            resource: PODS,
            key: Key::of(&pod.metadata.meta),
            subresource: "",
            version: None,
            patch,
        }));
        plan.extend(claims::hand_over(self.set, pod, ordinal, Range::Within, self.claims));
        Next::Goes
    }

    /// A pod's claims are there before it.
    fn create(&self, ordinal: i64) -> Action {
        let old = self.rolls() && ordinal < self.partition();
        let object = make::pod(self.set, if old { self.current } else { self.update }, ordinal);
        let namespace = self.set.metadata.meta.namespace.clone();
        let mut steps = claims::create(self.set, ordinal, self.claims);
        steps.push(Action::Create { resource: PODS, namespace, object, announce: None });
        steps.push(self.say("SuccessfulCreate", "create", &name_of(self.set, ordinal)));
        Action::InTurn(steps)
    }

    fn say(&self, reason: &'static str, verb: &str, pod: &str) -> Action {
        let message = format!("{verb} Pod {pod} in StatefulSet {} successful", self.set.metadata.meta.name);
        Action::Event { about: about(self.set), type_: EventType::Normal, reason, message }
    }

    fn remove(&self, pod: &Pod) -> [Action; 2] {
        let meta = &pod.metadata.meta;
        let delete =
            Action::Delete { resource: PODS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None };
        [delete, self.say("SuccessfulDelete", "delete", &meta.name)]
    }

    /// Takes a pod away that the set has no number for any more: in order, and only while all that stay are well.
    fn condemn(&self, ordinal: i64, pod: &Arc<Pod>, unhealthy: Option<&Arc<Pod>>, plan: &mut Plan) -> Next {
        let ordered = self.is_ordered();
        let blocks = if ordered { Next::Waits } else { Next::Goes };
        if pod.is_deleting() {
            return blocks;
        }
        let ill = unhealthy.is_some_and(|first| Arc::ptr_eq(first, pod));
        if ordered && !ill && !self.is_available(pod) {
            return Next::Waits;
        }
        let mut steps = claims::hand_over(self.set, pod, ordinal, Range::Beyond, self.claims);
        steps.extend(self.remove(pod));
        plan.push(Action::InTurn(steps));
        blocks
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        revision_of(pod) == self.update.name()
    }

    /// Pods of an earlier revision go, the last first, each when those after it are well; or so many at a time as may be out.
    fn roll(&self, living: &Numbered<'_>) -> Plan {
        let rolling = self.set.spec.update_strategy.rolling_update.as_ref();
        let given = rolling.map(|rolling| &rolling.max_unavailable).filter(|most| !most.is_null());
        let end = self.first() + self.set.spec.replicas;
        // One that is not there yet is as good as ill.
        let mut targets = (self.partition()..end).rev().map(|ordinal| living.get(&ordinal).copied());
        let is_old = |pod: &&Arc<Pod>| !self.is_updated(pod) && !pod.is_deleting();
        let gone: Vec<_> = match given {
            Some(most) => {
                let most = resolve(most, self.set.spec.replicas, Rounding::Down).max(1);
                let well = living.values().filter(|pod| is_healthy(pod)).count();
                let room = usize::try_from(most - (self.set.spec.replicas - number(well))).unwrap_or(0);
                targets.flatten().filter(is_old).take(room).collect()
            }
            None => {
                let stops = |pod: &Option<&Arc<Pod>>| pod.is_none_or(|pod| is_old(&pod) || !is_healthy(pod));
                targets.find(stops).flatten().filter(is_old).into_iter().collect()
            }
        };
        gone.into_iter().flat_map(|pod| self.remove(pod)).collect()
    }

    pub fn status(&self, pods: &[Arc<Pod>]) -> StatefulSetStatus {
        let count = |is: &dyn Fn(&Pod) -> bool| number(pods.iter().filter(|pod| is(pod)).count());
        let of = |revision: &Revision| count(&|pod| !pod.is_deleting() && revision_of(pod) == revision.name());
        let mut next = StatefulSetStatus {
            observed_generation: self.set.metadata.meta.generation.unwrap_or_default(),
            replicas: number(pods.len()),
            ready_replicas: count(&|pod| runs(pod) && pod.is_ready()),
            available_replicas: count(&|pod| self.is_available(pod)),
            current_replicas: of(self.current),
            updated_replicas: of(self.update),
            current_revision: self.current.name().to_owned(),
            update_revision: self.update.name().to_owned(),
            collision_count: self.set.status.collision_count,
        };
        let wanted = self.set.spec.replicas;
        if self.rolls() && [next.replicas, next.updated_replicas, next.ready_replicas].iter().all(|n| *n == wanted) {
            next.current_replicas = next.updated_replicas;
            next.current_revision.clone_from(&next.update_revision);
        }
        next
    }
}

fn runs(pod: &Pod) -> bool {
    pod.status.phase == "Running"
}

fn is_healthy(pod: &Pod) -> bool {
    runs(pod) && pod.is_ready() && !pod.is_deleting()
}

/// The name of the revision that a pod was made from.
pub fn revision_of(pod: &Pod) -> &str {
    pod.metadata.meta.labels.get(POD_LABEL).map(String::as_str).unwrap_or_default()
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
