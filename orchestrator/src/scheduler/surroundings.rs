//! The pods around, as one pod that asks for company counts them: made for one decision, over the nodes' labels.
//!
//! Counts are kept by value of the label that a term names. A decision for a pod without such wishes, among pods without such
//! wishes, costs nothing here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::company::{Company, Identity, Namespaces, PodTerm, Policy, Spread, Uneven};
use super::demand::Demand;
use super::filter;
use super::snapshot::{Place, Resident, Snapshot};

/// What an existing pod's required term weighs for one that it means, as upstream.
const REQUIRED: i64 = 1;

/// Pods by value of a label.
type Counts = HashMap<String, i64>;

/// What one spread constraint counts.
#[derive(Debug, Clone)]
struct Evenness {
    counts: Counts,
    /// How many values have such a count.
    levels: BTreeMap<i64, usize>,
    own: i64,
}

impl Evenness {
    fn shift(&mut self, value: &str, by: i64) {
        let Some(count) = self.counts.get_mut(value) else { return };
        if let Some(level) = self.levels.get_mut(count) {
            *level -= 1;
            if *level == 0 {
                self.levels.remove(count);
            }
        }
        *count += by;
        *self.levels.entry(*count).or_default() += 1;
    }

    /// The count of the emptiest domain; as long as there are too few of them that of one without any.
    fn least(&self, spread: &Spread) -> i64 {
        if self.counts.len() < spread.min_domains {
            return 0;
        }
        self.levels.first_key_value().map_or(0, |(least, _)| *least)
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Surroundings {
    demand: Arc<Demand>,
    namespaces: Arc<Namespaces>,
    /// Pods that all near terms mean, for each of them.
    near: Vec<Counts>,
    /// The pod itself is one that it wants to be near.
    own_near: bool,
    /// For each apart term.
    apart: Vec<Counts>,
    /// Pods that do not want this one near them, by label.
    wary: HashMap<String, Counts>,
    /// What likes say, by label.
    liked: HashMap<String, Counts>,
    /// For each spread constraint.
    even: Vec<Evenness>,
}

/// Why a pod's company keeps it off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    NotNear,
    NotApart,
    /// A pod that is there does not want it.
    Unwanted,
    Uneven,
    /// The node lacks the label by which pods are spread.
    Unlabelled,
}

impl Surroundings {
    pub fn of(demand: &Arc<Demand>, all: &Snapshot) -> Self {
        let mut around = Self::alone(demand, all);
        if let Some(company) = demand.company.clone() {
            around.count_own(&company, all);
        }
        for (company, nodes) in all.outlasting() {
            around.count_others(company, nodes, all);
        }
        around
    }

    /// Nobody is asked for.
    fn alone(demand: &Arc<Demand>, all: &Snapshot) -> Self {
        Self {
            demand: demand.clone(),
            namespaces: all.namespaces().clone(),
            near: Vec::new(),
            own_near: false,
            apart: Vec::new(),
            wary: HashMap::new(),
            liked: HashMap::new(),
            even: Vec::new(),
        }
    }

    fn count_own(&mut self, company: &Company, all: &Snapshot) {
        self.near = vec![Counts::new(); company.near.len()];
        self.apart = vec![Counts::new(); company.apart.len()];
        self.own_near = company.near.iter().all(|term| term.means(&self.demand.identity, &self.namespaces));
        for (identity, nodes) in all.crowds() {
            self.for_each_meant(company, identity, |counts, key| {
                tally(counts, all, nodes.iter().map(|(node, crowd)| (node, crowd.all)), key);
            });
            for (weight, term) in company.likes.iter().filter(|(_, term)| term.means(identity, &self.namespaces)) {
                let weighed = nodes.iter().map(|(node, crowd)| (node, weight * crowd.all));
                tally(self.liked.entry(term.key.clone()).or_default(), all, weighed, &term.key);
            }
        }
        self.even = company.spread.iter().map(|spread| self.evenness(company, spread, all)).collect();
    }

