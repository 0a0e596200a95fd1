//! One pod, one snapshot: a node, or why there is none. Pure.

use std::collections::{BTreeMap, HashSet};

use super::filter::{Asker, Obstacle, obstacle};
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

/// No node takes the pod as things are.
#[derive(Debug)]
pub struct Refused<'a> {
    /// For how many nodes each reason holds.
    pub why: String,
    /// Those on which fewer pods would help.
    pub yielding: Vec<&'a Place>,
}

/// Chooses a node, looking from `start` on; first where room is kept for the pod. In a large cluster it stops looking when
/// enough nodes were found.
///
/// # Errors
/// Says for how many nodes each reason holds.
pub fn decide<'a>(asker: &Asker<'_>, all: &'a Snapshot, start: usize) -> Result<Choice, Refused<'a>> {
    if all.nodes() == 0 {
        return Err(Refused { why: "no nodes available to schedule pods".into(), yielding: Vec::new() });
    }
    let nominated = all.nomination(asker.uid).and_then(|node| all.get(node)).filter(|place| place.node.is_some());
    if let Some(place) = nominated.filter(|place| obstacle(asker, place).is_none()) {
        return Ok(Choice { node: place.name().to_owned(), next: start });
    }
    if let Some(names) = asker.demand.named() {
        return among(asker, all, &names, start);
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
        match obstacle(asker, place) {
            None => feasible.push(place),
            Some(found) => refused.push((place, found)),
        }
        if feasible.len() >= enough {
            break;
        }
    }
    match best(asker, &feasible) {
        Some(place) => Ok(Choice { node: place.name().to_owned(), next: (start + looked) % places.len() }),
        None => Err(refusal(refused, all.nodes(), 0)),
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
fn among<'a>(asker: &Asker<'_>, all: &'a Snapshot, names: &HashSet<&str>, start: usize) -> Result<Choice, Refused<'a>> {
    let mut names: Vec<&&str> = names.iter().collect();
    names.sort();
    let places = names.into_iter().filter_map(|name| all.get(name)).filter(|place| place.node.is_some());
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    for place in places {
        match obstacle(asker, place) {
            None => feasible.push(place),
            Some(found) => refused.push((place, found)),
        }
    }
    if let Some(place) = best(asker, &feasible) {
        return Ok(Choice { node: place.name().to_owned(), next: start });
    }
    let others = all.nodes() - refused.len();
    Err(refusal(refused, all.nodes(), others))
}

/// `unnamed` nodes were not looked at, since the pod names others.
fn refusal(refused: Vec<(&Place, Obstacle)>, nodes: usize, unnamed: usize) -> Refused<'_> {
    let unseen = std::iter::repeat_n(&Obstacle::NotNamed, unnamed);
    let reasons = refused.iter().map(|(_, obstacle)| obstacle).chain(unseen).flat_map(Obstacle::reasons);
    let why = counted(nodes, reasons);
    let yielding = refused.iter().filter(|(_, obstacle)| obstacle.may_yield()).map(|(place, _)| *place);
    Refused { why, yielding: yielding.collect() }
}

/// `0/3 nodes are available: 1 this, 2 that.`
pub fn counted(nodes: usize, reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    format!("0/{nodes} nodes are available: {}.", texts.join(", "))
}

#[cfg(test)]
mod tests;
