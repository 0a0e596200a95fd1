//! PriorityClasses.

use serde_json::json;

use super::{Behaviour, DEFAULT, Generation};
use crate::default::set_absent;
use crate::status::FieldError;
use crate::value::number;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate_update: Some(|new, old, errors| {
        for field in ["value", "preemptionPolicy"] {
            if new[field] != old[field] {
                errors.push(FieldError::forbidden(field, "may not be changed in an update."));
            }
        }
    }),
    defaults: &[("scheduling.v1.PriorityClass", |m| set_absent(m, "preemptionPolicy", "PreemptLowerPriority"))],
    generation: Generation::Body,
    cells: Some(|o, _| {
        let default = o["globalDefault"].as_bool().unwrap_or(false);
        vec![
            ("Value", json!(number(&o["value"]))),
            ("Global-Default", json!(default)),
            ("PreemptionPolicy", o["preemptionPolicy"].clone()),
        ]
    }),
    ..DEFAULT
};