    /// The counts of required terms, with their labels, in which such a pod counts.
    fn for_each_meant(&mut self, company: &Company, other: &Identity, mut count: impl FnMut(&mut Counts, &str)) {
        let means = |term: &PodTerm| term.means(other, &self.namespaces);
        let near = company.near.iter().all(means);
        let near = company.near.iter().zip(&mut self.near).filter(|_| near);
        let apart = company.apart.iter().zip(&mut self.apart).filter(|(term, _)| means(term));
        near.chain(apart).for_each(|(term, counts)| count(counts, &term.key));
    }

    fn count_others(&mut self, company: &Company, nodes: &HashMap<String, i64>, all: &Snapshot) {
        let own = &self.demand.identity;
        for term in company.apart.iter().filter(|term| term.means(own, &self.namespaces)) {
            let counts = self.wary.entry(term.key.clone()).or_default();
            tally(counts, all, nodes.iter().map(|(node, count)| (node, *count)), &term.key);
        }
        let near = company.near.iter().map(|term| (REQUIRED, term));
        let likes = company.likes.iter().map(|(weight, term)| (*weight, term));
        for (weight, term) in near.chain(likes).filter(|(_, term)| term.means(own, &self.namespaces)) {
            let counts = self.liked.entry(term.key.clone()).or_default();
            tally(counts, all, nodes.iter().map(|(node, count)| (node, weight * count)), &term.key);
        }
    }

    fn evenness(&self, company: &Company, spread: &Spread, all: &Snapshot) -> Evenness {
        let own = &self.demand.identity;
        let mut by_node: HashMap<&str, i64> = HashMap::new();
        for (_, nodes) in all.crowds().filter(|(identity, _)| spread.means(own, identity)) {
            for (node, crowd) in nodes {
                *by_node.entry(node).or_default() += crowd.all - crowd.ending;
            }
        }
        let mut counts = Counts::new();
        for place in all.places().iter().filter(|place| counts_for(&self.demand, company, spread, place)) {
            add(&mut counts, place.label(&spread.key), by_node.get(place.name()).copied().unwrap_or(0));
        }
        let mut levels = BTreeMap::new();
        for count in counts.values() {
            *levels.entry(*count).or_default() += 1;
        }
        Evenness { counts, levels, own: i64::from(spread.means(own, own)) }
    }

    /// What would be with a pod more (1) or less (-1) on a node. Likes stay as they are: they decide about nothing.
    pub fn shift(&mut self, resident: &Resident, place: &Place, by: i64) {
        let (demand, namespaces) = (self.demand.clone(), self.namespaces.clone());
        let other = &resident.demand.identity;
        if let Some(company) = &demand.company {
            self.for_each_meant(company, other, |counts, key| add(counts, place.label(key), by));
            for (spread, even) in company.spread.iter().zip(&mut self.even) {
                let counted = spread.means(&demand.identity, other)
                    && !resident.ending
                    && counts_for(&demand, company, spread, place);
                if let Some(value) = place.label(&spread.key).filter(|_| counted) {
                    even.shift(value, by);
                }
            }
        }
        for term in resident.demand.company.iter().flat_map(|company| &company.apart) {
            if term.means(&demand.identity, &namespaces) {
                add(self.wary.entry(term.key.clone()).or_default(), place.label(&term.key), by);
            }
        }
    }

    /// What is wrong with a node because of who is there and who is elsewhere.
    pub fn misfit(&self, place: &Place) -> Option<Misfit> {
        let count =
            |counts: &Counts, key: &str| place.label(key).and_then(|value| counts.get(value)).copied().unwrap_or(0);
        if let Some(company) = &self.demand.company {
            let strict = company.spread.iter().zip(&self.even).filter(|(spread, _)| spread.uneven == Uneven::Refused);
            for (spread, even) in strict {
                if place.label(&spread.key).is_none() {
                    return Some(Misfit::Unlabelled);
                }
                let skew = count(&even.counts, &spread.key) + even.own - even.least(spread);
                if skew > spread.max_skew {
                    return Some(Misfit::Uneven);
                }
            }
            let labelled = company.near.iter().all(|term| place.label(&term.key).is_some());
            let near = company.near.iter().zip(&self.near).all(|(term, counts)| count(counts, &term.key) > 0);
            // The first of those that want to be near each other has nobody to be near.
            let first = self.own_near && self.near.iter().all(|counts| counts.values().all(|count| *count == 0));
            if !labelled || !(near || first) {
                return Some(Misfit::NotNear);
            }
            if company.apart.iter().zip(&self.apart).any(|(term, counts)| count(counts, &term.key) > 0) {
                return Some(Misfit::NotApart);
            }
        }
        self.wary.iter().any(|(key, counts)| count(counts, key) > 0).then_some(Misfit::Unwanted)
    }

