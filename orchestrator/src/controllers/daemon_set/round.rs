//! Node by node: who has a pod, who needs one, whose is to go; and the way from one template to the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use client::events::EventType;
use jiff::{SignedDuration, Timestamp};

use super::super::amount::{Rounding, resolve};
use super::super::ownership::is_available;
use super::super::revisions::POD_LABEL;
use super::super::runtime::{Action, Plan};
use super::super::views::{Node, PODS, Pod};
use super::fit::{Fit, Standing, about, create, node_of};
use super::view::{DaemonSet, DaemonSetStatus};

/// Pods made or removed by one plan.
const BURST: usize = 250;
/// A pod that failed is replaced when it is this old: a node that refuses one would refuse the next as soon.
const FAILED_STAYS: SignedDuration = SignedDuration::from_secs(15);

pub struct Round<'a> {
    set: &'a DaemonSet,
    hash: &'a str,
    now: Timestamp,
    nodes: Vec<(&'a str, Standing)>,
    /// By node, the oldest first; those that the scheduler has not placed yet come last.
    pods: BTreeMap<&'a str, Vec<&'a Arc<Pod>>>,
}

/// What a plan makes, by node, and which pods it takes away.
#[derive(Default)]
struct Moves<'a> {
    made: Vec<&'a str>,
    gone: Vec<&'a Arc<Pod>>,
}

/// The pod of the present template, and that of an earlier one.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

impl<'a> Round<'a> {
    pub fn of(set: &'a DaemonSet, hash: &'a str, nodes: &'a [Arc<Node>], own: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let fit = Fit::of(set);
        let nodes = nodes.iter().map(|node| (&*node.metadata.meta.name, fit.standing(node))).collect();
        let mut sorted: Vec<_> = own.iter().collect();
        sorted.sort_by_key(|pod| {
            let meta = &pod.metadata;
            (pod.spec.node_name.is_empty(), meta.owned.creation_timestamp.clone(), meta.meta.name.clone())
        });
        let mut pods: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in sorted {
            pods.entry(node_of(pod)).or_default().push(pod);
        }
        Self { set, hash, now, nodes, pods }
    }

    fn on(&self, node: &str) -> &[&'a Arc<Pod>] {
        self.pods.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.metadata.meta.labels.get(POD_LABEL).is_some_and(|hash| hash == self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.set.spec.min_ready_seconds, self.now)
    }

    /// Brings each node to its pod, and then, if nothing else is to do, one template to the next.
    pub fn plan(&self) -> Plan {
        let (moves, said) = self.manage();
        let moves = match moves.made.is_empty() && moves.gone.is_empty() {
            true if self.set.spec.update_strategy.type_ == "RollingUpdate" => self.roll(),
            _ => moves,
        };
        let mut plan = said;
        plan.extend(moves.gone.iter().take(BURST).flat_map(|pod| self.remove(pod)));
        let made: Plan = moves.made.iter().take(BURST).map(|node| create(self.set, self.hash, node)).collect();
        if !made.is_empty() {
            plan.push(Action::Slowly(made));
        }
        plan
    }

    fn remove(&self, pod: &Pod) -> [Action; 2] {
        let meta = &pod.metadata.meta;
        let (about, message) = (about(self.set), format!("Deleted pod: {}", meta.name));
        let said = Action::Event { about, type_: EventType::Normal, reason: "SuccessfulDelete", message };
        [Action::Delete { resource: PODS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }, said]
    }

    fn manage(&self) -> (Moves<'a>, Plan) {
        let (mut moves, mut said) = (Moves::default(), Plan::new());
        for (node, standing) in &self.nodes {
            let pods = self.on(node);
            match standing {
                Standing::Wanted if pods.is_empty() => moves.made.push(node),
                Standing::Unwanted => moves.gone.extend(pods.iter().filter(|pod| !pod.is_deleting())),
                Standing::Wanted | Standing::Borne => self.keep(node, pods, &mut moves, &mut said),
            }
        }
        // Those of nodes that are gone, as long as none took them.
        let known = |node: &str| self.nodes.iter().any(|(name, _)| *name == node);
        let lost = self.pods.iter().filter(|(node, _)| !known(node)).flat_map(|(_, pods)| pods);
        moves.gone.extend(lost.filter(|pod| pod.spec.node_name.is_empty() && !pod.is_deleting()));
        (moves, said)
    }

    /// Of the pods of one node one stays; while one replaces another, two.
    fn keep(&self, node: &str, pods: &[&'a Arc<Pod>], moves: &mut Moves<'a>, said: &mut Plan) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
            let (type_, reason, how, what) = match &*pod.status.phase {
                "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
                "Succeeded" => (EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
                _ => {
                    running.push(*pod);
                    continue;
                }
            };
            if let Some(after) = self.stays(pod) {
                said.push(Action::Again { key: Key::of(&self.set.metadata.meta), after });
                continue;
            }
            let meta = &pod.metadata.meta;
            let message = format!(
                "Found {how} daemon pod {}/{} on node {node}, will try to {what} it",
                meta.namespace, meta.name
            );
            said.push(Action::Event { about: about(self.set), type_, reason, message });
            moves.gone.push(pod);
        }
        if self.bounds().surge == 0 {
            moves.gone.extend(running.into_iter().skip(1));
            return;
        }
        let (mut new, mut old) = (None, None);
        for pod in running {
            let known = if self.is_updated(pod) { &mut new } else { &mut old };
            if known.is_some() { moves.gone.push(pod) } else { *known = Some(pod) }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!old.is_ready() || self.is_available(new))
        {
            moves.gone.push(old);
        }
    }

