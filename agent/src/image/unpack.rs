//! One layer's tar into a folder that overlayfs takes as a lower layer.
//!
//! Whiteouts become what overlayfs reads as such (a 0/0 character device, an opaque xattr). A name can never leave the
//! folder: the parent of each entry is opened through the door, where a link inside the layer that points outside
//! resolves inside.
#![expect(unsafe_code, reason = "mknodat and utimensat have no safe form in std")]

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, BufRead as _, Read, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

use super::digest::Digest;
use crate::door::{Folder, Stop};
use crate::room::Room;

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
    DiffId { expected: Digest, actual: Digest },
    #[error("layer entry {path:?} is larger than what is left of the disk")]
    TooLarge { path: String },
    #[error("layer has more files than the disk has room for")]
    TooMany,
    #[error("write the unpacked layer")]
    Folder { source: io::Error },
}

/// What stands between two entries: headers, long names, attributes. Read into memory as a whole.
const MAX_HEADERS: u64 = 4 << 20;
/// How much is written before the disk is looked at again.
const CHECK_AFTER: u64 = 16 << 20;
/// Beside the files themselves, what an archive may have of padding and at its end.
const MAX_PADDING: u64 = 1 << 30;

/// Unpacks the layer file `blob` into the empty folder `target`; the uncompressed bytes must have digest `diff_id`, and
/// what they make must fit into `room`.
pub fn unpack_layer(
    blob: &Path,
    media_type: &str,
    diff_id: &Digest,
    target: &Path,
    room: Room,
) -> Result<(), UnpackError> {
    let file = File::open(blob).map_err(|source| UnpackError::Archive { source })?;
    let limits = Limits { headers: Cell::new(u64::MAX), all: Cell::new(room.bytes.saturating_add(MAX_PADDING)) };
    let mut reader = HashingReader { inner: decompress(file, media_type)?, hash: Sha256::new(), limits: &limits };
    unpack_tar(&mut reader, &limits, target, room)?;
    io::copy(&mut reader, &mut io::sink()).map_err(|source| UnpackError::Archive { source })?;
    let actual = Digest::finished(reader.hash);
    if actual != *diff_id {
        return Err(UnpackError::DiffId { expected: diff_id.clone(), actual });
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

/// How much may still be read.
struct Limits {
    /// Until the next entry.
    headers: Cell<u64>,
    all: Cell<u64>,
}

impl Limits {
    fn take(&self, count: u64) -> io::Result<()> {
        for limit in [&self.headers, &self.all] {
            let left = limit.get().checked_sub(count);
            limit.set(left.ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "the layer is too large"))?);
        }
        Ok(())
    }
}

struct HashingReader<'a, R> {
    inner: R,
    hash: Sha256,
    limits: &'a Limits,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.limits.take(count as u64)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn unpack_tar(reader: &mut dyn Read, limits: &Limits, target: &Path, room: Room) -> Result<(), UnpackError> {
    let root = Folder::open(target).map_err(|source| UnpackError::Folder { source })?;
    let mut archive = tar::Archive::new(reader);
    let mut folder_times = FolderTimes::beside(target).map_err(|source| UnpackError::Folder { source })?;
    let Room { mut bytes, mut files } = room;
    let mut unchecked = 0;
    let mut entries = archive.entries().map_err(|source| UnpackError::Archive { source })?;
    loop {
        limits.headers.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|source| UnpackError::Archive { source })?;
        limits.headers.set(u64::MAX);
        let path = inside(&entry.path().map_err(|source| UnpackError::Archive { source })?)?;
        // A sparse file counts as what it would be: holes are written.
        let left = bytes.checked_sub(entry.size());
        bytes = left.ok_or_else(|| UnpackError::TooLarge { path: shown(path.as_deref()) })?;
        files = files.checked_sub(1).ok_or(UnpackError::TooMany)?;
        // Other pulls, and pods, write at the same time.
        unchecked += entry.size();
        if unchecked >= CHECK_AFTER {
            unchecked = 0;
            let left = Room::at(target).map_err(|source| UnpackError::Folder { source })?;
            if left.bytes < entry.size() {
                return Err(UnpackError::TooLarge { path: shown(path.as_deref()) });
            }
        }
        if let Some(path) = path {
            let failed = |source| UnpackError::Entry { path: path.display().to_string(), source };
            let placed = place(&root, &path, &mut entry, &mut files).map_err(|error| match error {
                PlaceError::Entry(source) => failed(source),
                PlaceError::TooMany => UnpackError::TooMany,
            })?;
            if placed == Placed::Folder {
                let kept = folder_times.keep(&path, entry.header().mtime().unwrap_or(0)).map_err(failed)?;
                let left = bytes.checked_sub(kept);
                bytes = left.ok_or_else(|| UnpackError::TooLarge { path: shown(Some(&path)) })?;
            }
        }
        // What nobody wanted is not to count as the next entry's headers.
        io::copy(&mut entry, &mut io::sink()).map_err(|source| UnpackError::Archive { source })?;
    }
    limits.headers.set(u64::MAX);
    folder_times.set(&root).map_err(|source| UnpackError::Folder { source })
}

