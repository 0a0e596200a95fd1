//! Where acknowledged writes live: current values and the last revision. History is the watch cache's.
//!
//! Keys are `/amphipod/<group|core>/<resource>/<namespace|->/<name>`. Values start with one format byte.
//! *Architecture invariant:* nothing outside this crate sees a [`Store`].

use std::path::PathBuf;

use thiserror::Error;

use crate::object::{Collection, ObjectKey, Revision, Unreadable};

mod mark;
mod overlay;
#[cfg(test)]
mod power_cut;
pub mod redb;
pub mod tools;

/// One changed key: `value` is the stored form, or `None` when the key goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    pub revision: Revision,
    pub value: Option<Vec<u8>>,
}

pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot open the store at {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error("the store at {path} is in use: stop the server that has it open first")]
    InUse { path: PathBuf },
    #[error(
        "the store at {path} was written by a newer release (format {found}, this one reads up to {known}); start that release, or restore a backup"
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
    #[error("the store at {path} is damaged; put a backup in its place with `amphipod store restore`")]
    Damaged {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error(
        "the store at {path} ends at revision {found}, but revision {acknowledged} was acknowledged: the disk lost writes it had confirmed, or the file was exchanged; put a backup in its place with `amphipod store restore` (restoring the file itself accepts the loss)"
    )]
    Lost { path: PathBuf, found: Revision, acknowledged: Revision },
    #[error("cannot commit revision {revision} to the store")]
    Commit {
        revision: Revision,
        #[source]
        source: Cause,
    },
    #[error("the disk of the store at {path} is full: nothing was changed; free some space and try again")]
    Full { path: PathBuf },
    #[error("the value of {key} is damaged: {why}")]
    Corrupt { key: String, why: &'static str },
    #[error("the record {key} of the server itself cannot be read")]
    Unreadable {
        key: String,
        #[source]
        source: Unreadable,
    },
}

impl StoreError {
    /// Whether the store stands as it was before the refused batch. After any other failed commit nobody knows what
    /// is on the disk, and nothing may be acknowledged any more.
    pub fn is_refusal(&self) -> bool {
        matches!(self, StoreError::Full { .. })
    }
}

/// Current values behind one revision counter. A batch is durable when `commit` returns.
pub trait Store: Send + 'static {
    /// Every record and the last revision ever committed.
    fn load(&mut self) -> Result<(Revision, Vec<Record>), StoreError>;
    /// All of the batch or none of it; durable on return.
    fn commit(&mut self, batch: &[Record]) -> Result<(), StoreError>;
    /// Where it is, for messages.
    fn place(&self) -> PathBuf;
}

/// JSON text follows. No longer written.
const FORMAT_JSON: u8 = 1;
/// A CRC-32 of key, revision and text (little endian), then the JSON text. The file's own checksums cover pages; this
/// one stays with the value when a page that went bad in between is read and written again.
const FORMAT_CHECKED_JSON: u8 = 2;
const SUM: usize = size_of::<u32>();

/// The stored form of an object's text.
pub fn seal(key: &str, revision: Revision, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + SUM + json.len());
    out.push(FORMAT_CHECKED_JSON);
    out.extend_from_slice(&checksum(key, revision, json).to_le_bytes());
    out.extend_from_slice(json);
    out
}

/// The text of a stored form.
pub fn unseal(key: &str, revision: Revision, mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let corrupt = |why| Err(StoreError::Corrupt { key: key.into(), why });
    match value.split_first() {
        Some((&FORMAT_JSON, _)) => {
            value.remove(0);
            Ok(value)
        }
        Some((&FORMAT_CHECKED_JSON, rest)) => match rest.split_first_chunk::<SUM>() {
            Some((sum, json)) if u32::from_le_bytes(*sum) == checksum(key, revision, json) => {
                value.drain(..1 + SUM);
                Ok(value)
            }
            _ => corrupt("its checksum does not fit"),
        },
        Some(_) => corrupt("its format is unknown"),
        None => corrupt("it is empty"),
    }
}

fn checksum(key: &str, revision: Revision, json: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(&revision.to_le_bytes());
    sum.update(json);
    sum.finalize()
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
    fn what_was_sealed_is_unsealed_and_nothing_else() {
        assert_eq!(unseal("k", 7, seal("k", 7, b"{}")).unwrap(), b"{}");
        assert_eq!(unseal("k", 7, b"\x01{}".to_vec()).unwrap(), b"{}");
        for (key, revision) in [("l", 7), ("k", 8)] {
            assert!(unseal(key, revision, seal("k", 7, b"{}")).is_err());
        }
        for bit in 0..seal("k", 7, b"{}").len() * 8 {
            let mut sealed = seal("k", 7, b"{}");
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal("k", 7, sealed).is_err(), "bit {bit}");
        }
        assert!(unseal("k", 7, vec![9, 1]).unwrap_err().to_string().contains('k'));
        assert!(unseal("k", 7, vec![]).is_err());
    }
}
