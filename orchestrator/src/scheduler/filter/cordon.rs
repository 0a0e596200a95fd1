//! Nodes that take no new pods.

use super::{Asker, Obstacle};
use crate::controllers::views::Taint;
use crate::scheduler::snapshot::Place;

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    let cordoned = place.node.as_ref().is_some_and(|node| node.spec.unschedulable);
    if !cordoned {
        return None;
    }
    let taint =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    let tolerated = asker.demand.tolerations.iter().any(|toleration| toleration.tolerates(&taint));
    (!tolerated).then_some(Obstacle::Cordoned)
}
