//! One run of a container: its root file system, mounts, configuration; create and start through the pod process.

mod files;
mod mounts;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::quantity::Quantity;
use api::uid::Uid;
use pod::protocol::{CreateContainer, Failure, FailureKind, LogTarget, Op, Outcome};
use serde_json::Value;

use crate::apparmor::AppArmorError;
use crate::boundary::PodRef;
use crate::disk;
use crate::door::{Maker, read_end};
use crate::env::{EnvError, Facts, environment};
use crate::idmap::{MapError, Users};
use crate::image::{Image, MountError, mount_rootfs, mount_rootfs_for};
use crate::model::{Container, Pod};
use crate::node::{LiveContainer, Node};
use crate::oci::user::{Accounts, AccountsError, User, UserError, resolve};
use crate::oci::{self, SpecError};
use crate::process_link::LinkError;
use crate::record::Record;
use crate::sandbox::Sandbox;
use crate::step::Step;
use crate::volume::Place;
pub use files::run_folder;
use files::{earlier_termination_files, small_files, termination_file};
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
    #[error("{error} (pod: \"{pod}\", container: {container})")]
    NonRoot { error: UserError, pod: String, container: String },
    #[error(transparent)]
    User(UserError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    #[error(transparent)]
    Mounts(#[from] MountsError),
    #[error("unable to find target container {0}")]
    NoTarget(String),
    #[error(transparent)]
    Rootfs(#[from] MountError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    #[error("id {0} is none of the pod's own users (hostUsers: false), which end before {1}")]
    Unmapped(u32, u32),
    // The release that began it took no notice of `hostUsers: false`.
    #[error("the pod was begun without users of its own: delete it, so that it begins anew")]
    OldSandbox,
    #[error("prepare the container's files")]
    Files(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("failed to create task: OCI runtime create failed: unable to start container process")]
    CannotCreate(#[source] Failure),
    #[error("failed to start task: OCI runtime start failed")]
    CannotStart(#[source] Failure),
}

impl LaunchError {
    /// The kubelet's reason for a container that waits because of this.
    pub fn reason(&self) -> &'static str {
        match self {
            LaunchError::Env(_)
            | LaunchError::NonRoot { .. }
            | LaunchError::Mounts(_)
            | LaunchError::NoTarget(_)
            | LaunchError::Unmapped(..) => "CreateContainerConfigError",
            _ => "CreateContainerError",
        }
    }

    /// What the pod process could not create.
    fn of_create(error: LinkError) -> LaunchError {
        match error {
            LinkError::Failed(failure) if failure.kind == FailureKind::CannotRun => LaunchError::CannotCreate(failure),
            other => LaunchError::Link(other),
        }
    }

    /// What it created and could not start.
    pub fn of_start(error: LinkError) -> LaunchError {
        match error {
            LinkError::Failed(failure) => LaunchError::CannotStart(failure),
            other => LaunchError::Link(other),
        }
    }

    /// What the API asks of users speaks of the pod; what the image lacks does not.
    fn of_user(error: UserError, launch: &Launch<'_>) -> LaunchError {
        match error {
            UserError::NoUser(_) | UserError::NoGroup(_) => LaunchError::User(error),
            UserError::Root | UserError::RootByUser | UserError::NonNumeric(_) => {
                let PodRef { namespace, name, uid } = &launch.record.pod;
                let container = launch.container.name.clone();
                LaunchError::NonRoot { error, pod: format!("{name}_{namespace}({uid})"), container }
            }
        }
    }
}

/// A container that waits to be started.
pub struct Launched {
    pub live: LiveContainer,
    pub user: User,
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
    pub async fn create(&self) -> Result<Launched, LaunchError> {
        let image_env = self.image.config.env.clone().unwrap_or_default();
        let env = environment(self.node.upstream.as_ref(), self.pod, self.container, self.facts, &image_env).await?;
        let qos = self.pod.status["qosClass"].as_str().unwrap_or("BestEffort");
        // Volumes may lie on a file server: whatever waits for one is not to hold up other pods.
        let target = self.target_namespace()?;
        let (config, user) = tokio::task::block_in_place(|| self.prepare(env, qos, target.as_ref()))?;
        let created = self.sandbox.link.call(Op::Create(self.request(qos)), &[]).await;
        let pid = match created.map_err(LaunchError::of_create)? {
            Outcome::Started(pid) => pid,
            _ => return Err(LinkError::Confused.into()),
        };
        let process: Arc<Value> = Arc::new(config["process"].clone());
        let live = LiveContainer { run: self.run.to_owned(), pid, process, tty: self.container.tty };
        Ok(Launched { live, user })
    }

    /// The PID namespace of the container that an ephemeral one looks at, held open: a process id may change hands.
    fn target_namespace(&self) -> Result<Option<fs::File>, LaunchError> {
        let Some(target) = &self.container.target_container_name else { return Ok(None) };
        if self.pod.spec.host_pid || self.pod.spec.share_process_namespace {
            return Ok(None); // it sees all of the pod's anyway
        }
        let absent = || LaunchError::NoTarget(target.clone());
        let pid = {
            let live = self.node.live();
            let pod = live.pods.get(&self.record.pod.uid).ok_or_else(absent)?;
            pod.containers.get(target).ok_or_else(absent)?.pid
        };
        let file = fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(|_| absent())?;
        let inode = |meta: fs::Metadata| std::os::unix::fs::MetadataExt::ino(&meta);
        let hosts = fs::metadata("/proc/self/ns/pid").map(inode)?;
        // No container of a pod without hostPID is in the host's: this id is another process's by now.
        if file.metadata().map(inode)? == hosts { Err(absent()) } else { Ok(Some(file)) }
    }

    /// All that lies on disk, and the configuration that goes with it.
    fn prepare(
        &self,
        mut env: Vec<(String, String)>,
        qos: &str,
        target: Option<&fs::File>,
    ) -> Result<(Value, User), LaunchError> {
        let (rootfs, writable) = (self.folder().join("rootfs"), self.layers());
        let users = self.users()?;
        match &users {
            None => mount_rootfs(self.image, &writable, &rootfs)?,
            Some(users) => mount_rootfs_for(users, self.image, &writable, &rootfs, &self.folder().join("layers"))?,
        }
        Step::MountRootfs.done();
        let accounts = Accounts::read(&rootfs)?;
        let user = resolve(&self.pod.spec.security_context, self.container, &self.image.config.user, &accounts)
            .map_err(|error| LaunchError::of_user(error, self))?;
        if !env.iter().any(|(name, _)| name == "HOME") {
            env.push(("HOME".into(), accounts.home(user.uid)));
        }
        let mut mounts = self.mounts(&env)?;
        let cwd = oci::working_folder(self.container, &self.image.config);
        self.check_length("workingDir", cwd)?;
        let cwd = Path::new(cwd);
        let maker = users.as_ref().map_or(Maker::Host, |users| Maker::PodRoot(users.first));
        self.make_places(&rootfs, &mounts, cwd, maker)?;
        if let Some(users) = &users {
            within(users, &user)?;
            self.show_mounts(users, &mut mounts)?;
        }
        let privileged = self.container.security_context.privileged;
        let devices = if privileged { oci::devices::below(Path::new("/dev"))? } else { Vec::new() };
        let config = oci::config(&oci::Inputs {
            spec: &self.pod.spec,
            container: self.container,
            image: &self.image.config,
            env,
            user: user.clone(),
            rootfs: &rootfs,
            cgroup: self.node.cgroups.container(qos, &self.record.pod.uid, self.run),
            mounts,
            pid_namespace: target.map(own_descriptor).or_else(|| self.sandbox.state.pid_namespace.clone()),
            user_namespace: self.sandbox.state.user_namespace.clone(),
            apparmor: self.node.apparmor.profile(&self.pod.spec, self.container)?,
            cgroup_v2: self.node.cgroups.pure_v2,
            devices,
        })?;
        fs::write(self.folder().join("config.json"), config.to_string())?;
        Step::WriteConfig.done();
        Ok((config, user))
    }

    /// The pod's own users, when it has any.
    fn users(&self) -> Result<Option<Users>, LaunchError> {
        if !self.pod.spec.has_own_users() {
            return Ok(None);
        }
        match (&self.sandbox.state.user_namespace, self.record.users) {
            (Some(namespace), Some(range)) => Ok(Some(Users::open(namespace, range)?)),
            _ => Err(LaunchError::OldSandbox),
        }
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

/// A path by which other processes reach what this one has open.
fn own_descriptor(file: &fs::File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// The end of what a run wrote to its termination log.
pub fn termination_message(node: &Node, uid: &Uid, run: &str) -> io::Result<Vec<u8>> {
    let own = termination_file(&small_files(node, uid, run));
    let mut read = read_end(&own, MESSAGE_BYTES);
    for earlier in earlier_termination_files(node, uid, run) {
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => read = read_end(&earlier, MESSAGE_BYTES),
            read => return read,
        }
    }
    read
}

/// A container whose user is not mapped could be nobody at all.
fn within(users: &Users, user: &User) -> Result<(), LaunchError> {
    let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    match ids.into_iter().find(|id| *id >= users.count) {
        Some(id) => Err(LaunchError::Unmapped(id, users.count)),
        None => Ok(()),
    }
}

/// Takes away what a run leaves behind, its log apart.
pub async fn remove_run(node: &Node, uid: &Uid, run: &str) -> io::Result<()> {
    earlier_termination_files(node, uid, run).iter().try_for_each(|file| disk::remove_file(file))?;
    disk::unmount_below(&run_folder(node, uid, run))?;
    disk::remove_tree_aside(run_folder(node, uid, run)).await?;
    disk::remove_tree_aside(node.pod_layers(uid).join(run)).await
}

/// The kubelet's rule: guaranteed pods last, best-effort ones first.
fn oom_score_adjustment(qos: &str, container: &Container) -> i32 {
    match qos {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = container.resources.requests.get("memory").and_then(Quantity::of).map_or(0, Quantity::value);
            let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let total = text.split_whitespace().nth(1).and_then(|kb| kb.parse::<i64>().ok()).unwrap_or(1);
            share_of_memory(request, total.saturating_mul(1024))
        }
    }
}

/// The more of the machine's bytes are asked for, the later; between both other classes. A request may be beyond all bounds.
fn share_of_memory(request: i64, total: i64) -> i32 {
    let thousandths = i128::from(request) * 1000 / i128::from(total.max(1));
    i32::try_from((1000 - thousandths).clamp(3, 999)).unwrap_or(999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_any_size_has_a_score() {
        let (gigabyte, machine) = (1 << 30, 10 << 30);
        let scores = [0, 1, gigabyte, machine, i64::MAX / 1000, i64::MAX, -1, i64::MIN];
        let expected = [999, 999, 900, 3, 3, 3, 999, 999];
        assert_eq!(scores.map(|request| share_of_memory(request, machine)), expected);
        assert_eq!((share_of_memory(1, 0), share_of_memory(i64::MAX, i64::MAX)), (3, 3));
    }
}
