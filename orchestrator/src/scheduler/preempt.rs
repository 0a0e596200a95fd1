//! A pod that no node takes, and those of less importance that would have to go for it. Pure.
//!
//! As upstream: on each of a number of nodes all lesser pods are taken away, and put back, the most important first, as long as the pod
//! still fits; first those whose disruption budget has nothing to spare. Those that cannot be put back are the node's victims. The
//! node is chosen whose victims weigh least.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use api::selector::Labels;
use api::uid::Uid;
use client::Key;

use super::decide::{Refused, counted};
use super::demand::{Demand, Preemption};
use super::filter::{Asker, Obstacle, objection};
use super::snapshot::{Place, Resident, Snapshot};
use super::surroundings::Surroundings;
use crate::controllers::views::{Budget, Pod};

/// Of so many nodes at least victims are found, where there are such nodes; of a tenth of all, where that is more.
const CANDIDATES: usize = 100;

/// Who goes, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    pub node: String,
    pub victims: Vec<Resident>,
}

/// What is known of pods and budgets beside their demands.
pub struct World<'a> {
    pub pod: &'a dyn Fn(&Key) -> Option<Arc<Pod>>,
    pub budgets: &'a [Arc<Budget>],
    /// Pods whose deletion is under way, by uid.
    pub ending: &'a HashSet<Uid>,
}

impl World<'_> {
    fn is_ending(&self, resident: &Resident) -> bool {
        self.ending.contains(&resident.uid) || (self.pod)(&resident.key).is_some_and(|pod| pod.is_deleting())
    }
}

/// Why nobody is pushed aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declined {
    /// Not asked for: what was planned before stands.
    NotEligible(&'static str),
    /// No node would be helped; what is said of each, counted.
    Helpless(String),
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEligible(why) => why,
            Self::Helpless(why) => why,
        })
    }
}

/// Chooses whom to push aside for a pod that was refused.
///
/// # Errors
/// Where nobody is.
pub fn preempt(asker: &Asker<'_>, all: &Snapshot, refused: &Refused<'_>, world: &World<'_>) -> Result<Plan, Declined> {
    let demand = asker.demand;
    if demand.preemption == Preemption::Never {
        return Err(Declined::NotEligible("not eligible due to preemptionPolicy=Never."));
    }
    let lesser = |other: &Resident| other.demand.priority < demand.priority;
    let nominated = all.nomination(asker.uid).and_then(|node| all.get(node));
    if nominated.is_some_and(|place| place.pods.values().any(|other| lesser(other) && world.is_ending(other))) {
        return Err(Declined::NotEligible("not eligible due to a terminating pod on the nominated node."));
    }
    let enough = (all.nodes() / 10).max(CANDIDATES);
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    let mut around = asker.around.clone().into_owned();
    for place in &refused.yielding {
        let mut trial = Trial { uid: asker.uid, demand, at: place, place: Place::clone(place), around: &mut around };
        match trial.victims(world) {
            Ok(victims) => found.push((place, victims)),
            Err(why) => reasons.extend(why),
        }
        trial.undo();
        if found.len() >= enough {
            break;
        }
    }
    let least = found.into_iter().min_by_key(|(_, victims)| victims.weight(world));
    if let Some((place, victims)) = least {
        return Ok(Plan { node: place.name().to_owned(), victims: victims.pods });
    }
    let hopeless = all.nodes() - refused.yielding.len();
    reasons.extend(std::iter::repeat_n("Preemption is not helpful for scheduling".to_owned(), hopeless));
    Err(Declined::Helpless(counted(all.nodes(), reasons.into_iter())))
}

/// Those that would have to leave one node.
struct Victims {
    /// The most important first.
    pods: Vec<Resident>,
    /// How many of them have no disruption to spare.
    violations: usize,
}

impl Victims {
    /// Less is better: violations, the highest priority, all priorities together, their number; and then whose most
    /// important ones have been there longest.
    fn weight(&self, world: &World<'_>) -> (usize, i64, i64, usize, Reverse<String>) {
        // Such that each one more weighs more, also of those below zero.
        const SHIFT: i64 = 1 << 31;
        let priority = |victim: &Resident| victim.demand.priority;
        let highest = self.pods.first().map_or(i64::MIN, priority);
        let sum = self.pods.iter().map(|victim| priority(victim) + SHIFT).sum();
        let first = self.pods.iter().filter(|victim| priority(victim) == highest);
        let since = first.map(|victim| start(victim, world)).min().unwrap_or_default();
        (self.violations, highest, sum, self.pods.len(), Reverse(since))
    }
}

