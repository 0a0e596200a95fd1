//! What `kubectl get` shows: columns and cells per kind, and objects reduced to their metadata.

use jiff::Timestamp;
use serde_json::Value;

use crate::kind::Kind;

/// `columnDefinitions`.
pub fn columns(kind: &Kind) -> Value {
    let _ = kind;
    Value::Null
}

/// The cells of one object, as many as there are columns.
pub fn cells(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let _ = (kind, object, now);
    Vec::new()
}

/// One `rows` entry; `object` is what the request's includeObject asks for ([`partial`] by default, `None` for None).
pub fn row(kind: &Kind, object: &Value, included: Option<Value>, now: Timestamp) -> Value {
    let _ = (kind, object, included, now);
    Value::Null
}

/// A Table of these rows; `list_meta` is a list's metadata (resourceVersion, continue, remainingItemCount).
pub fn table(kind: &Kind, list_meta: Value, rows: Vec<Value>) -> Value {
    let _ = (kind, list_meta, rows);
    Value::Null
}

/// The object as a `meta.k8s.io/v1` PartialObjectMetadata.
pub fn partial(object: &Value) -> Value {
    object.clone()
}
