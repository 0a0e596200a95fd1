//! Where acknowledged writes live: the contract of a store. It keeps current values and the last revision; history is the
//! watch cache's.
//!
//! [`local`] keeps them in a file of this machine, [`etcd`] in an etcd that several servers share. Keys are `/amphipod/<group|core>/<resource>/<namespace|->/<name>`. Values start with one format byte.
//! *Architecture invariant:* nothing outside this crate sees a [`Store`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

use crate::object::{Collection, Encoded, Header, Object, ObjectKey, Revision, Unreadable};

#[cfg(test)]
mod contract;
pub mod etcd;
pub mod local;
mod mark;
mod overlay;
#[cfg(test)]
mod power_cut;
pub mod redb;
pub mod tools;
mod values;

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
    #[error(
        "{path} has used up its space quota (NOSPACE): nothing was changed; compact and defragment it, or raise its quota, and disarm the alarm"
    )]
    Space { path: PathBuf },
    #[error("{path} did not answer (a write may or may not have happened)")]
    Outage {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error(
        "{path} has forgotten what came after revision {revision}: this server was cut off for too long, and reads it anew at its next start"
    )]
    Behind { path: PathBuf, revision: Revision },
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
        matches!(self, StoreError::Full { .. } | StoreError::Space { .. })
    }

    /// Whether it may work again without a new start.
    pub fn is_outage(&self) -> bool {
        matches!(self, StoreError::Outage { .. })
    }
}

/// What must be true of a key for its transaction to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    At(Revision),
}

/// One key's part in a transaction.
#[derive(Debug, Clone)]
pub struct Write {
    pub collection: Collection,
    pub key: ObjectKey,
    pub expect: Expect,
    /// `None` removes the key.
    pub content: Option<(Encoded, Header)>,
    /// After which it may be forgotten, where the store keeps such times.
    pub lifetime: Option<Duration>,
}

impl Write {
    pub fn put(collection: Collection, key: ObjectKey, expect: Expect, encoded: Encoded, header: Header) -> Self {
        Self { collection, key, expect, content: Some((encoded, header)), lifetime: None }
    }

    pub fn remove(collection: Collection, key: ObjectKey, found: Revision) -> Self {
        Self { collection, key, expect: Expect::At(found), content: None, lifetime: None }
    }

    /// What is there once this is committed; `None` for a removed key.
    fn outcome(key: ObjectKey, content: Option<(Encoded, Header)>, revision: Revision) -> Option<Arc<Object>> {
        let (encoded, header) = content?;
        Some(Arc::new(Object { key, revision, header, json: encoded.with_version(revision) }))
    }
}

/// When a transaction is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it survives a power cut.
    #[default]
    Synced,
    /// At once: it is on the disk within [`local::SOON`], and a power cut before that loses it. For what is said again anyway.
    Soon,
}

/// All of it or none of it, under one revision. Each key is named once.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    pub writes: Vec<Write>,
    /// Keys that must be there, whatever they hold.
    pub requires: Vec<(Collection, ObjectKey)>,
    pub durability: Durability,
}

impl Transaction {
    /// The store's names of all its keys: what it requires, then what it writes.
    fn keys(&self) -> Vec<String> {
        let required = self.requires.iter().map(|(collection, key)| store_key(collection, key));
        required.chain(self.writes.iter().map(|write| store_key(&write.collection, &write.key))).collect()
    }

    /// What stands in the way, from the revisions of all its keys in the order of [`Self::keys`] (`None` for those that are
    /// not there).
    fn refusal(&self, mut found: impl Iterator<Item = Option<Revision>>) -> Option<CommitError> {
        for (collection, key) in &self.requires {
            if found.next()?.is_none() {
                return Some(CommitError::Missing { collection: collection.clone(), key: key.clone() });
            }
        }
        self.writes.iter().zip(found).find_map(|(Write { collection, key, expect, .. }, found)| {
            let holds = match expect {
                Expect::Absent => found.is_none(),
                Expect::At(revision) => found == Some(*revision),
            };
            let (collection, key) = (collection.clone(), key.clone());
            (!holds).then_some(CommitError::Conflict { collection, key, found })
        })
    }
}

