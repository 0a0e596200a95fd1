//! A path below a folder, step by step: each name opened from the one before it, each link read and followed here.
//!
//! One descriptor is held at a time: `..` goes back to what stands now where the path came from. Like the kernel, a walk
//! takes no path longer than [`MAX_PATH`], before or after links.
//!
//! The kernel's `openat2` finds what is there; it can neither make what is missing on the way nor read an absolute link
//! against the folder's own path. Both are needed for what the API calls a subPath, and for mount points in an image.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Folder;
use super::descriptor::{open_at, path_of};

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;

/// The kernel's PATH_MAX, whose last byte ends the text.
pub const MAX_PATH: usize = 4095;

/// What links on the way mean.
#[derive(Clone, Copy, Debug)]
pub enum Links<'a> {
    /// As for a process whose root the folder is: an absolute link starts over at it, `..` stops at it.
    Rooted,
    /// As on the node, where the folder has this path: a link may lead anywhere inside, and nowhere else.
    Contained(&'a Path),
}

/// What to do about names that are not there.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    Refuse,
    /// Makes folders with this mode.
    Folders(u32),
    /// The last is made an empty file, those before it folders.
    File,
}

/// What lies at the end of a path: held, not opened.
#[derive(Debug)]
pub struct Found {
    pub file: OwnedFd,
    pub kind: FileType,
}

impl Found {
    pub(super) fn child(folder: BorrowedFd<'_>, name: &OsStr) -> Result<Found, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Found::of(open_at(folder, name, OFlags::PATH | OFlags::NOFOLLOW, resolve)?)
    }

    fn of(file: OwnedFd) -> Result<Found, Errno> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok(Found { file, kind })
    }

    pub fn path(&self) -> PathBuf {
        path_of(self.file.as_fd())
    }
}

/// Who wrote a name: what a link says is not made when it is missing below a volume.
#[derive(Clone, Copy, PartialEq)]
enum Author {
    Caller,
    Link,
}

struct Walk<'a> {
    root: &'a Folder,
    links: Links<'a>,
    missing: Missing,
    /// The names from the root to here, none of them a link when it was passed.
    names: PathBuf,
    /// What lies here; `None` at the root.
    here: Option<Found>,
    todo: VecDeque<(OsString, Author)>,
    followed: u32,
}

impl Folder {
    /// Follows a path below this folder to its end.
    pub fn walk(&self, path: &Path, links: Links<'_>, missing: Missing) -> io::Result<Found> {
        let (names, todo) = (PathBuf::new(), VecDeque::new());
        let mut walk = Walk { root: self, links, missing, names, here: None, todo, followed: 0 };
        walk.push(path, Author::Caller)?;
        while let Some((name, author)) = walk.todo.pop_front() {
            walk.step(&name, author)?;
        }
        match walk.here {
            Some(found) => Ok(found),
            None => Ok(Found::of(self.0.try_clone()?)?),
        }
    }
}

impl Walk<'_> {
    fn push(&mut self, path: &Path, author: Author) -> io::Result<()> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.todo.push_front((name.to_owned(), author)),
                Component::ParentDir => self.todo.push_front(("..".into(), author)),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    fn step(&mut self, name: &OsStr, author: Author) -> io::Result<()> {
        if name == ".." {
            return self.back();
        }
        if self.names.as_os_str().len() + 1 + name.len() > MAX_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        let found = match Found::child(self.last(), name) {
            Err(Errno::NOENT) => self.make(name, author)?,
            found => found?,
        };
        if found.kind == FileType::Symlink {
            return self.follow(&found);
        }
        self.names.push(name);
        self.here = Some(found);
        Ok(())
    }

    fn back(&mut self) -> io::Result<()> {
        match (self.names.pop(), self.links) {
            (false, Links::Contained(_)) => return Err(Errno::XDEV.into()),
            (false, Links::Rooted) => {}
            (true, _) if self.names.as_os_str().is_empty() => self.here = None,
            (true, _) => self.here = Some(Found::child(self.root.as_fd(), self.names.as_os_str())?),
        }
        Ok(())
    }

    fn last(&self) -> BorrowedFd<'_> {
        self.here.as_ref().map_or(self.root.as_fd(), |found| found.file.as_fd())
    }

    fn follow(&mut self, link: &Found) -> io::Result<()> {
        self.followed += 1;
        if self.followed > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(&link.file, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.names.clear();
            self.here = None;
        }
        match self.links {
            Links::Contained(own) if target.is_absolute() => {
                let inside = target.strip_prefix(own).map_err(|_| Errno::XDEV)?;
                self.push(inside, Author::Link)
            }
            _ => self.push(&target, Author::Link),
        }
    }

    fn make(&self, name: &OsStr, author: Author) -> io::Result<Found> {
        let told_by_link = author == Author::Link && matches!(self.links, Links::Contained(_));
        let last = self.todo.is_empty();
        let mode = match self.missing {
            Missing::Refuse => return Err(Errno::NOENT.into()),
            _ if told_by_link => return Err(Errno::NOENT.into()),
            Missing::File if last => return self.make_file(name),
            Missing::File => 0o755,
            Missing::Folders(mode) => mode,
        };
        match rustix::fs::mkdirat(self.last(), name, Mode::RWXU) {
            // Somebody else was quicker: what is there now is looked at like anything that was.
            Err(Errno::EXIST) => return Ok(Found::child(self.last(), name)?),
            made => made?,
        }
        let found = Found::child(self.last(), name)?;
        // What stands there now may not be what was made; a link is not touched, and followed by its own rule.
        if found.kind == FileType::Directory {
            self.root.give(&found.file)?;
            std::fs::set_permissions(found.path(), Permissions::from_mode(mode))?;
        }
        Ok(found)
    }

    fn make_file(&self, name: &OsStr) -> io::Result<Found> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.last(), name, flags, Mode::from_raw_mode(0o644)) {
            Ok(made) => {
                self.root.give(&made)?;
                Ok(Found::child(self.last(), name)?)
            }
            Err(Errno::EXIST) => Ok(Found::child(self.last(), name)?),
            Err(error) => Err(error.into()),
        }
    }
}
