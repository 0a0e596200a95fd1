//! One stored object: its JSON bytes, kept once, and the small header that selectors and controllers ask for.
//!
//! Bytes, not `Value` trees: a tree costs about twelve times the memory of the text it stands for.

use std::collections::BTreeMap;
use std::fmt;

use api::kind::Text;
use api::uid::Uid;
use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;

/// A position in the one ordered stream of changes; `0` is before everything.
pub type Revision = u64;

/// `namespace/name`; the namespace is empty for cluster-scoped objects. Orders as etcd's keys do.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Box<str>);

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    pub fn parse(text: &str) -> Self {
        Self(text.into())
    }

    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The collection an object is stored in: API group (empty = core) and plural name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Collection {
    pub group: Box<str>,
    pub plural: Box<str>,
}

impl Collection {
    pub fn new(group: &str, plural: &str) -> Self {
        Self { group: group.into(), plural: plural.into() }
    }
}

/// The group of collections that no kind shows.
pub(crate) const INTERNAL: &str = "internal";

/// Why stored bytes, though undamaged, are no object to this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unreadable {
    #[error("it is not JSON, or nested deeper than is read")]
    Json,
    #[error("it has no metadata")]
    Metadata,
    #[error("its key is not one of ours")]
    Key,
}

/// An object as it is written: JSON without resourceVersion, and where that goes.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: Vec<u8>,
    version_at: usize,
}

const METADATA: &[u8] = b"\"metadata\":{";

impl Encoded {
    /// Encodes with `kind`, `apiVersion` and `metadata` first, so that the place of the version is found without parsing.
    pub fn new(object: &Value) -> Self {
        let mut out = Vec::with_capacity(512);
        let empty = serde_json::Map::new();
        let map = object.as_object().unwrap_or(&empty);
        out.push(b'{');
        for key in ["kind", "apiVersion"] {
            if let Some(value) = map.get(key) {
                member(&mut out, key, value);
            }
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(METADATA);
        let version_at = out.len();
        for (key, value) in map.get("metadata").and_then(Value::as_object).unwrap_or(&empty) {
            if key != "resourceVersion" {
                member(&mut out, key, value);
            }
        }
        out.push(b'}');
        for (key, value) in map {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                member(&mut out, key, value);
            }
        }
        out.push(b'}');
        Self { bytes: out, version_at }
    }

    /// Takes bytes written by [`Encoded::new`], and gives them as a tree too.
    pub fn from_stored(bytes: Vec<u8>) -> Result<(Self, Value), Unreadable> {
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| Unreadable::Json)?;
        let at = bytes.windows(METADATA.len()).position(|window| window == METADATA);
        match at {
            Some(at) if value["metadata"].is_object() => Ok((Self { bytes, version_at: at + METADATA.len() }, value)),
            _ => Err(Unreadable::Metadata),
        }
    }

    pub fn stored(&self) -> &[u8] {
        &self.bytes
    }

    /// The object's text with its `metadata.resourceVersion`.
    pub fn with_version(&self, revision: Revision) -> Bytes {
        let comma = if self.bytes.get(self.version_at) == Some(&b'}') { "" } else { "," };
        let version = format!("\"resourceVersion\":\"{revision}\"{comma}");
        let mut out = Vec::with_capacity(self.bytes.len() + version.len());
        out.extend_from_slice(&self.bytes[..self.version_at]);
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(&self.bytes[self.version_at..]);
        out.into()
    }
}

/// Writes `"key":value`, after a comma unless it opens an object.
fn member(out: &mut Vec<u8>, key: &str, value: &Value) {
    if !out.ends_with(b"{") {
        out.push(b',');
    }
    let text = format!("{}:{value}", Value::from(key));
    out.extend_from_slice(text.as_bytes());
}

/// What selectors, ownership and preconditions ask for without decoding the object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    pub uid: Uid,
    pub labels: BTreeMap<String, String>,
    /// The values of the kind's selectable fields, in the order of its row.
    pub fields: Vec<(Text, Box<str>)>,
}

/// One version of one object.
#[derive(Debug, Clone)]
pub struct Object {
    pub key: ObjectKey,
    pub revision: Revision,
    pub header: Header,
    pub json: Bytes,
}

impl Object {
    /// The object's text as it stands in a list: without `apiVersion` and `kind`, after an opening brace.
    pub fn list_item(&self) -> &[u8] {
        let at = self.json.windows(METADATA.len()).position(|window| window == METADATA).unwrap_or(1);
        &self.json[at..]
    }

    /// The object as a tree. Stored bytes were written by us, so they parse.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    /// The same content at another revision: what a deletion shows.
    pub fn at(&self, revision: Revision) -> Self {
        let json = Encoded::new(&self.value()).with_version(revision);
        Self { key: self.key.clone(), revision, header: self.header.clone(), json }
    }
}

/// A new object's UID.
pub(crate) fn new_uid() -> Uid {
    Uid::new(uuid::Uuid::new_v4().to_string())
}

/// The random end of a generated name.
pub(crate) fn suffix() -> String {
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes();
    api::names::suffix([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_version_is_spliced_without_parsing() {
        let object =
            json!({"kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "1"}, "data": {"metadata": {}}});
        let encoded = Encoded::new(&object);
        let text: Value = serde_json::from_slice(&encoded.with_version(7)).unwrap();
        assert_eq!(
            text,
            json!({"kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "7"}, "data": {"metadata": {}}})
        );
        let (again, value) = Encoded::from_stored(encoded.stored().to_vec()).unwrap();
        assert_eq!((again.with_version(7), &value["data"]), (encoded.with_version(7), &object["data"]));
    }

    #[test]
    fn empty_metadata_takes_a_version_too() {
        let text = Encoded::new(&json!({"metadata": {}, "a": 1})).with_version(3);
        assert_eq!(&text[..], br#"{"metadata":{"resourceVersion":"3"},"a":1}"#);
    }

    #[test]
    fn keys_order_as_paths() {
        assert!(ObjectKey::new("a-b", "x") < ObjectKey::new("a", "x"));
        assert_eq!(ObjectKey::new("", "node").name(), "node");
    }
}
