//! Which of the nodes that would do is best, by Kubernetes' weights: taints that would rather not have the pod, labels that
//! it would rather have, pods that it or they would rather have near, how evenly it is spread, and how empty and how evenly used
//! the node is afterwards.

use super::demand::Demand;
use super::filter::{Asker, holds};
use super::snapshot::Place;

const BEST: i64 = 100;
const TAINTS: i64 = 3;
const AFFINITY: i64 = 2;
const COMPANY: i64 = 2;
const SPREAD: i64 = 2;

/// The best of them; of equal ones that with the fewest pods, then the first.
pub fn best<'a>(asker: &Asker<'_>, feasible: &[&'a Place]) -> Option<&'a Place> {
    let demand = asker.demand;
    if let [only] = feasible {
        return Some(only);
    }
    let unwelcome: Vec<i64> = feasible.iter().map(|place| unwelcome(demand, place)).collect();
    let liked: Vec<i64> = feasible.iter().map(|place| liked(demand, place)).collect();
    let (company, spread) = (asker.around.liked(feasible, BEST), asker.around.evenly(feasible, BEST));
    let (most_unwelcome, most_liked) = (max(&unwelcome), max(&liked));
    let scored = feasible.iter().enumerate().map(|(index, place)| {
        let taints = if most_unwelcome == 0 { BEST } else { BEST - BEST * unwelcome[index] / most_unwelcome };
        let affinity = if most_liked == 0 { 0 } else { BEST * liked[index] / most_liked };
        let company = COMPANY * company[index] + SPREAD * spread[index];
        let total = TAINTS * taints + AFFINITY * affinity + company + emptiness(demand, place) + balance(demand, place);
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
    let count = soft.filter(|taint| !demand.tolerations.iter().any(|toleration| toleration.tolerates(taint))).count();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::uid::Uid;
    use client::Key;
    use serde_json::json;

    use super::super::demand::Amounts;
    use super::super::snapshot::{Resident, Snapshot};
    use super::*;

    fn demand(cpu: i64, memory: i64) -> Demand {
        let amounts = Amounts { cpu, memory, ..Amounts::default() };
        Demand { amounts, weighed: (cpu, memory), ..Demand::default() }
    }

    /// Nodes of 10 CPUs and 10,000 bytes, with what is used of them.
    fn cluster(used: &[(&str, i64, i64)]) -> Snapshot {
        let mut all = Snapshot::default();
        for (name, cpu, memory) in used {
            let amounts = json!({"cpu": "10", "memory": "10000", "pods": "1k"});
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": amounts}});
            all.set_node(Arc::new(serde_json::from_value(node).unwrap()));
            let resident = Resident {
                key: Key::new("ns", name),
                uid: Uid::new(*name),
                demand: Arc::new(demand(*cpu, *memory)),
                ending: false,
            };
            all.put(resident, name);
        }
        all
    }

    fn chosen(wanted: Demand, used: &[(&str, i64, i64)]) -> String {
        let (all, wanted) = (cluster(used), Arc::new(wanted));
        let places: Vec<&Place> = all.places().iter().collect();
        best(&Asker::new(&Uid::new("p"), &wanted, &all), &places).unwrap().name().to_owned()
    }

    #[test]
    fn an_evenly_used_node_is_better_than_an_equally_empty_one() {
        let used = [("lopsided", 8000, 2000), ("even", 5000, 5000)];
        assert_eq!(chosen(demand(1000, 1000), &used), "even");
        // A pod that asks for nothing says nothing about evenness; equals go to the first.
        assert_eq!(chosen(demand(0, 0), &used), "lopsided");
    }

    #[test]
    fn figures_are_those_of_the_formulas() {
        let all = cluster(&[("n", 3000, 1000)]);
        let place = all.get("n").unwrap();
        let wanted = demand(1000, 1000);
        assert_eq!(emptiness(&wanted, place), (60 + 80) / 2);
        assert_eq!(balance(&wanted, place), 90, "0.4 and 0.2 deviate by 0.1");
        assert_eq!(place.slots, 1000);
    }
}
