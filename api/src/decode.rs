//! From request bytes to the canonical JSON form of an object, as Go's decoder and encoder together would leave it.

use serde_json::Value;

use crate::kind::{Gvk, Kind};
use crate::schema::Schema;
use crate::status::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Always with `apiVersion` and `kind`.
    pub value: Value,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// A body as an object of this kind.
pub fn object(kind: &Kind, media: MediaType, bytes: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    typed(&kind.gvk(), &kind.schema, media, bytes, validation)
}

/// A body as an object of a subresource's or virtual kind's type.
pub fn typed(
    gvk: &Gvk,
    schema: &Schema,
    media: MediaType,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let _ = (gvk, schema, media, bytes, validation);
    Err(Status::bad_request("not decoded"))
}

/// A body as one of the option kinds (`DeleteOptions`, …) of whatever group and version; an empty body gives an empty object.
pub fn options(name: &str, media: MediaType, bytes: &[u8]) -> Result<Value, Status> {
    let _ = (name, media, bytes);
    Err(Status::bad_request("not decoded"))
}

/// An object that is JSON already (the outcome of a patch) brought to canonical form, with the same checks.
pub fn value(gvk: &Gvk, schema: &Schema, value: Value, validation: FieldValidation) -> Result<Decoded, Status> {
    let _ = (gvk, schema, value, validation);
    Err(Status::bad_request("not decoded"))
}
