//! Where acknowledged writes live: current values and the last revision. History is the watch cache's.
//!
//! Keys are `/amphipod/<group|core>/<resource>/<namespace|->/<name>`. Values start with one format byte.
//! *Architecture invariant:* nothing outside this crate sees a [`Store`].

use thiserror::Error;

use crate::object::{Collection, ObjectKey, Revision};

pub mod redb;

/// One changed key: `value` is the stored form, or `None` when the key goes.
#[derive(Debug, Clone)]
pub struct Record {
    pub key: String,
    pub revision: Revision,
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot open the store at {path}")]
    Open {
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "the store at {path} was written by a newer release (format {found}, this one reads up to {known}); start that release, or restore a backup"
    )]
    Newer { path: String, found: u64, known: u64 },
    #[error("cannot read the store")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot commit revision {revision} to the store")]
    Commit {
        revision: Revision,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the store holds {key} in a form that cannot be read: {why}")]
    Corrupt { key: String, why: &'static str },
}

/// Current values behind one revision counter. A batch is durable when `commit` returns.
pub trait Store: Send + 'static {
    /// Every record and the last revision ever committed.
    fn load(&mut self) -> Result<(Revision, Vec<Record>), StoreError>;
    /// All of the batch or none of it; durable on return.
    fn commit(&mut self, batch: &[Record]) -> Result<(), StoreError>;
}

/// JSON text follows.
const FORMAT_JSON: u8 = 1;

/// The stored form of an object's text.
pub fn seal(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 1);
    out.push(FORMAT_JSON);
    out.extend_from_slice(json);
    out
}

/// The text of a stored form.
pub fn unseal(key: &str, mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    match value.first() {
        Some(&FORMAT_JSON) => {
            value.remove(0);
            Ok(value)
        }
        Some(_) => Err(StoreError::Corrupt { key: key.into(), why: "unknown format byte" }),
        None => Err(StoreError::Corrupt { key: key.into(), why: "empty value" }),
    }
}

/// The store's key of an object.
pub fn store_key(collection: &Collection, key: &ObjectKey) -> String {
    let group = if collection.group.is_empty() { "core" } else { &collection.group };
    let namespace = if key.namespace().is_empty() { "-" } else { key.namespace() };
    format!("/amphipod/{group}/{}/{namespace}/{}", collection.plural, key.name())
}

/// The inverse of [`store_key`].
pub fn parse_key(key: &str) -> Option<(Collection, ObjectKey)> {
    let mut parts = key.strip_prefix("/amphipod/")?.splitn(4, '/');
    let (group, plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    let namespace = if namespace == "-" { "" } else { namespace };
    Some((Collection::new(group, plural), ObjectKey::new(namespace, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for (group, plural, namespace, name) in
            [("", "pods", "default", "a"), ("apps", "deployments", "x", "b"), ("", "nodes", "", "n")]
        {
            let pair = (Collection::new(group, plural), ObjectKey::new(namespace, name));
            assert_eq!(parse_key(&store_key(&pair.0, &pair.1)), Some(pair));
        }
        assert_eq!(parse_key("/registry/pods/a/b"), None);
    }

    #[test]
    fn an_unknown_format_is_refused_by_name() {
        assert_eq!(unseal("k", seal(b"{}")).unwrap(), b"{}");
        assert!(unseal("k", vec![9, 1]).unwrap_err().to_string().contains('k'));
        assert!(unseal("k", vec![]).is_err());
    }
}
