//! The embedded store: one redb file.
//!
//! Commits are two-phase: the new state is on the disk before the one byte that makes it current is written. So a
//! current state that does not verify is damage and never a torn commit, and no damage is "repaired" by going back to
//! an older state. Opening reads the file from the disk, not from the page cache, and verifies all of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causes::chain;
use redb::backends::FileBackend;
use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, Durability, Error, ReadOnlyDatabase, ReadTransaction,
    ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::mark::{self, Mark};
use super::values::Values;
use super::{Record, StoreError};
use crate::object::Revision;

/// Key → (revision, stored form).
const VALUES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("values");
/// `format`, `revision`, and `reserved`: up to where revisions may have been given.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The layout this release writes; a file with a higher number is refused, one with a lower number is taken on.
/// 2: values carry checksums.
const FORMAT: u64 = 2;
/// Page cache of redb, bytes: reads come from the watch cache, so a small one is enough.
const PAGE_CACHE: usize = 4 << 20;
/// Bytes of a file that is left as it is, whatever it holds.
const WORTH_IT: u64 = 64 << 20;
/// How many times as large as its contents a file may be.
const WASTE: u64 = 4;
/// A full disk is looked at again no sooner: each look verifies the file.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Where the bytes of a store are: a file, or in tests a disk that fails.
pub(super) trait Medium: Send + 'static {
    /// For messages, and the place of the mark.
    fn path(&self) -> &Path;
    /// Bytes; 0 where nothing was ever written.
    fn size(&self) -> io::Result<u64>;
    fn open(&self, builder: &Builder) -> Result<Database, DatabaseError>;
}

struct PlainFile(PathBuf);

impl Medium for PlainFile {
    fn path(&self) -> &Path {
        &self.0
    }

