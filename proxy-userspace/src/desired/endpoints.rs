//! Which endpoints a service port leads to, as kube-proxy chooses: ready ones, else those still serving while they terminate, for all
//! endpoints and for the local ones apart. Of all ready ones, those that are meant for this node or its zone come first.

use std::collections::BTreeSet;

use api::view::{Endpoint, EndpointSlice, Hint};
use proxy_common::Family;

use super::numbers::{family_of, protocol_number};
use super::{NodeFacts, PortOf, Target};

/// Sorted, each once.
pub(super) struct Choice {
    pub all: Vec<Target>,
    /// Those on this node, for whomever they are meant.
    pub local: Vec<Target>,
}

pub(super) fn choose(of: &PortOf<'_>, slices: &[&EndpointSlice], facts: &NodeFacts) -> Choice {
    let candidates = candidates(of, slices, facts);
    Choice {
        all: preferred(&candidates, nearest(&candidates)),
        local: preferred(&candidates, |candidate| candidate.local),
    }
}

/// Ready endpoints on this node, in the family that has more of them.
pub fn ready_here(slices: &[&EndpointSlice], facts: &NodeFacts) -> usize {
    let in_family = |family: &str| {
        let endpoints = slices.iter().filter(|slice| slice.address_type == family).flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| endpoint.conditions.is_ready() && is_local(endpoint, facts));
        ready.filter_map(|endpoint| endpoint.addresses.first()).collect::<BTreeSet<_>>().len()
    };
    in_family("IPv4").max(in_family("IPv6"))
}

/// An endpoint of a service port, with what the choice depends on.
struct Candidate {
    target: Target,
    ready: bool,
    /// Terminating, but still answering.
    leaving: bool,
    local: bool,
    /// Whether it is meant for the clients of this node.
    for_node: Meant,
    /// And for those of its zone.
    for_zone: Meant,
}

/// Whom an endpoint is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Unsaid,
    Here,
    Elsewhere,
}

impl Meant {
    fn of(hints: &[Hint], here: &str) -> Self {
        match hints {
            [] => Self::Unsaid,
            hints if !here.is_empty() && hints.iter().any(|hint| hint.name == here) => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

/// Those meant for this node when each says which it is meant for and one is for this; else the same of zones; else all.
fn nearest(candidates: &[Candidate]) -> fn(&Candidate) -> bool {
    let ready = || candidates.iter().filter(|candidate| candidate.ready);
    let leads = |meant: fn(&Candidate) -> Meant| {
        ready().all(|candidate| meant(candidate) != Meant::Unsaid)
            && ready().any(|candidate| meant(candidate) == Meant::Here)
    };
    if leads(|candidate| candidate.for_node) {
        |candidate| candidate.for_node == Meant::Here
    } else if leads(|candidate| candidate.for_zone) {
        |candidate| candidate.for_zone == Meant::Here
    } else {
        |_| true
    }
}

fn candidates(of: &PortOf<'_>, slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Candidate> {
    let kind = match of.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == kind) {
        let numbers = slice.ports.iter().filter(|candidate| {
            candidate.name == of.port.name && protocol_number(&candidate.protocol) == Some(of.protocol)
        });
        for number in numbers.filter_map(|candidate| candidate.port) {
            found.extend(slice.endpoints.iter().filter_map(|endpoint| candidate(endpoint, number, facts)));
        }
    }
    found.retain(|candidate| family_of(&candidate.target.ip) == of.family);
    found
}

fn candidate(endpoint: &Endpoint, port: u16, facts: &NodeFacts) -> Option<Candidate> {
    let conditions = &endpoint.conditions;
    Some(Candidate {
        target: Target { ip: endpoint.addresses.first()?.parse().ok()?, port },
        ready: conditions.is_ready(),
        leaving: conditions.is_serving() && conditions.is_terminating(),
        local: is_local(endpoint, facts),
        for_node: Meant::of(&endpoint.hints.for_nodes, &facts.node_name),
        for_zone: Meant::of(&endpoint.hints.for_zones, &facts.zone),
    })
}

fn is_local(endpoint: &Endpoint, facts: &NodeFacts) -> bool {
    !facts.node_name.is_empty() && endpoint.node_name == facts.node_name
}

/// Ready ones among those that match; when there are none, those that still serve.
fn preferred(candidates: &[Candidate], matches: impl Fn(&Candidate) -> bool) -> Vec<Target> {
    let pick = |wanted: fn(&Candidate) -> bool| -> Vec<Target> {
        let picked = candidates.iter().filter(|candidate| matches(candidate) && wanted(candidate));
        let mut targets: Vec<Target> = picked.map(|candidate| candidate.target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    };
    let ready = pick(|candidate| candidate.ready);
    if ready.is_empty() { pick(|candidate| candidate.leaving) } else { ready }
}
