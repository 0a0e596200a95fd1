//! How much pods and images may still take of the disk: the store lies on it too, and needs some for itself.

use std::io;
use std::path::Path;

/// Left alone: this much, or this part of a smaller disk.
const RESERVE: u64 = 1 << 30;
const RESERVE_PART: u64 = 20;
/// The same for inodes.
const RESERVE_FILES: u64 = 10_000;

/// What may still be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    pub files: u64,
}

/// What there is, the reserve included, and how large that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub available: u64,
    pub reserve: u64,
    pub available_files: u64,
    pub reserved_files: u64,
}

/// What a disk is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Bytes,
    Files,
}

#[derive(Debug, thiserror::Error)]
#[error("no space left for this on {path}: {wanted} bytes are wanted, {left} are left beside the reserve of the node")]
pub struct NoRoom {
    pub path: String,
    pub wanted: u64,
    pub left: u64,
}

/// What of a disk of this size is not for pods.
pub fn reserve_of(size: u64) -> u64 {
    (size / RESERVE_PART).min(RESERVE)
}

impl Level {
    pub fn at(path: &Path) -> io::Result<Level> {
        let stat = rustix::fs::statvfs(path)?;
        let reserve = reserve_of(stat.f_blocks.saturating_mul(stat.f_frsize));
        // A file system without a fixed number of inodes says zero.
        let (available_files, reserved_files) = match stat.f_files {
            0 => (u64::MAX, 0),
            all => (stat.f_favail, RESERVE_FILES.min(all / RESERVE_PART)),
        };
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Level { available, reserve, available_files, reserved_files })
    }

    pub fn room(self) -> Room {
        Room {
            bytes: self.available.saturating_sub(self.reserve),
            files: self.available_files.saturating_sub(self.reserved_files),
        }
    }

    /// What of the reserve itself is being used.
    pub fn want(self) -> Option<Want> {
        match self.room() {
            Room { bytes: 0, .. } => Some(Want::Bytes),
            Room { files: 0, .. } => Some(Want::Files),
            _ => None,
        }
    }
}

impl Room {
    /// What the file system of a folder can give.
    pub fn at(path: &Path) -> io::Result<Room> {
        Level::at(path).map(Level::room)
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
        assert_eq!(reserve_of(1 << 40), 1 << 30);
        let level = Level::at(folder.path()).unwrap();
        assert_eq!((level.available, level.reserve, level.want()), (1 << 20, 1 << 20, Some(Want::Bytes)));
        empty.check(folder.path(), 1 << 20).unwrap();
        let refused = full.check(folder.path(), 0).unwrap_err().to_string();
        assert!(refused.starts_with("no space left"), "{refused}");
    }
}