    fn size(&self) -> io::Result<u64> {
        match std::fs::metadata(&self.0) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn open(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        if self.size()? == 0 {
            self.create()?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.0)?;
        read_from_disk(&file)?;
        builder.create_with_backend(FileBackend::new(file)?)
    }
}

impl PlainFile {
    /// Makes an empty store and gives it its name when it is whole: who is killed meanwhile leaves none.
    fn create(&self) -> io::Result<()> {
        let fresh = self.0.with_added_extension("new");
        for stale in [&fresh, &self.0] {
            std::fs::remove_file(stale).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&fresh)?;
        write_new(&file, &[], 0)?;
        file.sync_all()?;
        // Not `rename`: it would replace the store that another process made meanwhile.
        std::fs::hard_link(&fresh, &self.0)?;
        std::fs::remove_file(&fresh)?;
        sync_folder(&self.0)
    }
}

/// Forgets what the page cache holds of a file: after a failed sync that is not what the disk holds.
fn read_from_disk(file: &File) -> io::Result<()> {
    file.sync_data()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Makes the entry of a file in its folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

pub struct RedbStore {
    medium: Box<dyn Medium>,
    /// `None` after the disk was full, until it can be opened again.
    database: Option<Database>,
    acknowledged: Revision,
    reserved: Revision,
    mark: Mark,
    refused_until: Instant,
}

impl RedbStore {
    /// Opens or creates the file, and verifies it.
    ///
    /// # Errors
    /// When it is in use, damaged, of a newer layout, or ends before what was acknowledged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::on(Box::new(PlainFile(path.to_owned())))
    }

    pub(super) fn on(medium: Box<dyn Medium>) -> Result<Self, StoreError> {
        let path = medium.path().to_owned();
        let unreadable = |source: io::Error| StoreError::Open { path: path.clone(), source: source.into() };
        let marked = mark::read(&path).map_err(unreadable)?.unwrap_or(0);
        if marked > 0 && medium.size().map_err(unreadable)? == 0 {
            return Err(StoreError::Lost { path, found: 0, acknowledged: marked });
        }
        let database = open_verified(&path, || medium.open(builder().set_check_integrity_on_open(true)))?;
        let (found, acknowledged, reserved) = verified(&path, || take_on(&database))?;
        if found > FORMAT {
            return Err(StoreError::Newer { path, found, known: FORMAT });
        }
        if acknowledged < marked {
            return Err(StoreError::Lost { path, found: acknowledged, acknowledged: marked });
        }
        let mark = Mark::open(&path, acknowledged).map_err(unreadable)?;
        Ok(Self { medium, database: Some(database), acknowledged, reserved, mark, refused_until: Instant::now() })
    }

    /// The revision to go on from: no higher one was ever given.
    pub fn reserved(&self) -> Revision {
        self.reserved.max(self.acknowledged)
    }

    /// Every record and the last revision committed.
    pub fn load(&mut self) -> Result<(Revision, Vec<Record>), StoreError> {
        let path = self.place();
        let database = self.opened()?;
        verified(&path, || read_all(&database.begin_read()?))
    }

    /// Gives space back to the file system, where the file is large and little of it is used: a burst of objects that went leaves
    /// its room behind. As safe as a commit. What fails is told, and the store goes on as it was.
    pub fn shrink(&mut self, records: &[Record]) {
        let used: usize =
            records.iter().map(|record| record.key.len() + record.value.as_ref().map_or(0, Vec::len)).sum();
        let before = self.medium.size().unwrap_or(0);
        if !is_wasteful(before, used as u64) {
            return;
        }
        let path = self.place().display().to_string();
        match self.compact() {
            Ok(()) => {
                tracing::info!(path, before, after = self.medium.size().unwrap_or(0), "the store gave space back")
            }
            Err(error) => tracing::warn!(path, error = %chain(&error), "the store gives no space back"),
        }
    }

    /// Moves everything to the front of the file and cuts the rest off.
    pub(super) fn compact(&mut self) -> Result<(), StoreError> {
        self.opened()?;
        let Some(database) = &mut self.database else { return Ok(()) };
        compacted(database).map_err(|error| {
            // As after a full disk: the file is looked at anew before it is used.
            self.database = None;
            StoreError::Open { path: self.place(), source: error.into() }
        })
    }

    pub fn place(&self) -> PathBuf {
        self.medium.path().to_owned()
    }

    /// Opens the file again after the disk was full, and makes sure that nothing acknowledged is missing.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let full = || StoreError::Full { path: self.medium.path().to_owned() };
        if Instant::now() < self.refused_until {
            return Err(full());
        }
        self.refused_until = Instant::now() + FULL_PAUSE;
        let path = self.medium.path();
        let opened = match open_verified(path, || self.medium.open(builder().set_check_integrity_on_open(true))) {
            Ok(opened) => opened,
            Err(StoreError::Open { source, .. }) if io_kind(&*source).is_some_and(is_full) => return Err(full()),
            Err(error) => return Err(error),
        };
        let found = verified(path, || revision(&opened.begin_read()?))?;
        if found != self.acknowledged {
            return Err(StoreError::Lost { path: path.to_owned(), found, acknowledged: self.acknowledged });
        }
        self.database = Some(opened);
        Ok(())
    }

    /// The database, opened again if the disk was full.
    fn opened(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            self.reopen()?;
        }
        self.database.as_ref().ok_or_else(|| StoreError::Full { path: self.medium.path().to_owned() })
    }
}

#[cfg(test)]
impl RedbStore {
    /// A batch as the writer would commit it.
    pub fn put(&mut self, batch: &[Record]) -> Result<(), StoreError> {
        let last = batch.iter().map(|record| record.revision).max().unwrap_or_default();
        self.commit(batch, last, last)
    }
}

impl Values for RedbStore {
    fn revisions(&mut self, keys: &[&str]) -> Result<Vec<Option<Revision>>, StoreError> {
        let path = self.place();
        let database = self.opened()?;
        verified(&path, || {
            let values = database.begin_read()?.open_table(VALUES)?;
            let found = keys.iter().map(|key| Ok(values.get(*key)?.map(|entry| entry.value().0)));
            found.collect::<Result<Vec<_>, Error>>()
        })
    }

    fn commit(&mut self, batch: &[Record], last: Revision, reserved: Revision) -> Result<(), StoreError> {
        match write_batch(self.opened()?, batch, last, reserved) {
            Ok(()) => {
                (self.acknowledged, self.reserved) = (last, reserved);
                if let Err(error) = self.mark.advance(last) {
                    tracing::warn!(%error, path = %self.place().display(), "the store's mark cannot be written");
                }
                Ok(())
            }
            Err(Error::Io(error)) if is_full(error.kind()) => {
                self.database = None;
                Err(StoreError::Full { path: self.place() })
            }
            Err(error) => Err(StoreError::Commit { revision: last, source: error.into() }),
        }
    }
}

