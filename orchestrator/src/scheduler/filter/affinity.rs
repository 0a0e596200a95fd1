//! Labels and names of nodes that a pod asks for.

use super::{Asker, Obstacle};
use crate::scheduler::demand::{Demand, Requirement, Term};
use crate::scheduler::snapshot::Place;

pub fn check(asker: &Asker<'_>, place: &Place) -> Option<Obstacle> {
    (!is_meant(asker.demand, place)).then_some(Obstacle::Affinity)
}

/// A node that the pod asks for, or any where it asks for none.
pub fn is_meant(demand: &Demand, place: &Place) -> bool {
    let labels = place.labels();
    let selected = demand.selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
    selected && demand.required.as_ref().is_none_or(|terms| terms.iter().any(|term| holds(term, place)))
}

/// A term without any requirement matches nothing.
pub fn holds(term: &Term, place: &Place) -> bool {
    let label = |key: &str| place.labels().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then(|| place.name());
    (!term.match_expressions.is_empty() || !term.match_fields.is_empty())
        && term.match_expressions.iter().all(|requirement| requirement_holds(requirement, label(&requirement.key)))
        && term.match_fields.iter().all(|requirement| requirement_holds(requirement, field(&requirement.key)))
}

fn requirement_holds(requirement: &Requirement, found: Option<&str>) -> bool {
    let listed = |found: &str| requirement.values.iter().any(|value| value == found);
    let number = |text: &str| text.parse::<i64>().ok();
    let pair = || found.and_then(number).zip(requirement.values.first().and_then(|limit| number(limit)));
    match requirement.operator.as_str() {
        "In" => found.is_some_and(listed),
        "NotIn" => !found.is_some_and(listed),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => pair().is_some_and(|(found, limit)| found > limit),
        "Lt" => pair().is_some_and(|(found, limit)| found < limit),
        _ => false,
    }
}
