//! Kinds of `resource.k8s.io`: devices, and who claims them.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Generation, Shows};
use crate::default::{Object, set};
use crate::selector::field;
use crate::value::text;

const COMMON: Behaviour = Behaviour { delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT }, ..DEFAULT };

pub const CLASS: Behaviour = Behaviour {
    generation: Generation::Spec,
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[(Aspect::Validation, "all but the metadata")],
    ..COMMON
};
pub const SLICE: Behaviour = Behaviour {
    generation: Generation::Spec,
    selectable: &[field("spec.nodeName"), field("spec.driver")],
    cells: Some(|o, _| {
        let spec = &o["spec"];
        vec![
            ("Node", json!(text(&spec["nodeName"]))),
            ("Driver", json!(text(&spec["driver"]))),
            ("Pool", json!(text(&spec["pool"]["name"]))),
        ]
    }),
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[(Aspect::Validation, "all but the metadata")],
    ..COMMON
};
pub const CLAIM: Behaviour = Behaviour {
    defaults: &[("resource.v1.ExactDeviceRequest", count), ("resource.v1.DeviceSubRequest", count)],
    cells: Some(|o, _| vec![("State", json!(state(o)))]),
    inactive: Some("no device is allocated"),
    none: &[Aspect::Warnings],
    missing: &[(Aspect::Validation, "all but the metadata")],
    ..COMMON
};
pub const TEMPLATE: Behaviour = Behaviour {
    inactive: Some("no claim is made from it"),
    none: &[Aspect::Warnings],
    missing: &[(Aspect::Validation, "all but the metadata"), (Aspect::Defaults, "none of its own: those of claims")],
    ..COMMON
};

fn count(request: &mut Object) {
    set(request, "allocationMode", "ExactCount");
    if crate::default::text(request, "allocationMode") == "ExactCount" {
        set(request, "count", 1);
    }
}

fn state(claim: &Value) -> String {
    let going = !claim["metadata"]["deletionTimestamp"].is_null();
    let mut states = Vec::new();
    if going {
        states.push("deleted");
    }
    match claim["status"]["allocation"].is_null() {
        true if !going => states.push("pending"),
        true => {}
        false => {
            states.push("allocated");
            if claim["status"]["reservedFor"].as_array().is_some_and(|list| !list.is_empty()) {
                states.push("reserved");
            }
        }
    }
    states.join(",")
}
