//! Mounts that show a tree's owners as a pod's own: root of the disk is root of the pod.
//!
//! The owners on disk stay those of a pod without users of its own, so volumes and images need no copy and no change of
//! owner, and a range of ids may be another pod's tomorrow.
#![expect(unsafe_code, reason = "mount_setattr and its kind have no safe form in std")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A pod's users, as its user namespace maps them.
#[derive(Debug)]
pub struct Users {
    namespace: File,
    /// The host's id of the pod's root.
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(
        "{path} cannot be shown to a pod with users of its own (hostUsers: false): its file system does not map owners \
         on this kernel"
    )]
    Unsupported { path: String },
    #[error("show {path} to a pod with users of its own")]
    Io { path: String, source: io::Error },
}

impl Users {
    pub fn open(namespace: &Path, range: pod::protocol::IdRange) -> io::Result<Users> {
        Ok(Users { namespace: File::open(namespace)?, first: range.first, count: range.count })
    }

    /// Shows the tree at `source` at `target` too, which is made: a folder, or a file.
    pub fn show(&self, source: &Path, target: &Path) -> Result<(), MapError> {
        let failed = |error| MapError::Io { path: source.display().to_string(), source: error };
        let copy = copy_of(source).map_err(failed)?;
        self.map(&copy).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => {
                MapError::Unsupported { path: source.display().to_string() }
            }
            _ => failed(error),
        })?;
        make_place(source, target).and_then(|()| attach(&copy, target)).map_err(failed)
    }

    /// What is mounted below keeps its owners: it may be anything, and is often not the pod's affair.
    fn map(&self, mount: &OwnedFd) -> io::Result<()> {
        // SAFETY: mount_attr is plain data for which all zeroes is valid.
        let mut wanted: libc::mount_attr = unsafe { std::mem::zeroed() };
        wanted.attr_set = libc::MOUNT_ATTR_IDMAP;
        wanted.userns_fd = self.namespace.as_raw_fd() as u64;
        // SAFETY: valid descriptors, an empty C string, and a structure with its size.
        let result = unsafe {
            let (empty, size) = (c"".as_ptr(), size_of::<libc::mount_attr>());
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                empty,
                libc::AT_EMPTY_PATH,
                &raw const wanted,
                size,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A mount of its own of the same tree, with what is mounted below, attached nowhere.
fn copy_of(source: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(source.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    // SAFETY: a valid C string; a new descriptor is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: valid descriptor and C strings.
    let result = unsafe {
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), flags)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make_place(source: &Path, target: &Path) -> io::Result<()> {
    if fs::metadata(source)?.is_dir() {
        return fs::create_dir_all(target);
    }
    fs::create_dir_all(target.parent().unwrap_or(target))?;
    fs::write(target, "")
}

/// A layer of an image shown to a pod's users, as long as an overlay is being mounted over it.
pub fn show_layers(users: &Users, layers: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, MapError> {
    let shown = layers.iter().enumerate().map(|(number, layer)| {
        let place = folder.join(number.to_string());
        users.show(layer, &place).map(|()| place)
    });
    shown.collect()
}