/// A file that is worth the work of making it smaller.
fn is_wasteful(size: u64, used: u64) -> bool {
    size > WORTH_IT && size / WASTE > used
}

/// One process writes, others may read: `amphipod store check` and `backup` work beside a running server.
pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(PAGE_CACHE).set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder
}

/// Opens a store somebody else may be writing to, for reading.
pub(super) fn open_beside_writer(path: &Path) -> Result<ReadOnlyDatabase, StoreError> {
    open_verified(path, || builder().open_read_only(path))
}

/// What `open` gives, its failures told apart.
pub(super) fn open_verified<D>(path: &Path, open: impl FnOnce() -> Result<D, DatabaseError>) -> Result<D, StoreError> {
    let opened = caught(open).map_err(|panic| damaged(path, panic))?;
    opened.map_err(|error| match Error::from(error) {
        Error::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        Error::Io(error) if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            StoreError::Open { path: path.to_owned(), source: error.into() }
        }
        error => damaged(path, error),
    })
}

/// What reading an opened store gives: it was verified, so a failure is damage.
pub(super) fn verified<T, E>(path: &Path, read: impl FnOnce() -> Result<T, E>) -> Result<T, StoreError>
where
    Error: From<E>,
{
    match caught(read) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(damaged(path, Error::from(error))),
        Err(panic) => Err(damaged(path, panic)),
    }
}

fn damaged(path: &Path, source: impl Into<super::Cause>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), source: source.into() }
}

/// redb asserts what a file it wrote must be like; a damaged file was not written by it.
fn caught<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        format!("its structure makes no sense: {text}")
    })
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    error.downcast_ref::<io::Error>().map(io::Error::kind)
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Brings an older file to this layout; gives the layout it has now, its last revision, and the last one reserved.
fn take_on(database: &Database) -> Result<(u64, Revision, Revision), Error> {
    let write = begin_write(database)?;
    write.open_table(VALUES)?;
    let found = write.open_table(META)?.get("format")?.map_or(0, |guard| guard.value());
    if found < FORMAT {
        write.open_table(META)?.insert("format", FORMAT)?;
        write.commit()?;
    } else {
        write.abort()?;
    }
    let read = database.begin_read()?;
    Ok((found.max(FORMAT), revision(&read)?, number(&read, "reserved")?))
}

fn begin_write(database: &Database) -> Result<WriteTransaction, Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    write.set_two_phase_commit(true);
    Ok(write)
}

fn revision(read: &ReadTransaction) -> Result<Revision, Error> {
    number(read, "revision")
}

fn number(read: &ReadTransaction, name: &str) -> Result<u64, Error> {
    Ok(read.open_table(META)?.get(name)?.map_or(0, |guard| guard.value()))
}

/// Every record, and the last revision.
pub(super) fn read_all(read: &ReadTransaction) -> Result<(Revision, Vec<Record>), Error> {
    let mut records = Vec::new();
    for entry in read.open_table(VALUES)?.iter()? {
        let (key, value) = entry?;
        let (revision, bytes) = value.value();
        records.push(Record { key: key.value().to_owned(), revision, value: Some(bytes.to_vec()) });
    }
    Ok((revision(read)?, records))
}

fn write_batch(database: &Database, batch: &[Record], last: Revision, reserved: Revision) -> Result<(), Error> {
    let write = begin_write(database)?;
    {
        let mut values = write.open_table(VALUES)?;
        for record in batch {
            match &record.value {
                Some(value) => values.insert(&*record.key, (record.revision, &**value))?,
                None => values.remove(&*record.key)?,
            };
        }
        let mut meta = write.open_table(META)?;
        meta.insert("revision", last)?;
        meta.insert("reserved", reserved)?;
    }
    Ok(write.commit()?)
}

/// Fills a new, empty file. The database is closed when this returns; durable when the file is synced.
pub(super) fn write_new(file: &File, records: &[Record], last: Revision) -> io::Result<()> {
    let fill = || {
        let database = builder().create_with_backend(FileBackend::new(file.try_clone()?)?)?;
        take_on(&database)?;
        write_batch(&database, records, last, last)?;
        Ok(database.close()?)
    };
    fill().map_err(|error: Error| match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    })
}

