//! Starting a pod process, finding a living one, and taking everything of a pod away again.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pod::protocol::{Setup, State};
use tokio::sync::mpsc;

use crate::boundary::{Attachment, NetworkError};
use crate::disk;
use crate::env::hostname;
use crate::link::{LinkError, LinkEvent, PodLink};
use crate::model::Pod;
use crate::node::{Node, remove_cgroup};
use crate::record::Record;

/// A pod process starts in milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Killed processes are gone at once, unless they hang in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A living pod process.
pub struct Sandbox {
    pub link: Arc<PodLink>,
    pub state: State,
    pub events: mpsc::UnboundedReceiver<LinkEvent>,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("prepare the pod's folders")]
    Folders(#[source] io::Error),
    #[error("start the pod process")]
    Spawn(#[source] io::Error),
    #[error("the pod process did not start: {0}")]
    NotReady(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("failed to set up the pod's network: {0}")]
    Network(#[from] NetworkError),
}

/// Starts a new pod process and attaches its network.
pub async fn start(node: &Node, pod: &Pod, record: &Record) -> Result<Sandbox, SandboxError> {
    let uid = &record.pod.uid;
    let folder = node.pod_run(uid);
    let setup = setup(node, pod, uid);
    let setup_file = folder.join("setup.json");
    disk::create_folder(&folder, 0o700).map_err(SandboxError::Folders)?;
    fs::create_dir_all(&setup.state_dir).map_err(SandboxError::Folders)?;
    let text = serde_json::to_vec(&setup).map_err(|error| SandboxError::Folders(error.into()))?;
    fs::write(&setup_file, text).map_err(SandboxError::Folders)?;
    let log = File::options().create(true).append(true).open(folder.join("pod.log")).map_err(SandboxError::Folders)?;
    let run = tokio::process::Command::new(node.executable.path())
        .arg(&setup_file)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(SandboxError::Spawn)?
        .wait_with_output();
    let output = tokio::time::timeout(START_TIMEOUT, run).await;
    let output = output.map_err(|_| SandboxError::NotReady("it says nothing".into()))?.map_err(SandboxError::Spawn)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if said != "ready" {
        return Err(SandboxError::NotReady(said));
    }
    let sandbox = connect(node, uid).await?;
    attach(node, record, &sandbox).await?;
    Ok(sandbox)
}

fn setup(node: &Node, pod: &Pod, uid: &str) -> Setup {
    let folder = node.pod_run(uid);
    let sysctls = &pod.spec.security_context.sysctls;
    Setup {
        uid: uid.to_owned(),
        socket: folder.join("socket"),
        lock: folder.join("lock"),
        state_dir: folder.join("state"),
        cgroup: node.cgroups.pod_process(uid),
        hostname: hostname(pod),
        host_network: pod.spec.host_network,
        host_ipc: pod.spec.host_ipc,
        share_pid: pod.spec.share_process_namespace,
        sysctls: sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
    }
}

async fn connect(node: &Node, uid: &str) -> Result<Sandbox, LinkError> {
    let (sender, events) = mpsc::unbounded_channel();
    let (link, state) = PodLink::connect(&node.pod_run(uid).join("socket"), sender).await?;
    Ok(Sandbox { link: Arc::new(link), state, events })
}

async fn attach(node: &Node, record: &Record, sandbox: &Sandbox) -> Result<(), NetworkError> {
    let Some(ip) = record.ip else { return Ok(()) };
    let netns = PathBuf::from(format!("/proc/{}/ns/net", sandbox.state.pid));
    node.network.attach(&Attachment { pod: record.pod.clone(), ip, netns }).await
}

/// The pod process that an earlier agent started, if it lives.
pub async fn adopt(node: &Node, record: &Record) -> Result<Option<Sandbox>, SandboxError> {
    if !lives(&node.pod_run(&record.pod.uid).join("lock")) {
        return Ok(None);
    }
    let sandbox = connect(node, &record.pod.uid).await?;
    attach(node, record, &sandbox).await?;
    Ok(Some(sandbox))
}

/// Liveness is a lock: a pid may belong to another process by now.
fn lives(lock: &std::path::Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) // when it was free, closing the file frees it again
}

/// The steps that take a pod away, in order. Each may be repeated, and needs no more than the UID and the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teardown {
    KillProcesses,
    DetachNetwork,
    Unmount,
    RemoveCgroups,
    RemoveRunFolder,
    RemoveLayers,
    RemoveVolumes,
    RemoveLogs,
}

