//! The pure part of a write: what the server itself sets, keeps or strips before an object is validated.

use jiff::Timestamp;
use serde_json::Value;

use crate::kind::Kind;
use crate::status::Status;

/// What the server chooses for a new object.
#[derive(Debug, Clone)]
pub struct Birth<'a> {
    pub uid: &'a str,
    pub now: Timestamp,
    /// Of the request path; `None` for cluster-scoped kinds.
    pub namespace: Option<&'a str>,
    /// Five characters for a `generateName` (see [`crate::names::suffix`]).
    pub suffix: &'a str,
}

/// System metadata of a new object: uid, time, namespace, generated name; refuses a namespace other than the path's.
pub fn birth(kind: &Kind, object: &mut Value, birth: &Birth) -> Result<(), Status> {
    let _ = (kind, object, birth);
    Ok(())
}

/// Strips status, sets the first generation and what the kind starts with.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    let _ = (kind, object);
}

/// Copies what this path may not change from `old` (main: status; `/status`: the rest; system metadata always) and
/// raises the generation when the desired state changed.
pub fn prepare_update(kind: &Kind, subresource: Option<&str>, new: &mut Value, old: &Value) {
    let _ = (kind, subresource, new, old);
}

/// Built-in admission of a new pod that needs no other object: priority, tolerations, service account name.
pub fn admit_pod(pod: &mut Value) {
    let _ = pod;
}

/// Adds the token volume and its mounts, and the account's image pull secrets; `suffix` ends the volume's name.
pub fn mount_service_account(pod: &mut Value, account: &Value, suffix: &str) {
    let _ = (pod, account, suffix);
}

/// The `autoscaling/v1` Scale of an object.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let _ = (kind, object);
    Value::Null
}

/// Sets an object's replicas from a Scale.
pub fn apply_scale(kind: &Kind, object: &mut Value, scale: &Value) {
    let _ = (kind, object, scale);
}
