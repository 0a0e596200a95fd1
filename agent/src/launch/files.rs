//! Where a run has its files.

use std::path::{Path, PathBuf};

use api::uid::Uid;

use crate::node::Node;

pub fn run_folder(node: &Node, uid: &Uid, run: &str) -> PathBuf {
    node.pod_run(uid).join("containers").join(run)
}

/// Where the small files of a run are that the agent makes for it.
pub(super) fn small_files(node: &Node, uid: &Uid, run: &str) -> PathBuf {
    run_folder(node, uid, run).join("files")
}

pub(super) fn termination_file(small_files: &Path) -> PathBuf {
    small_files.join("termination-log")
}

/// Where earlier releases kept the message of a run that may still go on: first in one place for the whole pod.
pub(super) fn earlier_termination_files(node: &Node, uid: &Uid, run: &str) -> [PathBuf; 2] {
    let of_pod = node.pod_run(uid).join("files").join(format!("{run}.message"));
    [of_pod, run_folder(node, uid, run).join("termination-message")]
}
