//! What an administrator does with a store: look at it, make it smaller, copy it, put a copy in its place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::ReadableDatabase;
use thiserror::Error;

use super::overlay::Overlay;
use super::redb::{compact_file, open_beside_writer, open_verified, read_all, sync_folder, verified, write_new};
use super::{Record, StoreError, mark, parse_key, unseal};
use crate::object::{Encoded, Revision, Unreadable};

/// No client has seen a revision this far beyond what is known: the mark of a store that lost its disk may lag.
const MARGIN: Revision = 1_000_000;

/// A store as it was found: sound.
#[derive(Debug)]
pub struct Report {
    pub revision: Revision,
    pub objects: BTreeMap<String, usize>,
    /// Undamaged, and yet no objects to this release: a server sets them aside.
    pub unreadable: Vec<(String, Unreadable)>,
    /// Bytes of values, and of the file that holds them.
    pub values: u64,
    pub file: u64,
    pub beside: Beside,
}

/// Whether a server had the store open meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Server,
    Nobody,
}

#[derive(Debug)]
pub struct Restored {
    pub revision: Revision,
    pub objects: usize,
    /// Where the store went whose place was taken.
    pub aside: Option<PathBuf>,
}

#[derive(Debug, Error)]
pub enum ToolError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} exists already: choose another name, or remove it")]
    Exists { path: PathBuf },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads all of a store; changes nothing.
///
/// # Errors
/// [`StoreError::Damaged`]; [`StoreError::Lost`] when it ends before what was acknowledged; [`StoreError::Open`] when
/// it cannot be read. What is undamaged and unreadable is no error, but told in the report.
pub fn check(store: &Path) -> Result<Report, StoreError> {
    report(store, &read(store)?)
}

/// Holds all that was read against what is known of a store.
fn report(store: &Path, found: &Found) -> Result<Report, StoreError> {
    let marked = mark::read(store).map_err(|error| open_failed(store, error))?.unwrap_or(0);
    // A running server's mark may have moved on since the store was read.
    if found.beside == Beside::Nobody && found.revision < marked {
        return Err(StoreError::Lost { path: store.to_owned(), found: found.revision, acknowledged: marked });
    }
    let (mut objects, mut unreadable) = (BTreeMap::new(), Vec::new());
    let mut values = 0;
    for record in &found.records {
        match look_at(store, record, found.revision)? {
            Ok(resource) => *objects.entry(resource).or_default() += 1,
            Err(why) => unreadable.push((record.key.clone(), why)),
        }
        values += record.value.as_ref().map_or(0, |value| value.len() as u64);
    }
    let file = std::fs::metadata(store).map_err(|error| open_failed(store, error))?.len();
    Ok(Report { revision: found.revision, objects, unreadable, values, file, beside: found.beside })
}

