//! Where this machine's cgroups are, and the node's places in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use api::uid::Uid;
use pod::mounts::Mount;

/// Where this machine's cgroup hierarchies are, and this node's place in them.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Every hierarchy's mount.
    mounts: Vec<PathBuf>,
    cgroup2: PathBuf,
    /// The hierarchy of the pids controller, where each controller has its own.
    pids: Option<PathBuf>,
    pub pure_v2: bool,
    root: String,
    pod_root: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup2 hierarchy is mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoCgroup2,
    #[error("read the mount table")]
    Mounts(#[source] std::io::Error),
}

const QOS_FOLDERS: [&str; 3] = ["", "burstable", "besteffort"];

impl Cgroups {
    pub fn discover(root: &str, pod_root: &str) -> Result<Cgroups, CgroupError> {
        let hierarchies = pod::mounts::read().map_err(CgroupError::Mounts)?.into_iter().filter(Mount::is_cgroup);
        let (mut mounts, mut cgroup2, mut pids) = (Vec::new(), None, None);
        for mount in hierarchies {
            match mount.kind.as_str() {
                "cgroup2" => cgroup2 = cgroup2.or(Some(mount.point.clone())),
                _ => pids = pids.or(mount.has("pids").then(|| mount.point.clone())),
            }
            mounts.push(mount.point);
        }
        let cgroup2 = cgroup2.ok_or(CgroupError::NoCgroup2)?;
        let trim = |text: &str| text.trim_matches('/').to_owned();
        Ok(Cgroups { pure_v2: mounts.len() == 1, mounts, cgroup2, pids, root: trim(root), pod_root: trim(pod_root) })
    }

    /// The cgroup2 folder of the pod process.
    pub fn pod_process(&self, uid: &Uid) -> PathBuf {
        self.cgroup2.join(&self.pod_root).join(format!("pod{uid}"))
    }

    /// A container's cgroup below each controller's mount.
    pub fn container(&self, qos: &str, uid: &Uid, run: &str) -> String {
        let class = match qos {
            "Burstable" => "burstable/",
            "BestEffort" => "besteffort/",
            _ => "",
        };
        let root = if self.root.is_empty() { String::new() } else { format!("/{}", self.root) };
        format!("{root}/kubepods/{class}pod{uid}/{run}")
    }

    /// Makes the pod's own cgroups, in which those of its containers will lie, with its limit of processes.
    pub fn make_pod(&self, qos: &str, uid: &Uid, max_pids: Option<u64>) -> std::io::Result<()> {
        let container = self.container(qos, uid, "any");
        let folder = Path::new(container.trim_start_matches('/')).parent().unwrap_or(Path::new(""));
        let mount = if self.pure_v2 { Some(&self.cgroup2) } else { self.pids.as_ref() };
        let Some(mount) = mount else {
            tracing::warn!(%uid, "this machine has no pids controller: the pod's processes are not limited");
            return Ok(());
        };
        let pod = mount.join(folder);
        std::fs::create_dir_all(&pod)?;
        if self.pure_v2 {
            give_controller(mount, folder, "+pids")?;
        }
        let limit = max_pids.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        std::fs::write(pod.join("pids.max"), limit)
    }

    /// Every folder that may exist for a pod.
    pub fn pod_folders(&self, uid: &Uid) -> Vec<PathBuf> {
        let below = |mount: &PathBuf| {
            let kubepods = mount.join(&self.root).join("kubepods");
            QOS_FOLDERS.map(|class| kubepods.join(class).join(format!("pod{uid}")))
        };
        self.mounts.iter().flat_map(below).chain([self.pod_process(uid)]).collect()
    }

    /// This node's own roots, for `reset`.
    pub fn own_roots(&self) -> Vec<PathBuf> {
        let kubepods = self.mounts.iter().map(|mount| mount.join(&self.root).join("kubepods"));
        let roots =
            kubepods.chain(self.mounts.iter().filter(|_| !self.root.is_empty()).map(|mount| mount.join(&self.root)));
        roots.chain([self.cgroup2.join(&self.pod_root)]).collect()
    }

    /// UIDs of pods that have a cgroup here.
    pub fn known_pods(&self) -> BTreeSet<Uid> {
        let kubepods = self.mounts.iter().map(|mount| mount.join(&self.root).join("kubepods"));
        let folders = kubepods.flat_map(|kubepods| QOS_FOLDERS.map(|class| kubepods.join(class)));
        let folders = folders.chain([self.cgroup2.join(&self.pod_root)]);
        let names = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        names
            .filter_map(|item| item.file_name().to_str()?.strip_prefix("pod").map(str::to_owned))
            .filter(|uid| uid.len() == 36)
            .map(Uid::new)
            .collect()
    }
}

/// Hands a controller down from the mount to the folders above `folder`.
fn give_controller(mount: &Path, folder: &Path, controller: &str) -> std::io::Result<()> {
    let above: Vec<&Path> = folder.ancestors().skip(1).collect();
    above
        .into_iter()
        .rev()
        .try_for_each(|folder| std::fs::write(mount.join(folder).join("cgroup.subtree_control"), controller))
}

/// Removes a cgroup folder and all below it; they must be empty of processes.
pub fn remove(folder: &Path) -> std::io::Result<()> {
    let Ok(items) = std::fs::read_dir(folder) else { return Ok(()) };
    for item in items.flatten().filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&item.path())?;
    }
    if let Err(error) = pod::devices::let_go(folder) {
        tracing::debug!(folder = %folder.display(), %error, "device rules stay until the kernel drops the folder");
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_places() {
        let cgroups = Cgroups {
            mounts: vec!["/c/memory".into(), "/c/unified".into()],
            cgroup2: "/c/unified".into(),
            pids: None,
            pure_v2: false,
            root: "amp".into(),
            pod_root: "amp/pods".into(),
        };
        let uid = &Uid::new("u");
        assert_eq!(cgroups.container("BestEffort", uid, "web-0"), "/amp/kubepods/besteffort/podu/web-0");
        assert_eq!(cgroups.container("Guaranteed", uid, "web-0"), "/amp/kubepods/podu/web-0");
        assert_eq!(cgroups.pod_process(uid), Path::new("/c/unified/amp/pods/podu"));
        assert!(cgroups.pod_folders(uid).contains(&"/c/memory/amp/kubepods/burstable/podu".into()));
    }
}
