//! Validation: everything wrong with an object, in upstream's order and words.

use serde_json::Value;

use crate::kind::Kind;
use crate::status::FieldError;

pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let _ = (kind, object);
    Vec::new()
}

/// `new` replaces `old` through the object itself (`None`) or a subresource.
pub fn update(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value) -> Vec<FieldError> {
    let _ = (kind, subresource, new, old);
    Vec::new()
}
