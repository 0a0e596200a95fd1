//! The one door to files that a container or an image can shape.
//!
//! Whoever may write to a folder can turn any name in it into a link, a FIFO, a device or another folder, also between
//! somebody's check and use. So what lies in volumes, root file systems, layers, and in every file that is bind-mounted
//! into a container, is reached through a [`Folder`] only: a descriptor from which names are looked up one by one, or
//! by the kernel with `openat2`, such that no name leads out. What was found is used by its descriptor, never by its
//! path again. Nothing is opened for reading before it is known to be a regular file: a FIFO would block, a device act.
//!
//! Built on rustix, which has `openat2` and the `*at` calls in safe forms. pathrs, the other crate at hand, resolves in
//! a root only; volumes need the other rule as well, by which a link may lead anywhere inside and nowhere else.

mod descriptor;
mod remove;
mod walk;
mod weigh;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use descriptor::open_at;
pub use descriptor::path_of;
pub use remove::Stop;
pub use walk::{Found, Links, MAX_PATH, Missing};
pub use weigh::Weight;

/// A folder held by its descriptor. Its own path must be nobody else's to shape.
#[derive(Debug)]
pub struct Folder(OwnedFd, Maker);

/// Whose are the folders and files that are made on the way to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    #[default]
    Host,
    /// Root of a pod with users of its own: this id of the host's.
    PodRoot(u32),
}

impl Folder {
    pub fn open(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder(rustix::fs::openat(CWD, path, flags, Mode::empty())?, Maker::Host))
    }

    /// What `found` is, when it is a folder.
    pub fn of(found: Found) -> io::Result<Folder> {
        if found.kind == FileType::Directory { Ok(Folder(found.file, Maker::Host)) } else { Err(Errno::NOTDIR.into()) }
    }

    /// The same folder, in which what is made belongs to another.
    pub fn made_by(self, maker: Maker) -> Folder {
        Folder(self.0, maker)
    }

    fn give(&self, made: impl AsFd) -> io::Result<()> {
        match self.1 {
            Maker::Host => Ok(()),
            Maker::PodRoot(id) => give(made, Some(id), Some(id)),
        }
    }

    /// A path that means this folder in this process, for calls that take nothing else. Only one name may be appended,
    /// and only for calls that do not follow it.
    pub fn path(&self) -> PathBuf {
        path_of(self.0.as_fd())
    }

    /// Opens a path as if this folder were `/`, whatever links lie on the way. Never for reading what may be no regular
    /// file: see [`Folder::open_regular`].
    pub fn open_inside(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(open_at(self.0.as_fd(), path.as_os_str(), flags, resolve)?)
    }

    /// A folder below this one, as if this were `/`.
    pub fn folder_inside(&self, path: &Path) -> io::Result<Folder> {
        Ok(Folder(self.open_inside(path, OFlags::PATH | OFlags::DIRECTORY)?, self.1))
    }

    /// Opens a regular file for reading, as if this folder were `/`.
    pub fn open_regular(&self, path: &Path) -> io::Result<File> {
        readable(self.open_inside(path, OFlags::PATH)?)
    }

    /// The entry of this name itself: a link is not followed.
    pub fn entry(&self, name: &OsStr) -> io::Result<Found> {
        Ok(Found::child(self.0.as_fd(), name)?)
    }

    /// Reads a regular file of this name; at most `limit` bytes.
    pub fn read(&self, name: &OsStr, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        readable(self.entry(name)?.file)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.0, ".", flags, Mode::empty())?;
        let entries = rustix::fs::Dir::new(folder)?;
        let names = entries.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec())));
        let names: Result<Vec<OsString>, Errno> = names.collect();
        Ok(names?.into_iter().filter(|name| name != "." && name != "..").collect())
    }

    pub fn link_target(&self, name: &OsStr) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(&self.0, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Makes a folder that is not there yet, with exactly this mode and group.
    pub fn make_folder(&self, name: &OsStr, mode: u32, group: Option<u32>) -> io::Result<Folder> {
        rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?;
        let found = self.entry(name)?;
        give(&found.file, None, group)?;
        std::fs::set_permissions(path_of(found.file.as_fd()), Permissions::from_mode(mode))?;
        Folder::of(found)
    }

    /// Writes a file that is not there yet, with exactly this mode.
    pub fn write_new(&self, name: &OsStr, content: &[u8], owner: Owner) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        give(&file, owner.user, owner.group)?;
        file.set_permissions(Permissions::from_mode(owner.mode))
    }

    /// Puts a link with this target at `name`, in place of whatever is there.
    pub fn put_link(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        let fresh = OsStr::new("..new");
        self.remove(fresh, &Stop::default())?;
        rustix::fs::symlinkat(target, &self.0, fresh)?;
        match rustix::fs::renameat(&self.0, fresh, &self.0, name) {
            Err(Errno::ISDIR) => {
                self.remove(name, &Stop::default())?;
                Ok(rustix::fs::renameat(&self.0, fresh, &self.0, name)?)
            }
            put => Ok(put?),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub mode: u32,
    pub user: Option<u32>,
    pub group: Option<u32>,
}

/// Opens a regular file for reading; its last name is no link. Its folder must be nobody else's to shape.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let (folder, name) =
        (path.parent().unwrap_or(Path::new("/")), path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    readable(Folder::open(folder)?.entry(name)?.file)
}

/// The last bytes of a file that containers write, which must be a regular one.
pub fn read_end(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a file for reading that is known by its descriptor, once it is known to be a regular one.
fn readable(file: OwnedFd) -> io::Result<File> {
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path_of(file.as_fd()), flags, Mode::empty())?.into())
}

fn give(file: impl AsFd, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    Ok(rustix::fs::chownat(file, "", user, group, AtFlags::EMPTY_PATH)?)
}

#[cfg(test)]
mod tests;
