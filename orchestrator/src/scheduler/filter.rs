//! What keeps a pod off a node: one file for each reason, asked in Kubernetes' order, the first that objects counts.

use std::fmt;

use super::demand::Demand;
use super::snapshot::Place;

mod affinity;
mod cordon;
mod ports;
mod resources;
mod taints;

pub use affinity::holds;
pub use resources::Shortage;
pub use taints::tolerates;

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
}

impl Obstacle {
    /// Fewer pods on that node would help.
    pub fn may_yield(&self) -> bool {
        match self {
            Self::Ports => true,
            Self::Short(all) => all.iter().all(Shortage::may_yield),
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
            Self::Short(all) => {
                let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(", "))
            }
        }
    }
}

type Filter = fn(&Demand, &Place) -> Option<Obstacle>;

const FILTERS: [Filter; 5] = [cordon::check, taints::check, affinity::check, ports::check, resources::check];

/// The first objection to a pod on a node as it is.
pub fn objection(demand: &Demand, place: &Place) -> Option<Obstacle> {
    FILTERS.iter().find_map(|check| check(demand, place))
}

/// The first objection to a pod on a node, with room kept for those that were promised it.
pub fn obstacle(demand: &Demand, uid: &str, place: &Place) -> Option<Obstacle> {
    objection(demand, &place.for_pod(demand, uid))
}
