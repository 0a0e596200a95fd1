//! Taking a tree away, whatever somebody made of it and whoever changes it meanwhile.
//!
//! Folders are held by their descriptors, so no name leads out, and no more than [`HELD`] at a time: what lies deeper is
//! moved up to the top of the tree and has its turn from there. Neither depth nor breadth costs descriptors, memory or
//! stack, and whoever takes up an interrupted removal needs to know nothing but what lies on the disk.
//!
//! The library's `remove_dir_all` calls itself, and holds a descriptor, for each level.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::Folder;
use super::descriptor::open_at;

/// Few trees are deeper, so little is moved.
const HELD: usize = 16;

/// Whether a removal is still wanted: it may take long.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails once it is not wanted any more.
    pub fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl Folder {
    /// Removes what has this name, a folder with all in it, following no link and entering no other file system; that
    /// there is nothing is fine. The folder of this name must be nobody else's to shape, what is in it may be. What
    /// cannot be removed keeps nothing else from going, and the first such failure is told.
    pub fn remove(&self, name: &OsStr, stop: &Stop) -> io::Result<()> {
        let plain = match rustix::fs::unlinkat(self.as_fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
            Err(error) => return Err(error.into()),
        };
        let top = match rustix::fs::openat(self.as_fd(), name, READ, Mode::empty()) {
            Ok(top) => top,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(plain.into()),
            Err(error) => return Err(error.into()),
        };
        loop {
            let pass = Pass::over(&top, stop)?;
            match rustix::fs::unlinkat(self.as_fd(), name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY) if pass.leaves_more_to_do() => {}
                Err(error) => return Err(pass.failure.unwrap_or_else(|| error.into())),
            }
        }
    }
}

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// One way through what lies at the top of a tree, and the levels below that are held.
struct Pass<'a> {
    top: &'a OwnedFd,
    removed: u64,
    moved: u64,
    failure: Option<io::Error>,
}

/// A folder that is being emptied, and its name in the one before it.
struct Level {
    dir: Dir,
    name: CString,
}

/// What became of an entry.
enum Outcome {
    Gone,
    /// A folder that is not empty.
    Full,
}

impl<'a> Pass<'a> {
    fn over(top: &'a OwnedFd, stop: &Stop) -> io::Result<Pass<'a>> {
        let mut pass = Pass { top, removed: 0, moved: 0, failure: None };
        let first = rustix::fs::openat(top, c".", READ, Mode::empty())?;
        let mut levels = vec![Level { dir: Dir::new(first)?, name: c".".to_owned() }];
        while let Some(level) = levels.last_mut() {
            stop.check()?;
            match level.dir.read() {
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    let taken = pass.take(&levels, entry.file_name(), entry.file_type());
                    levels.extend(pass.noted(taken).flatten());
                }
                ended => {
                    pass.noted(ended.transpose());
                    pass.leave(&mut levels);
                }
            }
        }
        Ok(pass)
    }

    /// What was moved up is removed by another way through, and so is what came meanwhile, as long as that helps.
    fn leaves_more_to_do(&self) -> bool {
        self.moved > 0 || (self.failure.is_none() && self.removed > 0)
    }

    fn noted<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
        result.map_err(|error| self.failure.get_or_insert_with(|| error.into())).ok()
    }

    /// Removes an entry; a folder that is not empty is the next level, or moved up.
    fn take(&mut self, levels: &[Level], name: &CStr, kind: FileType) -> Result<Option<Level>, Errno> {
        let Some(level) = levels.last() else { return Ok(None) };
        let folder = level.dir.fd()?;
        match unlink(folder, name, kind)? {
            Outcome::Gone => self.removed += 1,
            Outcome::Full if levels.len() < HELD => return enter(folder, name),
            Outcome::Full => self.move_up(folder, name)?,
        }
        Ok(None)
    }

    fn move_up(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let fresh = uuid::Uuid::new_v4().simple().to_string();
        match rustix::fs::renameat_with(folder, name, self.top, fresh, RenameFlags::NOREPLACE) {
            Err(Errno::NOENT) => Ok(()),
            moved => moved.map(|()| self.moved += 1),
        }
    }

    /// Goes back to the folder above, and removes the one that is through.
    fn leave(&mut self, levels: &mut Vec<Level>) {
        let (through, above) = (levels.pop(), levels.last());
        let (Some(through), Some(above)) = (through, above) else { return };
        let removed = above.dir.fd().and_then(|folder| unlink(folder, &through.name, FileType::Directory));
        if let Some(Outcome::Gone) = self.noted(removed) {
            self.removed += 1;
        }
    }
}

