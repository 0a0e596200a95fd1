//! A node under test: real images from a real registry, real pod processes, an API server and a network of our own.
#![allow(dead_code, clippy::unwrap_used, clippy::allow_attributes, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use agent::boundary::{
    Attachment, EventKind, NetworkError, PodEvent, PodNetwork, PodRef, ServiceLinks, Token, TokenRequest, Upstream,
    UpstreamError,
};
use agent::{Agent, Config, ExecRequest, LogOptions};
use api::uid::Uid;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

/// Only what never comes fails by it; a disk that others use too is slow.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// One registry with the test images for all tests of this process.
pub fn registry() -> &'static str {
    static REGISTRY: OnceLock<(images::Registry, tempfile::TempDir)> = OnceLock::new();
    let (registry, _) = REGISTRY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let registry = images::start_registry(&free_address(), None, &folder.path().join("registry")).unwrap();
        images::images(&registry.listen, None, &folder.path().join("layouts")).unwrap();
        end_with_us(registry.pid(), folder.path());
        (registry, folder)
    });
    &registry.listen
}

/// Statics are not dropped: a shell ends the registry and removes its folder when this process is gone.
fn end_with_us(registry: u32, folder: &Path) {
    let own = std::process::id();
    let script = format!("tail --pid={own} -f /dev/null; kill {registry}; rm -rf {}", folder.display());
    #[expect(clippy::zombie_processes, reason = "it outlives this process on purpose")]
    std::process::Command::new("setsid").args(["sh", "-c", &script]).spawn().unwrap();
}

pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[derive(Default)]
pub struct Api {
    pub statuses: BTreeMap<String, Value>,
    pub events: Vec<PodEvent>,
    pub config_maps: BTreeMap<String, Arc<Value>>,
    pub secrets: BTreeMap<String, Arc<Value>>,
    pub removed: BTreeSet<String>,
    /// How many tokens were given.
    pub tokens: u32,
}

/// The API server's part.
pub struct FakeUpstream {
    pub api: Mutex<Api>,
    changed: watch::Sender<u64>,
}

impl FakeUpstream {
    fn change<T>(&self, change: impl FnOnce(&mut Api) -> T) -> T {
        let out = change(&mut self.api.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        out
    }
}

#[async_trait::async_trait]
impl Upstream for FakeUpstream {
    async fn write_status(&self, pod: &PodRef, status: Value) -> Result<(), UpstreamError> {
        self.change(|api| api.statuses.insert(pod.uid.to_string(), status));
        Ok(())
    }
    async fn event(&self, event: PodEvent) {
        self.change(|api| api.events.push(event));
    }
    async fn config_map(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        let found = self.api.lock().unwrap().config_maps.get(name).cloned();
        found.ok_or_else(|| UpstreamError::NotFound(format!("configmap {name:?} not found")))
    }
    async fn secret(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        let found = self.api.lock().unwrap().secrets.get(name).cloned();
        found.ok_or_else(|| UpstreamError::NotFound(format!("secret {name:?} not found")))
    }
    async fn service_account_token(&self, request: &TokenRequest) -> Result<Token, UpstreamError> {
        self.change(|api| api.tokens += 1);
        let token = format!("token-of-{}", request.service_account);
        let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(request.expiration_seconds);
        Ok(Token { token, expires_at })
    }
    async fn runtime_handler(&self, class: &str) -> Result<String, UpstreamError> {
        Ok(class.to_owned()) // each class has a handler of its own name
    }
    async fn service_environment(&self, _: &str, _: ServiceLinks) -> Result<Vec<(String, String)>, UpstreamError> {
        Ok(vec![("KUBERNETES_SERVICE_HOST".into(), "10.96.0.1".into())])
    }
    async fn pod_removed(&self, pod: &PodRef) -> Result<(), UpstreamError> {
        self.change(|api| api.removed.insert(pod.uid.to_string()));
        Ok(())
    }
}

/// Remembers the namespaces; a test enters them by itself.
#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<BTreeMap<String, (IpAddr, PathBuf)>>,
    /// What each pod's search list was said to be, each time.
    pub searches: Mutex<BTreeMap<String, Vec<Option<Vec<String>>>>>,
}

