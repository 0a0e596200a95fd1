//! Ports of the node itself that another pod has.

use super::{Asker, Obstacle};
use crate::scheduler::snapshot::Place;

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    let taken = asker.demand.ports.iter().any(|port| place.ports.iter().any(|own| own.collides(port)));
    taken.then_some(Obstacle::Ports)
}