/// Whether a server has a store open; one that is not there is not.
///
/// # Errors
/// [`StoreError::Open`] when the file cannot be opened or locked.
pub fn in_use(store: &Path) -> Result<bool, StoreError> {
    match File::open(store) {
        Ok(file) => Ok(lock(file, store)?.is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(open_failed(store, error)),
    }
}

/// Gives space back to the file system; returns the file's size before and after.
///
/// # Errors
/// [`StoreError::InUse`] while a server has it open, and those of [`check`]: a store that is not sound is left as it
/// is.
pub fn compact(store: &Path) -> Result<(u64, u64), StoreError> {
    let size = || std::fs::metadata(store).map(|found| found.len()).map_err(|error| open_failed(store, error));
    let before = size()?;
    check(store)?;
    compact_file(store)?;
    Ok((before, size()?))
}

/// Copies a store as it is at one moment, beside a running server too.
///
/// # Errors
/// [`ToolError::Exists`] for a file that is there, those of [`check`], [`ToolError::Write`]. `to` appears whole or not
/// at all.
pub fn backup(store: &Path, to: &Path) -> Result<Report, ToolError> {
    if to.exists() {
        return Err(ToolError::Exists { path: to.to_owned() });
    }
    let found = read(store)?;
    let report = report(store, &found)?;
    let partial = to.with_added_extension("partial");
    make(&partial, &found.records, found.revision)?;
    std::fs::rename(&partial, to)
        .and_then(|()| sync_folder(to))
        .map_err(|source| ToolError::Write { path: to.to_owned(), source })?;
    Ok(report)
}

/// Puts a backup in the place of a store that no server has open. Revisions go on beyond all that were ever given.
///
/// # Errors
/// [`StoreError::InUse`] while a server has the store open, [`StoreError::Damaged`] or [`StoreError::Open`] for a
/// backup that is of no use, [`ToolError::Write`]. The store stays as it was until it is replaced whole.
pub fn restore(store: &Path, from: &Path) -> Result<Restored, ToolError> {
    let failed = |source| ToolError::Write { path: store.to_owned(), source };
    let _only_one = match File::open(store) {
        Ok(file) => Some(lock(file, store)?.ok_or_else(|| StoreError::InUse { path: store.to_owned() })?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(open_failed(store, error).into()),
    };
    let found = if is_same(store, from) { read_file(store)? } else { read(from)? };
    for record in &found.records {
        // What cannot be read is kept all the same.
        let _unreadable = look_at(from, record, found.revision)?;
    }
    let marked = mark::read(store).map_err(|error| open_failed(store, error))?.unwrap_or(0);
    // What is there may well be damaged: that is why it is replaced.
    let current = read_file(store).map_or(0, |current| current.revision);
    let revision = found.revision.max(marked).max(current) + MARGIN;
    let fresh = store.with_added_extension("restoring");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => make(&fresh, &found.records, revision)?,
    }
    let aside = match &_only_one {
        Some(_) => Some(link_aside(store).map_err(failed)?),
        None => None,
    };
    std::fs::rename(&fresh, store).and_then(|()| sync_folder(store)).map_err(failed)?;
    mark::Mark::open(store, revision).map_err(failed)?;
    Ok(Restored { revision, objects: found.records.len(), aside })
}

struct Found {
    revision: Revision,
    records: Vec<Record>,
    beside: Beside,
}

/// Verifies and reads a store, whether or not a server has it open.
fn read(store: &Path) -> Result<Found, StoreError> {
    let file = File::open(store).map_err(|error| open_failed(store, error))?;
    if let Some(_lock) = lock(file, store)? {
        return read_file(store);
    }
    let database = open_beside_writer(store)?;
    let (revision, records) = verified(store, || read_all(&database.begin_read()?))?;
    Ok(Found { revision, records, beside: Beside::Server })
}

/// Verifies and reads a store that nobody has open.
fn read_file(store: &Path) -> Result<Found, StoreError> {
    let file = File::open(store).map_err(|error| open_failed(store, error))?;
    let overlay = Overlay::new(file).map_err(|error| open_failed(store, error))?;
    if overlay.is_empty() {
        return Err(StoreError::Damaged { path: store.to_owned(), source: "it is empty".into() });
    }
    let database = open_verified(store, || {
        redb::Database::builder().set_check_integrity_on_open(true).create_with_backend(overlay)
    })?;
    let (revision, records) = verified(store, || read_all(&database.begin_read()?))?;
    Ok(Found { revision, records, beside: Beside::Nobody })
}

/// Locks a file against servers; `None` when one has it open.
fn lock(file: File, path: &Path) -> Result<Option<File>, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(open_failed(path, error)),
    }
}

/// Holds one record against everything that is known of records, and reads it as a server does; gives its resource.
fn look_at(store: &Path, record: &Record, last: Revision) -> Result<Result<String, Unreadable>, StoreError> {
    let value = record.value.clone().unwrap_or_default();
    let checked = || {
        let text = unseal(&record.key, record.revision, value)?.text;
        if record.revision > last {
            return Err(StoreError::Corrupt { key: record.key.clone(), why: "it is newer than the store" });
        }
        Ok(readable(record, text))
    };
    checked().map_err(|source| StoreError::Damaged { path: store.to_owned(), source: source.into() })
}

fn readable(record: &Record, text: Vec<u8>) -> Result<String, Unreadable> {
    let (collection, _) = parse_key(&record.key).ok_or(Unreadable::Key)?;
    Encoded::from_stored(text)?;
    Ok(if collection.group.is_empty() {
        collection.plural.into()
    } else {
        format!("{}.{}", collection.plural, collection.group)
    })
}

/// Writes a new store file, durable when this returns.
fn make(path: &Path, records: &[Record], revision: Revision) -> Result<(), ToolError> {
    let failed = |source| ToolError::Write { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ToolError::Exists { path: path.to_owned() },
        _ => failed(error),
    })?;
    let written = write_new(&file, records, revision);
    written.and_then(|()| file.sync_all()).map_err(|source| {
        // What is half made helps nobody; the failure to write it is what counts.
        let _ = std::fs::remove_file(path);
        failed(source)
    })
}

