//! Pods that are there, or elsewhere, and keep another away.

use super::{Asker, Obstacle};
use crate::scheduler::snapshot::Place;

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    asker.around.misfit(place).map(Obstacle::Company)
}
