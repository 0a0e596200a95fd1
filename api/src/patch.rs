//! The three patch algorithms. Server-side apply is in [`crate::managed`].

use serde_json::Value;

use crate::decode::{Decoded, FieldValidation};
use crate::kind::Gvk;
use crate::schema::Schema;
use crate::status::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
}

/// Applies a patch body to an object and brings the outcome to canonical form, with the checks asked for.
/// `gvk` and `schema` are those of the object (or of a subresource's object such as Scale).
pub fn apply(
    gvk: &Gvk,
    schema: &Schema,
    patch: PatchType,
    current: &Value,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let _ = (gvk, schema, patch, current, body, validation);
    Err(Status::bad_request("not patched"))
}
