//! ResourceQuotas.

use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Deletion, Shows};
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(|o, _| cells(o)),
    inactive: Some("no use of resources is limited"),
    ..DEFAULT
};

fn cells(quota: &Value) -> Vec<(&'static str, Value)> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
        let used = text(&quota["status"]["used"][name.as_str()]);
        let shown = format!("{name}: {used}/{}", text(hard));
        if name.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![("Request", json!(requests.join(", "))), ("Limit", json!(limits.join(", ")))]
}
