//! Taints that a pod does not tolerate.

use super::Obstacle;
use crate::controllers::views::{Taint, Toleration};
use crate::scheduler::demand::Demand;
use crate::scheduler::snapshot::Place;

pub fn check(demand: &Demand, place: &Place) -> Option<Obstacle> {
    let hard = |taint: &&Taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute");
    let mut taints = place.node.iter().flat_map(|node| &node.spec.taints).filter(hard);
    let tolerated = |taint: &Taint| demand.tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let found = taints.find(|taint| !tolerated(taint))?;
    Some(Obstacle::Taint { key: found.key.clone(), value: found.value.clone() })
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key.is_empty() && toleration.operator == "Exists" || toleration.key == taint.key;
    let value = toleration.operator == "Exists" || toleration.value == taint.value;
    effect && key && value
}
