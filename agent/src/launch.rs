//! One run of a container: its root file system, mounts, configuration; create and start through the pod process.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pod::protocol::{CreateContainer, LogTarget, Op, Outcome};
use serde_json::Value;

use crate::disk;
use crate::env::{EnvError, Facts, environment, expand};
use crate::files::{Resolver, hosts, resolv_conf};
use crate::image::{Image, MountError, mount_rootfs};
use crate::link::LinkError;
use crate::model::{Container, Pod, VolumeMount};
use crate::node::{LiveContainer, Node};
use crate::oci::user::{Accounts, UserError, resolve};
use crate::oci::{self, Mount, Propagation, SpecError};
use crate::record::Record;
use crate::sandbox::Sandbox;
use crate::step::Step;

const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: usize = 5;
const TERMINATION_LOG: &str = "/dev/termination-log";

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What the pod asks for cannot be given yet, or ever.
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("volumeMount {0:?} names no volume of the pod")]
    NoVolume(String),
    #[error("subPath {0:?} leads out of its volume")]
    SubPath(String),
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
            LaunchError::Env(_) | LaunchError::User(_) | LaunchError::NoVolume(_) | LaunchError::SubPath(_) => {
                "CreateContainerConfigError"
            }
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
    pub volumes: &'a HashMap<String, PathBuf>,
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
        let (rootfs, writable) = (self.folder().join("rootfs"), self.layers());
        mount_rootfs(self.image, &writable, &rootfs)?;
        Step::MountRootfs.done();
        let accounts = Accounts::read(&rootfs);
        let user = resolve(&self.pod.spec.security_context, self.container, &self.image.config.user, &accounts)?;
        let mounts = self.mounts(&env)?;
        let qos = self.pod.status["qosClass"].as_str().unwrap_or("BestEffort");
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
        let pid = match self.sandbox.link.call(Op::Create(self.request(qos)), &[]).await? {
            Outcome::Started(pid) => pid,
            _ => return Err(LinkError::Confused.into()),
        };
        let process: Arc<Value> = Arc::new(config["process"].clone());
        Ok(LiveContainer { run: self.run.to_owned(), pid, process, tty: self.container.tty })
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

    fn mounts(&self, env: &[(String, String)]) -> Result<Vec<Mount>, LaunchError> {
        let mut mounts = Vec::new();
        for mount in &self.container.volume_mounts {
            mounts.push(self.volume_mount(mount, env)?);
        }
        let taken: Vec<String> = mounts.iter().map(|mount| mount.destination.clone()).collect();
        let message = self.container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
        let message_file = termination_file(self.node, &self.record.pod.uid, self.run);
        fs::write(&message_file, "")?;
        fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut own = vec![(message, message_file), ("/dev/shm", self.shared_memory()?)];
        for (destination, name, text) in self.etc_files() {
            let path = self.node.pod_run(&self.record.pod.uid).join(name);
            fs::write(&path, text)?;
            own.push((destination, path));
        }
        for (destination, source) in own {
            if !taken.iter().any(|taken| taken == destination) {
                mounts.push(bind(source, destination, false));
            }
        }
        Ok(mounts)
    }

    fn etc_files(&self) -> [(&'static str, &'static str, String); 3] {
        let config = &self.node.config;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default(); // a node without one has no entries
        let host_resolv = read("/etc/resolv.conf");
        let resolver =
            Resolver { cluster_dns: config.cluster_dns, cluster_domain: &config.cluster_domain, host: &host_resolv };
        let hostname = crate::env::hostname(self.pod);
        let ip = self.record.ip;
        let hosts = hosts(self.pod, hostname.as_deref(), ip, &config.cluster_domain, &read("/etc/hosts"));
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
        if disk::mounts_below(&path)?.is_empty() {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            disk::mount("shm", &path, "tmpfs", flags, "mode=1777,size=65536k")?;
        }
        Ok(path)
    }

    fn volume_mount(&self, mount: &VolumeMount, env: &[(String, String)]) -> Result<Mount, LaunchError> {
        let volume = self.volumes.get(&mount.name).ok_or_else(|| LaunchError::NoVolume(mount.name.clone()))?;
        let variable = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) => Some(expand(expression, &variable)),
            (path, None) => path.clone(),
        };
        let source = match sub_path.filter(|path| !path.is_empty()) {
            Some(path) => sub_path_source(volume, &path)?,
            None => volume.clone(),
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        Ok(Mount { source, destination: mount.mount_path.clone(), read_only: mount.read_only, propagation })
    }
}

/// A path below a volume; made a folder when it is missing. Links must not lead out.
fn sub_path_source(volume: &Path, path: &str) -> Result<PathBuf, LaunchError> {
    let bad = || LaunchError::SubPath(path.to_owned());
    if Path::new(path).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(bad());
    }
    let (volume, wanted) = (fs::canonicalize(volume)?, volume.join(path));
    if !wanted.exists() {
        fs::create_dir_all(&wanted)?;
    }
    let real = fs::canonicalize(&wanted)?;
    if real.starts_with(&volume) { Ok(real) } else { Err(bad()) }
}

fn bind(source: PathBuf, destination: &str, read_only: bool) -> Mount {
    Mount { source, destination: destination.to_owned(), read_only, propagation: Propagation::Private }
}

pub fn run_folder(node: &Node, uid: &str, run: &str) -> PathBuf {
    node.pod_run(uid).join("containers").join(run)
}

pub fn termination_file(node: &Node, uid: &str, run: &str) -> PathBuf {
    run_folder(node, uid, run).join("termination-message")
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
