//! Taints that a pod does not tolerate.

use super::{Asker, Obstacle};
use crate::controllers::views::Taint;
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
    taints.find(|taint| !demand.tolerations.iter().any(|toleration| toleration.tolerates(taint)))
}
