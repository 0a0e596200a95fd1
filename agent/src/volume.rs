//! A pod's volumes as folders that containers mount.
//!
//! `content` writes what comes from the API: config maps, secrets, the downward API, tokens (kept by `token`).

mod content;
mod token;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use api::quantity::Quantity;
use jiff::Timestamp;

use crate::admit::absent_kind;
use crate::boundary::{PodRef, TokenRequest, Upstream, UpstreamError};
use crate::disk;
use crate::door::Folder;
use crate::env::{EnvError, Facts, Keyed, field_value, object_data, resource_value};
use crate::model::{
    DownwardSource, EmptyDir, HostPath, KeyRef, KeyToPath, ObjectSource, Pod, Projected, ProjectedSource, TokenSource,
    Volume,
};
use crate::room::{NoRoom, Room};
pub use content::Files;
#[cfg(test)]
pub use content::is_written;
pub use token::Tokens;

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
    #[error("invalid path: must be less than or equal to {} characters", content::LONGEST)]
    LongPath,
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath { path: String, wanted: &'static str },
    #[error("this node has no volumes of the kind {0}")]
    Unsupported(String),
    #[error("resourceFieldRef without a container")]
    NoContainer,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a volume is, and when its content must be written again (a token's renewal).
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    pub place: Place,
    pub renew_at: Option<Timestamp>,
}

/// A volume's folder (or file), as containers may mount it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub path: PathBuf,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// As each mount says.
    Any,
    /// Whatever a mount says: the agent writes it.
    ReadOnly,
}

impl Ready {
    fn any(path: PathBuf) -> Ready {
        Ready { place: Place { path, access: Access::Any }, renew_at: None }
    }
}

pub struct Volumes<'a> {
    pub upstream: &'a dyn Upstream,
    pub pod: &'a Pod,
    pub facts: &'a Facts,
    /// Keeps its content over a reboot: emptyDir.
    pub durable: &'a Path,
    /// Gone after a reboot: what comes from the API.
    pub volatile: &'a Path,
    pub tokens: &'a Tokens,
}

