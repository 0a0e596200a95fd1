//! PodDisruptionBudgets.

use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation, Version};
use crate::value::{number, plain};

pub const BEHAVIOUR: Behaviour = Behaviour {
    generation: Generation::Spec,
    version: Version::Needed,
    cells: Some(|o, _| {
        let limit = |v: &Value| if v.is_null() { "N/A".to_string() } else { plain(v) };
        vec![
            ("Min Available", json!(limit(&o["spec"]["minAvailable"]))),
            ("Max Unavailable", json!(limit(&o["spec"]["maxUnavailable"]))),
            ("Allowed Disruptions", json!(number(&o["status"]["disruptionsAllowed"]))),
        ]
    }),
    inactive: Some("its status is not counted, so evictions of the pods it selects are refused"),
    ..DEFAULT
};
