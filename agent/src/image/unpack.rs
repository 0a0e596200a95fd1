//! One layer's tar into a folder that overlayfs takes as a lower layer.
//!
//! Whiteouts become what overlayfs reads as such (a 0/0 character device, an opaque xattr). A name can never leave the
//! folder: the parent of each entry is opened with `openat2(RESOLVE_IN_ROOT)`, so a link inside the layer that points
//! outside resolves inside.
#![expect(unsafe_code, reason = "openat2, mknodat and friends have no safe form in std")]

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("layer entry {path:?}")]
    Entry { path: String, source: io::Error },
    #[error("layer is no tar archive")]
    Archive { source: io::Error },
    #[error("layer entry {path:?} leads out of the image")]
    Escape { path: String },
    #[error("layer has media type {0:?}, which this runtime cannot read")]
    MediaType(String),
    #[error("unpacked layer has digest {actual}, the image's configuration says {expected}")]
    DiffId { expected: String, actual: String },
    #[error("write the unpacked layer")]
    Folder { source: io::Error },
}

/// Unpacks the layer file `blob` into the empty folder `target`; the uncompressed bytes must have digest `diff_id`.
pub fn unpack_layer(blob: &Path, media_type: &str, diff_id: &str, target: &Path) -> Result<(), UnpackError> {
    let file = File::open(blob).map_err(|source| UnpackError::Archive { source })?;
    let mut reader = HashingReader { inner: decompress(file, media_type)?, hash: Sha256::new() };
    unpack_tar(&mut reader, target)?;
    io::copy(&mut reader, &mut io::sink()).map_err(|source| UnpackError::Archive { source })?;
    let actual = format!("sha256:{:x}", reader.hash.finalize());
    if actual != diff_id {
        return Err(UnpackError::DiffId { expected: diff_id.to_owned(), actual });
    }
    Ok(())
}

fn decompress(file: File, media_type: &str) -> Result<Box<dyn Read>, UnpackError> {
    let archive = |source| UnpackError::Archive { source };
    let buffered = io::BufReader::with_capacity(1 << 17, file);
    if media_type.ends_with("gzip") {
        Ok(Box::new(flate2::read::MultiGzDecoder::new(buffered)))
    } else if media_type.ends_with("zstd") {
        Ok(Box::new(zstd::Decoder::with_buffer(buffered).map_err(archive)?))
    } else if media_type.ends_with("tar") {
        Ok(Box::new(buffered))
    } else {
        Err(UnpackError::MediaType(media_type.to_owned()))
    }
}

struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn unpack_tar(reader: &mut dyn Read, target: &Path) -> Result<(), UnpackError> {
    let root = Root::open(target).map_err(|source| UnpackError::Folder { source })?;
    let mut archive = tar::Archive::new(reader);
    // Times of folders change while they are filled, so they are set last.
    let mut folder_times = Vec::new();
    for entry in archive.entries().map_err(|source| UnpackError::Archive { source })? {
        let mut entry = entry.map_err(|source| UnpackError::Archive { source })?;
        let path = inside(&entry.path().map_err(|source| UnpackError::Archive { source })?)?;
        let Some(path) = path else { continue };
        let failed = |source| UnpackError::Entry { path: path.display().to_string(), source };
        if place(&root, &path, &mut entry).map_err(failed)? == Placed::Folder {
            folder_times.push((path.clone(), entry.header().mtime().unwrap_or(0)));
        }
    }
    for (path, time) in folder_times.into_iter().rev() {
        let failed = |source| UnpackError::Entry { path: path.display().to_string(), source };
        let (parent, name) = root.parent_of(&path).map_err(failed)?;
        set_time(&parent, &name, time).map_err(failed)?;
    }
    Ok(())
}

/// The entry's path without leading slashes and dots; `None` for the root itself.
fn inside(path: &Path) -> Result<Option<PathBuf>, UnpackError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(UnpackError::Escape { path: path.display().to_string() });
            }
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}

#[derive(PartialEq)]
enum Placed {
    Folder,
    Other,
}