/// Moves contents to the front of the file until nothing is left to move.
fn compacted(database: &mut Database) -> Result<(), Error> {
    while database.compact()? {}
    Ok(())
}

/// Compacts a file that nobody has open.
pub(super) fn compact_file(path: &Path) -> Result<(), StoreError> {
    let medium = PlainFile(path.to_owned());
    let mut database = open_verified(path, || medium.open(builder().set_check_integrity_on_open(true)))?;
    let failed = |source: Error| StoreError::Open { path: path.to_owned(), source: source.into() };
    compacted(&mut database).map_err(failed)?;
    database.close().map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::seal;

    fn put(key: &str, revision: u64) -> Record {
        Record { key: key.into(), revision, value: Some(seal(key, revision, b"{}")) }
    }

    #[test]
    fn a_burst_that_went_leaves_no_room_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut store = RedbStore::open(&path).unwrap();
        let text = "x".repeat(100_000);
        let key = |number: u64| format!("/{number}");
        let batch = |numbers: std::ops::Range<u64>, value: Option<&[u8]>| -> Vec<Record> {
            let made = |number| Record { key: key(number), revision: number, value: value.map(<[u8]>::to_vec) };
            numbers.map(made).collect()
        };
        (0..8).for_each(|part| store.put(&batch(part * 100..(part + 1) * 100, Some(text.as_bytes()))).unwrap());
        store.put(&[put("/kept", 900)]).unwrap();
        let (_, records) = store.load().unwrap();
        let large = std::fs::metadata(&path).unwrap().len();
        store.shrink(&records);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), large, "its room is used");
        store.commit(&batch(0..800, None), 901, 901).unwrap();
        let (_, records) = store.load().unwrap();
        store.shrink(&records);
        let small = std::fs::metadata(&path).unwrap().len();
        assert!(large > WORTH_IT && small < large / 4, "{large} → {small}");
        store.put(&[put("/after", 902)]).unwrap();
        drop(store);
        let (revision, records) = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!((revision, records), (902, vec![put("/after", 902), put("/kept", 900)]));
    }

    #[test]
    fn small_and_well_used_files_are_left_alone() {
        assert!(!is_wasteful(WORTH_IT, 0) && is_wasteful(WORTH_IT + WASTE, 0));
        assert!(is_wasteful(200 << 20, 49 << 20) && !is_wasteful(200 << 20, 50 << 20));
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut store = RedbStore::open(&path).unwrap();
        store.commit(&[put("/a", 1), put("/b", 2)], 2, 2).unwrap();
        assert_eq!(store.revisions(&["/b", "/c", "/a"]).unwrap(), [Some(2), None, Some(1)]);
        store.commit(&[Record { key: "/a".into(), revision: 3, value: None }], 3, 9).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse { .. })));
        drop(store);
        let mut store = RedbStore::open(&path).unwrap();
        let (revision, records) = store.load().unwrap();
        assert_eq!((revision, store.reserved()), (3, 9));
        assert_eq!(records.iter().map(|r| (r.key.as_str(), r.revision)).collect::<Vec<_>>(), [("/b", 2)]);
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        let write = store.database.as_ref().unwrap().begin_write().unwrap();
        write.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        write.commit().unwrap();
        drop(store);
        let error = RedbStore::open(&path).err().unwrap();
        assert!(matches!(error, StoreError::Newer { found, .. } if found == FORMAT + 1));
    }

    #[test]
    fn a_file_that_is_no_store_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        std::fs::write(&path, b"not a database, but longer than a header".repeat(200)).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_store_that_went_is_not_replaced_by_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        RedbStore::open(&path).unwrap().commit(&[put("/a", 1)], 1, 1).unwrap();
        let older = std::fs::read(&path).unwrap();
        RedbStore::open(&path).unwrap().commit(&[put("/a", 2)], 2, 2).unwrap();
        for content in [None, Some(Vec::new()), Some(older)] {
            std::fs::remove_file(&path).unwrap();
            content.iter().for_each(|content| std::fs::write(&path, content).unwrap());
            assert!(matches!(RedbStore::open(&path), Err(StoreError::Lost { acknowledged: 2, .. })));
            std::fs::write(&path, "").unwrap();
        }
    }
}