/// Since when a pod has been there.
fn start(resident: &Resident, world: &World<'_>) -> String {
    let pod = (world.pod)(&resident.key);
    pod.map(|pod| pod.status.start_time.clone().unwrap_or_else(|| pod.metadata.owned.creation_timestamp.clone()))
        .unwrap_or_default()
}

/// One node, and what is around, with other pods on it than there are.
struct Trial<'a> {
    uid: &'a Uid,
    demand: &'a Demand,
    at: &'a Place,
    place: Place,
    /// Shared by all trials of a pod: each leaves it as it was.
    around: &'a mut Surroundings,
}

impl Trial<'_> {
    fn put(&mut self, pod: Resident) {
        self.around.shift(&pod, self.at, 1);
        self.place.put(pod);
    }

    fn take(&mut self, uid: &Uid) {
        if let Some(pod) = self.place.take(uid) {
            self.around.shift(&pod, self.at, -1);
        }
    }

    fn undo(self) {
        for pod in self.place.pods.values().filter(|pod| !self.at.pods.contains_key(&pod.uid)) {
            self.around.shift(pod, self.at, -1);
        }
        for pod in self.at.pods.values().filter(|pod| !self.place.pods.contains_key(&pod.uid)) {
            self.around.shift(pod, self.at, 1);
        }
    }

    fn objection(&self) -> Option<Obstacle> {
        let asker = Asker { uid: self.uid, demand: self.demand, around: Cow::Borrowed(self.around) };
        objection(&asker, &self.place)
    }

    /// Whether the pod fits beside this one, which stays then.
    fn fits_beside(&mut self, other: &Resident) -> bool {
        self.put(other.clone());
        let fits = self.objection().is_none();
        if !fits {
            self.take(&other.uid);
        }
        fits
    }

    /// Why even the node's lesser pods out of the way do not help, or the fewest of them that have to go.
    fn victims(&mut self, world: &World<'_>) -> Result<Victims, Vec<String>> {
        let lesser = self.at.pods.values().filter(|other| other.demand.priority < self.demand.priority);
        let mut lesser: Vec<Resident> = lesser.cloned().collect();
        if lesser.is_empty() {
            return Err(vec!["No preemption victims found for incoming pod".into()]);
        }
        let first: Vec<Resident> = self.at.before(self.demand, self.uid).cloned().collect();
        first.into_iter().for_each(|nominee| self.put(nominee));
        lesser.iter().for_each(|other| self.take(&other.uid));
        if let Some(still) = self.objection() {
            return Err(still.reasons());
        }
        lesser.sort_by_cached_key(|other| (Reverse(other.demand.priority), start(other, world), other.uid.clone()));
        let mut protected = Protected::new(world);
        let (shielded, others): (Vec<_>, Vec<_>) = lesser.into_iter().partition(|other| protected.holds(other));
        let mut pods: Vec<Resident> = shielded.into_iter().filter(|other| !self.fits_beside(other)).collect();
        let violations = pods.len();
        pods.extend(others.into_iter().filter(|other| !self.fits_beside(other)));
        pods.sort_by_key(|other| Reverse(other.demand.priority));
        Ok(Victims { pods, violations })
    }
}

/// Disruption budgets, and what is left of them as pods are counted out.
struct Protected<'a> {
    world: &'a World<'a>,
    left: Vec<i64>,
}

impl<'a> Protected<'a> {
    fn new(world: &'a World<'a>) -> Self {
        Self { world, left: world.budgets.iter().map(|budget| budget.status.disruptions_allowed).collect() }
    }

    /// Counts a pod out; whether one of its budgets had nothing to spare.
    fn holds(&mut self, resident: &Resident) -> bool {
        let Some(pod) = (self.world.pod)(&resident.key) else { return false };
        let mut held = false;
        for (budget, left) in self.world.budgets.iter().zip(&mut self.left) {
            // What was evicted a moment ago is counted already.
            let counted = budget.status.disrupted_pods.contains_key(&resident.key.name);
            if !counted && selects(budget, &pod) {
                *left -= 1;
                held |= *left < 0;
            }
        }
        held
    }
}

/// Here a budget for everything protects nothing, as upstream has it.
fn selects(budget: &Budget, pod: &Pod) -> bool {
    let labels = &pod.metadata.meta.labels;
    let selector = Labels::from_object(&budget.spec.selector);
    budget.metadata.meta.namespace == pod.metadata.meta.namespace
        && selector.is_ok_and(|selector| {
            !selector.is_everything() && selector.matches(|key| labels.get(key).map(String::as_str))
        })
}

#[cfg(test)]
mod tests;
