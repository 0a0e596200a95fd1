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
/// A CRC-32 of key, revision and text (little endian), then the JSON text. No longer written.
const FORMAT_CHECKED_JSON: u8 = 2;
/// A CRC-32 of key, revision, format and all that follows: the generation of the defaults that the object has, and the JSON
/// text. The file's own checksums cover pages; this one stays with the value when a page that went bad in between is read
/// and written again. The number is two bits away from the older ones, so that no flipped bit makes one of them of it.
const FORMAT_DEFAULTED_JSON: u8 = 4;
const SUM: usize = size_of::<u32>();
const GENERATION: usize = size_of::<u16>();

/// The stored form of an object's text, which has the defaults of this release.
pub fn seal(key: &str, revision: Revision, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + SUM + GENERATION + json.len());
    out.push(FORMAT_DEFAULTED_JSON);
    out.extend_from_slice(&[0; SUM]);
    out.extend_from_slice(&api::default::GENERATION.to_le_bytes());
    out.extend_from_slice(json);
    let sum = checksum(key, revision, &[&[FORMAT_DEFAULTED_JSON], &out[1 + SUM..]]);
    out[1..=SUM].copy_from_slice(&sum.to_le_bytes());
    out
}

/// What a stored form holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsealed {
    pub text: Vec<u8>,
    /// Which defaults the object has; those of a later release are no less.
    pub defaults: u16,
}

pub fn unseal(key: &str, revision: Revision, mut value: Vec<u8>) -> Result<Unsealed, StoreError> {
    let corrupt = |why| Err(StoreError::Corrupt { key: key.into(), why });
    // The older form's sum did not cover the format.
    let fits = |format: &[u8], rest: &[u8]| match rest.split_first_chunk::<SUM>() {
        Some((sum, rest)) => u32::from_le_bytes(*sum) == checksum(key, revision, &[format, rest]),
        None => false,
    };
    match value.split_first() {
        Some((&FORMAT_JSON, _)) => {
            value.remove(0);
            Ok(Unsealed { text: value, defaults: 0 })
        }
        Some((&FORMAT_CHECKED_JSON, rest)) if !fits(&[], rest) => corrupt("its checksum does not fit"),
        Some((&FORMAT_DEFAULTED_JSON, rest)) if !fits(&[FORMAT_DEFAULTED_JSON], rest) => {
            corrupt("its checksum does not fit")
        }
        Some((&FORMAT_CHECKED_JSON, _)) => {
            value.drain(..1 + SUM);
            Ok(Unsealed { text: value, defaults: 0 })
        }
        Some((&FORMAT_DEFAULTED_JSON, rest)) => match rest[SUM..].first_chunk::<GENERATION>() {
            Some(generation) => {
                let defaults = u16::from_le_bytes(*generation);
                value.drain(..1 + SUM + GENERATION);
                Ok(Unsealed { text: value, defaults })
            }
            None => corrupt("it is cut short"),
        },
        Some(_) => corrupt("its format is unknown"),
        None => corrupt("it is empty"),
    }
}

fn checksum(key: &str, revision: Revision, parts: &[&[u8]]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    sum.update(&revision.to_le_bytes());
    parts.iter().for_each(|part| sum.update(part));
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
        let held = |defaults| Unsealed { text: b"{}".to_vec(), defaults };
        assert_eq!(unseal("k", 7, seal("k", 7, b"{}")).unwrap(), held(api::default::GENERATION));
        assert_eq!(unseal("k", 7, b"\x01{}".to_vec()).unwrap(), held(0));
        let mut before = vec![FORMAT_CHECKED_JSON];
        before.extend_from_slice(&checksum("k", 7, &[b"{}"]).to_le_bytes());
        before.extend_from_slice(b"{}");
        assert_eq!(unseal("k", 7, before).unwrap(), held(0));
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
