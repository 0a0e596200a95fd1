//! One pod, one snapshot: a node, or why there is none. Pure.

use std::collections::{BTreeMap, HashSet};

use super::demand::{Demand, Preemption};
use super::filter::{Obstacle, obstacle};
use super::score::best;
use super::snapshot::{Place, Snapshot};

/// In a cluster of up to so many nodes each of them is looked at; in a larger one at least so many that would do are found.
const ALL: usize = 100;

/// A node was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub node: String,
    /// Where the next look begins, so that each node has its turn.
    pub next: usize,
}

/// Why no node was chosen: upstream's sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable(pub String);

/// Chooses a node, looking from `start` on. In a large cluster it stops looking when enough nodes were found.
///
/// # Errors
/// Says for how many nodes each reason holds.
pub fn decide(demand: &Demand, all: &Snapshot, start: usize) -> Result<Choice, Unschedulable> {
    if all.nodes() == 0 {
        return Err(Unschedulable("no nodes available to schedule pods".into()));
    }
    if let Some(names) = demand.named() {
        return among(demand, all, &names, start);
    }
    let places = all.places();
    let start = if start < places.len() { start } else { 0 };
    let enough = enough(all.nodes());
    let mut feasible: Vec<&Place> = Vec::new();
    let mut refused: Vec<(&Place, Obstacle)> = Vec::new();
    let mut looked = 0;
    for place in places[start..].iter().chain(&places[..start]) {
        looked += 1;
        if place.node.is_none() {
            continue;
        }
        match obstacle(demand, place) {
            None => feasible.push(place),
            Some(found) => refused.push((place, found)),
        }
        if feasible.len() >= enough {
            break;
        }
    }
    match best(demand, &feasible) {
        Some(place) => Ok(Choice { node: place.name().to_owned(), next: (start + looked) % places.len() }),
        None => Err(refusal(demand, &refused, all.nodes(), Vec::new())),
    }
}

/// How many nodes that would do are enough to choose among: all in a small cluster, a part in a large one, as upstream.
fn enough(nodes: usize) -> usize {
    if nodes < ALL {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALL)
}

/// Only these nodes can be meant: nothing else is looked at.
fn among(demand: &Demand, all: &Snapshot, names: &HashSet<&str>, start: usize) -> Result<Choice, Unschedulable> {
    let mut names: Vec<&&str> = names.iter().collect();
    names.sort();
    let places = names.into_iter().filter_map(|name| all.get(name)).filter(|place| place.node.is_some());
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    for place in places {
        match obstacle(demand, place) {
            None => feasible.push(place),
            Some(found) => refused.push((place, found)),
        }
    }
    if let Some(place) = best(demand, &feasible) {
        return Ok(Choice { node: place.name().to_owned(), next: start });
    }
    let others = all.nodes() - refused.len();
    Err(refusal(demand, &refused, all.nodes(), vec![Obstacle::NotNamed; others]))
}

fn refusal(demand: &Demand, refused: &[(&Place, Obstacle)], nodes: usize, unseen: Vec<Obstacle>) -> Unschedulable {
    let reasons = refused.iter().map(|(_, obstacle)| obstacle).chain(&unseen).flat_map(Obstacle::reasons);
    let preemption = preemption(demand, refused, nodes);
    Unschedulable(format!("{} no new claims to deallocate, preemption: {preemption}", counted(nodes, reasons)))
}

/// `0/3 nodes are available: 1 this, 2 that.`
fn counted(nodes: usize, reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    format!("0/{nodes} nodes are available: {}.", texts.join(", "))
}

/// What is said of pushing others aside.
fn preemption(demand: &Demand, refused: &[(&Place, Obstacle)], nodes: usize) -> String {
    if demand.preemption == Preemption::Never {
        return "not eligible due to preemptionPolicy=Never.".into();
    }
    let yielding = refused.iter().filter(|(_, obstacle)| obstacle.may_yield());
    let mut reasons: Vec<String> = yielding.flat_map(|(place, _)| without_lesser(demand, place)).collect();
    let hopeless = nodes - refused.iter().filter(|(_, obstacle)| obstacle.may_yield()).count();
    reasons.extend(std::iter::repeat_n("Preemption is not helpful for scheduling".to_owned(), hopeless));
    counted(nodes, reasons.into_iter())
}

/// Why even the node's lesser pods out of the way do not help.
fn without_lesser(demand: &Demand, place: &Place) -> Vec<String> {
    let lesser = |other: &Demand| other.priority < demand.priority;
    if !place.pods.values().any(|other| lesser(other)) {
        return vec!["No preemption victims found for incoming pod".into()];
    }
    match obstacle(demand, &place.without(lesser)) {
        Some(still) => still.reasons(),
        // Ours to say: upstream would begin to delete them.
        None => vec!["Pods of lower priority are not preempted".into()],
    }
}

#[cfg(test)]
mod tests;
