//! A pod's volumes as folders that containers mount.
//!
//! A kind of volume is a file: `empty`, `host`, and `sources` for what comes from the API (config maps, secrets, the downward
//! API, tokens, which `token` keeps), as `content` writes it.

mod content;
mod empty;
mod host;
mod sources;
mod token;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::admit::absent_kind;
use crate::boundary::{Upstream, UpstreamError};
use crate::disk;
use crate::door::Folder;
use crate::env::{EnvError, Facts, Keyed};
use crate::model::{Pod, Volume};
use crate::room::NoRoom;
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
            return host::check(host_path).map(Ready::any);
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

    /// Secrets and the like never touch a disk, wherever the run folder lies.
    fn mount_memory(&self, path: &Path, options: &str) -> io::Result<()> {
        fs::create_dir_all(path)?;
        if disk::is_mounted(path)? {
            return Ok(());
        }
        disk::mount("tmpfs", path, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::boundary::TokenRequest;
    use crate::model::EmptyDir;

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
        let facts = Facts { node_name: "n".into(), host_ips: Vec::new(), pod_ips: Vec::new() };
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
        let facts = Facts { node_name: "n".into(), host_ips: Vec::new(), pod_ips: Vec::new() };
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
}