/// Gives a file a second name that was free.
fn link_aside(store: &Path) -> io::Result<PathBuf> {
    for number in 1..u32::MAX {
        let aside = store.with_added_extension(format!("replaced-{number}"));
        match std::fs::hard_link(store, &aside) {
            Ok(()) => return Ok(aside),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn open_failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::super::redb::RedbStore;
    use super::super::seal;
    use super::*;

    fn put(name: &str, revision: u64) -> Record {
        let key = format!("/amphipod/apps/deployments/default/{name}");
        let value = Some(seal(&key, revision, br#"{"metadata":{}}"#));
        Record { key, revision, value }
    }

    fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (store, copy) = (folder.path().join("store.redb"), folder.path().join("copy"));
        (folder, store, copy)
    }

    #[test]
    fn a_backup_beside_a_running_server_is_its_state_at_one_moment() {
        let (_folder, path, copy) = folder();
        let mut store = RedbStore::open(&path).unwrap();
        store.put(&[put("a", 1), put("b", 2)]).unwrap();
        let report = backup(&path, &copy).unwrap();
        assert_eq!((report.revision, report.objects["deployments.apps"], report.beside), (2, 2, Beside::Server));
        store.put(&[put("c", 3)]).unwrap();
        assert!(matches!(backup(&path, &copy), Err(ToolError::Exists { .. })));
        let copied = check(&copy).unwrap();
        assert_eq!((copied.revision, copied.objects["deployments.apps"], copied.beside), (2, 2, Beside::Nobody));
    }

    #[test]
    fn a_restored_store_gives_no_revision_twice() {
        let (_folder, path, copy) = folder();
        let mut store = RedbStore::open(&path).unwrap();
        store.put(&[put("a", 1)]).unwrap();
        backup(&path, &copy).unwrap();
        store.put(&[put("b", 2)]).unwrap();
        assert!(matches!(restore(&path, &copy), Err(ToolError::Store(StoreError::InUse { .. }))));
        drop(store);
        let restored = restore(&path, &copy).unwrap();
        assert_eq!((restored.revision, restored.objects), (2 + MARGIN, 1));
        assert_eq!(check(restored.aside.as_deref().unwrap()).unwrap().revision, 2);
        let (revision, records) = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!((revision, records), (2 + MARGIN, vec![put("a", 1)]));
    }

    #[test]
    fn a_loss_can_be_accepted() {
        let (_folder, path, copy) = folder();
        RedbStore::open(&path).unwrap().put(&[put("a", 1)]).unwrap();
        std::fs::copy(&path, &copy).unwrap();
        RedbStore::open(&path).unwrap().put(&[put("b", 2)]).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert!(matches!(check(&path), Err(StoreError::Lost { found: 1, acknowledged: 2, .. })));
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Lost { .. })));
        restore(&path, &path).unwrap();
        assert_eq!(RedbStore::open(&path).unwrap().load().unwrap().0, 2 + MARGIN);
    }

    #[test]
    fn checking_changes_nothing_and_names_what_is_damaged() {
        let (_folder, path, copy) = folder();
        let mut bad = put("a", 1);
        bad.value = Some(seal("another key", 1, b"{}"));
        RedbStore::open(&path).unwrap().put(&[bad]).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = check(&path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("/amphipod/apps/deployments/default/a"), "{cause}");
        assert!(backup(&path, &copy).is_err() && !copy.exists());
        assert!(std::fs::read(&path).unwrap() == before);
        std::fs::write(&path, "").unwrap();
        assert!(check(&path).is_err());
        assert!(check(&copy).is_err());
    }

    #[test]
    fn compacting_keeps_everything() {
        let (_folder, path, _) = folder();
        let mut store = RedbStore::open(&path).unwrap();
        for revision in 1..60 {
            let mut record = put(&format!("n{revision}"), revision);
            record.value = Some(seal(
                &record.key,
                revision,
                format!("{{\"metadata\":{{\"x\":\"{}\"}}}}", "x".repeat(50_000)).as_bytes(),
            ));
            store.put(&[record]).unwrap();
        }
        for revision in 60..118 {
            store.put(&[Record { revision, value: None, ..put(&format!("n{}", revision - 59), 0) }]).unwrap();
        }
        assert!(matches!(compact(&path), Err(StoreError::InUse { .. })));
        drop(store);
        let (before, after) = compact(&path).unwrap();
        assert!(after < before, "{before} → {after}");
        let report = check(&path).unwrap();
        assert_eq!((report.revision, report.objects.values().sum::<usize>()), (117, 1));
    }
}
