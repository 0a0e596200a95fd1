//! What all pod workers share: configuration, boundaries, paths and cgroup places derived from a pod's UID, addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::sysctl::Allowed;
use api::uid::Uid;
use pod::mounts::Mount;
use serde_json::Value;

use crate::apparmor::AppArmor;
use crate::boundary::{EventKind, PodEvent, PodNetwork, PodRef, Upstream};
use crate::config::Config;
use crate::embed::PodExecutable;
use crate::image::ImageStore;
use crate::process_link::ProcessLink;
use crate::record::Records;
use crate::users::Ranges;

pub struct Node {
    pub _lock: std::fs::File,
    pub config: Config,
    pub upstream: Arc<dyn Upstream>,
    pub network: Arc<dyn PodNetwork>,
    pub images: ImageStore,
    pub records: Records,
    pub executable: PodExecutable,
    pub cgroups: Cgroups,
    pub addresses: Addresses,
    pub users: Ranges,
    pub apparmor: AppArmor,
    pub live: Mutex<Live>,
    /// Counts changes of `live`, for those who wait for one.
    pub changes: tokio::sync::watch::Sender<u64>,
    /// This boot of the machine: what was begun in another is gone.
    pub boot: String,
    /// Kernel settings that pods may choose beside the safe ones.
    pub allowed_sysctls: Allowed,
}

/// Who runs here, for exec, attach and those who follow logs.
#[derive(Default)]
pub struct Live {
    pub pods: HashMap<Uid, LivePod>,
    /// Pods of an earlier agent that this one has not looked at yet: whether they run is not known.
    pub adopting: BTreeSet<Uid>,
}

/// What exec and attach need to know of a running pod.
#[derive(Clone)]
pub struct LivePod {
    pub link: Arc<ProcessLink>,
    pub containers: HashMap<String, LiveContainer>,
}

#[derive(Clone, Debug)]
pub struct LiveContainer {
    /// Its name in the pod process.
    pub run: String,
    pub pid: i32,
    /// The container's own OCI `process`: another command runs as the same user with the same rights.
    pub process: Arc<Value>,
    pub tty: bool,
}

impl Node {
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other pods may have what this one had.
    pub fn take_back(&self, ip: Option<IpAddr>, users: Option<pod::protocol::IdRange>) {
        if let Some(ip) = ip {
            self.addresses.release(ip);
        }
        if let Some(users) = users {
            self.users.release(users);
        }
    }

    pub fn pod_run(&self, uid: &Uid) -> PathBuf {
        self.config.run_dir.join("pods").join(uid.as_str())
    }

    /// Volumes that a reboot ends: what lies in memory, and what comes from the API.
    pub fn volatile_volumes(&self, uid: &Uid) -> PathBuf {
        self.pod_run(uid).join("volumes")
    }

    /// Volumes that outlast a reboot.
    pub fn pod_volumes(&self, uid: &Uid) -> PathBuf {
        self.config.data_dir.join("volumes").join(uid.as_str())
    }

    /// The containers' writable layers.
    pub fn pod_layers(&self, uid: &Uid) -> PathBuf {
        self.config.data_dir.join("containers").join(uid.as_str())
    }

    pub fn pod_logs(&self, uid: &Uid) -> PathBuf {
        self.config.data_dir.join("logs").join(uid.as_str())
    }

    pub fn log_file(&self, uid: &Uid, container: &str, run: u32) -> PathBuf {
        self.pod_logs(uid).join(container).join(format!("{run}.log"))
    }

    pub async fn event(
        &self,
        pod: &PodRef,
        field_path: Option<String>,
        kind: EventKind,
        reason: &'static str,
        message: String,
    ) {
        tracing::debug!(pod = %pod.name, uid = %pod.uid, reason, message, "event");
        self.upstream.event(PodEvent { pod: pod.clone(), field_path, kind, reason, message }).await;
    }
}

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
pub fn remove_cgroup(folder: &Path) -> std::io::Result<()> {
    let Ok(items) = std::fs::read_dir(folder) else { return Ok(()) };
    for item in items.flatten().filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_cgroup(&item.path())?;
    }
    if let Err(error) = pod::devices::let_go(folder) {
        tracing::debug!(folder = %folder.display(), %error, "device rules stay until the kernel drops the folder");
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The node's pod addresses. The least recently used comes first, so that a released one rests.
#[derive(Debug)]
pub struct Addresses {
    free: Mutex<std::collections::VecDeque<IpAddr>>,
}

impl Addresses {
    pub fn new(cidr: crate::config::PodCidr, taken: &BTreeSet<IpAddr>) -> Addresses {
        let free = cidr.addresses().map(IpAddr::from).filter(|ip| !taken.contains(ip)).collect();
        Addresses { free: Mutex::new(free) }
    }

    pub fn take(&self) -> Option<IpAddr> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub fn release(&self, ip: IpAddr) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_rest_after_use() {
        let taken = ["10.0.0.2".parse().unwrap()].into();
        let addresses = Addresses::new("10.0.0.0/29".parse().unwrap(), &taken);
        let first = addresses.take().unwrap();
        assert_eq!(first.to_string(), "10.0.0.3");
        addresses.release(first);
        assert_eq!(addresses.take().unwrap().to_string(), "10.0.0.4");
    }

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
