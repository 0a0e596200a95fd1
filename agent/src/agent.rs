//! The agent's handle: takes pods, starts a worker per UID, finds again what an earlier agent left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::sysctl::{Allowed, BadPattern};
use api::uid::Uid;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

use crate::addresses::Addresses;
use crate::apparmor::AppArmor;
use crate::boundary::{PodNetwork, PodRef, Upstream};
use crate::cgroups::{self, CgroupError, Cgroups};
use crate::claim::{self, ClaimError};
use crate::config::Config;
use crate::dial::{self, DialError};
use crate::disk;
use crate::embed::PodExecutable;
use crate::exec::{self, AttachRequest, ExecError, ExecRequest, ExecSession};
use crate::guard;
use crate::image::{ImageError, ImageStore, MountError, Registries, RegistryError, check_upper};
use crate::logs::{self, LogError, LogOptions};
use crate::node::Node;
use crate::record::{Record, Records};
use crate::step::{Part, Step};
use crate::teardown::{TeardownError, tear_down};
use crate::users::{Ranges, UsersError};
use crate::worker::{Command, Worker};

/// Everything about the pods of one node. [`Agent::shut_down`] leaves the pods running; a later agent adopts them.
pub struct Agent {
    node: Arc<Node>,
    workers: Arc<Mutex<Workers>>,
}

/// Another with every boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A worker that fails at once must not fail in a hot loop.
const REPLACE_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Default)]
struct Workers {
    running: HashMap<Uid, Running>,
    /// Pods that wait for a namesake with another UID to be taken away: by UID.
    queued: BTreeMap<Uid, Arc<Value>>,
    /// Keeps the disk's reserve.
    guard: Option<JoinHandle<()>>,
}

