//! What of a kind is upstream's and what is missing, in words: a kind that says neither is told apart.

use std::fmt;

use jiff::Timestamp;
use serde_json::json;

use super::{Aspect, Behaviour, FirstStatus, Generation, Put, Shows, Version};
use crate::kind::Kind;

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aspect::Validation => "validation",
            Aspect::Defaults => "defaults",
            Aspect::Columns => "columns",
            Aspect::Warnings => "warnings",
        })
    }
}

/// A line per aspect, and one for what else the kind does in its own way.
pub fn report(kind: &Kind) -> Vec<String> {
    if !kind.stored() {
        return vec!["answered, not stored".into()];
    }
    let behaviour = kind.behaviour;
    let mut out: Vec<String> = Aspect::ALL.iter().flat_map(|aspect| lines(kind, *aspect)).collect();
    out.extend(strategy(behaviour));
    if !behaviour.selectable.is_empty() {
        let labels: Vec<&str> = behaviour.selectable.iter().map(|field| field.label).collect();
        out.push(format!("selected by: {}", labels.join(", ")));
    }
    out.extend(behaviour.inactive.map(|why| format!("not acted on: {why}")));
    out
}

/// What is there, what upstream has none of, and what is missing; `SILENT` when the kind says nothing.
fn lines(kind: &Kind, aspect: Aspect) -> Vec<String> {
    let behaviour = kind.behaviour;
    let mut out: Vec<String> = has(kind, aspect).map(|what| format!("{aspect}: {what}")).into_iter().collect();
    let missing = behaviour.missing.iter().filter(|(of, _)| *of == aspect);
    out.extend(missing.map(|(_, what)| format!("{aspect}: MISSING {what}")));
    if behaviour.none.contains(&aspect) {
        out.push(format!("{aspect}: upstream has none"));
    }
    if out.is_empty() {
        out.push(format!("{aspect}: SILENT"));
    }
    out
}

fn has(kind: &Kind, aspect: Aspect) -> Option<String> {
    let behaviour = kind.behaviour;
    match aspect {
        Aspect::Validation => {
            let parts = [
                (behaviour.validate.is_some(), "new objects"),
                (behaviour.validate_update.is_some(), "updates"),
                (behaviour.validate_part.is_some(), "parts"),
            ];
            list(parts)
        }
        Aspect::Defaults => {
            let mut types: Vec<&str> = behaviour.defaults.iter().map(|(name, _)| *name).collect();
            types.extend(behaviour.pod.map(|_| "those of pods"));
            (!types.is_empty()).then(|| types.join(", "))
        }
        Aspect::Columns => {
            let empty = json!({"metadata": {"name": "", "creationTimestamp": null}});
            let columns = crate::table::columns(kind);
            let names = columns.as_array().into_iter().flatten().filter_map(|column| column["name"].as_str());
            let cells = behaviour.cells.map(|cells| cells(&empty, Timestamp::UNIX_EPOCH)).unwrap_or_default();
            let known = |name: &&str| {
                matches!(*name, "Name" | "Age" | "Created At") || cells.iter().any(|(own, _)| own == name)
            };
            let (shown, unknown): (Vec<&str>, Vec<&str>) = names.partition(known);
            match unknown.is_empty() {
                true => Some(shown.join(", ")),
                false => Some(format!("{}, and UNKNOWN {}", shown.join(", "), unknown.join(", "))),
            }
        }
        Aspect::Warnings => list([
            (behaviour.warnings.is_some(), "own"),
            (behaviour.pod.is_some(), "those of pods"),
            (behaviour.deprecated.is_some(), "deprecated"),
        ]),
    }
}

fn list<const N: usize>(parts: [(bool, &str); N]) -> Option<String> {
    let given: Vec<&str> = parts.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect();
    (!given.is_empty()).then(|| given.join(", "))
}

fn strategy(behaviour: &Behaviour) -> Option<String> {
    let generation = match behaviour.generation {
        Generation::None => "",
        Generation::Spec => "generation by spec",
        Generation::Body => "generation by body",
        Generation::First => "generation 1",
        Generation::Client => "generation as sent",
    };
    let given = list([
        (behaviour.generation != Generation::None, generation),
        (behaviour.first_status == FirstStatus::Sent, "first status as sent"),
        (behaviour.create.is_some(), "own beginning"),
        (behaviour.update.is_some(), "own updates"),
        (behaviour.update_part.is_some(), "own parts"),
        (behaviour.asked_by.is_some(), "says who asks"),
        (behaviour.put == Put::Creates, "PUT creates"),
        (behaviour.version == Version::Needed, "PUT names a version"),
        (behaviour.delete.shows == Shows::Object, "deletion shows the object"),
    ]);
    given.map(|given| format!("strategy: {given}"))
}
