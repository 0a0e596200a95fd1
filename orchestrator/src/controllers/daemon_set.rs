//! DaemonSet: one pod on each node that it is for. The scheduler puts each where its affinity says.

use std::collections::HashSet;
use std::sync::Arc;

use api::selector::Labels;
use client::events::EventType;
use client::{Caches, Kept, Key};
use jiff::Timestamp;

use super::given::{Account, Given};
use super::ownership;
use super::revisions::{self, POD_LABEL, Revision};
use super::runtime::{Act, Action, Controller, Failure, Plan, Queue};
use super::views::{Node, PODS, Pod};
use fit::{about, owner};
use round::Round;
use view::{DAEMON_SETS, DaemonSet};

mod fit;
mod round;
mod view;

pub struct DaemonSets;

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset-controller";
    const ACCOUNT: Account = Account::Service("daemon-set-controller");
    const READS: &'static [Kept] =
        &[Kept::of::<DaemonSet>(), Kept::of::<Pod>(), Kept::of::<Node>(), Kept::of::<Revision>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<DaemonSet>().on_change(move |old, new| {
            if let Some(set) = new.or(old) {
                own.add(Key::of(&set.metadata.meta));
            }
        });
        let (nodes, sets) = (queue.clone(), caches.of::<DaemonSet>());
        caches.of::<Node>().on_change(move |old, new| {
            // What a node says of itself all the time concerns nobody here.
            let asked =
                |node: Option<&Node>| node.map(|node| (node.metadata.meta.labels.clone(), node.spec.taints.clone()));
            if asked(old) != asked(new) {
                sets.all().iter().for_each(|set| nodes.add(Key::of(&set.metadata.meta)));
            }
        });
        let revisions = queue.clone();
        caches.of::<Revision>().on_change(move |old, new| {
            for revision in [old, new].into_iter().flatten() {
                if let Some(owner) = revision.metadata.owned.controller().filter(|owner| owner.kind == "DaemonSet") {
                    revisions.add(Key::new(&revision.metadata.meta.namespace, &owner.name));
                }
            }
        });
        let (queue, sets) = (queue.clone(), caches.of::<DaemonSet>());
        caches.of::<Pod>().on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let namespace = &pod.metadata.meta.namespace;
                match pod.metadata.owned.controller() {
                    Some(owner) if owner.kind == "DaemonSet" => queue.add(Key::new(namespace, &owner.name)),
                    Some(_) => {}
                    None => sets
                        .namespace(namespace)
                        .iter()
                        .filter(|set| selector(set).is_some_and(|labels| ownership::selects(&labels, pod)))
                        .for_each(|set| queue.add(Key::of(&set.metadata.meta))),
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(set) = caches.of::<DaemonSet>().get(&key.namespace, &key.name) else { return Plan::new() };
        let (pods, revisions) = (caches.of::<Pod>(), caches.of::<Revision>());
        let (owned, orphans) = (format!("owner/{}", set.metadata.meta.uid), format!("orphan/{}", key.namespace));
        let seen = Seen {
            pods: pods.indexed(&owned),
            orphans: pods.indexed(&orphans),
            revisions: revisions.indexed(&owned),
            orphaned_revisions: revisions.indexed(&orphans),
            nodes: caches.of::<Node>().all(),
        };
        plan(&set, &seen, &|name| revisions.get(&key.namespace, name).is_some(), Timestamp::now())
    }

    fn failed(&self, key: &Key, caches: &Caches, failure: &Failure) -> Plan {
        let (reason, verb) = match failure.act {
            Act::Create => ("FailedCreate", "creating"),
            Act::Delete => ("FailedDelete", "deleting"),
            Act::Change => return Plan::new(),
        };
        let Some(set) = caches.of::<DaemonSet>().get(&key.namespace, &key.name) else { return Plan::new() };
        let message = format!("Error {verb}: {}", failure.status);
        vec![Action::Event { about: about(&set), type_: EventType::Warning, reason, message }]
    }
}

/// What there is of a DaemonSet, and of what it may take.
#[derive(Default)]
struct Seen {
    pods: Vec<Arc<Pod>>,
    orphans: Vec<Arc<Pod>>,
    revisions: Vec<Arc<Revision>>,
    orphaned_revisions: Vec<Arc<Revision>>,
    nodes: Vec<Arc<Node>>,
}

fn selector(set: &DaemonSet) -> Option<Labels> {
    Labels::from_object(&set.spec.selector).ok()
}

fn plan(set: &DaemonSet, seen: &Seen, taken: &dyn Fn(&str) -> bool, now: Timestamp) -> Plan {
    let meta = &set.metadata.meta;
    let Some(labels) = selector(set).filter(|_| meta.deletion_timestamp.is_none()) else { return Plan::new() };
    if labels.is_everything() {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.".into();
        return vec![Action::Event { about: about(set), type_: EventType::Warning, reason: "SelectingAll", message }];
    }
    let history = revisions::Owner {
        kind: "DaemonSet",
        resource: DAEMON_SETS,
        meta,
        template: &set.spec.template,
        collisions: set.status.collision_count,
        limit: set.spec.revision_history_limit,
        hash_label: POD_LABEL,
    };
    let mut claims = claims(set, seen, &labels);
    claims.extend(history.adopt(&seen.orphaned_revisions, &labels));
    // What is taken counts when it is ours.
    if !claims.is_empty() {
        return claims;
    }
    let current = match history.current(&seen.revisions, taken) {
        Ok(current) => current,
        Err(first) => return first,
    };
    let round = Round::of(set, current.label(POD_LABEL), &seen.nodes, &seen.pods, now);
    let mut plan = round.plan();
    plan.extend(history.forget(&seen.revisions, &live(seen, &current)));
    let status = round.status();
    if status != set.status {
        plan.push(Action::Patch {
            resource: DAEMON_SETS,
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

/// Pods that join and pods that leave.
fn claims(set: &DaemonSet, seen: &Seen, labels: &Labels) -> Plan {
    let strangers = seen.pods.iter().filter(|pod| !pod.is_deleting() && !ownership::selects(labels, pod));
    let friends = seen.orphans.iter().filter(|pod| !pod.is_deleting() && ownership::selects(labels, pod));
    strangers
        .map(|pod| ownership::release(PODS, &pod.metadata, &set.metadata.meta.uid))
        .chain(friends.map(|pod| ownership::adopt(PODS, &pod.metadata, owner(set))))
        .collect()
}

/// The revisions that pods are made from.
fn live<'a>(seen: &'a Seen, current: &'a Revision) -> HashSet<&'a str> {
    let hashes: HashSet<&str> =
        seen.pods.iter().filter_map(|pod| pod.metadata.meta.labels.get(POD_LABEL)).map(String::as_str).collect();
    let used = seen.revisions.iter().filter(|revision| hashes.contains(revision.label(POD_LABEL)));
    used.map(|revision| revision.name()).chain([current.name()]).collect()
}

#[cfg(test)]
mod tests;
