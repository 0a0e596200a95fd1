//! What keeps a pod off a node: one file for each reason, asked in Kubernetes' order, the first that objects counts.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use api::uid::Uid;

use super::demand::Demand;
use super::snapshot::{Place, Resident, Snapshot};
use super::surroundings::{Misfit, Surroundings};

mod affinity;
mod company;
mod cordon;
mod ports;
mod resources;
mod taints;

pub use affinity::{holds, is_meant};
pub use resources::Shortage;
pub use taints::is_tolerated;

/// Who asks for a node.
pub struct Asker<'a> {
    pub uid: &'a Uid,
    pub demand: &'a Demand,
    pub around: Cow<'a, Surroundings>,
}

/// Why a pod cannot go to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    Cordoned,
    Taint {
        key: String,
        value: String,
    },
    Affinity,
    /// The pod names its nodes, and this is none of them.
    NotNamed,
    Ports,
    Short(Vec<Shortage>),
    Company(Misfit),
}

impl Obstacle {
    /// Fewer pods on that node would help.
    pub fn may_yield(&self) -> bool {
        match self {
            Self::Ports => true,
            Self::Short(all) => all.iter().all(Shortage::may_yield),
            Self::Company(misfit) => !matches!(misfit, Misfit::NotNear | Misfit::Unlabelled),
            Self::Cordoned | Self::Taint { .. } | Self::Affinity | Self::NotNamed => false,
        }
    }

    /// In upstream's words.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Short(all) => all.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::NotNamed => f.write_str("node(s) didn't satisfy plugin(s) [NodeAffinity]"),
            Self::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::Company(misfit) => f.write_str(match misfit {
                Misfit::NotNear => "node(s) didn't match pod affinity rules",
                Misfit::NotApart => "node(s) didn't match pod anti-affinity rules",
                Misfit::Unwanted => "node(s) didn't satisfy existing pods anti-affinity rules",
                Misfit::Uneven => "node(s) didn't match pod topology spread constraints",
                Misfit::Unlabelled => "node(s) didn't match pod topology spread constraints (missing required label)",
            }),
            Self::Short(all) => {
                let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(", "))
            }
        }
    }
}

impl<'a> Asker<'a> {
    pub fn new(uid: &'a Uid, demand: &'a Arc<Demand>, all: &Snapshot) -> Self {
        Self { uid, demand, around: Cow::Owned(Surroundings::of(demand, all)) }
    }
}

type Filter = fn(&Asker<'_>, &Place) -> Option<Obstacle>;

const FILTERS: [Filter; 6] =
    [cordon::check, taints::check, affinity::check, ports::check, resources::check, company::check];

/// The first objection to a pod on a node as it is.
pub fn objection(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    FILTERS.iter().find_map(|check| check(asker, place))
}

/// The first objection to a pod on a node, with room kept for those that were promised it. Who was promised a place is not
/// there yet: the pod has to do with and without them.
pub fn obstacle(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    let first: Vec<&Resident> = place.before(asker.demand, asker.uid).collect();
    if first.is_empty() {
        return objection(asker, place);
    }
    let (with, around) = promised(asker, place, &first);
    let kept = Asker { around: Cow::Owned(around), ..*asker };
    objection(&kept, &with).or_else(|| objection(asker, place))
}

/// A place, and what is around, with those that were promised a part of it.
fn promised(asker: &Asker<'_>, place: &Place, first: &[&Resident]) -> (Place, Surroundings) {
    let (mut with, mut around) = (place.clone(), asker.around.clone().into_owned());
    for other in first {
        around.shift(other, place, 1);
        with.put((*other).clone());
    }
    (with, around)
}
