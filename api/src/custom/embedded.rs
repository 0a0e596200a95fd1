//! Objects in objects: they say what they are, and their metadata is held to the rules of all.

use serde_json::Value;

use crate::names::dns_1035_label;
use crate::status::FieldError;
use crate::validate::{Errors, meta};

/// What is wrong with the identity of an object that is at `path` of another.
pub fn check(object: &Value, path: &str, errors: &mut Errors) {
    for field in ["apiVersion", "kind"] {
        let at = format!("{path}.{field}");
        match &object[field] {
            Value::Null => errors.push(FieldError::required(at, "")),
            Value::String(text) if text.is_empty() => errors.push(FieldError::invalid(at, "", "must not be empty")),
            Value::String(text) if field == "apiVersion" && text.matches('/').count() > 1 => {
                errors.push(FieldError::invalid(at, &**text, format!("unexpected GroupVersion string: {text}")));
            }
            Value::String(text) if field == "kind" => {
                let complaints = dns_1035_label(&text.to_lowercase());
                if !complaints.is_empty() {
                    let why = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
                    errors.push(FieldError::invalid(at, &**text, why));
                }
            }
            Value::String(_) => {}
            other => errors.push(FieldError::invalid(at, other.clone(), "must be a string")),
        }
    }
    let mut inner = Vec::new();
    meta::common(&object["metadata"], meta::Finalizers::Any, &mut inner);
    errors.extend(inner.into_iter().map(|error| FieldError { path: format!("{path}.{}", error.path), ..error }));
}
