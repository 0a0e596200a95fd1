//! Files that must survive a power cut, and mounts that must not survive their pod.
#![expect(unsafe_code, reason = "umount2 and mount have no safe form in std")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::door::{Folder, Stop};

/// Replaces a file so that a crash leaves the old or the new content, and the new one once this returns.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Removes a file; that it isn't there is fine.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a folder with all in it; that it isn't there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_unless(path, &Stop::default())
}

/// The same until it is stopped.
pub fn remove_tree_unless(path: &Path, stop: &Stop) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match Folder::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        parent => parent?.remove(name, stop),
    }
}

/// The same where others' work goes on meanwhile: what pods made may be millions of files.
pub async fn remove_tree_aside(path: PathBuf) -> io::Result<()> {
    aside(move |stop| remove_tree_unless(&path, stop)).await
}

/// Does what takes long on a thread of its own. When nobody waits for it any more it is told to stop, so that a process
/// that ends does not wait for it either.
pub async fn aside<T: Send + 'static>(work: impl FnOnce(&Stop) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    struct Unwanted(Stop);
    impl Drop for Unwanted {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    let stop = Stop::default();
    let _unwanted = Unwanted(stop.clone());
    tokio::task::spawn_blocking(move || work(&stop)).await.map_err(io::Error::other)?
}

/// Creates a folder (and its parents) with exactly this mode.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

pub fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let target_text = CString::new(target.as_os_str().as_bytes())?;
    let (source, kind, data) = (CString::new(source)?, CString::new(kind)?, CString::new(data)?);
    // SAFETY: valid C strings.
    let result =
        unsafe { libc::mount(source.as_ptr(), target_text.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unmounts everything mounted at or below `path`.
pub fn unmount_below(path: &Path) -> io::Result<()> {
    unmount(&mounts_below(path)?)
}

/// Unmounts mount points, the youngest first: in the reverse order of the mount table.
pub fn unmount(points: &[PathBuf]) -> io::Result<()> {
    for point in points.iter().rev() {
        let text = CString::new(point.as_os_str().as_bytes())?;
        // A container with mounts of its own in a volume may have put a link where one was.
        let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
        // SAFETY: a valid C string.
        if unsafe { libc::umount2(text.as_ptr(), flags) } < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(io::Error::new(error.kind(), format!("unmount {}: {error}", point.display())));
            }
        }
    }
    Ok(())
}

/// Whether another file system begins here; quicker than the table of all mounts.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

pub fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let points = pod::mounts::read()?.into_iter().map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(path)).collect())
}

/// A small file system for a test; it goes when the test ends, however it ends.
#[cfg(test)]
pub struct TestDisk(tempfile::TempDir);

#[cfg(test)]
impl TestDisk {
    pub fn new(options: &str) -> TestDisk {
        let folder = tempfile::tempdir().unwrap();
        mount("tmpfs", folder.path(), "tmpfs", 0, options).unwrap();
        TestDisk(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
impl Drop for TestDisk {
    fn drop(&mut self) {
        unmount_below(self.0.path()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        write_durably(&path, b"one", 0o600).unwrap();
        write_durably(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_removal_holds_nobody_up_and_ends_with_its_caller() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        (0..2000).for_each(|number| fs::create_dir_all(tree.join(format!("{number}/below"))).unwrap());
        let removal = remove_tree_aside(tree.clone());
        futures::pin_mut!(removal);
        assert!(futures::poll!(&mut removal).is_pending(), "this thread went on");
        removal.await.unwrap();
        assert!(!tree.exists());
        let (said, heard) = std::sync::mpsc::channel();
        let endless = aside(move |stop| {
            loop {
                if let Err(stopped) = stop.check() {
                    said.send(()).unwrap();
                    return Err::<(), _>(stopped);
                }
            }
        });
        {
            futures::pin_mut!(endless);
            assert!(futures::poll!(&mut endless).is_pending());
        }
        heard.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn mounts_are_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("a/b c"));
        fs::create_dir(&a).unwrap();
        mount("tmpfs", &a, "tmpfs", 0, "size=64k").unwrap();
        fs::create_dir(&b).unwrap();
        mount("tmpfs", &b, "tmpfs", 0, "size=64k").unwrap();
        assert!(is_mounted(&a).unwrap() && is_mounted(&b).unwrap() && !is_mounted(folder.path()).unwrap());
        assert_eq!(mounts_below(folder.path()).unwrap(), [a, b]);
        unmount_below(folder.path()).unwrap();
        assert!(mounts_below(folder.path()).unwrap().is_empty());
    }
}
