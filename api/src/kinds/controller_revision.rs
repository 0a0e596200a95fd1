//! ControllerRevisions: what a StatefulSet or DaemonSet was, unchangeable.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::status::FieldError;
use crate::table::cells::NONE;
use crate::validate::{
    Errors,
    meta::{immutable, not_negative},
};
use crate::value::{items, number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(controller_revision),
    validate_update: Some(|new, old, errors| {
        immutable(&new["data"], &old["data"], "data", errors);
        controller_revision(new, errors);
    }),
    generation: Generation::Client,
    cells: Some(|o, _| vec![("Controller", json!(controller(o))), ("Revision", json!(number(&o["revision"])))]),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn controller_revision(object: &Value, errors: &mut Errors) {
    if object["data"].is_null() {
        errors.push(FieldError::required("data", "data is mandatory"));
    }
    not_negative(&object["revision"], "revision", errors);
}

fn controller(object: &Value) -> String {
    let owner = items(&object["metadata"]["ownerReferences"]).find(|o| o["controller"] == true);
    owner.map_or(NONE.into(), |o| {
        let (kind, name) = (text(&o["kind"]).to_lowercase(), text(&o["name"]));
        match text(&o["apiVersion"]).split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{name}"),
            None => format!("{kind}/{name}"),
        }
    })
}
