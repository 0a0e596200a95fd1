//! A witness beside the store: the last revision that was acknowledged.
//!
//! It is written after each commit and not synced, so it costs no disk write of its own and is never ahead of an honest
//! store. A store that ends before its mark has lost what it had confirmed: its disk lied about a sync, or somebody put
//! an older file in its place. Without a mark such a file is a perfect store of an earlier time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::object::Revision;

pub struct Mark {
    file: File,
}

/// The mark of a store.
pub fn path(store: &Path) -> PathBuf {
    store.with_extension("mark")
}

/// What the mark of a store says; `None` when there is none or it cannot be made out, as after a power cut.
pub fn read(store: &Path) -> io::Result<Option<Revision>> {
    match std::fs::read(path(store)) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Twenty digits and their checksum: always the same length, within one sector.
fn text(revision: Revision) -> String {
    let digits = format!("{revision:020}");
    format!("{digits} {:08x}\n", crc32fast::hash(digits.as_bytes()))
}

fn parse(bytes: &[u8]) -> Option<Revision> {
    let revision = std::str::from_utf8(bytes.get(..20)?).ok()?.parse().ok()?;
    (bytes == text(revision).as_bytes()).then_some(revision)
}

impl Mark {
    /// Opens or makes the mark of a store that stands at `revision`.
    pub fn open(store: &Path, revision: Revision) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path(store))?;
        let text = text(revision);
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
        // Once: from here on its block is there, and advancing needs no space.
        file.sync_all()?;
        Ok(Self { file })
    }

    pub fn advance(&self, revision: Revision) -> io::Result<()> {
        self.file.write_all_at(text(revision).as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store.redb");
        assert_eq!(read(&store).unwrap(), None);
        let mark = Mark::open(&store, 7).unwrap();
        mark.advance(1234).unwrap();
        assert_eq!(read(&store).unwrap(), Some(1234));
        for torn in ["", "0000000000000000", "00000000000000001235 00000000\n", &"\0".repeat(30)] {
            std::fs::write(path(&store), torn).unwrap();
            assert_eq!(read(&store).unwrap(), None, "{torn:?}");
        }
    }
}
