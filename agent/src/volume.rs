//! A pod's volumes as folders that containers mount.
//!
//! Config maps, secrets, the downward API and tokens are written the way applications expect them to change: all files
//! in a fresh `..<number>` folder, one `..data` link flipped to it by rename, and a link per file through `..data`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use crate::boundary::{TokenRequest, Upstream, UpstreamError};
use crate::disk;
use crate::env::{EnvError, Facts, field_value, object_data, resource_value};
use crate::model::{
    DownwardSource, EmptyDir, HostPath, KeyRef, KeyToPath, ObjectSource, Pod, Projected, ProjectedSource, TokenSource,
    Volume, quantity,
};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("MountVolume.SetUp failed for volume {volume:?}")]
    Setup { volume: String, source: ContentError },
}

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error("references non-existent key: {0}")]
    NoKey(String),
    #[error("path {0:?} leads out of the volume")]
    Path(String),
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath { path: String, wanted: &'static str },
    #[error("this volume type is not supported")]
    Unsupported,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a volume is, and when its content must be written again (a token's renewal).
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    pub path: PathBuf,
    pub renew_at: Option<Timestamp>,
}

pub struct Volumes<'a> {
    pub upstream: &'a dyn Upstream,
    pub pod: &'a Pod,
    pub facts: &'a Facts,
    /// Keeps its content over a reboot: emptyDir.
    pub durable: &'a Path,
    /// Gone after a reboot: what comes from the API.
    pub volatile: &'a Path,
}

