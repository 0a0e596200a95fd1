//! ServiceAccounts.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Generation, Shows};
use crate::value::{count, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    generation: Generation::Client,
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(|o, _| vec![("Secrets", json!(count(&o["secrets"])))]),
    warnings: Some(warnings),
    none: &[Aspect::Validation, Aspect::Defaults],
    ..DEFAULT
};

fn warnings(object: &Value) -> Vec<String> {
    let key = "kubernetes.io/enforce-mountable-secrets";
    let set = text(&object["metadata"]["annotations"][key]) == "true";
    let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
    set.then(|| format!("metadata.annotations[{key}]: {why}")).into_iter().collect()
}