struct Running {
    pod: PodRef,
    commands: mpsc::UnboundedSender<Command>,
    worker: AbortHandle,
    task: JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("prepare {path}")]
    Folder { path: String, source: io::Error },
    #[error(transparent)]
    Sysctls(#[from] BadPattern),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Registries(#[from] RegistryError),
    #[error(transparent)]
    Images(#[from] ImageError),
    #[error(transparent)]
    Upper(#[from] MountError),
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error("the pod process's executable")]
    Executable(#[source] io::Error),
    #[error("open the node's folders")]
    Ended(#[source] io::Error),
    #[error("another agent uses {path}: one data folder serves one agent")]
    Locked { path: String },
}

impl Agent {
    /// Opens the node's folders, finds the records of pods and takes them over again. Pods that should not be here any
    /// more are told by the first [`Agent::resync`].
    ///
    /// # Errors
    /// [`StartError`] names the folder, file or setting that stands in the way. Pods of an earlier agent run on as they
    /// were, and a new start may be tried.
    pub async fn start(
        config: Config,
        upstream: Arc<dyn Upstream>,
        network: Arc<dyn PodNetwork>,
    ) -> Result<Agent, StartError> {
        // The client for registries needs a provider; the binary may have chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let lock = lock_data_dir(&config).await?;
        let (node, records) = open_node(config, upstream, network, lock).await?;
        let agent = Agent { node: Arc::new(node), workers: Arc::default() };
        remove_strangers(&agent.node, &records).await;
        let begun = records.iter().filter(|record| record.sandboxes > 0).map(|record| record.pod.uid.clone());
        agent.node.live().adopting = begun.collect();
        for record in records {
            agent.spawn(record);
        }
        agent.watch_disk();
        Ok(agent)
    }

    /// A pod bound to this node, as it is now.
    pub fn sync(&self, object: Arc<Value>) {
        let Some(pod) = pod_ref(&object) else {
            tracing::warn!(uid = ?Uid::of(&object), "a pod without a name, or whose UID is no file name, is not taken");
            return;
        };
        let mut workers = self.lock();
        if let Some(running) = workers.running.get(&pod.uid) {
            let _ = running.commands.send(Command::Update(object)); // a worker that has ended is replaced below
            return;
        }
        if is_terminal(&object) && object["metadata"]["deletionTimestamp"].is_null() {
            return; // finished before this agent knew it: nothing to run
        }
        let namesake = |running: &Running| (&running.pod.namespace, &running.pod.name) == (&pod.namespace, &pod.name);
        if workers.running.values().any(namesake) {
            workers.queued.insert(pod.uid.clone(), object);
            return;
        }
        drop(workers);
        self.begin(pod, object);
    }

    /// The pod's object is gone.
    pub fn gone(&self, uid: &Uid) {
        let mut workers = self.lock();
        workers.queued.remove(uid);
        if let Some(running) = workers.running.get(uid) {
            let _ = running.commands.send(Command::Gone); // ended: gone already
        }
    }

    /// All pods bound to this node: whatever else is here has been deleted meanwhile.
    pub fn resync(&self, objects: Vec<Arc<Value>>) {
        let wanted: BTreeSet<Uid> = objects.iter().filter_map(|object| pod_ref(object)).map(|pod| pod.uid).collect();
        let known: Vec<Uid> = {
            let workers = self.lock();
            workers.running.keys().chain(workers.queued.keys()).cloned().collect()
        };
        known.iter().filter(|uid| !wanted.contains(*uid)).for_each(|uid| self.gone(uid));
        objects.into_iter().for_each(|object| self.sync(object));
    }

    /// A config map or secret that the pod uses changed: it looks again.
    pub fn content_changed(&self, uid: &Uid) {
        if let Some(running) = self.lock().running.get(uid) {
            let _ = running.commands.send(Command::ContentChanged); // a worker that has ended needs no content
        }
    }

    /// The log of a container's present or previous run.
    ///
    /// # Errors
    /// [`LogError::NotStarted`] and [`LogError::NoPrevious`] when there is no such run, [`LogError::Io`] when its files
    /// cannot be listed. What fails while reading is an item of the stream.
    pub fn logs(
        &self,
        uid: &Uid,
        container: &str,
        options: LogOptions,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>, LogError> {
        logs::read(&self.node, uid, container, options)
    }

    /// Runs one more command in a container.
    ///
    /// # Errors
    /// [`ExecError::NotRunning`] when no such container runs, [`ExecError::CannotRun`] when it cannot run the command;
    /// else [`ExecError::Streams`] or, by the pod process, [`ExecError::Link`].
    pub async fn exec(&self, uid: &Uid, container: &str, request: &ExecRequest) -> Result<ExecSession, ExecError> {
        exec::exec(&self.node, uid, container, request).await
    }

    /// Joins the streams of a container's own process.
    ///
    /// # Errors
    /// Those of [`Agent::exec`] but [`ExecError::CannotRun`].
    pub async fn attach(&self, uid: &Uid, container: &str, request: AttachRequest) -> Result<ExecSession, ExecError> {
        exec::attach(&self.node, uid, container, request).await
    }

    /// Connects to a port of the pod's own loopback address.
    ///
    /// # Errors
    /// [`DialError::Pod`] when the pod does not run, [`DialError::Enter`] when its network cannot be entered,
    /// [`DialError::Refused`] when nobody answers there on IPv4 nor on IPv6, within 10 s each.
    pub async fn dial(&self, uid: &Uid, port: u16) -> Result<tokio::net::TcpStream, DialError> {
        dial::dial(&self.node, uid, port).await
    }

    /// UIDs of the pods that are here, also those on their way out.
    pub fn pods(&self) -> Vec<PodRef> {
        self.lock().running.values().map(|running| running.pod.clone()).collect()
    }

    fn begin(&self, pod: PodRef, object: Arc<Value>) {
        let record = Record {
            pod,
            object,
            ips: Vec::new(),
            users: None,
            started_at: Timestamp::now(),
            sandboxes: 0,
            boot: String::new(),
            host_resolv: None,
            containers: BTreeMap::new(),
            finished: None,
            stopping: None,
        };
        if let Err(error) = self.node.records.write(&record) {
            tracing::error!(uid = %record.pod.uid, %error, "pod not taken: its record cannot be written");
            return;
        }
        Step::SaveRecord.done();
        self.spawn(record);
    }

    fn spawn(&self, record: Record) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let pod = record.pod.clone();
        let worker = Worker::new(self.node.clone(), record, receiver, sender.clone());
        let agent = Agent { node: self.node.clone(), workers: self.workers.clone() };
        let mut workers = self.lock();
        let running = tokio::spawn(worker.run());
        let worker = running.abort_handle();
        let task = tokio::spawn(agent.supervise(pod.uid.clone(), running));
        workers.running.insert(pod.uid.clone(), Running { pod, commands: sender, worker, task });
    }

    fn watch_disk(&self) {
        let workers = self.workers.clone();
        let running = move || {
            let workers = workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.running.values().map(|running| running.commands.clone()).collect()
        };
        self.lock().guard = Some(tokio::spawn(guard::watch(self.node.clone(), running)));
    }

    /// Runs a worker to its end; one that panics is a defect, told loudly, and replaced from the pod's record.
    async fn supervise(self, uid: Uid, mut worker: JoinHandle<()>) {
        loop {
            match worker.await {
                Ok(()) => return self.ended(&uid),
                Err(error) if error.is_cancelled() => return,
                Err(error) => tracing::error!(%uid, %error, "pod worker failed, starting another"),
            }
            tokio::time::sleep(REPLACE_AFTER).await;
            let record = match self.node.records.read(&uid) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%uid, %error, "pod given up: its record cannot be read");
                    return self.ended(&uid);
                }
            };
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut workers = self.lock();
            let Some(running) = workers.running.get_mut(&uid) else { return };
            worker = tokio::spawn(Worker::new(self.node.clone(), record, receiver, sender.clone()).run());
            (running.commands, running.worker) = (sender, worker.abort_handle());
        }
    }

    /// A pod has been taken away: its successor of the same name may begin.
    fn ended(&self, uid: &Uid) {
        let mut workers = self.lock();
        let Some(ended) = workers.running.remove(uid) else { return };
        let next = workers.queued.iter().find_map(|(next, object)| {
            let pod = pod_ref(object)?;
            ((&pod.namespace, &pod.name) == (&ended.pod.namespace, &ended.pod.name)).then(|| next.clone())
        });
        let object = next.and_then(|next| workers.queued.remove(&next));
        drop(workers);
        if let Some(object) = object {
            self.sync(object);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the workers and leaves the pods running.
    pub async fn shut_down(self) {
        let (running, guard): (Vec<Running>, _) = {
            let mut workers = self.lock();
            (workers.running.drain().map(|(_, running)| running).collect(), workers.guard.take())
        };
        if let Some(guard) = guard {
            guard.abort();
            if let Err(error) = guard.await
                && !error.is_cancelled()
            {
                tracing::error!(%error, "the guard of the disk failed");
            }
        }
        for Running { pod, worker, task, .. } in running {
            worker.abort();
            if let Err(error) = task.await {
                tracing::error!(uid = %pod.uid, %error, "pod supervisor failed");
            }
        }
    }
}

/// All that is kept of a pod here lies in folders named by its UID: none is taken that would lead elsewhere.
fn pod_ref(object: &Value) -> Option<PodRef> {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    let uid = Some(Uid::of(object)).filter(Uid::is_file_name)?;
    Some(PodRef { namespace: text("namespace")?, name: text("name")?, uid })
}

fn is_terminal(object: &Value) -> bool {
    matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// What an earlier agent was removing when it ended is gone on with here, and may be much.
async fn open_node(
    config: Config,
    upstream: Arc<dyn Upstream>,
    network: Arc<dyn PodNetwork>,
    lock: fs::File,
) -> Result<(Node, Vec<Record>), StartError> {
    let opened = tokio::task::spawn_blocking(move || {
        let node = node_at(config, upstream, network, lock)?;
        let records = load(&node)?;
        Ok((node, records))
    });
    opened.await.map_err(|ended| StartError::Ended(io::Error::other(ended)))?
}

fn node_at(
    config: Config,
    upstream: Arc<dyn Upstream>,
    network: Arc<dyn PodNetwork>,
    lock: fs::File,
) -> Result<Node, StartError> {
    claim::run_dir(&config.run_dir)?;
    check_upper(&config.data_dir)?;
    let registries = config.registries.as_deref().map(Registries::load).transpose()?.unwrap_or_default();
    let folder = |source| StartError::Folder { path: config.data_dir.display().to_string(), source };
    let boot = |source| StartError::Folder { path: BOOT_ID.to_owned(), source };
    let records = Records::open(config.data_dir.join("pods")).map_err(folder)?;
    let known = records.load().map_err(folder)?;
    let taken = known.iter().flat_map(|record| record.ips.iter().copied()).collect();
    Ok(Node {
        _lock: lock,
        images: ImageStore::open(&config.data_dir.join("images"), registries)?,
        records,
        executable: PodExecutable::new().map_err(StartError::Executable)?,
        cgroups: Cgroups::discover(&config.cgroup_root, &config.pod_cgroup)?,
        addresses: Addresses::new(&config.pod_cidrs, &taken),
        users: Ranges::open(known.iter().filter_map(|record| record.users))?,
        apparmor: AppArmor::prepare(),
        live: Mutex::default(),
        changes: tokio::sync::watch::channel(0).0,
        boot: fs::read_to_string(BOOT_ID).map_err(boot)?.trim().to_owned(),
        allowed_sysctls: Allowed::parse(&config.allowed_unsafe_sysctls)?,
        upstream,
        network,
        config,
    })
}

/// Held as long as the agent lives. One that is just ending is waited for.
async fn lock_data_dir(config: &Config) -> Result<fs::File, StartError> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let folder = |source| StartError::Folder { path: config.data_dir.display().to_string(), source };
    claim::data_dir(&config.data_dir)?;
    let path = config.data_dir.join("agent.lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path).map_err(folder)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(source)) => return Err(folder(source)),
            Err(fs::TryLockError::WouldBlock) if tokio::time::Instant::now() > deadline => {
                return Err(StartError::Locked { path: config.data_dir.display().to_string() });
            }
            Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}

/// The records; after a reboot the run folder is emptied first, since nothing in it lives.
fn load(node: &Node) -> Result<Vec<Record>, StartError> {
    let failed = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |source| StartError::Folder { path, source }
    };
    let mark = node.config.run_dir.join("boot_id");
    let same_boot = fs::read_to_string(&mark).is_ok_and(|marked| marked.trim() == node.boot);
    if !same_boot {
        let pods = node.config.run_dir.join("pods");
        disk::unmount_below(&pods).map_err(failed(&pods))?;
        disk::remove_tree(&pods).map_err(failed(&pods))?;
        fs::write(&mark, &node.boot).map_err(failed(&mark))?;
    }
    node.records.load().map_err(failed(&node.config.data_dir))
}

/// The pod of a folder.
fn named(folder: fs::DirEntry) -> Option<Uid> {
    folder.file_name().into_string().ok().map(Uid::new)
}

/// Takes away what exists here but is in no record. The addresses of such a pod are unknown, but its link ended with its
/// network namespace.
async fn remove_strangers(node: &Node, records: &[Record]) {
    let known: BTreeSet<&Uid> = records.iter().map(|record| &record.pod.uid).collect();
    let folders = [node.config.run_dir.join("pods"), node.config.data_dir.join("containers")];
    let folders = folders.into_iter().chain(["volumes", "logs"].map(|name| node.config.data_dir.join(name)));
    let names = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let found = names.filter_map(named).chain(node.cgroups.known_pods());
    let strangers: BTreeSet<Uid> = found.filter(|uid| !known.contains(uid)).collect();
    for uid in strangers {
        if let Err(error) = tear_down(node, Part::Whole, &uid, &[]).await {
            tracing::warn!(%uid, error = %causes::chain(&error), "leftovers of an unknown pod");
        }
    }
}

/// Removes everything an agent with this configuration ever made: for `amphipod reset`. No agent may be running.
///
/// # Errors
/// [`StartError::Locked`] when an agent runs; else the first step that fails, which leaves the later ones undone: to be
/// repeated then.
pub async fn remove_everything(config: Config, network: Arc<dyn PodNetwork>) -> Result<(), ResetError> {
    let lock = lock_data_dir(&config).await?;
    let (node, records) = open_node(config, Arc::new(Nobody), network, lock).await?;
    let ips: HashMap<Uid, Vec<std::net::IpAddr>> =
        records.into_iter().map(|record| (record.pod.uid, record.ips)).collect();
    let mut uids: BTreeSet<Uid> = ips.keys().cloned().collect();
    uids.extend(node.cgroups.known_pods());
    for folder in [node.config.run_dir.join("pods"), node.config.data_dir.join("volumes")] {
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        uids.extend(names.filter_map(named));
    }
    for uid in uids {
        tear_down(&node, Part::Whole, &uid, ips.get(&uid).map_or(&[], Vec::as_slice)).await?;
    }
    for root in node.cgroups.own_roots() {
        cgroups::remove(&root).map_err(ResetError::Files)?;
    }
    let data = ["pods", "volumes", "containers", "logs", "images"].map(|name| node.config.data_dir.join(name));
    for folder in data.iter().chain([&node.config.run_dir.join("pods")]) {
        disk::remove_tree_aside(folder.clone()).await.map_err(ResetError::Files)?;
    }
    disk::remove_file(&node.config.run_dir.join("boot_id")).map_err(ResetError::Files)
}

#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error(transparent)]
    Open(#[from] StartError),
    #[error("take a pod away")]
    Pod(#[from] TeardownError),
    #[error("remove the agent's folders")]
    Files(#[source] io::Error),
}

/// Reset talks to no API server.
struct Nobody;

#[async_trait::async_trait]
impl Upstream for Nobody {
    async fn write_status(&self, pod: &PodRef, _: Value) -> Result<(), crate::boundary::UpstreamError> {
        Err(crate::boundary::UpstreamError::NotFound(pod.name.clone()))
    }
    async fn event(&self, _: crate::boundary::PodEvent) {}
    async fn config_map(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, crate::boundary::UpstreamError> {
        Err(crate::boundary::UpstreamError::NotFound(name.to_owned()))
    }
    async fn secret(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, crate::boundary::UpstreamError> {
        Err(crate::boundary::UpstreamError::NotFound(name.to_owned()))
    }
    async fn service_account_token(
        &self,
        request: &crate::boundary::TokenRequest,
    ) -> Result<crate::boundary::Token, crate::boundary::UpstreamError> {
        Err(crate::boundary::UpstreamError::NotFound(request.service_account.clone()))
    }
    async fn runtime_handler(&self, class: &str) -> Result<String, crate::boundary::UpstreamError> {
        Err(crate::boundary::UpstreamError::NotFound(class.to_owned()))
    }
    async fn service_environment(
        &self,
        _: &str,
        _: crate::boundary::ServiceLinks,
    ) -> Result<Vec<(String, String)>, crate::boundary::UpstreamError> {
        Ok(Vec::new())
    }
    async fn pod_removed(&self, _: &PodRef) -> Result<(), crate::boundary::UpstreamError> {
        Ok(())
    }
}