impl Volumes<'_> {
    /// Makes one volume, or brings its content up to date.
    pub async fn make(&self, volume: &Volume) -> Result<Ready, VolumeError> {
        let made = self.make_any(volume).await;
        made.map_err(|source| VolumeError::Setup { volume: volume.name.clone(), source })
    }

    async fn make_any(&self, volume: &Volume) -> Result<Ready, ContentError> {
        if let Some(host_path) = &volume.host_path {
            return Ok(Ready { path: check_host_path(host_path)?, renew_at: None });
        }
        if let Some(empty) = &volume.empty_dir {
            return self.empty_dir(&volume.name, empty).map(|path| Ready { path, renew_at: None });
        }
        let mut files = Files::default();
        if let Some(source) = &volume.config_map {
            self.add_object(source, source.default_mode, false, &mut files).await?;
        } else if let Some(source) = &volume.secret {
            self.add_object(source, source.default_mode, true, &mut files).await?;
        } else if let Some(source) = &volume.downward_api {
            self.add_downward(source, source.default_mode, &mut files)?;
        } else if let Some(projected) = &volume.projected {
            self.add_projected(projected, &mut files).await?;
        } else {
            return Err(ContentError::Unsupported);
        }
        let path = self.volatile.join(&volume.name);
        self.mount_memory(&path, "")?;
        write_files(&path, &files, self.pod.spec.security_context.fs_group)?;
        Ok(Ready { path, renew_at: files.renew_at })
    }

    fn empty_dir(&self, name: &str, empty: &EmptyDir) -> Result<PathBuf, ContentError> {
        let path = if empty.medium == "Memory" {
            let path = self.volatile.join(name);
            let size = empty.size_limit.as_ref().and_then(quantity).map(|bytes| format!("size={bytes}"));
            self.mount_memory(&path, &size.unwrap_or_default())?;
            path
        } else {
            self.durable.join(name)
        };
        disk::create_folder(&path, 0o777)?;
        if let Some(group) = self.pod.spec.security_context.fs_group {
            std::os::unix::fs::chown(&path, None, Some(group))?;
            disk::create_folder(&path, 0o2777)?;
        }
        Ok(path)
    }

    /// Secrets and the like never touch a disk, wherever the run folder lies.
    fn mount_memory(&self, path: &Path, options: &str) -> io::Result<()> {
        fs::create_dir_all(path)?;
        if disk::mounts_below(path)?.iter().any(|point| point == path) {
            return Ok(());
        }
        disk::mount("tmpfs", path, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)
    }

    async fn add_object(
        &self,
        source: &ObjectSource,
        default_mode: Option<u32>,
        secret: bool,
        files: &mut Files,
    ) -> Result<(), ContentError> {
        let reference = KeyRef { name: source.name.clone(), key: String::new(), optional: source.optional };
        let mut data = object_data(self.upstream, &self.pod.metadata.namespace, &reference, secret).await?;
        let mode = default_mode.unwrap_or(0o644);
        if source.items.is_empty() {
            return data.into_iter().try_for_each(|(key, content)| files.add(&key, content, mode));
        }
        for KeyToPath { key, path, mode: own } in &source.items {
            match data.remove(key) {
                Some(content) => files.add(path, content, own.unwrap_or(mode))?,
                None if source.optional => {}
                None => return Err(ContentError::NoKey(key.clone())),
            }
        }
        Ok(())
    }

    fn add_downward(
        &self,
        source: &DownwardSource,
        default_mode: Option<u32>,
        files: &mut Files,
    ) -> Result<(), ContentError> {
        let mode = default_mode.unwrap_or(0o644);
        for item in &source.items {
            let content = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_value(self.pod, self.facts, &field.field_path)?,
                (None, Some(resource)) => resource_value(
                    self.pod,
                    self.pod.spec.containers.first().ok_or(ContentError::Unsupported)?,
                    resource,
                )?,
                (None, None) => String::new(),
            };
            files.add(&item.path, content.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }

    async fn add_projected(&self, projected: &Projected, files: &mut Files) -> Result<(), ContentError> {
        let mode = projected.default_mode;
        for ProjectedSource { config_map, secret, downward_api, service_account_token } in &projected.sources {
            if let Some(source) = config_map {
                self.add_object(source, mode, false, files).await?;
            }
            if let Some(source) = secret {
                self.add_object(source, mode, true, files).await?;
            }
            if let Some(source) = downward_api {
                self.add_downward(source, mode, files)?;
            }
            if let Some(source) = service_account_token {
                self.add_token(source, mode.unwrap_or(0o644), files).await?;
            }
        }
        Ok(())
    }

    async fn add_token(&self, source: &TokenSource, mode: u32, files: &mut Files) -> Result<(), ContentError> {
        let metadata = &self.pod.metadata;
        let request = TokenRequest {
            namespace: metadata.namespace.clone(),
            service_account: self.pod.spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
            audiences: source.audience.iter().cloned().collect(),
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
            pod_name: metadata.name.clone(),
            pod_uid: metadata.uid.clone(),
        };
        let token = self.upstream.service_account_token(&request).await?;
        let now = Timestamp::now();
        // Renewed when 80 % of its life is over, as clients expect.
        let life = token.expires_at.duration_since(now);
        let renew_at = now.checked_add(life * 4 / 5).unwrap_or(token.expires_at);
        files.renew_at = files.renew_at.map_or(Some(renew_at), |other| Some(other.min(renew_at)));
        files.add(&source.path, token.token.into_bytes(), mode)
    }
}

/// The files of a volume by relative path.
#[derive(Debug, Default)]
struct Files {
    files: BTreeMap<String, (Vec<u8>, u32)>,
    renew_at: Option<Timestamp>,
}

impl Files {
    fn add(&mut self, path: &str, content: Vec<u8>, mode: u32) -> Result<(), ContentError> {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.is_empty() || path.starts_with("..") {
            return Err(ContentError::Path(path.to_owned()));
        }
        self.files.insert(path.to_owned(), (content, mode));
        Ok(())
    }
}