fn place(root: &Root, path: &Path, entry: &mut Entry<'_, &mut dyn Read>) -> io::Result<Placed> {
    let (parent, name) = root.parent_of(path)?;
    if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
        whiteout(&parent, hidden)?;
        return Ok(Placed::Other);
    }
    let kind = entry.header().entry_type();
    let there = at(&parent, &name);
    make_room(&there, kind)?;
    let mode = entry.header().mode()? & 0o7777;
    match kind {
        EntryType::Directory => create_folder(&there)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).to_owned();
            io::copy(entry, &mut options.open(&there)?)?;
        }
        EntryType::Symlink => std::os::unix::fs::symlink(link_target(entry)?, &there)?,
        EntryType::Link => return hard_link(root, entry, &there),
        EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(&parent, &name, entry)?,
        _ => return Ok(Placed::Other), // pax records of the whole archive and the like hold no file
    }
    give_identity(&there, entry, mode, kind)?;
    if kind == EntryType::Directory {
        return Ok(Placed::Folder);
    }
    set_time(&parent, &name, entry.header().mtime().unwrap_or(0))?;
    Ok(Placed::Other)
}

/// A later entry of the same name replaces the earlier one; folders are merged.
fn make_room(there: &Path, kind: EntryType) -> io::Result<()> {
    match fs::symlink_metadata(there) {
        Ok(meta) if meta.is_dir() && kind == EntryType::Directory => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(there),
        Ok(_) => fs::remove_file(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn create_folder(there: &Path) -> io::Result<()> {
    match fs::create_dir(there) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn link_target(entry: &Entry<'_, &mut dyn Read>) -> io::Result<PathBuf> {
    let target = entry.link_name()?.map(|target| target.into_owned());
    target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "link without a target"))
}

fn hard_link(root: &Root, entry: &Entry<'_, &mut dyn Read>, there: &Path) -> io::Result<Placed> {
    let target = inside(&link_target(entry)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let target = target.ok_or(io::ErrorKind::InvalidData)?;
    let (parent, name) = root.parent_of(&target)?;
    fs::hard_link(at(&parent, &name), there)?;
    Ok(Placed::Other)
}

fn give_identity(there: &Path, entry: &mut Entry<'_, &mut dyn Read>, mode: u32, kind: EntryType) -> io::Result<()> {
    let (uid, gid) = (entry.header().uid()? as u32, entry.header().gid()? as u32);
    std::os::unix::fs::lchown(there, Some(uid), Some(gid))?;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) {
            set_xattr(there, name, extension.value_bytes())?;
        }
    }
    if kind != EntryType::Symlink {
        // After the owner: changing it clears set-uid bits.
        fs::set_permissions(there, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Attributes that this file system or kernel doesn't know are left out, as other runtimes do.
fn set_xattr(there: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    match xattr::set(there, name, value) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {
            tracing::debug!(path = %there.display(), name, %error, "attribute left out");
            Ok(())
        }
        other => other,
    }
}

fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
    if hidden == b".wh..opq" {
        return xattr::set_deref(format!("/proc/self/fd/{}", parent.as_raw_fd()), "trusted.overlay.opaque", b"y");
    }
    let name = CString::new(hidden)?;
    make_room(&at(parent, OsStr::from_bytes(hidden)), EntryType::Char)?;
    mknod(parent, &name, libc::S_IFCHR, 0)
}

fn make_node(parent: &OwnedFd, name: &OsStr, entry: &Entry<'_, &mut dyn Read>) -> io::Result<()> {
    let header = entry.header();
    let device = libc::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    let kind = match header.entry_type() {
        EntryType::Char => libc::S_IFCHR,
        EntryType::Block => libc::S_IFBLK,
        _ => libc::S_IFIFO,
    };
    mknod(parent, &CString::new(name.as_bytes())?, kind, device)
}

fn mknod(parent: &OwnedFd, name: &CString, kind: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    // SAFETY: a valid descriptor and C string.
    let result = unsafe { libc::mknodat(parent.as_raw_fd(), name.as_ptr(), kind | 0o600, device) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_time(parent: &OwnedFd, name: &OsStr, seconds: u64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: 0 };
    let (times, name) = ([time; 2], CString::new(name.as_bytes())?);
    // SAFETY: valid descriptor, C string and array of two timespecs.
    let result =
        unsafe { libc::utimensat(parent.as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn at(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)
}

/// The folder no name may leave.
pub struct Root(File);

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        File::open(path).map(Root)
    }

    /// The entry's folder (made when an archive left it out) and its last name.
    fn parent_of<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, std::borrow::Cow<'a, OsStr>)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.open_inside(parent, libc::O_PATH | libc::O_DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (grandparent, parent_name) = self.parent_of(parent)?;
                create_folder(&at(&grandparent, &parent_name))?;
                Ok((self.open_inside(parent, libc::O_PATH | libc::O_DIRECTORY)?, name.into()))
            }
            opened => Ok((opened?, name.into())),
        }
    }

    /// Opens a path as if this folder were `/`, whatever links lie on the way.
    pub fn open_inside(&self, path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: open_how is plain data for which all zeroes is valid.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // SAFETY: valid descriptor, C string and structure with its size; a new descriptor is ours.
        unsafe {
            let size = size_of::<libc::open_how>();
            let fd = libc::syscall(libc::SYS_openat2, self.0.as_raw_fd(), path.as_ptr(), &raw const how, size);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    fn tar_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_size(size);
        header
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &str) {
        let mut header = header(EntryType::Regular, 0o4755, content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, target: &str) {
        builder.append_link(&mut header(kind, 0o777, 0), path, target).unwrap();
    }

    fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let folder = tempfile::tempdir().unwrap();
        let result = unpack_tar(&mut &*bytes, folder.path());
        (folder, result)
    }

    #[test]
    fn owners_modes_times_and_hard_links() {
        let (folder, result) = unpack(&tar_of(|tar| {
            tar.append_data(&mut header(EntryType::Directory, 0o1777, 0), "tmp/", io::empty()).unwrap();
            file(tar, "tmp/program", "x");
            link(tar, EntryType::Link, "tmp/again", "tmp/program");
            file(tar, "not/announced/file", "y");
        }));
        result.unwrap();
        let meta = fs::metadata(folder.path().join("tmp/program")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime(), meta.nlink()), (0o4755, 7, 8, 1000, 2));
        let tmp = fs::metadata(folder.path().join("tmp")).unwrap();
        assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1000));
        assert_eq!(fs::read_to_string(folder.path().join("not/announced/file")).unwrap(), "y");
    }

    #[test]
    fn whiteouts_are_what_overlayfs_reads() {
        let (folder, result) = unpack(&tar_of(|tar| {
            file(tar, "etc/.wh.passwd", "");
            file(tar, "var/.wh..wh..opq", "");
        }));
        result.unwrap();
        let meta = fs::symlink_metadata(folder.path().join("etc/passwd")).unwrap();
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
        let opaque = xattr::get(folder.path().join("var"), "trusted.overlay.opaque").unwrap();
        assert_eq!(opaque.as_deref(), Some(b"y".as_slice()));
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        let absolute = outside.path().to_str().unwrap();
        let (_folder, result) = unpack(&tar_of(|tar| {
            link(tar, EntryType::Symlink, "out", absolute);
            file(tar, "out/evil", "x");
        }));
        assert!(result.is_err(), "the link's target does not exist inside");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let (folder, result) = unpack(&tar_of(|tar| {
            link(tar, EntryType::Symlink, "lib", "/usr/lib");
            tar.append_data(&mut header(EntryType::Directory, 0o755, 0), "usr/lib/", io::empty()).unwrap();
            file(tar, "lib/ok", "x");
        }));
        result.unwrap();
        assert!(folder.path().join("usr/lib/ok").exists(), "an absolute link resolves inside");

        let mut bytes = tar_of(|tar| file(tar, "xx/evil", "x"));
        bytes[..2].copy_from_slice(b"..");
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        assert!(matches!(unpack(&bytes).1, Err(UnpackError::Escape { .. })));
        let (_folder, result) = unpack(&tar_of(|tar| link(tar, EntryType::Link, "copy", "../../etc/passwd")));
        assert!(result.is_err());
    }

    #[test]
    fn a_wrong_diff_id_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, tar_of(|tar| file(tar, "a", "b"))).unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        let error = unpack_layer(&blob, "application/vnd.oci.image.layer.v1.tar", "sha256:00", &target).unwrap_err();
        assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
    }
}
