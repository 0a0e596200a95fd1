//! The embedded store: one redb file.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Record, Store, StoreError};
use crate::object::Revision;

/// Key → (revision, stored form).
const VALUES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("values");
/// `format` and `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The layout this release writes; a file with a higher number is refused.
const FORMAT: u64 = 1;
/// Page cache of redb, bytes: reads come from the watch cache, so a small one is enough.
const PAGE_CACHE: usize = 8 << 20;

pub struct RedbStore {
    database: Database,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl RedbStore {
    /// Opens or creates the file; refuses one of a newer layout.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let open = |source: Cause| StoreError::Open { path: shown.clone(), source };
        let database = Database::builder().set_cache_size(PAGE_CACHE).create(path).map_err(|e| open(e.into()))?;
        let found = Self::format(&database).map_err(open)?;
        if found > FORMAT {
            return Err(StoreError::Newer { path: path.display().to_string(), found, known: FORMAT });
        }
        Ok(Self { database })
    }

    /// Reads the layout number, writing ours into a new file.
    fn format(database: &Database) -> Result<u64, Cause> {
        let write = database.begin_write()?;
        let found = {
            write.open_table(VALUES)?;
            let mut meta = write.open_table(META)?;
            let found = meta.get("format")?.map(|guard| guard.value());
            if found.is_none() {
                meta.insert("format", FORMAT)?;
            }
            found.unwrap_or(FORMAT)
        };
        write.commit()?;
        Ok(found)
    }

    fn read_all(&self) -> Result<(Revision, Vec<Record>), Cause> {
        let read = self.database.begin_read()?;
        let revision = read.open_table(META)?.get("revision")?.map_or(0, |guard| guard.value());
        let mut records = Vec::new();
        for entry in read.open_table(VALUES)?.iter()? {
            let (key, value) = entry?;
            let (revision, bytes) = value.value();
            records.push(Record { key: key.value().to_owned(), revision, value: Some(bytes.to_vec()) });
        }
        Ok((revision, records))
    }

    fn write_batch(&self, batch: &[Record]) -> Result<(), Cause> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut values = write.open_table(VALUES)?;
            for record in batch {
                match &record.value {
                    Some(value) => values.insert(&*record.key, (record.revision, &**value))?,
                    None => values.remove(&*record.key)?,
                };
            }
            let last = batch.iter().map(|record| record.revision).max().unwrap_or(0);
            write.open_table(META)?.insert("revision", last)?;
        }
        write.commit()?;
        Ok(())
    }
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<(Revision, Vec<Record>), StoreError> {
        self.read_all().map_err(StoreError::Read)
    }

    fn commit(&mut self, batch: &[Record]) -> Result<(), StoreError> {
        let revision = batch.last().map_or(0, |record| record.revision);
        self.write_batch(batch).map_err(|source| StoreError::Commit { revision, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, revision: u64) -> Record {
        Record { key: key.into(), revision, value: Some(vec![1, b'{', b'}']) }
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut store = RedbStore::open(&path).unwrap();
        store.commit(&[put("/a", 1), put("/b", 2)]).unwrap();
        store.commit(&[Record { key: "/a".into(), revision: 3, value: None }]).unwrap();
        drop(store);
        let (revision, records) = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(revision, 3);
        assert_eq!(records.iter().map(|r| (r.key.as_str(), r.revision)).collect::<Vec<_>>(), [("/b", 2)]);
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        let write = store.database.begin_write().unwrap();
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
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Open { .. })));
    }
}