fn write_files(volume: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let data_link = volume.join("..data");
    let old = fs::read_link(&data_link).ok();
    if old.as_ref().is_some_and(|old| unchanged(&volume.join(old), files)) {
        return Ok(());
    }
    let name = format!("..{}", Timestamp::now().as_nanosecond());
    let folder = volume.join(&name);
    disk::create_folder(&folder, 0o755)?;
    for (path, (content, mode)) in &files.files {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, content)?;
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        std::os::unix::fs::chown(&target, None, group)?;
    }
    let new_link = volume.join("..data_new");
    disk::remove_file(&new_link)?;
    symlink(&name, &new_link)?;
    fs::rename(&new_link, &data_link)?;
    link_names(volume, files)?;
    match old {
        Some(old) => disk::remove_tree(&volume.join(old)),
        None => Ok(()),
    }
}

fn unchanged(folder: &Path, files: &Files) -> bool {
    let same =
        |(path, (content, _)): (&String, &(Vec<u8>, u32))| fs::read(folder.join(path)).is_ok_and(|old| old == *content);
    files.files.iter().all(same) && count_files(folder) == files.files.len()
}

fn count_files(folder: &Path) -> usize {
    let items = fs::read_dir(folder).into_iter().flatten().flatten();
    items.map(|item| if item.path().is_dir() { count_files(&item.path()) } else { 1 }).sum()
}

/// One link per first path component; those of files that went away are removed.
fn link_names(volume: &Path, files: &Files) -> io::Result<()> {
    let wanted: Vec<&str> = files.files.keys().filter_map(|path| path.split('/').next()).collect();
    for item in fs::read_dir(volume)? {
        let item = item?;
        let name = item.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with("..") || wanted.contains(&name));
        if !ours && item.file_type()?.is_symlink() {
            fs::remove_file(item.path())?;
        }
    }
    for name in wanted {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    Ok(())
}

fn check_host_path(host_path: &HostPath) -> Result<PathBuf, ContentError> {
    let path = PathBuf::from(&host_path.path);
    let kind = host_path.kind.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(&path)?,
        "FileOrCreate" if !path.exists() => fs::write(&path, "")?,
        // Docker made missing ones folders, and so does every runtime since.
        "" if !path.exists() => fs::create_dir_all(&path)?,
        _ => {}
    }
    let wrong = |wanted| ContentError::HostPath { path: host_path.path.clone(), wanted };
    let meta = fs::metadata(&path);
    let is = |test: &dyn Fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    match kind {
        "Directory" | "DirectoryOrCreate" if !is(&fs::Metadata::is_dir) => Err(wrong("directory")),
        "File" | "FileOrCreate" if !is(&fs::Metadata::is_file) => Err(wrong("file")),
        "Socket" if !is(&|meta| meta.file_type().is_socket()) => Err(wrong("socket")),
        "CharDevice" if !is(&|meta| meta.file_type().is_char_device()) => Err(wrong("character device")),
        "BlockDevice" if !is(&|meta| meta.file_type().is_block_device()) => Err(wrong("block device")),
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let mut files = Files::default();
        for (path, content) in list {
            files.add(path, content.as_bytes().to_vec(), 0o640).unwrap();
        }
        files
    }

    #[test]
    fn content_is_flipped_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path();
        write_files(volume, &files(&[("a", "1"), ("sub/b", "2"), ("old", "x")]), None).unwrap();
        let first = fs::read_link(volume.join("..data")).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        write_files(volume, &files(&[("a", "1"), ("sub/b", "2"), ("old", "x")]), None).unwrap();
        assert_eq!(fs::read_link(volume.join("..data")).unwrap(), first, "nothing changed");
        write_files(volume, &files(&[("a", "3"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(volume.join("old")).is_err() && !volume.join(first).exists());
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["../x", "/x", "", "a/../b", "..data"] {
            assert!(Files::default().add(bad, Vec::new(), 0o644).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_paths_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| {
            let path = folder.path().join(name).to_str().unwrap().to_owned();
            check_host_path(&HostPath { path, kind: Some(kind.into()) })
        };
        assert!(check("new", "DirectoryOrCreate").is_ok());
        assert!(check("new", "File").is_err());
        assert!(check("missing", "Directory").is_err());
        assert!(check("file", "FileOrCreate").is_ok() && check("file", "Socket").is_err());
    }
}
