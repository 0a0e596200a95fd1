//! Leases: who holds what, renewed while it lives.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Put, Version};
use crate::status::FieldError;
use crate::validate::{Errors, meta::not_negative};
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(lease),
    generation: Generation::Client,
    put: Put::Creates,
    version: Version::Needed,
    cells: Some(|o, _| vec![("Holder", json!(text(&o["spec"]["holderIdentity"])))]),
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[(Aspect::Validation, "the strategy of coordinated elections")],
    ..DEFAULT
};

fn lease(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        ));
    }
    not_negative(&spec["leaseTransitions"], "spec.leaseTransitions", errors);
}