impl Volumes<'_> {
    /// Makes one volume, or brings its content up to date.
    pub async fn make(&self, volume: &Volume) -> Result<Ready, VolumeError> {
        let made = self.make_any(volume).await;
        made.map_err(|source| VolumeError::Setup { volume: volume.name.clone(), source })
    }

    async fn make_any(&self, volume: &Volume) -> Result<Ready, ContentError> {
        if let Some(host_path) = &volume.host_path {
            return check_host_path(host_path).map(Ready::any);
        }
        if let Some(empty) = &volume.empty_dir {
            return self.empty_dir(&volume.name, empty).map(Ready::any);
        }
        let mut files = Files::default();
        if let Some(source) = &volume.config_map {
            self.add_object(source, source.default_mode, Keyed::ConfigMap, &mut files).await?;
        } else if let Some(source) = &volume.secret {
            self.add_object(source, source.default_mode, Keyed::Secret, &mut files).await?;
        } else if let Some(source) = &volume.downward_api {
            self.add_downward(source, source.default_mode, &mut files)?;
        } else if let Some(projected) = &volume.projected {
            self.add_projected(projected, &mut files).await?;
        } else {
            return Err(ContentError::Unsupported(absent_kind(volume).unwrap_or_default().to_owned()));
        }
        let path = self.volatile.join(&volume.name);
        self.mount_memory(&path, "")?;
        files.write(&Folder::open(&path)?, self.pod.spec.security_context.fs_group)?;
        Ok(Ready { place: Place { path, access: Access::ReadOnly }, renew_at: files.renew_at })
    }

    /// What an earlier agent, or an earlier time, wrote into a volume of the API's content; `None` when it never did.
    pub fn written(&self, volume: &Volume) -> Option<Place> {
        let path = self.volatile.join(&volume.name);
        let written = Folder::open(&path).is_ok_and(|folder| content::is_written(&folder));
        written.then_some(Place { path, access: Access::ReadOnly })
    }

    /// Made once: from then on it is the pod's, with whatever rights its containers give it.
    fn empty_dir(&self, name: &str, empty: &EmptyDir) -> Result<PathBuf, ContentError> {
        let group = self.pod.spec.security_context.fs_group;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        if empty.medium == "Memory" {
            let path = self.volatile.join(name);
            let size = empty.size_limit.as_ref().and_then(Quantity::of).map(|size| format!(",size={}", size.value()));
            let options = format!("mode={mode:o},gid={}{}", group.unwrap_or(0), size.unwrap_or_default());
            self.mount_memory(&path, &options)?;
            return Ok(path);
        }
        let path = self.durable.join(name);
        if !path.exists() {
            disk::create_folder(self.durable, 0o755)?;
            Room::at(self.durable)?.check(&path, 0)?;
            // What has its name is finished; no volume's name has a dot.
            let unfinished = self.durable.join(format!("{name}.new"));
            disk::create_folder(&unfinished, mode)?;
            std::os::unix::fs::chown(&unfinished, None, group)?;
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode))?;
            fs::rename(&unfinished, &path)?;
        }
        Ok(path)
    }

    /// Secrets and the like never touch a disk, wherever the run folder lies.
    fn mount_memory(&self, path: &Path, options: &str) -> io::Result<()> {
        fs::create_dir_all(path)?;
        if disk::is_mounted(path)? {
            return Ok(());
        }
        disk::mount("tmpfs", path, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)
    }

    async fn add_object(
        &self,
        source: &ObjectSource,
        default_mode: Option<u32>,
        keyed: Keyed,
        files: &mut Files,
    ) -> Result<(), ContentError> {
        let reference = KeyRef { name: source.name.clone(), key: String::new(), optional: source.optional };
        let mut data = object_data(self.upstream, &PodRef::of(&self.pod.metadata), &reference, keyed).await?;
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
                    self.pod.spec.containers.first().ok_or(ContentError::NoContainer)?,
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
        for ProjectedSource { config_map, secret, downward_api, service_account_token, others } in &projected.sources {
            if let Some(kind) = others.keys().next() {
                return Err(ContentError::Unsupported(kind.clone()));
            }
            if let Some(source) = config_map {
                self.add_object(source, mode, Keyed::ConfigMap, files).await?;
            }
            if let Some(source) = secret {
                self.add_object(source, mode, Keyed::Secret, files).await?;
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
        let kept = self.tokens.get(self.upstream, &request).await?;
        files.renew_at = files.renew_at.into_iter().chain([kept.renew_at]).min();
        let user = self.pod.spec.only_user();
        // Only a group of the volume's own, or the one user that all containers run as, may read it then.
        let mode = if user.is_some() || self.pod.spec.security_context.fs_group.is_some() { 0o600 } else { mode };
        files.add_of(&source.path, kept.token.into_bytes(), mode, user)
    }
}

fn check_host_path(host_path: &HostPath) -> Result<PathBuf, ContentError> {
    let path = PathBuf::from(&host_path.path);
    let kind = host_path.kind.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(&path)?,
        "FileOrCreate" if !path.exists() => drop(
            fs::OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).mode(0o644).open(&path)?,
        ),
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
    use std::sync::Arc;

    /// No API server is asked.
    struct Nobody;

    #[async_trait::async_trait]
    impl Upstream for Nobody {
        async fn write_status(&self, _: &crate::boundary::PodRef, _: serde_json::Value) -> Result<(), UpstreamError> {
            Ok(())
        }
        async fn event(&self, _: crate::boundary::PodEvent) {}
        async fn config_map(
            &self,
            _: &crate::boundary::PodRef,
            name: &str,
        ) -> Result<Arc<serde_json::Value>, UpstreamError> {
            Err(UpstreamError::NotFound(name.into()))
        }
        async fn secret(
            &self,
            _: &crate::boundary::PodRef,
            name: &str,
        ) -> Result<Arc<serde_json::Value>, UpstreamError> {
            Err(UpstreamError::NotFound(name.into()))
        }
        async fn service_account_token(&self, _: &TokenRequest) -> Result<crate::boundary::Token, UpstreamError> {
            Err(UpstreamError::Refused("no tokens".into()))
        }
        async fn runtime_handler(&self, class: &str) -> Result<String, UpstreamError> {
            Err(UpstreamError::NotFound(class.into()))
        }
        async fn service_environment(
            &self,
            _: &str,
            _: crate::boundary::ServiceLinks,
        ) -> Result<Vec<(String, String)>, UpstreamError> {
            Ok(Vec::new())
        }
        async fn pod_removed(&self, _: &crate::boundary::PodRef) -> Result<(), UpstreamError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_volume_keeps_the_rights_that_its_containers_gave_it() {
        use std::os::unix::fs::MetadataExt as _;
        let disk = disk::TestDisk::new("size=8m");
        let facts = Facts { node_name: "n".into(), host_ip: "1".into(), pod_ip: None };
        let (mut pod, tokens) = (Pod::default(), Tokens::default());
        for (group, wanted) in [(None, (0o777, 0)), (Some(7), (0o2777, 7))] {
            pod.spec.security_context.fs_group = group;
            let durable = disk.path().join(format!("volumes-{group:?}"));
            let volatile = disk.path().join(format!("memory-{group:?}"));
            let (upstream, pod, facts, tokens) = (&Nobody, &pod, &facts, &tokens);
            let maker = Volumes { upstream, pod, facts, durable: &durable, volatile: &volatile, tokens };
            for medium in ["", "Memory"] {
                let empty_dir = Some(EmptyDir { medium: medium.into(), ..EmptyDir::default() });
                let volume = Volume { name: "v".into(), empty_dir, ..Volume::default() };
                let path = maker.make(&volume).await.unwrap().place.path;
                let rights = || fs::metadata(&path).map(|meta| (meta.mode() & 0o7777, meta.gid())).unwrap();
                assert_eq!(rights(), wanted, "{medium:?}");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
                std::os::unix::fs::chown(&path, Some(5), Some(6)).unwrap();
                maker.make(&volume).await.unwrap();
                assert_eq!(rights(), (0o700, 6), "{medium:?}: a token's renewal");
            }
        }
    }

    #[tokio::test]
    async fn a_full_disk_takes_no_more_volumes_and_keeps_those_it_has() {
        let disk = disk::TestDisk::new("size=8m");
        let facts = Facts { node_name: "n".into(), host_ip: "1".into(), pod_ip: None };
        let (pod, tokens, durable) = (Pod::default(), Tokens::default(), disk.path().join("volumes"));
        let maker = Volumes {
            upstream: &Nobody,
            pod: &pod,
            facts: &facts,
            durable: &durable,
            volatile: disk.path(),
            tokens: &tokens,
        };
        let volume =
            |name: &str| Volume { name: name.into(), empty_dir: Some(EmptyDir::default()), ..Volume::default() };
        maker.make(&volume("first")).await.unwrap();
        fs::write(durable.join("first/much"), vec![0; 7 << 20]).unwrap();
        fs::write(disk.path().join("rest"), vec![0; 800 << 10]).unwrap();
        let refused = maker.make(&volume("second")).await;
        assert!(matches!(&refused, Err(VolumeError::Setup { source: ContentError::NoRoom(_), .. })), "{refused:?}");
        maker.make(&volume("first")).await.unwrap();
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
