//! What is mounted into a container: volumes and parts of them, the pod's own small files; and the places for all that
//! in the root file system.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::files::{small_files, termination_file};
use super::{Launch, LaunchError};
use crate::disk;
use crate::door::{Folder, Found, Links, MAX_PATH, Maker, Missing};
use crate::env::expand;
use crate::files::{Resolver, host_resolv, hosts, resolv_conf};
use crate::idmap::{MapError, Users};
use crate::model::VolumeMount;
use crate::oci::{Mount, MountAccess, Propagation};
use crate::volume::{Access, Place};

const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where the container gets file systems of its own: nothing below has a place in the image.
const OWN: [&str; 3] = ["/proc", "/dev", "/sys"];

#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    #[error("volumeMount {0:?} names no volume of the pod")]
    NoVolume(String),
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Backsteps(String),
    #[error("{field} of container {container:?} has {length} bytes, and a path at most {MAX_PATH}")]
    TooLong { field: &'static str, container: String, length: usize },
    // What went wrong there may speak of the node's own files: the log has it, the pod's owner does not.
    #[error("failed to create subPath directory for volumeMount {volume:?} of container {container:?}")]
    CreateSubPath { volume: String, container: String },
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    PrepareSubPath { volume: String, container: String },
    #[error("volume {0:?} requested recursive read-only mode, but it is not read-only")]
    RecursiveWritable(String),
    #[error("volume {0:?} requested recursive read-only mode, but it is not compatible with propagation {1:?}")]
    RecursivePropagation(String, String),
}

impl Launch<'_> {
    pub(super) fn mounts(&self, env: &[(String, String)]) -> Result<Vec<Mount>, LaunchError> {
        let mut mounts = Vec::new();
        for (index, mount) in self.container.volume_mounts.iter().enumerate() {
            mounts.push(self.volume_mount(mount, index, env)?);
        }
        let taken: Vec<String> = mounts.iter().map(|mount| mount.destination.clone()).collect();
        let message = self.container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
        self.check_length("terminationMessagePath", message)?;
        let folder = self.small_files()?;
        let message_file = termination_file(&folder);
        fs::write(&message_file, "")?;
        fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut own = vec![(message, message_file), ("/dev/shm", self.shared_memory()?)];
        for (destination, name, text) in self.etc_files() {
            let path = folder.join(name);
            fs::write(&path, text)?;
            own.push((destination, path));
        }
        for (destination, source) in own {
            if !taken.iter().any(|taken| taken == destination) {
                mounts.push(bind(source, destination));
            }
        }
        Ok(mounts)
    }

    /// A file system for the files that this container may write and the agent made: one that fills them takes no room
    /// from other containers, or from the host, whose run folder lies in memory.
    fn small_files(&self) -> io::Result<PathBuf> {
        let path = small_files(self.node, &self.record.pod.uid, self.run);
        disk::create_folder(&path, 0o700)?;
        if !disk::is_mounted(&path)? {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            disk::mount("amphipod", &path, "tmpfs", flags, "mode=700,size=1m,nr_inodes=16")?;
        }
        Ok(path)
    }

    fn etc_files(&self) -> [(&'static str, &'static str, String); 3] {
        let config = &self.node.config;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default(); // a node without one has no entries
        let host_resolv = self.record.host_resolv.clone().unwrap_or_else(host_resolv);
        let resolver = Resolver::of(config, &host_resolv);
        let hostname = crate::env::hostname(self.pod);
        let ips = &self.record.ips;
        let hosts = hosts(self.pod, hostname.as_deref(), ips, &config.cluster_domain, &read("/etc/hosts"));
        let resolv = resolv_conf(&self.pod.spec, &self.pod.metadata.namespace, &resolver);
        let hostname = hostname.unwrap_or_else(|| config.node_name.clone());
        [
            ("/etc/hosts", "hosts", hosts),
            ("/etc/resolv.conf", "resolv.conf", resolv),
            ("/etc/hostname", "hostname", format!("{hostname}\n")),
        ]
    }

    /// One for all containers of the pod: they share an IPC namespace.
    fn shared_memory(&self) -> io::Result<PathBuf> {
        let path = self.node.pod_run(&self.record.pod.uid).join("shm");
        fs::create_dir_all(&path)?;
        if !disk::is_mounted(&path)? {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            disk::mount("shm", &path, "tmpfs", flags, "mode=1777,size=65536k")?;
        }
        Ok(path)
    }

    fn volume_mount(&self, mount: &VolumeMount, index: usize, env: &[(String, String)]) -> Result<Mount, LaunchError> {
        self.check_length("mountPath", &mount.mount_path)?;
        let place = self.volumes.get(&mount.name).ok_or_else(|| MountsError::NoVolume(mount.name.clone()))?;
        let access = mount_access(mount, place)?;
        let variable = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) => Some(expand(expression, &variable)),
            (path, None) => path.clone(),
        };
        let source = match sub_path.filter(|path| !path.is_empty()) {
            Some(path) => self.sub_path(mount, &place.path, &path, index)?,
            None => place.path.clone(),
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        Ok(Mount { source, destination: mount.mount_path.clone(), access, propagation })
    }

    /// The kernel takes no longer path: neither do we, before anything is made of it.
    pub(super) fn check_length(&self, field: &'static str, path: &str) -> Result<(), MountsError> {
        match path.len() {
            0..=MAX_PATH => Ok(()),
            length => Err(MountsError::TooLong { field, container: self.container.name.clone(), length }),
        }
    }

    /// A part of a volume, bound by its descriptor to a place of the agent's own: what its names become later does not
    /// matter any more.
    fn sub_path(&self, mount: &VolumeMount, volume: &Path, path: &str, index: usize) -> Result<PathBuf, LaunchError> {
        self.check_length("subPath", path)?;
        if Path::new(path).is_absolute() {
            return Err(MountsError::Absolute(path.to_owned()).into());
        }
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            return Err(MountsError::Backsteps(path.to_owned()).into());
        }
        let told = |error: &io::Error| {
            tracing::warn!(uid = %self.record.pod.uid, volume = mount.name, sub_path = path, %error, "subPath refused");
            (mount.name.clone(), self.container.name.clone())
        };
        let found = match find_part(volume, path, Missing::Refuse) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_part(volume, path).map_err(|error| {
                let (volume, container) = told(&error);
                MountsError::CreateSubPath { volume, container }
            })?,
            found => found.map_err(|error| {
                let (volume, container) = told(&error);
                MountsError::PrepareSubPath { volume, container }
            })?,
        };
        let place = self.folder().join("sub-paths").join(index.to_string());
        bind_found(&found, &place)?;
        Ok(place)
    }

    /// Puts in place of each source one that shows its owners as the pod's own.
    pub(super) fn show_mounts(&self, users: &Users, mounts: &mut [Mount]) -> Result<(), MapError> {
        for (number, mount) in mounts.iter_mut().enumerate() {
            let place = self.folder().join("mounts").join(number.to_string());
            users.show(&mount.source, &place)?;
            mount.source = place;
        }
        Ok(())
    }

    /// Makes the places of mounts and the working folder as a process in the container would, links and all. What lies
    /// below another mount is that one's.
    pub(super) fn make_places(&self, rootfs: &Path, mounts: &[Mount], cwd: &Path, maker: Maker) -> io::Result<()> {
        let root = Folder::open(rootfs)?.made_by(maker);
        for mount in mounts {
            let destination = Path::new(&mount.destination);
            if is_below_own(destination) || holder(mounts, destination).is_some() {
                continue;
            }
            let missing = if mount.source.is_dir() { Missing::Folders(0o755) } else { Missing::File };
            root.walk(destination, Links::Rooted, missing)?;
        }
        self.make_working_folder(&root, mounts, cwd);
        Ok(())
    }

    /// One that cannot be made is told by the container's start, which cannot change to it.
    fn make_working_folder(&self, root: &Folder, mounts: &[Mount], cwd: &Path) {
        if is_below_own(cwd) {
            return;
        }
        let at = mounts.iter().find(|mount| Path::new(&mount.destination) == cwd).or_else(|| holder(mounts, cwd));
        let made = match at {
            Some(mount) if mount.access != MountAccess::Writable => Ok(()),
            Some(mount) => {
                let rest = cwd.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
                Folder::open(&mount.source).and_then(|folder| make_folders(&folder, rest))
            }
            None => make_folders(root, cwd),
        };
        if let Err(error) = made {
            tracing::debug!(uid = %self.record.pod.uid, cwd = %cwd.display(), %error, "working folder not made");
        }
    }
}

