//! How much pods and images may still take of the disk: the store lies on it too, and needs some for itself.

use std::io;
use std::path::Path;

/// Left alone: this much, or this part of a smaller disk.
const RESERVE: u64 = 1 << 30;
const RESERVE_PART: u64 = 20;
/// The same for inodes.
const RESERVE_FILES: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    pub files: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("no space left for this on {path}: {wanted} bytes are wanted, {left} are left beside the reserve of the node")]
pub struct NoRoom {
    pub path: String,
    pub wanted: u64,
    pub left: u64,
}

impl Room {
    /// What the file system of a folder can give.
    pub fn at(path: &Path) -> io::Result<Room> {
        let stat = rustix::fs::statvfs(path)?;
        let reserve = (stat.f_blocks.saturating_mul(stat.f_frsize) / RESERVE_PART).min(RESERVE);
        let bytes = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(reserve);
        // A file system without a fixed number of inodes says zero.
        let files = match stat.f_files {
            0 => u64::MAX,
            all => stat.f_favail.saturating_sub(RESERVE_FILES.min(all / RESERVE_PART)),
        };
        Ok(Room { bytes, files })
    }

    /// Refuses when less than `wanted` bytes would fit.
    pub fn check(self, path: &Path, wanted: u64) -> Result<(), NoRoom> {
        if self.bytes > wanted && self.files > 0 {
            return Ok(());
        }
        Err(NoRoom { path: path.display().to_string(), wanted, left: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_not_given_away() {
        let folder = crate::disk::TestDisk::new("size=20m");
        let empty = Room::at(folder.path()).unwrap();
        std::fs::write(folder.path().join("much"), vec![0; 19 << 20]).unwrap();
        let full = Room::at(folder.path()).unwrap();
        assert_eq!((empty.bytes, full.bytes), (19 << 20, 0));
        empty.check(folder.path(), 1 << 20).unwrap();
        let refused = full.check(folder.path(), 0).unwrap_err().to_string();
        assert!(refused.starts_with("no space left"), "{refused}");
    }
}