    /// How much each of these nodes' neighbourhoods is liked, from 0 to `best`.
    pub fn liked(&self, feasible: &[&Place], best: i64) -> Vec<i64> {
        let one = |place: &Place| -> i64 {
            let said = self.liked.iter().filter_map(|(key, counts)| counts.get(place.label(key)?));
            said.sum()
        };
        let all: Vec<i64> = feasible.iter().map(|place| one(place)).collect();
        let (least, most) = (all.iter().min().copied().unwrap_or(0), all.iter().max().copied().unwrap_or(0));
        if most == least {
            return vec![0; all.len()];
        }
        all.into_iter().map(|liked| best * (liked - least) / (most - least)).collect()
    }

    /// How evenly the pod would be spread on each of these nodes, from 0 to `best`.
    pub fn evenly(&self, feasible: &[&Place], best: i64) -> Vec<i64> {
        let company = self.demand.company.as_ref();
        let wanted: Vec<_> = company
            .iter()
            .flat_map(|company| company.spread.iter().zip(&self.even))
            .filter(|(spread, _)| spread.uneven == Uneven::Disliked)
            .collect();
        if wanted.is_empty() {
            return vec![0; feasible.len()];
        }
        // A domain among many weighs more than one among few.
        let weighed: Vec<_> = wanted
            .into_iter()
            .map(|(spread, even)| {
                let mut domains: Vec<_> = feasible.iter().filter_map(|place| place.label(&spread.key)).collect();
                domains.sort_unstable();
                domains.dedup();
                (spread, even, (domains.len() as f64 + 2.0).ln())
            })
            .collect();
        let crowding = |place: &Place| -> Option<i64> {
            let mut sum = 0.0;
            for (spread, even, weight) in &weighed {
                let value = place.label(&spread.key)?;
                let count = even.counts.get(value).copied().unwrap_or(0);
                sum += count as f64 * weight + (spread.max_skew - 1) as f64;
            }
            Some(sum.round() as i64)
        };
        let all: Vec<Option<i64>> = feasible.iter().map(|place| crowding(place)).collect();
        let known = || all.iter().flatten().copied();
        let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        let score = |crowding: &Option<i64>| match crowding {
            None => 0,
            Some(_) if most == 0 => best,
            Some(crowding) => best * (most + least - crowding) / most,
        };
        all.iter().map(score).collect()
    }
}

/// Whether a node is one of those over which a constraint spreads.
fn counts_for(demand: &Demand, company: &Company, spread: &Spread, place: &Place) -> bool {
    let same = company.spread.iter().filter(|other| other.uneven == spread.uneven);
    place.node.is_some()
        && same.map(|other| &other.key).all(|key| place.label(key).is_some())
        && (spread.affinity == Policy::Ignore || filter::is_meant(demand, place))
        && (spread.taints == Policy::Ignore || filter::is_tolerated(demand, place))
}

fn add(counts: &mut Counts, value: Option<&str>, by: i64) {
    let Some(value) = value else { return };
    match counts.get_mut(value) {
        Some(count) => *count += by,
        None => drop(counts.insert(value.to_owned(), by)),
    }
}

/// Adds up what is on nodes by their values of a label.
fn tally<'a>(counts: &mut Counts, all: &Snapshot, nodes: impl Iterator<Item = (&'a String, i64)>, key: &str) {
    for (node, count) in nodes {
        if let Some(place) = all.get(node) {
            add(counts, place.label(key), count);
        }
    }
}

/// What an identity is to a spread constraint of another; for those that wait.
pub fn minds(demand: &Demand, resident: &Resident, namespaces: &Namespaces) -> bool {
    let other: &Identity = &resident.demand.identity;
    let own = &demand.identity;
    demand.company.as_ref().is_some_and(|company| company.minds(own, other, namespaces))
        || resident.demand.company.iter().flat_map(|company| &company.apart).any(|term| term.means(own, namespaces))
}

#[cfg(test)]
mod tests;
