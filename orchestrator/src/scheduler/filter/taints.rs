//! Taints that a pod does not tolerate.

use super::{Asker, Obstacle};
use crate::controllers::views::{Taint, Toleration};
use crate::scheduler::demand::Demand;
use crate::scheduler::snapshot::Place;

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    let found = untolerated(asker.demand, place)?;
    Some(Obstacle::Taint { key: found.key.clone(), value: found.value.clone() })
}

pub fn is_tolerated(demand: &Demand, place: &Place) -> bool {
    untolerated(demand, place).is_none()
}

fn untolerated<'a>(demand: &Demand, place: &'a Place) -> Option<&'a Taint> {
    let hard = |taint: &&Taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute");
    let mut taints = place.node.iter().flat_map(|node| &node.spec.taints).filter(hard);
    taints.find(|taint| !demand.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key.is_empty() && toleration.operator == "Exists" || toleration.key == taint.key;
    let value = toleration.operator == "Exists" || toleration.value == taint.value;
    effect && key && value
}
