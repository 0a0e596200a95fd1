//! What all pod workers share: configuration, boundaries, paths derived from a pod's UID.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::sysctl::Allowed;
use api::uid::Uid;
use serde_json::Value;

use crate::addresses::Addresses;
use crate::apparmor::AppArmor;
use crate::boundary::{EventKind, PodEvent, PodNetwork, PodRef, Upstream};
use crate::cgroups::Cgroups;
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
    pub fn take_back(&self, ips: &[IpAddr], users: Option<pod::protocol::IdRange>) {
        self.addresses.release(ips);
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
