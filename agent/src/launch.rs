//! One run of a container: its root file system, mounts, configuration; create and start through the pod process.

mod mounts;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pod::protocol::{CreateContainer, LogTarget, Op, Outcome};
use serde_json::Value;

use crate::disk;
use crate::door::read_end;
use crate::env::{EnvError, Facts, environment};
use crate::image::{Image, MountError, mount_rootfs};
use crate::link::LinkError;
use crate::model::{Container, Pod};
use crate::node::{LiveContainer, Node};
use crate::oci::user::{Accounts, AccountsError, UserError, resolve};
use crate::oci::{self, SpecError};
use crate::record::Record;
use crate::sandbox::Sandbox;
use crate::step::Step;
use crate::volume::Place;
use mounts::MountsError;
#[cfg(test)]
pub use mounts::{find_part, make_part};

const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: usize = 5;
/// What the kubelet keeps of a termination message.
const MESSAGE_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What the pod asks for cannot be given yet, or ever.
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    #[error(transparent)]
    Mounts(#[from] MountsError),
    #[error(transparent)]
    Rootfs(#[from] MountError),
    #[error("prepare the container's files")]
    Files(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl LaunchError {
    /// The kubelet's reason for a container that waits because of this.
    pub fn reason(&self) -> &'static str {
        match self {
            LaunchError::Env(_) | LaunchError::User(_) | LaunchError::Mounts(_) => "CreateContainerConfigError",
            _ => "CreateContainerError",
        }
    }
}

/// Everything a launch needs.
pub struct Launch<'a> {
    pub node: &'a Node,
    pub pod: &'a Pod,
    pub record: &'a Record,
    pub container: &'a Container,
    pub image: &'a Image,
    pub volumes: &'a HashMap<String, Place>,
    pub facts: &'a Facts,
    pub sandbox: &'a Sandbox,
    /// Number and name of this run.
    pub number: u32,
    pub run: &'a str,
}

impl Launch<'_> {
    /// Creates the container; it waits for `Op::Start`.
    pub async fn create(&self) -> Result<LiveContainer, LaunchError> {
        let image_env = self.image.config.env.clone().unwrap_or_default();
        let env = environment(self.node.upstream.as_ref(), self.pod, self.container, self.facts, &image_env).await?;
        let qos = self.pod.status["qosClass"].as_str().unwrap_or("BestEffort");
        // Volumes may lie on a file server: whatever waits for one is not to hold up other pods.
        let config = tokio::task::block_in_place(|| self.prepare(env, qos))?;
        let pid = match self.sandbox.link.call(Op::Create(self.request(qos)), &[]).await? {
            Outcome::Started(pid) => pid,
            _ => return Err(LinkError::Confused.into()),
        };
        let process: Arc<Value> = Arc::new(config["process"].clone());
        Ok(LiveContainer { run: self.run.to_owned(), pid, process, tty: self.container.tty })
    }

    /// All that lies on disk, and the configuration that goes with it.
    fn prepare(&self, mut env: Vec<(String, String)>, qos: &str) -> Result<Value, LaunchError> {
        let (rootfs, writable) = (self.folder().join("rootfs"), self.layers());
        mount_rootfs(self.image, &writable, &rootfs)?;
        Step::MountRootfs.done();
        let accounts = Accounts::read(&rootfs)?;
        let user = resolve(&self.pod.spec.security_context, self.container, &self.image.config.user, &accounts)?;
        if !env.iter().any(|(name, _)| name == "HOME") {
            env.push(("HOME".into(), accounts.home(user.uid)));
        }
        let mounts = self.mounts(&env)?;
        self.make_places(&rootfs, &mounts, Path::new(oci::working_folder(self.container, &self.image.config)))?;
        let config = oci::config(&oci::Inputs {
            spec: &self.pod.spec,
            container: self.container,
            image: &self.image.config,
            env,
            user,
            rootfs: &rootfs,
            cgroup: self.node.cgroups.container(qos, &self.record.pod.uid, self.run),
            mounts,
            pid_namespace: self.sandbox.state.pid_namespace.clone(),
            cgroup_v2: self.node.cgroups.pure_v2,
        })?;
        fs::write(self.folder().join("config.json"), config.to_string())?;
        Step::WriteConfig.done();
        Ok(config)
    }

    fn request(&self, qos: &str) -> CreateContainer {
        let path = self.node.log_file(&self.record.pod.uid, &self.container.name, self.number);
        CreateContainer {
            container: self.run.to_owned(),
            bundle: self.folder(),
            log: LogTarget { path, max_bytes: LOG_BYTES, max_files: LOG_FILES },
            stdin: self.container.stdin,
            stdin_once: self.container.stdin_once,
            oom_score_adj: Some(oom_score_adjustment(qos, self.container)),
        }
    }

    fn folder(&self) -> PathBuf {
        run_folder(self.node, &self.record.pod.uid, self.run)
    }

    fn layers(&self) -> PathBuf {
        self.node.pod_layers(&self.record.pod.uid).join(self.run)
    }
}

pub fn run_folder(node: &Node, uid: &str, run: &str) -> PathBuf {
    node.pod_run(uid).join("containers").join(run)
}

pub fn termination_file(node: &Node, uid: &str, run: &str) -> PathBuf {
    run_folder(node, uid, run).join("termination-message")
}

/// The end of what a run wrote to its termination log.
pub fn termination_message(node: &Node, uid: &str, run: &str) -> io::Result<Vec<u8>> {
    read_end(&termination_file(node, uid, run), MESSAGE_BYTES)
}

/// Takes away what a run leaves behind, its log apart.
pub fn remove_run(node: &Node, uid: &str, run: &str) -> io::Result<()> {
    disk::unmount_below(&run_folder(node, uid, run))?;
    disk::remove_tree(&run_folder(node, uid, run))?;
    disk::remove_tree(&node.pod_layers(uid).join(run))
}

/// The kubelet's rule: guaranteed pods last, best-effort ones first.
fn oom_score_adjustment(qos: &str, container: &Container) -> i32 {
    match qos {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container.resources.requests.get("memory").and_then(crate::model::quantity).unwrap_or(0);
            let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let total = text.split_whitespace().nth(1).and_then(|kb| kb.parse::<i64>().ok()).unwrap_or(1) * 1024;
            (1000 - 1000 * request / total.max(1)).clamp(3, 999) as i32
        }
    }
}