/// When folders were changed. Filling them changes that, so it is set last; and since an image may name any number of
/// folders, what is more than a little waits on the disk, where it counts as a part of the layer.
struct FolderTimes(io::BufWriter<tempfile::SpooledTempFile>);

/// Enough for the folders of an ordinary layer.
const KEPT_IN_MEMORY: usize = 1 << 20;

impl FolderTimes {
    fn beside(target: &Path) -> io::Result<FolderTimes> {
        let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(FolderTimes(io::BufWriter::new(tempfile::spooled_tempfile_in(KEPT_IN_MEMORY, folder))))
    }

    /// How many bytes that takes.
    fn keep(&mut self, path: &Path, time: u64) -> io::Result<u64> {
        let path = path.as_os_str().as_bytes();
        let length = u32::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.write_all(&time.to_le_bytes())?;
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(path)?;
        Ok(12 + u64::from(length))
    }

    /// In the order of the archive: of two times of one folder the later counts. A folder that the archive has put
    /// something else in place of has none.
    fn set(self, root: &Folder) -> io::Result<()> {
        let mut kept = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        kept.rewind()?;
        let mut kept = io::BufReader::new(kept);
        while !kept.fill_buf()?.is_empty() {
            let (mut time, mut length) = ([0; 8], [0; 4]);
            kept.read_exact(&mut time)?;
            kept.read_exact(&mut length)?;
            let mut path = vec![0; u32::from_le_bytes(length) as usize];
            kept.read_exact(&mut path)?;
            set_folder_time(root, Path::new(OsStr::from_bytes(&path)), u64::from_le_bytes(time))?;
        }
        Ok(())
    }
}

fn set_folder_time(root: &Folder, path: &Path, seconds: u64) -> io::Result<()> {
    let name = last_name(path)?;
    let there = root.folder_inside(path.parent().unwrap_or(Path::new("")));
    match there.and_then(|parent| Ok((parent.entry(name)?.kind, parent))) {
        Ok((rustix::fs::FileType::Directory, parent)) => set_time(&parent, name, seconds),
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(error),
    }
}

fn shown(path: Option<&Path>) -> String {
    path.unwrap_or(Path::new("/")).display().to_string()
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

enum PlaceError {
    Entry(io::Error),
    TooMany,
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> PlaceError {
        PlaceError::Entry(error)
    }
}

/// `files` is how many may still be made beside the entry itself.
fn place(
    root: &Folder,
    path: &Path,
    entry: &mut Entry<'_, &mut dyn Read>,
    files: &mut u64,
) -> Result<Placed, PlaceError> {
    let name = last_name(path)?;
    let parent = folder(root, path.parent().unwrap_or(Path::new("")), files)?;
    match Whiteout::of(name) {
        None => {}
        Some(Whiteout::Foreign) => return Ok(Placed::Other),
        Some(whiteout) => return Ok(whiteout.place(&parent).map(|()| Placed::Other)?),
    }
    let kind = entry.header().entry_type();
    let there = at(&parent, name);
    make_room(&parent, name, kind)?;
    let mode = entry.header().mode()? & 0o7777;
    match kind {
        EntryType::Directory => create_folder(&there)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).to_owned();
            io::copy(entry, &mut options.open(&there)?)?;
        }
        EntryType::Symlink => std::os::unix::fs::symlink(link_target(entry)?, &there)?,
        EntryType::Link => return Ok(hard_link(root, entry, &there)?),
        EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(&parent, name, entry)?,
        _ => return Ok(Placed::Other), // pax records of the whole archive and the like hold no file
    }
    give_identity(&there, entry, mode, kind)?;
    if kind == EntryType::Directory {
        return Ok(Placed::Folder);
    }
    set_time(&parent, name, entry.header().mtime().unwrap_or(0))?;
    Ok(Placed::Other)
}

