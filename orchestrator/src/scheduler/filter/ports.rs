//! Ports of the node itself that another pod has.

use super::Obstacle;
use crate::scheduler::demand::Demand;
use crate::scheduler::snapshot::Place;

pub fn check(demand: &Demand, place: &Place) -> Option<Obstacle> {
    let taken = demand.ports.iter().any(|port| place.ports.iter().any(|own| own.collides(port)));
    taken.then_some(Obstacle::Ports)
}
