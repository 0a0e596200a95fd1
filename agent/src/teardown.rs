//! Taking a part of a pod away, by steps that may be repeated and need no more than the UID and the addresses.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::uid::Uid;

use crate::boundary::NetworkError;
use crate::cgroups;
use crate::disk;
use crate::door::{Folder, Stop};
use crate::node::Node;
use crate::step::{Part, Step};

/// Killed processes are gone at once, unless they hang in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    #[error("{}", step.does())]
    Step { step: Step, source: io::Error },
    #[error("{}", Step::DetachNetwork.does())]
    Network(#[source] NetworkError),
}

/// Runs the steps until one fails. The caller tries again later: a later step may depend on an earlier one.
pub async fn tear_down(node: &Node, part: Part, uid: &Uid, ips: &[IpAddr]) -> Result<(), TeardownError> {
    for step in Step::taking_away(part) {
        run(step, node, uid, ips).await?;
        step.done();
    }
    Ok(())
}

async fn run(step: Step, node: &Node, uid: &Uid, ips: &[IpAddr]) -> Result<(), TeardownError> {
    let done = match step {
        // Before the processes: the pod's end of the link, which tells whose it is, goes with them.
        Step::DetachNetwork if ips.is_empty() => Ok(()),
        Step::DetachNetwork => return node.network.detach(uid, ips).await.map_err(TeardownError::Network),
        Step::KillProcesses => kill_processes(node, uid).await,
        Step::UnmountRuns => unmount_runs(node, uid),
        Step::RemoveCgroups => node.cgroups.pod_folders(uid).iter().try_for_each(|folder| cgroups::remove(folder)),
        Step::RemoveSandboxFiles => remove_sandbox_files(node, uid).await,
        Step::RemoveLayers => disk::remove_tree_aside(node.pod_layers(uid)).await,
        Step::UnmountVolumes => {
            let folders = [node.pod_run(uid), node.pod_volumes(uid)];
            folders.iter().try_for_each(|folder| disk::unmount_below(folder))
        }
        Step::RemoveRunFolder => disk::remove_tree_aside(node.pod_run(uid)).await,
        Step::RemoveVolumes => disk::remove_tree_aside(node.pod_volumes(uid)).await,
        Step::RemoveLogs => disk::remove_tree_aside(node.pod_logs(uid)).await,
        // Its own stage says that nothing else takes a part away.
        _ => Ok(()),
    };
    done.map_err(|source| TeardownError::Step { step, source })
}

/// Root file systems and the shared memory; volumes belong to the pod, not to its sandbox.
fn unmount_runs(node: &Node, uid: &Uid) -> io::Result<()> {
    let volumes = node.volatile_volumes(uid);
    let mut points = disk::mounts_below(&node.pod_run(uid))?;
    points.retain(|point| !point.starts_with(&volumes));
    disk::unmount(&points)
}

async fn remove_sandbox_files(node: &Node, uid: &Uid) -> io::Result<()> {
    let (run, volumes) = (node.pod_run(uid), node.volatile_volumes(uid));
    let remove = move |stop: &Stop| {
        let folder = match Folder::open(&run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        let kept = volumes.file_name();
        let others = folder.names()?.into_iter().filter(|name| Some(name.as_os_str()) != kept);
        others.into_iter().try_for_each(|name| folder.remove(&name, stop))
    };
    disk::aside(remove).await
}

async fn kill_processes(node: &Node, uid: &Uid) -> io::Result<()> {
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
fn kill_cgroup(folder: &Path) -> io::Result<()> {
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

fn processes(folder: &Path) -> Vec<i32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&item.path()));
        }
    }
    pids
}