#[async_trait::async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError> {
        let entry = (attachment.ips[0], attachment.netns.clone());
        self.attached.lock().unwrap().insert(attachment.pod.uid.to_string(), entry);
        let mut searches = self.searches.lock().unwrap();
        searches.entry(attachment.pod.uid.to_string()).or_default().push(attachment.searches.clone());
        Ok(Vec::new())
    }
    async fn detach(&self, pod_uid: &Uid, _: &[IpAddr]) -> Result<(), NetworkError> {
        self.attached.lock().unwrap().remove(pod_uid.as_str());
        Ok(())
    }
}

fn config(folder: &Path, cgroup: String, registries: Option<PathBuf>) -> Config {
    Config {
        data_dir: folder.join("data"),
        run_dir: folder.join("run"),
        node_name: "node".into(),
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        pod_cgroup: format!("{cgroup}/pods"),
        cgroup_root: cgroup,
        cluster_dns: Some("10.96.0.10".parse().unwrap()),
        cluster_domain: "cluster.local".into(),
        registries,
        pod_max_pids: Some(200),
        allowed_unsafe_sysctls: vec!["kernel.msg*".into()],
    }
}

pub struct TestNode {
    pub folder: tempfile::TempDir,
    pub config: Config,
    pub upstream: Arc<FakeUpstream>,
    pub network: Arc<FakeNetwork>,
    agent: Option<Agent>,
    /// The data folder is a file system of its own.
    own_disk: bool,
}

impl TestNode {
    pub async fn start(name: &str) -> TestNode {
        TestNode::with_registry(name, registry()).await
    }

    pub async fn with_registry(name: &str, registry: &str) -> TestNode {
        let mut node = TestNode::unstarted(name, registry);
        node.start_agent().await;
        node
    }