/// The kind is what it was when the name was read.
fn unlink(folder: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<Outcome, Errno> {
    let is_folder = kind == FileType::Directory;
    let as_what = |is_folder| if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    let removed = match rustix::fs::unlinkat(folder, name, as_what(is_folder)) {
        Err(Errno::ISDIR | Errno::NOTDIR) => rustix::fs::unlinkat(folder, name, as_what(!is_folder)),
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(Outcome::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Outcome::Full),
        Err(error) => Err(error),
    }
}

fn enter(folder: BorrowedFd<'_>, name: &CStr) -> Result<Option<Level>, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match open_at(folder, OsStr::from_bytes(name.to_bytes()), READ, resolve) {
        Ok(opened) => Ok(Some(Level { dir: Dir::new(opened)?, name: name.to_owned() })),
        // It went, or became something else: another way through finds what.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::super::tests::within_limits;
    use crate::disk::{TestDisk, mount};
    use rustix::fs::CWD;

    fn remove(parent: &Path, name: &str) -> io::Result<()> {
        Folder::open(parent).unwrap().remove(OsStr::new(name), &Stop::default())
    }

    fn make_deep(parent: &Path, levels: u32) {
        let mut folder = rustix::fs::openat(CWD, parent, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
            rustix::fs::openat(&folder, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            folder = rustix::fs::openat(&folder, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn neither_depth_nor_breadth_matters() {
        let make = |folder: &Path| {
            for deep in ["a", "b/c/d"] {
                let deep = folder.join("tree").join(deep);
                fs::create_dir_all(&deep).unwrap();
                make_deep(&deep, 70_000);
            }
            for number in 0..3000 {
                fs::create_dir_all(folder.join(format!("tree/wide/{number}/below"))).unwrap();
            }
        };
        within_limits("door::remove::tests::neither_depth_nor_breadth_matters", make, |folder| {
            remove(folder, "tree").unwrap();
            assert!(!folder.join("tree").exists());
        });
    }

    #[test]
    fn nothing_outside_goes() {
        let disk = TestDisk::new("size=8m");
        let path = |name: &str| disk.path().join(name);
        fs::create_dir_all(path("tree/a/mounted")).unwrap();
        fs::create_dir_all(path("outside")).unwrap();
        fs::write(path("outside/file"), "").unwrap();
        symlink(path("outside"), path("tree/a/link")).unwrap();
        symlink("../../outside", path("tree/relative")).unwrap();
        mount("tmpfs", &path("tree/a/mounted"), "tmpfs", 0, "size=1m").unwrap();
        fs::write(path("tree/a/mounted/file"), "").unwrap();
        fs::create_dir(path("tree/z")).unwrap();
        symlink(path("outside"), path("link")).unwrap();
        let refused = remove(disk.path(), "tree").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY), "{refused}");
        assert!(path("tree/a/mounted/file").exists() && !path("tree/a/link").exists() && !path("tree/z").exists());
        crate::disk::unmount_below(&path("tree")).unwrap();
        for name in ["tree", "link", "nothing"] {
            remove(disk.path(), name).unwrap();
        }
        assert!(path("outside/file").exists() && fs::read_dir(disk.path()).unwrap().count() == 1);
    }

    #[test]
    fn what_stays_keeps_nothing_else() {
        let disk = TestDisk::new("size=8m");
        let below = disk.path().join("tree").join("d/".repeat(HELD + 3));
        fs::create_dir_all(below.join("kept")).unwrap();
        mount("tmpfs", &below.join("kept"), "tmpfs", 0, "size=1m").unwrap();
        for number in 0..100 {
            fs::create_dir_all(disk.path().join(format!("tree/{number}/x"))).unwrap();
        }
        assert!(remove(disk.path(), "tree").is_err());
        let left = crate::door::Folder::open(disk.path()).unwrap().weigh(far()).unwrap();
        assert!(left.files <= 2 + HELD as u64, "{left:?}");
        crate::disk::unmount_below(&disk.path().join("tree")).unwrap();
        remove(disk.path(), "tree").unwrap();
    }

    #[test]
    fn renames_meanwhile_do_no_harm() {
        let disk = TestDisk::new("size=64m");
        let path = |name: &str| disk.path().join(name);
        fs::create_dir_all(path("outside/x")).unwrap();
        fs::write(path("outside/x/file"), "").unwrap();
        symlink(path("outside"), path("link")).unwrap();
        fs::create_dir(path("tree")).unwrap();
        for number in 0..200 {
            fs::create_dir_all(path(&format!("tree/{number}")).join("d/".repeat(2 * HELD))).unwrap();
        }
        let (link, end) = (path("link"), Stop::default());
        let racing = std::thread::spawn({
            let (tree, end) = (path("tree"), end.clone());
            move || {
                for number in (0..200).rev().cycle() {
                    if end.check().is_err() {
                        return;
                    }
                    let name = tree.join(number.to_string());
                    // Most of these fail, once the tree is on its way out.
                    let _ = rustix::fs::renameat_with(CWD, &name, CWD, &link, RenameFlags::EXCHANGE);
                    let _ = rustix::fs::renameat_with(CWD, &name, CWD, &link, RenameFlags::EXCHANGE);
                }
            }
        });
        let removed = (0..100).find(|_| remove(disk.path(), "tree").is_ok());
        end.stop();
        racing.join().unwrap();
        assert!(removed.is_some() && path("outside/x/file").exists());
    }

    #[test]
    fn one_that_is_not_wanted_any_more_ends() {
        let disk = TestDisk::new("size=8m");
        fs::create_dir_all(disk.path().join("tree/a")).unwrap();
        let stop = Stop::default();
        stop.stop();
        let ended = Folder::open(disk.path()).unwrap().remove(OsStr::new("tree"), &stop).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::Interrupted);
        assert!(disk.path().join("tree/a").exists());
    }

    fn far() -> std::time::Instant {
        std::time::Instant::now() + std::time::Duration::from_secs(60)
    }
}
