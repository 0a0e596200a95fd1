//! Between the versions of one kind.

use serde_json::Value;

use crate::kind::Kind;

/// The object in another version; both kinds share their storage. The identity where the schemas are equal.
pub fn convert(from: &Kind, to: &Kind, object: Value) -> Value {
    let _ = (from, to);
    object
}
