//! What a tree takes of its disk, when anybody may be changing it meanwhile.
//!
//! One folder is open at a time, and of those above only a number and a place are kept: neither depth nor breadth costs
//! descriptors or memory. A file counts by its links, each for its part, so none is remembered either.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Folder;

/// The kernel's unit in `st_blocks`.
const BLOCK: u64 = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub bytes: u64,
    pub files: u64,
}

impl std::ops::AddAssign for Weight {
    fn add_assign(&mut self, other: Weight) {
        self.bytes += other.bytes;
        self.files += other.files;
    }
}

impl Weight {
    fn add(&mut self, stat: &Stat) {
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // Their width is the architecture's.
        let links = if is_folder { 1 } else { u128::from(stat.st_nlink).max(1) };
        let bytes = u128::try_from(stat.st_blocks).unwrap_or(0) * u128::from(BLOCK) / links;
        self.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.files += 1;
    }
}

/// A folder that is being read.
struct Open {
    dir: Dir,
    inode: u64,
}

/// One that is read on when its child is through.
struct Above {
    inode: u64,
    place: i64,
}

impl Folder {
    /// The sum of all below this folder, and itself. What is moved away while it is looked at may be missing, and what is
    /// not counted by the deadline, since somebody may fill a folder as fast as it is read: at least so much is there.
    pub fn weigh(&self, deadline: Instant) -> io::Result<Weight> {
        let (mut here, stat) = Open::at(self.as_fd(), c".")?;
        let (device, mut above, mut weight) = (stat.st_dev, Vec::new(), Weight::default());
        weight.add(&stat);
        while Instant::now() < deadline {
            match here.dir.read().transpose()? {
                Some(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(entry) => {
                    let Some(stat) =
                        present(rustix::fs::statat(here.fd()?, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW))?
                    else {
                        continue;
                    };
                    if stat.st_dev != device {
                        continue; // another file system, mounted there
                    }
                    weight.add(&stat);
                    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                        continue;
                    }
                    let child = present(Open::at(here.fd()?, entry.file_name()))?;
                    if let Some((child, _)) = child {
                        above.push(Above { inode: here.inode, place: entry.offset() });
                        here = child;
                    }
                }
                None => {
                    let Some(Above { inode, place }) = above.pop() else { return Ok(weight) };
                    let (mut parent, _) = Open::at(here.fd()?, c"..")?;
                    if parent.inode != inode {
                        return Ok(weight); // moved: where it was is not to be found from here
                    }
                    parent.dir.seek(place)?;
                    here = parent;
                }
            }
        }
        Ok(weight)
    }
}

impl Open {
    fn at(folder: impl AsFd, name: &CStr) -> Result<(Open, Stat), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let folder: OwnedFd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&folder)?;
        Ok((Open { dir: Dir::new(folder)?, inode: stat.st_ino }, stat))
    }

    fn fd(&self) -> Result<impl AsFd, Errno> {
        self.dir.fd()
    }
}

/// What went, or became something else, since its name was read is no failure.
fn present<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn weight(folder: &std::path::Path) -> Weight {
        Folder::open(folder).unwrap().weigh(Instant::now() + std::time::Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn files_count_by_what_they_take() {
        let disk = crate::disk::TestDisk::new("size=8m");
        let path = |name: &str| disk.path().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        fs::write(path("a/b/much"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(path("a/b/much"), path("a/again")).unwrap();
        fs::File::create(path("sparse")).unwrap().set_len(1 << 30).unwrap();
        symlink("/", path("a/out")).unwrap();
        symlink("..", path("a/b/circle")).unwrap();
        fs::create_dir(path("other")).unwrap();
        crate::disk::mount("tmpfs", &path("other"), "tmpfs", 0, "size=4m").unwrap();
        fs::write(path("other/else"), vec![1; 2 << 20]).unwrap();
        let found = weight(disk.path());
        assert_eq!((found.bytes, found.files), (1 << 20, 8));
    }

    #[test]
    fn neither_depth_nor_breadth_matters() {
        let disk = crate::disk::TestDisk::new("size=64m");
        let mut folder = rustix::fs::openat(rustix::fs::CWD, disk.path(), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
            rustix::fs::openat(&folder, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            folder = rustix::fs::openat(&folder, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        for number in 0..3000 {
            fs::create_dir(disk.path().join(number.to_string())).unwrap();
        }
        assert_eq!(weight(disk.path()).files, 1 + 2 * 5000 + 3000);
        let late = Folder::open(disk.path()).unwrap().weigh(Instant::now()).unwrap();
        assert_eq!(late.files, 1, "what there is no time for is not counted");
    }
}
