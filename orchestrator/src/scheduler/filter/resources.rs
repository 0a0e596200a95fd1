//! Amounts that a node does not have, or not any more.

use std::fmt;

use super::{Asker, Obstacle};
use crate::scheduler::demand::Amounts;
use crate::scheduler::snapshot::Place;

/// One resource of which there is too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    Slots,
    /// Taken by others.
    Taken(String),
    /// More than the whole node has.
    Never(String),
}

impl Shortage {
    pub fn may_yield(&self) -> bool {
        !matches!(self, Self::Never(_))
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slots => f.write_str("Too many pods"),
            Self::Taken(name) | Self::Never(name) => write!(f, "Insufficient {name}"),
        }
    }
}

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    let mut short = Vec::new();
    if place.count() + 1 > place.slots {
        short.push(Shortage::Slots);
    }
    let (all, used, wanted) = (&place.allocatable, &place.used, &asker.demand.amounts);
    let mut compare = |name: &str, wanted: i64, all: i64, used: i64| {
        if wanted > 0 && wanted > all - used {
            let name = name.to_owned();
            short.push(if wanted > all { Shortage::Never(name) } else { Shortage::Taken(name) });
        }
    };
    compare("cpu", wanted.cpu, all.cpu, used.cpu);
    compare("memory", wanted.memory, all.memory, used.memory);
    compare("ephemeral-storage", wanted.storage, all.storage, used.storage);
    for (name, amount) in &wanted.others {
        let of = |amounts: &Amounts| amounts.others.get(name).copied().unwrap_or(0);
        compare(name, *amount, of(all), of(used));
    }
    (!short.is_empty()).then_some(Obstacle::Short(short))
}
