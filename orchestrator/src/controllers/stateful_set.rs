//! StatefulSet: numbered pods that keep their names and their claims, made and taken away in order.

use std::collections::HashSet;
use std::sync::Arc;

use api::selector::Labels;
use client::events::EventType;
use client::{Caches, Kept, Key};
use jiff::Timestamp;

use super::given::{Account, Given};
use super::ownership;
use super::revisions::{self, Revision};
use super::runtime::{Act, Action, Controller, Failure, Plan, Queue};
use super::views::{PODS, Pod};
use claims::Claims;
use make::{about, ordinal_of, owner};
use round::{Round, revision_of};
use view::{Claim, STATEFUL_SETS, StatefulSet};

mod claims;
mod make;
mod round;
mod view;

/// The label that holds a revision's hash; pods name the whole revision.
const HASH: &str = "controller.kubernetes.io/hash";

pub struct StatefulSets;

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset-controller";
    const ACCOUNT: Account = Account::Service("statefulset-controller");
    const READS: &'static [Kept] =
        &[Kept::of::<StatefulSet>(), Kept::of::<Pod>(), Kept::of::<Claim>(), Kept::of::<Revision>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<StatefulSet>().on_change(move |old, new| {
            if let Some(set) = new.or(old) {
                own.add(Key::of(&set.metadata.meta));
            }
        });
        let revisions = queue.clone();
        caches.of::<Revision>().on_change(move |old, new| {
            for revision in [old, new].into_iter().flatten() {
                if let Some(owner) = revision.metadata.owned.controller().filter(|owner| owner.kind == "StatefulSet") {
                    revisions.add(Key::new(&revision.metadata.meta.namespace, &owner.name));
                }
            }
        });
        // A pod may wait for the end of a claim of its name.
        let (claims, sets) = (queue.clone(), caches.of::<StatefulSet>());
        caches.of::<Claim>().on_change(move |old, new| {
            if let (Some(claim), None) = (old, new) {
                let all = sets.namespace(&claim.metadata.meta.namespace);
                let with_claims = all.iter().filter(|set| !set.spec.volume_claim_templates.is_empty());
                with_claims.for_each(|set| claims.add(Key::of(&set.metadata.meta)));
            }
        });
        let (queue, sets) = (queue.clone(), caches.of::<StatefulSet>());
        caches.of::<Pod>().on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let namespace = &pod.metadata.meta.namespace;
                match pod.metadata.owned.controller() {
                    Some(owner) if owner.kind == "StatefulSet" => queue.add(Key::new(namespace, &owner.name)),
                    Some(_) => {}
                    None => sets
                        .namespace(namespace)
                        .iter()
                        .filter(|set| ordinal_of(set, pod).is_some())
                        .for_each(|set| queue.add(Key::of(&set.metadata.meta))),
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(set) = caches.of::<StatefulSet>().get(&key.namespace, &key.name) else { return Plan::new() };
        let (pods, revisions, claims) = (caches.of::<Pod>(), caches.of::<Revision>(), caches.of::<Claim>());
        let (owned, orphans) = (format!("owner/{}", set.metadata.meta.uid), format!("orphan/{}", key.namespace));
        let seen = Seen {
            pods: pods.indexed(&owned),
            orphans: pods.indexed(&orphans),
            revisions: revisions.indexed(&owned),
            orphaned_revisions: revisions.indexed(&orphans),
        };
        let taken = |name: &str| revisions.get(&key.namespace, name).is_some();
        plan(&set, &seen, &|name| claims.get(&key.namespace, name), &taken, Timestamp::now())
    }

    fn failed(&self, key: &Key, caches: &Caches, failure: &Failure) -> Plan {
        let (reason, verb) = match failure.act {
            Act::Create => ("FailedCreate", "create"),
            Act::Delete => ("FailedDelete", "delete"),
            Act::Change => return Plan::new(),
        };
        let Some(set) = caches.of::<StatefulSet>().get(&key.namespace, &key.name) else { return Plan::new() };
        let (kind, name) = match failure.status.details.as_deref() {
            Some(details) if details.kind == "persistentvolumeclaims" => ("Claim", &*details.name),
            Some(details) => ("Pod", &*details.name),
            None => ("Pod", ""),
        };
        let message = format!("{verb} {kind} {name} in StatefulSet {} failed error: {}", key.name, failure.status);
        vec![Action::Event { about: about(&set), type_: EventType::Warning, reason, message }]
    }
}

/// What there is of a StatefulSet, and of what it may take.
#[derive(Default)]
struct Seen {
    pods: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    revisions: Vec<Arc<Revision>>,
    orphaned_revisions: Vec<Arc<Revision>>,
}

fn plan(set: &StatefulSet, seen: &Seen, claims: &Claims<'_>, taken: &dyn Fn(&str) -> bool, now: Timestamp) -> Plan {
    let meta = &set.metadata.meta;
    let labels = Labels::from_object(&set.spec.selector).ok().filter(|_| meta.deletion_timestamp.is_none());
    let Some(labels) = labels else { return Plan::new() };
    let history = revisions::Owner {
        kind: "StatefulSet",
        resource: STATEFUL_SETS,
        meta,
        template: &set.spec.template,
        collisions: set.status.collision_count,
        // Fewer than none: all are kept.
        limit: usize::try_from(set.spec.revision_history_limit).unwrap_or(usize::MAX),
        hash_label: HASH,
    };
    let mut claimed = claimed(set, seen, &labels);
    claimed.extend(history.adopt(&seen.orphaned_revisions, &labels));
    // What is taken counts when it is ours.
    if !claimed.is_empty() {
        return claimed;
    }
    let update = match history.current(&seen.revisions, taken) {
        Ok(update) => update,
        Err(first) => return first,
    };
    let current = seen.revisions.iter().find(|revision| revision.name() == set.status.current_revision);
    let round = Round { set, current: current.unwrap_or(&update), update: &update, claims, now };
    let mut plan = round.plan(&seen.pods);
    let used = seen.pods.iter().map(|pod| revision_of(pod));
    let live: HashSet<&str> = used.chain([round.current.name(), update.name()]).collect();
    plan.extend(history.forget(&seen.revisions, &live));
    let status = round.status(&seen.pods);
    if status != set.status {
        plan.push(Action::Patch {
            resource: STATEFUL_SETS,
            key: Key::of(meta),
            subresource: "status",
            version: None,
            patch: status.patch(),
        });
    }
    let next = ownership::next_available(&seen.pods, set.spec.min_ready_seconds, now);
    plan.extend(next.map(|after| Action::Again { key: Key::of(meta), after }));
    plan
}

/// Pods that join and pods that leave. Only one that has the set's name and a number can join.
fn claimed(set: &StatefulSet, seen: &Seen, labels: &Labels) -> Plan {
    let fits = |pod: &Pod| ownership::selects(labels, pod) && ordinal_of(set, pod).is_some();
    let strangers = seen.pods.iter().filter(|pod| !pod.is_deleting() && !fits(pod));
    let friends = seen.orphans.iter().filter(|pod| !pod.is_deleting() && fits(pod));
    strangers
        .map(|pod| ownership::release(PODS, &pod.metadata, &set.metadata.meta.uid))
        .chain(friends.map(|pod| ownership::adopt(PODS, &pod.metadata, owner(set))))
        .collect()
}

#[cfg(test)]
mod tests;