/// A later entry of the same name replaces the earlier one; folders are merged.
fn make_room(parent: &Folder, name: &OsStr, kind: EntryType) -> io::Result<()> {
    let merged = kind == EntryType::Directory
        && parent.entry(name).is_ok_and(|there| there.kind == rustix::fs::FileType::Directory);
    if merged { Ok(()) } else { parent.remove(name, &Stop::default()) }
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

fn hard_link(root: &Folder, entry: &Entry<'_, &mut dyn Read>, there: &Path) -> io::Result<Placed> {
    let target = inside(&link_target(entry)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let target = target.ok_or(io::ErrorKind::InvalidData)?;
    let parent = root.folder_inside(target.parent().unwrap_or(Path::new("")))?;
    fs::hard_link(at(&parent, last_name(&target)?), there)?;
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

/// What the kernel takes as its own word about layers, or as an administrator's: no image brings these.
fn is_reserved(name: &str) -> bool {
    name.starts_with("trusted.") || name.starts_with("user.overlay.")
}

/// Attributes that this file system or kernel doesn't know are left out, as other runtimes do.
fn set_xattr(there: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    if is_reserved(name) {
        tracing::debug!(path = %there.display(), name, "reserved attribute left out");
        return Ok(());
    }
    match xattr::set(there, name, value) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {
            tracing::debug!(path = %there.display(), name, %error, "attribute left out");
            Ok(())
        }
        other => other,
    }
}

/// What a name beginning with `.wh.` says about the layers below.
#[derive(Debug, PartialEq)]
enum Whiteout<'a> {
    /// Nothing of them shows in this folder.
    Opaque,
    Name(&'a OsStr),
    /// Book-keeping of another file system, or no name at all.
    Foreign,
}

impl Whiteout<'_> {
    fn of(name: &OsStr) -> Option<Whiteout<'_>> {
        let hidden = name.as_bytes().strip_prefix(b".wh.")?;
        Some(match hidden {
            b".wh..opq" => Whiteout::Opaque,
            // `.` and `..` would mean the folder itself and the one above.
            b"" | b"." | b".." => Whiteout::Foreign,
            _ if hidden.starts_with(b".wh.") => Whiteout::Foreign,
            _ => Whiteout::Name(OsStr::from_bytes(hidden)),
        })
    }

    fn place(&self, parent: &Folder) -> io::Result<()> {
        match self {
            Whiteout::Opaque => xattr::set_deref(parent.path(), "trusted.overlay.opaque", b"y"),
            Whiteout::Name(hidden) => {
                make_room(parent, hidden, EntryType::Char)?;
                mknod(parent, &CString::new(hidden.as_bytes())?, libc::S_IFCHR, 0)
            }
            Whiteout::Foreign => Ok(()),
        }
    }
}

fn make_node(parent: &Folder, name: &OsStr, entry: &Entry<'_, &mut dyn Read>) -> io::Result<()> {
    let header = entry.header();
    let device = libc::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    let kind = match header.entry_type() {
        EntryType::Char => libc::S_IFCHR,
        EntryType::Block => libc::S_IFBLK,
        _ => libc::S_IFIFO,
    };
    mknod(parent, &CString::new(name.as_bytes())?, kind, device)
}