    /// With a small disk of its own for its data.
    pub async fn on_disk(name: &str, size: &str) -> TestNode {
        let mut node = TestNode::unstarted(name, registry());
        std::fs::create_dir(&node.config.data_dir).unwrap();
        let options = format!("size={size},mode=700");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "amphipod-test"])
            .arg(&node.config.data_dir)
            .status();
        assert!(mounted.unwrap().success());
        node.own_disk = true;
        node.start_agent().await;
        node
    }

    fn unstarted(name: &str, registry: &str) -> TestNode {
        let _ = tracing_subscriber::fmt().with_env_filter("warn,agent=debug").with_test_writer().try_init();
        let folder = tempfile::tempdir().unwrap();
        let registries = folder.path().join("registries.yaml");
        std::fs::write(&registries, format!("registries:\n  docker.io:\n    endpoints: ['http://{registry}']\n"))
            .unwrap();
        let cgroup = format!("amphipod-test-{}-{name}", std::process::id());
        let config = config(folder.path(), cgroup, Some(registries));
        let upstream = Arc::new(FakeUpstream { api: Mutex::default(), changed: watch::channel(0).0 });
        TestNode { folder, config, upstream, network: Arc::default(), agent: None, own_disk: false }
    }

    /// In a folder (and with cgroups) that another process made; that one also cleans up.
    pub async fn in_folder(settings: &Value) -> std::mem::ManuallyDrop<TestNode> {
        let text = |field: &str| settings[field].as_str().unwrap().to_owned();
        let path = PathBuf::from(text("folder"));
        let mut node = std::mem::ManuallyDrop::new(TestNode::unstarted("other", &text("registry")));
        let registries = node.config.registries.clone();
        node.config = config(&path, text("cgroup"), registries);
        node.start_agent().await;
        // The folder of its own holds only the registries file, which has been read.
        std::fs::remove_dir_all(node.folder.path()).unwrap();
        node
    }

    pub async fn start_agent(&mut self) {
        let started = Agent::start(self.config.clone(), self.upstream.clone(), self.network.clone()).await;
        self.agent = Some(started.unwrap());
    }

    /// As a SIGKILL would: the agent is gone from one moment to the next, the pods stay.
    pub async fn kill_agent(&mut self) {
        self.agent.take().unwrap().shut_down().await;
        // What the next one says is what counts.
        self.upstream.api.lock().unwrap().statuses.clear();
    }

    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    /// Waits until the API server's view satisfies `test`.
    pub async fn wait<T>(&self, what: &str, mut test: impl FnMut(&Api) -> Option<T>) -> T {
        let mut changes = self.upstream.changed.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = test(&self.upstream.api.lock().unwrap()) {
                return found;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let api = self.upstream.api.lock().unwrap();
                panic!("{what}: not in time\n{:#?}\n{:#?}", api.statuses, api.events);
            }
        }
    }

    pub async fn wait_status(&self, uid: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, |api| api.statuses.get(uid).filter(|status| test(status)).cloned()).await
    }

    pub async fn wait_ready(&self, uid: &str) -> Value {
        self.wait_status(uid, "ready", |status| condition(status, "Ready") == "True").await
    }

    pub async fn wait_removed(&self, uid: &str) {
        self.wait("removed", |api| api.removed.contains(uid).then_some(())).await;
        // The record goes after the object.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.agent().pods().iter().any(|pod| pod.uid.as_str() == uid) {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs a command in a container: exit code, standard output, standard error.
    pub async fn exec(&self, uid: &str, container: &str, command: &[&str]) -> (i32, String, String) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecRequest { command, stdout: true, stderr: true, ..ExecRequest::default() };
        let session = self.agent().exec(&Uid::new(uid), container, &request).await.unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        session.stdout.unwrap().read_to_string(&mut out).await.unwrap();
        session.stderr.unwrap().read_to_string(&mut err).await.unwrap();
        (session.exit.unwrap().await.unwrap(), out, err)
    }

    pub async fn logs(&self, uid: &str, container: &str, options: LogOptions) -> String {
        let stream = self.agent().logs(&Uid::new(uid), container, options).unwrap();
        let chunks: Vec<_> = stream.map(Result::unwrap).collect().await;
        String::from_utf8(chunks.concat()).unwrap()
    }

    /// An HTTP request from inside the pod's network namespace.
    pub fn get_inside(&self, uid: &str) -> String {
        let netns = self.network.attached.lock().unwrap()[uid].1.clone();
        let output = std::process::Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            .args(["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1/"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    pub fn delete(&self, pod: &Value, grace: i64) {
        let mut pod = pod.clone();
        pod["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.agent().sync(Arc::new(pod));
    }

    /// Everything that may be left of pods on this machine.
    pub fn leftovers(&self) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let folder = self.folder.path().to_str().unwrap();
        let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(folder)).map(str::to_owned).collect();
        for name in ["pods", "volumes", "containers", "logs"] {
            left.extend(names(&self.config.data_dir.join(name)));
        }
        left.extend(names(&self.config.run_dir.join("pods")));
        for mount in names(Path::new("/sys/fs/cgroup")) {
            left.extend(pod_cgroups(&Path::new(&mount).join(&self.config.cgroup_root)));
        }
        left
    }
}

fn names(folder: &Path) -> Vec<String> {
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
    items.map(|item| item.path().display().to_string()).collect()
}

fn pod_cgroups(folder: &Path) -> Vec<String> {
    let children = names(folder).into_iter().filter(|path| Path::new(path).is_dir());
    let (pods, others): (Vec<_>, Vec<_>) = children.partition(|path| path.contains("/pod") && !path.ends_with("/pods"));
    others.iter().flat_map(|path| pod_cgroups(Path::new(path))).chain(pods).collect()
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let (config, network) = (self.config.clone(), self.network.clone());
        let agent = self.agent.take();
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Some(agent) = agent {
                    agent.shut_down().await;
                }
                agent::remove_everything(config, network).await
            })
        });
        let cleaned = cleaned.join().unwrap();
        if self.own_disk {
            let unmounted = std::process::Command::new("umount").arg("-l").arg(&self.config.data_dir).status();
            assert!(std::thread::panicking() || unmounted.unwrap().success());
        }
        if !std::thread::panicking() {
            cleaned.unwrap();
            assert_eq!(self.leftovers(), Vec::<String>::new());
        }
    }
}

pub fn condition(status: &Value, kind: &str) -> String {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

pub fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A pod with one container; `container` is laid over it.
pub fn pod(name: &str, container: Value) -> Value {
    let mut whole = json!({"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent"});
    whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid(), "generation": 1},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "containers": [whole], "terminationGracePeriodSeconds": 5},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

pub fn uid_of(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap()
}

pub fn warnings(api: &Api) -> Vec<&'static str> {
    api.events.iter().filter(|event| event.kind == EventKind::Warning).map(|event| event.reason).collect()
}
