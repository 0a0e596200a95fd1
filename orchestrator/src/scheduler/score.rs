//! Which of the nodes that would do is best, by Kubernetes' weights: taints that would rather not have the pod, labels that
//! it would rather have, and how empty and how evenly used the node is afterwards.

use super::demand::Demand;
use super::filter::{holds, tolerates};
use super::snapshot::Place;

const BEST: i64 = 100;
const TAINTS: i64 = 3;
const AFFINITY: i64 = 2;

/// The best of them; of equal ones that with the fewest pods, then the first.
pub fn best<'a>(demand: &Demand, feasible: &[&'a Place]) -> Option<&'a Place> {
    if let [only] = feasible {
        return Some(only);
    }
    let unwelcome: Vec<i64> = feasible.iter().map(|place| unwelcome(demand, place)).collect();
    let liked: Vec<i64> = feasible.iter().map(|place| liked(demand, place)).collect();
    let (most_unwelcome, most_liked) = (max(&unwelcome), max(&liked));
    let scored = feasible.iter().enumerate().map(|(index, place)| {
        let taints = if most_unwelcome == 0 { BEST } else { BEST - BEST * unwelcome[index] / most_unwelcome };
        let affinity = if most_liked == 0 { 0 } else { BEST * liked[index] / most_liked };
        let total = TAINTS * taints + AFFINITY * affinity + emptiness(demand, place) + balance(demand, place);
        ((total, -place.count(), -i64::try_from(index).unwrap_or(i64::MAX)), *place)
    });
    scored.max_by_key(|(score, _)| *score).map(|(_, place)| place)
}

fn max(all: &[i64]) -> i64 {
    all.iter().copied().max().unwrap_or(0)
}

/// Taints that would rather not have the pod.
fn unwelcome(demand: &Demand, place: &Place) -> i64 {
    let soft = place.node.iter().flat_map(|node| &node.spec.taints).filter(|taint| taint.effect == "PreferNoSchedule");
    let count = soft.filter(|taint| !demand.tolerations.iter().any(|toleration| tolerates(toleration, taint))).count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn liked(demand: &Demand, place: &Place) -> i64 {
    demand.preferred.iter().filter(|preferred| holds(&preferred.preference, place)).map(|p| p.weight).sum()
}

/// The part of CPU and memory that is left with the pod.
fn emptiness(demand: &Demand, place: &Place) -> i64 {
    let left = |all: i64, used: i64, wanted: i64| {
        let used = used + wanted;
        (all > 0).then(|| if used > all { 0 } else { (all - used) * BEST / all })
    };
    let cpu = left(place.allocatable.cpu, place.weighed.0, demand.weighed.0);
    let memory = left(place.allocatable.memory, place.weighed.1, demand.weighed.1);
    match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu + memory) / 2,
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => 0,
    }
}

/// How alike the used parts of CPU and memory are with the pod; says nothing about one that asks for neither.
fn balance(demand: &Demand, place: &Place) -> i64 {
    if !demand.is_measured() {
        return 0;
    }
    // In millionths, so that nothing is rounded before the end.
    const WHOLE: i128 = 1_000_000;
    let part = |all: i64, used: i64, wanted: i64| {
        if all > 0 { (i128::from(used + wanted) * WHOLE / i128::from(all)).min(WHOLE) } else { 0 }
    };
    let cpu = part(place.allocatable.cpu, place.used.cpu, demand.amounts.cpu);
    let memory = part(place.allocatable.memory, place.used.memory, demand.amounts.memory);
    let deviation = (cpu - memory).abs() / 2;
    i64::try_from((WHOLE - deviation) * i128::from(BEST) / WHOLE).unwrap_or(0)
}