fn mknod(parent: &Folder, name: &CString, kind: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    // SAFETY: a valid descriptor and C string.
    let result = unsafe { libc::mknodat(parent.as_fd().as_raw_fd(), name.as_ptr(), kind | 0o600, device) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_time(parent: &Folder, name: &OsStr, seconds: u64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: 0 };
    let (times, name) = ([time; 2], CString::new(name.as_bytes())?);
    // SAFETY: valid descriptor, C string and array of two timespecs.
    let result = unsafe {
        libc::utimensat(parent.as_fd().as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn at(parent: &Folder, name: &OsStr) -> PathBuf {
    parent.path().join(name)
}

fn last_name(path: &Path) -> io::Result<&OsStr> {
    Ok(path.file_name().ok_or(io::ErrorKind::InvalidInput)?)
}

/// A folder of the layer. One that the archive left out is made, and so are those above it: each counts as a file.
fn folder(root: &Folder, path: &Path, files: &mut u64) -> Result<Folder, PlaceError> {
    match root.folder_inside(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = last_name(path)?;
            let above = folder(root, path.parent().unwrap_or(Path::new("")), files)?;
            *files = files.checked_sub(1).ok_or(PlaceError::TooMany)?;
            create_folder(&at(&above, name))?;
            Ok(root.folder_inside(path)?)
        }
        opened => Ok(opened?),
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
        let room = Room { bytes: 1 << 20, files: 1000 };
        let result = unpack_into(bytes, folder.path(), room);
        (folder, result)
    }

    /// All of it as a blob, with the digest it has.
    fn unpack_into(bytes: &[u8], target: &Path, room: Room) -> Result<(), UnpackError> {
        let blob = tempfile::NamedTempFile::new().unwrap();
        fs::write(blob.path(), bytes).unwrap();
        unpack_layer(blob.path(), "application/vnd.oci.image.layer.v1.tar", &Digest::of(bytes), target, room)
    }

    #[test]
    fn no_whiteout_reaches_above_its_folder() {
        let bytes = tar_of(|tar| {
            file(tar, "etc/passwd", "x");
            for name in [".wh...", ".wh..", ".wh.", "etc/.wh...", ".wh..wh.plnk/1", ".wh..wh.aufs"] {
                file(tar, name, "");
            }
        });
        // Deep enough that one that did would reach nothing of anybody's.
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("above/layer");
        fs::create_dir_all(&target).unwrap();
        fs::write(folder.path().join("above/kept"), "").unwrap();
        unpack_into(&bytes, &target, Room { bytes: 1 << 20, files: 1000 }).unwrap();
        assert!(target.join("etc/passwd").exists() && folder.path().join("above/kept").exists());
        assert_eq!(Whiteout::of(OsStr::new(".wh.a")), Some(Whiteout::Name(OsStr::new("a"))));
    }

    #[test]
    fn no_image_speaks_for_overlayfs() {
        let (folder, result) = unpack(&tar_of(|tar| {
            let attributes = ["trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.opaque", "user.ok"];
            let keys = attributes.map(|name| (format!("SCHILY.xattr.{name}"), b"/".to_vec()));
            tar.append_pax_extensions(keys.iter().map(|(key, value)| (key.as_str(), value.as_slice()))).unwrap();
            file(tar, "a", "x");
        }));
        result.unwrap();
        let names: Vec<_> = xattr::list(folder.path().join("a")).unwrap().collect();
        assert!(names.iter().all(|name| !is_reserved(name.to_str().unwrap())), "{names:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let target = tempfile::tempdir().unwrap();
        let two = tar_of(|tar| {
            file(tar, "a", "12345");
            file(tar, "b", "12345");
        });
        let unpack = |bytes, files| unpack_into(&two, target.path(), Room { bytes, files });
        assert!(matches!(unpack(9, 9), Err(UnpackError::TooLarge { .. })));
        assert!(matches!(unpack(10, 1), Err(UnpackError::TooMany)));
        unpack(10, 2).unwrap();
        // A sparse file of 1 TiB in a few bytes.
        let mut sparse = tar::Header::new_gnu();
        sparse.set_entry_type(EntryType::GNUSparse);
        sparse.set_path("huge").unwrap();
        sparse.set_size(0);
        sparse.set_mode(0o644);
        sparse.set_uid(0);
        sparse.set_gid(0);
        let gnu = sparse.as_gnu_mut().unwrap();
        gnu.realsize.copy_from_slice(b"20000000000\0");
        gnu.sparse[0].offset.copy_from_slice(b"20000000000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        sparse.set_cksum();
        let huge = [sparse.as_bytes().as_slice(), &[0; 1024]].concat();
        let target = tempfile::tempdir().unwrap();
        let refused = unpack_into(&huge, target.path(), Room { bytes: 1 << 30, files: 9 });
        assert!(matches!(refused, Err(UnpackError::TooLarge { .. })), "{refused:?}");
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_others_write_meanwhile_counts_too() {
        let disk = crate::disk::TestDisk::new("size=60m");
        fs::write(disk.path().join("others"), vec![0; 41 << 20]).unwrap();
        let target = disk.path().join("layer");
        fs::create_dir(&target).unwrap();
        let content = "x".repeat(9 << 20);
        let bytes = tar_of(|tar| ["a", "b"].iter().for_each(|name| file(tar, name, &content)));
        let refused = unpack_into(&bytes, &target, Room { bytes: 1 << 30, files: 9 });
        assert!(matches!(&refused, Err(UnpackError::TooLarge { path }) if path == "b"), "{refused:?}");
    }

    #[test]
    fn names_and_attributes_have_a_limit() {
        let name = vec![b'a'; 8 << 20];
        let mut long = header(EntryType::GNULongName, 0o644, name.len() as u64);
        long.set_path("././@LongLink").unwrap();
        long.set_cksum();
        let bytes = [long.as_bytes().as_slice(), &name, &tar_of(|tar| file(tar, "a", "x"))].concat();
        let (_folder, result) = unpack(&bytes);
        assert!(matches!(result, Err(UnpackError::Archive { .. })), "{result:?}");
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
    fn folders_that_a_path_implies_are_files_too() {
        let deep = "d/".repeat(50);
        let whiteout = tar_of(|tar| file(tar, &format!("{deep}.wh.x"), ""));
        let two = tar_of(|tar| ["x", "y"].iter().for_each(|name| file(tar, &format!("{deep}{name}"), "")));
        for (bytes, needed) in [(whiteout, 51), (two, 52)] {
            let unpack = |files| {
                let target = tempfile::tempdir().unwrap();
                unpack_into(&bytes, target.path(), Room { bytes: 1 << 20, files })
            };
            assert!(matches!(unpack(needed - 1), Err(UnpackError::TooMany)));
            unpack(needed).unwrap();
        }
    }

    #[test]
    fn a_hard_link_makes_no_folders_where_it_leads() {
        let (folder, result) = unpack(&tar_of(|tar| link(tar, EntryType::Link, "copy", "a/b/c")));
        assert!(matches!(result, Err(UnpackError::Entry { .. })), "{result:?}");
        assert!(!folder.path().join("a").exists());
    }

    #[test]
    fn what_replaces_a_deep_folder_is_placed() {
        let bytes = tar_of(|tar| {
            let mut above = "deep".to_owned();
            // Each link lets the archive name what lies deeper than a path may say.
            for number in 0..5 {
                let below = format!("{above}/{}", "d/".repeat(800));
                file(tar, &format!("{below}file"), "x");
                above = format!("link{number}");
                link(tar, EntryType::Symlink, &above, below.trim_end_matches('/'));
            }
            file(tar, "deep", "a file now");
        });
        let folder = tempfile::tempdir().unwrap();
        unpack_into(&bytes, folder.path(), Room { bytes: 1 << 20, files: 5000 }).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("deep")).unwrap(), "a file now");
    }

    #[test]
    fn times_of_folders_take_no_memory() {
        let folder = |tar: &mut tar::Builder<Vec<u8>>, path: &str, time: u64| {
            let mut header = header(EntryType::Directory, 0o755, 0);
            header.set_mtime(time);
            tar.append_data(&mut header, path, io::empty()).unwrap();
        };
        let path = "x/".repeat(1900);
        let (count, size) = (600, path.len() as u64);
        let bytes = tar_of(|tar| (0..count).for_each(|time| folder(tar, &path, time)));
        let target = tempfile::tempdir().unwrap();
        let unpack = |bytes_left| unpack_into(&bytes, target.path(), Room { bytes: bytes_left, files: 1 << 20 });
        let refused = unpack(size * count / 2);
        assert!(matches!(refused, Err(UnpackError::TooLarge { .. })), "{refused:?}");
        assert!(size * count > KEPT_IN_MEMORY as u64);
        unpack((size + 12) * count).unwrap();
        let time = fs::metadata(target.path().join(&path)).unwrap().mtime();
        assert_eq!(time, i64::try_from(count).unwrap() - 1, "the last one counts");
    }

    #[test]
    fn a_folder_that_is_replaced_later_has_no_time() {
        let (folder, result) = unpack(&tar_of(|tar| {
            for path in ["a/b/", "c/d/"] {
                tar.append_data(&mut header(EntryType::Directory, 0o755, 0), path, io::empty()).unwrap();
            }
            file(tar, "a", "a file now");
            file(tar, ".wh.c", "");
        }));
        result.unwrap();
        assert!(folder.path().join("a").is_file());
        assert!(!fs::symlink_metadata(folder.path().join("c")).unwrap().is_dir(), "a whiteout");
    }

    #[test]
    fn a_wrong_diff_id_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, tar_of(|tar| file(tar, "a", "b"))).unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        let room = Room { bytes: 1 << 20, files: 9 };
        let other = Digest::of(b"something else");
        let error = unpack_layer(&blob, "application/vnd.oci.image.layer.v1.tar", &other, &target, room).unwrap_err();
        assert!(matches!(error, UnpackError::DiffId { .. }), "{error}");
    }
}