impl Teardown {
    /// What a pod whose containers will never run again gives back; its logs and volumes wait for its deletion.
    pub const SANDBOX: [Teardown; 6] = [
        Teardown::KillProcesses,
        Teardown::DetachNetwork,
        Teardown::Unmount,
        Teardown::RemoveCgroups,
        Teardown::RemoveRunFolder,
        Teardown::RemoveLayers,
    ];
    pub const ALL: [Teardown; 8] = [
        Teardown::KillProcesses,
        Teardown::DetachNetwork,
        Teardown::Unmount,
        Teardown::RemoveCgroups,
        Teardown::RemoveRunFolder,
        Teardown::RemoveLayers,
        Teardown::RemoveVolumes,
        Teardown::RemoveLogs,
    ];

    async fn run(self, node: &Node, uid: &str, ip: Option<IpAddr>) -> Result<(), TeardownError> {
        let failed = |source| TeardownError::Step { step: self, source };
        match self {
            Teardown::KillProcesses => kill_processes(node, uid).await.map_err(failed),
            Teardown::DetachNetwork => match ip {
                Some(ip) => node.network.detach(uid, ip).await.map_err(TeardownError::Network),
                None => Ok(()),
            },
            Teardown::Unmount => [node.pod_run(uid), node.pod_volumes(uid)]
                .iter()
                .try_for_each(|folder| disk::unmount_below(folder))
                .map_err(failed),
            Teardown::RemoveCgroups => {
                node.cgroups.pod_folders(uid).iter().try_for_each(|folder| remove_cgroup(folder)).map_err(failed)
            }
            Teardown::RemoveRunFolder => disk::remove_tree(&node.pod_run(uid)).map_err(failed),
            Teardown::RemoveLayers => disk::remove_tree(&node.pod_layers(uid)).map_err(failed),
            Teardown::RemoveVolumes => disk::remove_tree(&node.pod_volumes(uid)).map_err(failed),
            Teardown::RemoveLogs => disk::remove_tree(&node.pod_logs(uid)).map_err(failed),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    #[error("{step:?}")]
    Step { step: Teardown, source: io::Error },
    #[error("DetachNetwork")]
    Network(#[source] NetworkError),
}

/// Runs the steps until one fails. The caller tries again later: a later step may depend on an earlier one.
pub async fn tear_down(node: &Node, steps: &[Teardown], uid: &str, ip: Option<IpAddr>) -> Result<(), TeardownError> {
    for step in steps {
        step.run(node, uid, ip).await?;
    }
    Ok(())
}

async fn kill_processes(node: &Node, uid: &str) -> io::Result<()> {
    let folders: Vec<PathBuf> = node.cgroups.pod_folders(uid).into_iter().filter(|folder| folder.exists()).collect();
    let deadline = tokio::time::Instant::now() + KILL_TIMEOUT;
    loop {
        for folder in &folders {
            kill_cgroup(folder)?;
        }
        if folders.iter().all(|folder| processes(folder).is_empty()) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "killed processes are still there"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Kills all processes below a cgroup: by the kernel's own switch on cgroup2, one by one on v1.
fn kill_cgroup(folder: &std::path::Path) -> io::Result<()> {
    let switch = folder.join("cgroup.kill");
    if switch.exists() {
        return fs::write(switch, "1");
    }
    for pid in processes(folder) {
        #[expect(unsafe_code, reason = "kill has no safe form in std")]
        // SAFETY: no pointers. Read a moment ago from the pod's own cgroup.
        unsafe {
            libc::kill(pid, libc::SIGKILL)
        };
    }
    Ok(())
}

fn processes(folder: &std::path::Path) -> Vec<i32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&item.path()));
        }
    }
    pids
}