impl From<Vec<Write>> for Transaction {
    fn from(writes: Vec<Write>) -> Self {
        Self { writes, ..Self::default() }
    }
}

#[derive(Debug, Error)]
pub enum CommitError {
    /// `key` was not as expected; `found` is its revision now.
    #[error("{key:?} of {collection:?} changed meanwhile")]
    Conflict { collection: Collection, key: ObjectKey, found: Option<Revision> },
    /// A key that the transaction requires.
    #[error("{key:?} of {collection:?} is gone")]
    Missing { collection: Collection, key: ObjectKey },
    /// The batch was refused, and the store is as it was; or it failed, and nothing will be acknowledged any more.
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("the server is shutting down")]
    Closed,
}

/// What became of one key.
#[derive(Debug, Clone)]
pub struct Change {
    pub collection: Collection,
    pub key: ObjectKey,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub enum Content {
    Removed,
    /// Written by this process.
    Object(Arc<Object>),
    /// Written by another: its text, not yet read.
    Text(Unsealed),
}

/// Takes what was committed, each transaction whole, in the order of revisions. The watch cache is the only one.
pub trait Feed: Send + 'static {
    fn committed(&mut self, revision: Revision, changes: Vec<Change>);
    /// Nothing that this feed has not got was committed up to this revision.
    fn reached(&mut self, revision: Revision);
}

/// A committed transaction, with its objects in the order of its writes; `None` for removed keys.
#[derive(Debug)]
pub struct Committed {
    pub revision: Revision,
    pub objects: Vec<Option<Arc<Object>>>,
}

/// Why the store acknowledges nothing any more; `None` as long as it does.
pub type Failure = Option<Arc<StoreError>>;

/// Current values behind one revision counter.
///
/// The contract, which every store is held to by the suite in [`contract`]: a transaction is refused with what stood in its
/// way, or committed whole under a revision higher than all before; it is acknowledged after it is durable (as its
/// [`Durability`] says) and after the feed has it; the feed gets every transaction once, whole and in order; a revision is
/// given once.
#[async_trait]
pub trait Store: Send + Sync {
    async fn transact(&self, transaction: Transaction) -> Result<Committed, CommitError>;

    /// The feed has what a reader who asks now must see.
    async fn fresh(&self) -> Result<(), CommitError>;

    /// Whether it removes what has outlived [`Write::lifetime`]; else the server does.
    fn keeps_lifetimes(&self) -> bool {
        false
    }

    /// What is wrong with it, beside failures of single calls.
    async fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// Announces that the store failed: the process cannot go on and has to say why.
    fn failure(&self) -> watch::Receiver<Failure>;
}

/// A store that was opened and read. Nothing else is written until it is started.
pub struct Opened {
    pub revision: Revision,
    pub records: Vec<Record>,
    /// For messages.
    pub place: PathBuf,
    start: Start,
}

type Start = Box<dyn FnOnce(Box<dyn Feed>) -> Arc<dyn Store> + Send>;

impl Opened {
    /// Goes on from what was read; the feed gets what comes after it.
    pub fn start(self, feed: impl Feed) -> Arc<dyn Store> {
        (self.start)(Box::new(feed))
    }
}

/// JSON text follows. No longer written.
const FORMAT_JSON: u8 = 1;
/// A CRC-32 of key, revision and text (little endian), then the JSON text. No longer written.
const FORMAT_CHECKED_JSON: u8 = 2;
/// A CRC-32 of key, revision, format and all that follows: the generation of the defaults that the object has, and the JSON
/// text. The file's own checksums cover pages; this one stays with the value when a page that went bad in between is read
/// and written again. The numbers are two bits away from the older ones and from each other, so that no flipped bit makes
/// one of them of another.
const FORMAT_DEFAULTED_JSON: u8 = 4;
/// The same without the revision: an etcd gives it with the write.
const FORMAT_UNDATED_JSON: u8 = 8;
const SUM: usize = size_of::<u32>();
const GENERATION: usize = size_of::<u16>();