    /// How long a pod that ended is left where it is.
    fn stays(&self, pod: &Pod) -> Option<Duration> {
        let made: Timestamp = pod.metadata.owned.creation_timestamp.parse().ok()?;
        let left = made.checked_add(FAILED_STAYS).ok()?.duration_since(self.now);
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }

    fn bounds(&self) -> Bounds {
        let strategy = &self.set.spec.update_strategy;
        let Some(rolling) = strategy.rolling_update.as_ref().filter(|_| strategy.type_ == "RollingUpdate") else {
            return Bounds { surge: 0, unavailable: 0 };
        };
        let wanted = self.wanted();
        let surge = resolve(&rolling.max_surge, wanted, Rounding::Up);
        let unavailable = resolve(&rolling.max_unavailable, wanted, Rounding::Up);
        // Both zero would never move.
        Bounds { surge, unavailable: if surge == 0 && unavailable == 0 { 1 } else { unavailable } }
    }

    fn wanted(&self) -> i64 {
        number(self.nodes.iter().filter(|(_, standing)| *standing == Standing::Wanted).count())
    }

    /// None where a node has more than such two.
    fn pair(&self, node: &str) -> Option<Pair<'a>> {
        let (mut new, mut old) = (None, None);
        for pod in self.on(node).iter().filter(|pod| !pod.is_deleting()) {
            let known = if self.is_updated(pod) { &mut new } else { &mut old };
            if known.replace(*pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    fn roll(&self) -> Moves<'a> {
        let bounds = self.bounds();
        let nodes: Vec<_> = self.pods.keys().copied().collect();
        if bounds.surge > 0 { self.surge(&nodes, bounds.surge) } else { self.replace(&nodes, bounds.unavailable) }
    }

    /// Takes old pods away, as many as may be unavailable; those that are so anyhow first.
    fn replace(&self, nodes: &[&'a str], most: i64) -> Moves<'a> {
        let (mut out, mut now, mut later) = (0, Vec::new(), Vec::new());
        for node in nodes {
            match self.pair(node) {
                Some((None, Some(old))) if self.is_available(old) => later.push(old),
                Some((None, Some(old))) => {
                    now.push(old);
                    out += 1;
                }
                Some((Some(new), None)) if self.is_available(new) => {}
                _ => out += 1,
            }
        }
        let room = usize::try_from(most - out).unwrap_or(0);
        now.extend(later.into_iter().take(room));
        Moves { made: Vec::new(), gone: now }
    }

    /// Makes new pods beside old ones, as many as there may be too many, and takes the old ones away when these are available.
    fn surge(&self, nodes: &[&'a str], most: i64) -> Moves<'a> {
        let (mut over, mut moves, mut later) = (0, Moves::default(), Vec::new());
        for node in nodes {
            match self.pair(node) {
                None => over += 1,
                Some((_, None)) => {}
                Some((None, Some(_))) if !self.takes_more(node) => {}
                Some((None, Some(old))) if self.is_available(old) => later.push(*node),
                Some((None, Some(_))) => moves.made.push(node),
                Some((Some(new), Some(old))) if !self.is_available(old) || self.is_available(new) => {
                    moves.gone.push(old)
                }
                Some((Some(_), Some(_))) => over += 1,
            }
        }
        let room = usize::try_from(most - over).unwrap_or(0);
        moves.made.extend(later.into_iter().take(room));
        moves
    }

    fn takes_more(&self, node: &str) -> bool {
        self.nodes.contains(&(node, Standing::Wanted))
    }

    /// What the status says; on each node the oldest pod counts.
    pub fn status(&self) -> DaemonSetStatus {
        let old = &self.set.status;
        let generation = self.set.metadata.meta.generation.unwrap_or_default();
        let mut next = DaemonSetStatus {
            observed_generation: generation,
            desired_number_scheduled: self.wanted(),
            collision_count: old.collision_count,
            ..DaemonSetStatus::default()
        };
        for (node, standing) in &self.nodes {
            let Some(pod) = self.on(node).first() else { continue };
            if *standing != Standing::Wanted {
                next.number_misscheduled += 1;
                continue;
            }
            next.current_number_scheduled += 1;
            next.number_ready += i64::from(pod.is_ready());
            next.number_available += i64::from(self.is_available(pod));
            next.updated_number_scheduled += i64::from(self.is_updated(pod));
        }
        next.number_unavailable = next.desired_number_scheduled - next.number_available;
        next
    }
}

/// How far a rollout may go beyond and below one pod on each node.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    surge: i64,
    unavailable: i64,
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
