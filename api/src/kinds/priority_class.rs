//! PriorityClasses.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::default::set_absent;
use crate::validate::{At, Errors};
use crate::value::{number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(class),
    validate_update: Some(|new, old, errors| {
        if new["value"] != old["value"] {
            At::of(new, "value").forbidden("may not be changed in an update.", errors);
        }
        At::of(new, "preemptionPolicy").unchanged(&At::of(old, "preemptionPolicy"), errors);
    }),
    defaults: &[("scheduling.v1.PriorityClass", |m| set_absent(m, "preemptionPolicy", "PreemptLowerPriority"))],
    generation: Generation::First,
    cells: Some(|o, _| {
        let default = o["globalDefault"].as_bool().unwrap_or(false);
        vec![
            ("Value", json!(number(&o["value"]))),
            ("Global-Default", json!(default)),
            ("PreemptionPolicy", o["preemptionPolicy"].clone()),
        ]
    }),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

const HIGHEST: i64 = 1_000_000_000;
/// The system's own.
const SYSTEM: [(&str, i64); 2] =
    [("system-node-critical", HIGHEST * 2 + 1000), ("system-cluster-critical", HIGHEST * 2)];

fn class(class: &Value, errors: &mut Errors) {
    let (name, value) = (text(&class["metadata"]["name"]), number(&class["value"]));
    if !name.starts_with("system-") {
        if value > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            At::of(class, "value").forbidden(why, errors);
        }
    } else if let Some(why) = not_of_system(class) {
        let text = "priority class names with 'system-' prefix are reserved for system use only. error";
        At::of(class, "metadata").at("name").forbidden(format!("{text}: {why}"), errors);
    }
    At::of(class, "preemptionPolicy").one_of_if_given(&["PreemptLowerPriority", "Never"], errors);
}

/// Why a class is none of the system's own.
fn not_of_system(class: &Value) -> Option<String> {
    let (name, value) = (text(&class["metadata"]["name"]), number(&class["value"]));
    match SYSTEM.iter().find(|(own, _)| *own == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, own)) if *own != value => Some(format!("value of {name} PriorityClass must be {own}")),
        Some(_) if class["globalDefault"] == true => {
            Some(format!("globalDefault of {name} PriorityClass must be false"))
        }
        Some(_) => None,
    }
}
