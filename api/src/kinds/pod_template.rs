//! PodTemplates.

use serde_json::json;

use super::{Behaviour, DEFAULT, Deletion, Generation, Shows};
use crate::selector::Labels;
use crate::table::cells::{containers, or_none};
use crate::validate::pod;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|o, e| pod::template(&o["template"], "template", e)),
    generation: Generation::Body,
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    pod: Some("/template"),
    cells: Some(|o, _| {
        let labels = Labels::from_map(&o["template"]["metadata"]["labels"]).to_string();
        let (names, images) = containers(&o["template"]["spec"]);
        vec![("Containers", names), ("Images", images), ("Pod Labels", json!(or_none(labels)))]
    }),
    ..DEFAULT
};
