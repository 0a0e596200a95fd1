//! ConfigMaps: text and bytes under keys.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation};
use crate::names;
use crate::status::FieldError;
use crate::validate::{Errors, MAX_BYTES, decoded, frozen, invalid, meta};
use crate::value::{count, entries, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(config_map),
    validate_update: Some(|new, old, errors| {
        // Upstream looks at a ConfigMap's metadata four times, and says so four times.
        meta::common(&new["metadata"], meta::Finalizers::Known, errors);
        meta::common(&new["metadata"], meta::Finalizers::Known, errors);
        frozen(new, old, &["data", "binaryData"], errors);
        config_map(new, errors);
    }),
    generation: Generation::Client,
    cells: Some(|o, _| vec![("Data", json!(count(&o["data"]) + count(&o["binaryData"])))]),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(&object["data"]) {
        let path = format!("data[{key}]");
        invalid(&path, &json!(key), names::config_key(key), errors);
        if object["binaryData"].get(key).is_some() {
            errors.push(FieldError::invalid(path, key.clone(), "duplicate of key present in binaryData"));
        }
        size += text(value).len();
    }
    for (key, value) in entries(&object["binaryData"]) {
        invalid(&format!("binaryData[{key}]"), &json!(key), names::config_key(key), errors);
        size += decoded(value).len();
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("[]", MAX_BYTES));
    }
}