/// The stored form of an object's text in a file, which has the defaults of this release.
pub fn seal(key: &str, revision: Revision, json: &[u8]) -> Vec<u8> {
    sealed(FORMAT_DEFAULTED_JSON, key, Some(revision), json)
}

/// The stored form of an object's text in an etcd.
pub fn seal_for_etcd(key: &str, json: &[u8]) -> Vec<u8> {
    sealed(FORMAT_UNDATED_JSON, key, None, json)
}

fn sealed(format: u8, key: &str, revision: Option<Revision>, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + SUM + GENERATION + json.len());
    out.push(format);
    out.extend_from_slice(&[0; SUM]);
    out.extend_from_slice(&api::default::GENERATION.to_le_bytes());
    out.extend_from_slice(json);
    let sum = checksum(key, revision, &[&[format], &out[1 + SUM..]]);
    out[1..=SUM].copy_from_slice(&sum.to_le_bytes());
    out
}

/// What a stored form holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsealed {
    pub text: Vec<u8>,
    /// Which defaults the object has; those of a later release are no less.
    pub defaults: u16,
}

pub fn unseal(key: &str, revision: Revision, mut value: Vec<u8>) -> Result<Unsealed, StoreError> {
    let corrupt = |why| Err(StoreError::Corrupt { key: key.into(), why });
    // The older form's sum did not cover the format.
    let fits = |revision: Option<Revision>, format: &[u8], rest: &[u8]| match rest.split_first_chunk::<SUM>() {
        Some((sum, rest)) => u32::from_le_bytes(*sum) == checksum(key, revision, &[format, rest]),
        None => false,
    };
    match value.split_first() {
        Some((&FORMAT_JSON, _)) => {
            value.remove(0);
            Ok(Unsealed { text: value, defaults: 0 })
        }
        Some((&FORMAT_CHECKED_JSON, rest)) if fits(Some(revision), &[], rest) => {
            value.drain(..1 + SUM);
            Ok(Unsealed { text: value, defaults: 0 })
        }
        Some((&format @ (FORMAT_DEFAULTED_JSON | FORMAT_UNDATED_JSON), rest))
            if fits((format == FORMAT_DEFAULTED_JSON).then_some(revision), &[format], rest) =>
        {
            match rest[SUM..].first_chunk::<GENERATION>() {
                Some(generation) => {
                    let defaults = u16::from_le_bytes(*generation);
                    value.drain(..1 + SUM + GENERATION);
                    Ok(Unsealed { text: value, defaults })
                }
                None => corrupt("it is cut short"),
            }
        }
        Some((&(FORMAT_CHECKED_JSON | FORMAT_DEFAULTED_JSON | FORMAT_UNDATED_JSON), _)) => {
            corrupt("its checksum does not fit")
        }
        Some(_) => corrupt("its format is unknown"),
        None => corrupt("it is empty"),
    }
}

fn checksum(key: &str, revision: Option<Revision>, parts: &[&[u8]]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key.as_bytes());
    if let Some(revision) = revision {
        sum.update(&revision.to_le_bytes());
    }
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
        before.extend_from_slice(&checksum("k", Some(7), &[b"{}"]).to_le_bytes());
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
        assert_eq!(unseal("k", 9, seal_for_etcd("k", b"{}")).unwrap(), held(api::default::GENERATION));
        assert!(unseal("l", 9, seal_for_etcd("k", b"{}")).is_err());
        assert!(unseal("k", 7, vec![9, 1]).unwrap_err().to_string().contains('k'));
        assert!(unseal("k", 7, vec![]).is_err());
    }
}
