//! An image as a container's root file system: overlayfs, read-only layers below, one writable folder above.

use std::io;
use std::path::{Path, PathBuf};

use super::store::Image;
use crate::disk;
use crate::idmap::{MapError, Users, show_layers};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("mount the root file system at {target}")]
    Mount { target: String, source: io::Error },
    #[error(
        "{path} lies on overlayfs, which cannot hold containers' writable layers; put --data-dir on a disk file \
         system such as ext4 or xfs (a loop-mounted file will do)"
    )]
    OverlayOnOverlay { path: String },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("unmount {path}")]
    Hide { path: String, source: io::Error },
    #[error("create {path}")]
    Folder { path: String, source: io::Error },
}

/// Mounts `image` at `target`, writes going below `writable`; with `users` as a pod's own see it. Then the layers are
/// shown to those users below `shown`, and what is written belongs to them on disk, too.
///
/// # Errors
/// Those of [`mount_rootfs`]; [`MountError::Map`] when the layers cannot be shown to these users, [`MountError::Hide`]
/// when they stay mounted below `shown`.
pub fn mount_rootfs_for(
    users: &Users,
    image: &Image,
    writable: &Path,
    target: &Path,
    shown: &Path,
) -> Result<(), MountError> {
    let layers = show_layers(users, &image.layers, shown)?;
    let owned = Image { layers, ..image.clone() };
    let mounted = mount_rootfs(&owned, writable, target);
    // The overlay holds the layers itself from here on.
    disk::unmount_below(shown).map_err(|source| MountError::Hide { path: shown.display().to_string(), source })?;
    mounted?;
    std::os::unix::fs::chown(writable.join("upper"), Some(users.first), Some(users.first))
        .map_err(|source| MountError::Folder { path: writable.display().to_string(), source })
}

/// Mounts `image` at `target`, writes going below `writable`. Device files in it work as in every runtime, where the
/// container's own device rules allow them: a mount without devices would forbid those too. The agent opens none.
///
/// # Errors
/// [`MountError::Folder`] or [`MountError::Mount`]; folders that were made stay.
pub fn mount_rootfs(image: &Image, writable: &Path, target: &Path) -> Result<(), MountError> {
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for folder in [&upper, &work, &target.to_owned()] {
        disk::create_folder(folder, 0o755)
            .map_err(|source| MountError::Folder { path: folder.display().to_string(), source })?;
    }
    let options = overlay_options(&image.layers, &upper, &work);
    disk::mount("overlay", target, "overlay", 0, &options)
        .map_err(|source| MountError::Mount { target: target.display().to_string(), source })
}

fn overlay_options(layers: &[PathBuf], upper: &Path, work: &Path) -> String {
    let escape = |path: &Path| path.display().to_string().replace('\\', "\\\\").replace(',', "\\,");
    let lower: Vec<_> = layers.iter().map(|layer| escape(layer).replace(':', "\\:")).collect();
    format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), escape(upper), escape(work))
}

/// Refuses a data folder whose file system cannot be an overlay's upper layer.
///
/// # Errors
/// [`MountError::OverlayOnOverlay`] for such a folder, [`MountError::Folder`] when its file system cannot be told.
pub fn check_upper(path: &Path) -> Result<(), MountError> {
    const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
    let kind = filesystem(path).map_err(|source| MountError::Folder { path: path.display().to_string(), source })?;
    if kind == OVERLAYFS_MAGIC {
        return Err(MountError::OverlayOnOverlay { path: path.display().to_string() });
    }
    Ok(())
}

#[expect(unsafe_code, reason = "statfs has no safe form in std")]
fn filesystem(path: &Path) -> io::Result<i64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statfs fills the structure, for which all zeroes is a valid start.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &raw mut stat) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stat.f_type as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn options_escape_what_overlayfs_reads() {
        let options = overlay_options(&["/a:b".into(), "/c".into()], Path::new("/u,p"), Path::new("/w"));
        assert_eq!(options, "lowerdir=/a\\:b:/c,upperdir=/u\\,p,workdir=/w");
    }

    #[test]
    fn overlay_as_upper_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("lower")).unwrap();
        let image = Image {
            name: "a".into(),
            id: "a".into(),
            config: super::super::ImageConfig::default(),
            layers: vec![path("lower")],
            size: 0,
        };
        check_upper(folder.path()).unwrap();
        mount_rootfs(&image, &path("writable"), &path("root")).unwrap();
        let refused = check_upper(&path("root"));
        disk::unmount_below(folder.path()).unwrap();
        assert!(matches!(refused, Err(MountError::OverlayOnOverlay { .. })), "{refused:?}");
    }
}