fn make_folders(folder: &Folder, path: &Path) -> io::Result<()> {
    folder.walk(path, Links::Rooted, Missing::Folders(0o755)).map(drop)
}

fn is_below_own(path: &Path) -> bool {
    OWN.iter().any(|own| path.starts_with(own))
}

/// The mount in which a path lies, the deepest of several.
fn holder<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = |mount: &&Mount| path != Path::new(&mount.destination) && path.starts_with(&mount.destination);
    mounts.iter().filter(above).max_by_key(|mount| Path::new(&mount.destination).components().count())
}

/// A path below a volume as the kubelet means it: links may lead anywhere in the volume, and nowhere else.
pub fn find_part(volume: &Path, path: &str, missing: Missing) -> io::Result<Found> {
    let own = fs::canonicalize(volume)?;
    Folder::open(&own)?.walk(Path::new(path), Links::Contained(&own), missing)
}

/// The same for a path that is not there: its folders get the volume's own rights.
pub fn make_part(volume: &Path, path: &str) -> io::Result<Found> {
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(volume)?.permissions()) & 0o777;
    find_part(volume, path, Missing::Folders(mode))
}

fn bind_found(found: &Found, place: &Path) -> io::Result<()> {
    if found.kind == FileType::Directory {
        fs::create_dir_all(place)?;
    } else {
        fs::create_dir_all(place.parent().unwrap_or(place))?;
        fs::write(place, "")?;
    }
    disk::mount(&found.path().display().to_string(), place, "", libc::MS_BIND, "")
}

fn mount_access(mount: &VolumeMount, place: &Place) -> Result<MountAccess, MountsError> {
    let read_only = mount.read_only || place.access == Access::ReadOnly;
    let recursive = mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled");
    if recursive && !mount.read_only {
        return Err(MountsError::RecursiveWritable(mount.name.clone()));
    }
    if recursive && let Some(propagation) = mount.mount_propagation.as_ref().filter(|kind| *kind != "None") {
        return Err(MountsError::RecursivePropagation(mount.name.clone(), propagation.clone()));
    }
    Ok(match (read_only, recursive) {
        (_, true) => MountAccess::ReadOnlyRecursive,
        (true, false) => MountAccess::ReadOnly,
        (false, false) => MountAccess::Writable,
    })
}

fn bind(source: PathBuf, destination: &str) -> Mount {
    Mount {
        source,
        destination: destination.to_owned(),
        access: MountAccess::Writable,
        propagation: Propagation::Private,
    }
}
