//! A node in a network namespace of its own, its agent as a process that can die, and an API server that is this test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agent::Step;
use agent::image::{ImageStore, PullPolicy, Registries};
use serde_json::{Value, json};

use crate::inventory;
use crate::process::{ROLE, TEST, config};
use crate::support::{self, condition, uid_of};

pub const NODE_IP: &str = "192.0.2.1";
const PATIENCE: Duration = Duration::from_secs(30);

/// The steps that a finished pod's end takes besides its own.
pub fn finishing() -> impl Iterator<Item = Step> {
    let first = Step::ALL.iter().position(|step| *step == Step::DetachNetwork).unwrap();
    let last = Step::ALL.iter().position(|step| *step == Step::RemoveRunFolder).unwrap();
    Step::ALL[first..=last].iter().copied()
}

pub fn cgroup2() -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.exists() { hybrid.into() } else { "/sys/fs/cgroup".into() }
}

pub fn doomed(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(2);
    pod
}

/// What the agents have told.
#[derive(Default)]
struct Told {
    statuses: BTreeMap<String, Value>,
    events: BTreeMap<String, BTreeSet<String>>,
    removed: BTreeSet<String>,
    executed: Option<Value>,
    settled: BTreeSet<String>,
    started: bool,
}

/// Before the agent, which reaches no registry from its network namespace.
fn pull_image(folder: &Path) {
    let registries = folder.join("registries.yaml");
    let registry = support::registry();
    fs::write(&registries, format!("registries:\n  docker.io:\n    endpoints: ['http://{registry}']\n")).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default(); // another test of this process was quicker
    agent::claim::data_dir(&folder.join("data")).unwrap();
    fs::write(folder.join("data/agent.lock"), "").unwrap();
    let store = ImageStore::open(&folder.join("data/images"), Registries::load(&registries).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.ensure("busybox", PullPolicy::IfNotPresent, &[])).unwrap();
}

/// A network namespace with an uplink, held by a process that ends with its standard input.
fn new_namespace() -> Child {
    let mut command = Command::new("unshare");
    let holder = command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let netns = format!("/proc/{}/ns/net", holder.id());
    let (own, deadline) = (fs::read_link("/proc/self/ns/net").unwrap(), Instant::now() + PATIENCE);
    while fs::read_link(&netns).is_ok_and(|netns| netns == own) {
        assert!(Instant::now() < deadline, "unshare --net does nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    for line in [
        "link set lo up",
        "link add uplink type veth peer name beyond",
        "address add 192.0.2.1/24 dev uplink",
        "link set uplink up",
    ] {
        let net = format!("--net={netns}");
        let status = Command::new("nsenter").arg(net).arg("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}");
    }
    holder
}

pub struct World {
    folder: tempfile::TempDir,
    cgroup: String,
    /// Holds the network namespace until its standard input closes: when this test ends, however it ends.
    holder: Child,
    agent: Option<Agent>,
    told: Told,
    before: BTreeSet<String>,
}

struct Agent {
    process: Child,
    lines: Receiver<Value>,
}

impl World {
    pub fn new(name: &str) -> World {
        let folder = tempfile::tempdir().unwrap();
        pull_image(folder.path());
        fs::create_dir(folder.path().join("armed")).unwrap();
        let cgroup = format!("amphipod-fault-{}-{name}", std::process::id());
        let holder = new_namespace();
        let mut world = World { folder, cgroup, holder, agent: None, told: Told::default(), before: BTreeSet::new() };
        world.start_agent(&[]);
        // The folders that stay are here before anything is counted.
        let first = support::pod("first", json!({"command": ["sleep", "1000"]}));
        world.sync(&first);
        world.wait_ready(uid_of(&first));
        world.delete(&first);
        world.wait_removed(uid_of(&first));
        world.before = world.inventory();
        world
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    fn net(&self) -> String {
        format!("--net={}", self.netns().display())
    }

    fn inventory(&self) -> BTreeSet<String> {
        inventory::take(self.folder.path(), &self.cgroup, &self.netns())
    }

    // ---- the agent ----

    /// Starts the agent and tells it all pods there are.
    pub fn start_agent(&mut self, pods: &[&Value]) {
        let settings = json!({"folder": self.folder.path(), "cgroup": self.cgroup});
        let mut process = Command::new("nsenter")
            .arg(self.net())
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", TEST, "--nocapture"])
            .env(ROLE, settings.to_string())
            .env("AMPHIPOD_FAULTS", self.folder.path().join("armed"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        // What the next one says is what counts.
        self.told.statuses.clear();
        self.told.started = false;
        self.agent = Some(Agent { process, lines });
        self.wait("the agent is up", |told| told.started.then_some(()));
        self.command(&json!({"resync": pods}));
    }

    fn command(&mut self, command: &Value) {
        let input = self.agent.as_mut().unwrap().process.stdin.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
    }

    /// Takes what the agent tells until `test` is satisfied.
    fn wait<T>(&mut self, what: &str, mut test: impl FnMut(&Told) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = test(&self.told) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.agent.as_ref().unwrap().lines.recv_timeout(left) {
                Ok(line) => self.note(&line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{what}: not in time\n{:#?}\n{:#?}", self.told.statuses, self.told.events)
                }
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: the agent process has ended"),
            }
        }
    }

    fn note(&mut self, line: &Value) {
        let uid = line["uid"].as_str().unwrap_or_default().to_owned();
        if let Some(reason) = line["event"].as_str() {
            self.told.events.entry(uid).or_default().insert(reason.to_owned());
        } else if line["status"].is_object() {
            self.told.statuses.insert(uid, line["status"].clone());
        } else if let Some(uid) = line["removed"].as_str() {
            self.told.removed.insert(uid.to_owned());
        } else if let Some(uid) = line["settled"].as_str() {
            self.told.settled.insert(uid.to_owned());
        } else if line["executed"].is_object() {
            self.told.executed = Some(line["executed"].clone());
        } else if line["started"] == true {
            self.told.started = true;
        }
    }

    /// What a reboot leaves: the data folder. Processes, cgroups, mounts, pins, namespaces and what lay in memory are gone,
    /// and the records are of another boot.
    pub fn reboot(&mut self) {
        self.end_agent();
        let uids: Vec<String> = inventory::names(&self.folder.path().join("data/pods"));
        let cgroups = inventory::cgroup_folders(&self.cgroup);
        let deadline = Instant::now() + PATIENCE;
        while cgroups.iter().rev().filter(|cgroup| cgroup.exists()).any(|cgroup| !end_cgroup(cgroup)) {
            assert!(Instant::now() < deadline, "processes do not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points
            .filter(|point| point.starts_with(self.folder.path().to_str().unwrap()))
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            assert!(Command::new("umount").args(["--lazy", point]).status().unwrap().success(), "{point}");
        }
        fs::remove_dir_all(self.folder.path().join("run")).unwrap();
        for uid in uids {
            let path = self.folder.path().join("data/pods").join(uid);
            let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            record["boot"] = json!("00000000-0000-0000-0000-000000000000");
            fs::write(&path, record.to_string()).unwrap();
        }
        let mut old = std::mem::replace(&mut self.holder, new_namespace());
        drop(old.stdin.take());
        old.wait().unwrap();
    }

    /// SIGKILL.
    pub fn end_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.process.kill().unwrap();
        agent.process.wait().unwrap();
        for line in agent.lines.iter() {
            self.note(&line);
        }
    }

    // ---- faults ----

    fn armed(&self, step: &str) -> PathBuf {
        self.folder.path().join("armed").join(step)
    }

    /// Who reaches this step next dies there.
    pub fn arm(&self, step: &str) {
        fs::write(self.armed(step), "").unwrap();
    }

    /// Waits for the agent to die of the armed step.
    pub fn agent_dies(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut agent = self.agent.take().unwrap();
        let ended = loop {
            match agent.process.try_wait().unwrap() {
                Some(ended) => break ended,
                None if Instant::now() > deadline => {
                    agent.process.kill().unwrap();
                    panic!("{:?} never came", fs::read_dir(self.folder.path().join("armed")).unwrap().next());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        assert_eq!(ended.signal(), Some(9), "it died by its own hand");
        for line in agent.lines.iter() {
            self.note(&line);
        }
    }

    pub fn wait_disarmed(&mut self, step: &str) {
        let (path, deadline) = (self.armed(step), Instant::now() + PATIENCE);
        while path.exists() {
            assert!(Instant::now() < deadline, "{step} never came: {:#?}", self.told.events);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn kill_container(&self, uid: &str, run: &str) {
        self.kill(uid, &|_, groups| groups.contains(&format!("/{run}\n")));
    }

    pub fn kill_pod_init(&self, uid: &str) {
        self.kill(uid, &|status, groups| !groups.contains("/main-") && ns_pids(status).ends_with(&[1]));
    }

    pub fn kill_pod_process(&self, uid: &str) {
        self.kill(uid, &|status, groups| !groups.contains("/main-") && ns_pids(status).len() == 1);
    }

    /// Kills the one process of a pod that the test describes by its status and cgroups.
    fn kill(&self, uid: &str, is_meant: &dyn Fn(&str, &str) -> bool) {
        let mut found = Vec::new();
        for item in fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| fs::read_to_string(item.path().join(name)).unwrap_or_default();
            let groups = read("cgroup");
            if groups.contains(&format!("pod{uid}")) && is_meant(&read("status"), &groups) {
                found.push(item.file_name().into_string().unwrap());
            }
        }
        found.sort_by_key(|pid| pid.parse::<u32>().unwrap());
        let pid = found.first().unwrap_or_else(|| panic!("no such process in {uid}"));
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }

    // ---- pods ----

    pub fn sync(&mut self, pod: &Value) {
        self.command(&json!({"sync": pod}));
    }

    pub fn delete(&mut self, pod: &Value) {
        self.command(&json!({"sync": doomed(pod)}));
    }

    pub fn wait_status(&mut self, uid: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, |told| told.statuses.get(uid).filter(|status| test(status)).cloned())
    }

    pub fn wait_ready(&mut self, uid: &str) -> Value {
        self.wait_status(uid, "ready", |status| condition(status, "Ready") == "True")
    }

    pub fn wait_restarted(&mut self, uid: &str) -> Value {
        self.wait_status(uid, "ready again", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
    }

    pub fn wait_event(&mut self, uid: &str, reason: &str) {
        self.wait(reason, |told| told.events.get(uid).is_some_and(|events| events.contains(reason)).then_some(()));
    }

    pub fn removed(&self, uid: &str) -> bool {
        self.told.removed.contains(uid)
    }

    pub fn wait_removed(&mut self, uid: &str) {
        self.wait("removed", |told| told.removed.contains(uid).then_some(()));
        self.command(&json!({"settle": uid}));
        self.wait("forgotten", |told| told.settled.contains(uid).then_some(()));
    }

    fn run(&mut self, uid: &str, script: &str) -> Value {
        self.command(&json!({"exec": uid, "script": script}));
        let outcome = self.wait("a command's end", |told| told.executed.clone());
        self.told.executed = None;
        outcome
    }

    pub fn exec(&mut self, uid: &str, script: &str) -> String {
        let outcome = self.run(uid, script);
        assert_eq!(outcome["code"], 0, "{outcome}");
        outcome["out"].as_str().unwrap().to_owned()
    }

    pub fn exec_fails(&mut self, uid: &str, script: &str) {
        let outcome = self.run(uid, script);
        assert!(outcome["failed"].is_string(), "{outcome}");
    }

    pub fn volume(&self, uid: &str, name: &str) -> PathBuf {
        self.folder.path().join("data/volumes").join(uid).join(name)
    }

    /// Deletes a pod; then the node holds what it held before.
    pub fn takes_away(&mut self, pod: &Value, what: &str) {
        self.delete(pod);
        self.wait_removed(uid_of(pod));
        self.holds_nothing_more(what);
    }

    pub fn holds_nothing_more(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let now = self.inventory();
            let agent = self.agent.as_ref().map(|agent| format!("process {} ", agent.process.id()));
            let differs = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
                let lines = one.difference(other);
                lines
                    .filter(|line| !line.contains(TEST) && !agent.as_ref().is_some_and(|a| line.starts_with(a)))
                    .cloned()
                    .collect()
            };
            let (more, less) = (differs(&now, &self.before), differs(&self.before, &now));
            if more.is_empty() && less.is_empty() {
                return;
            }
            // The kernel frees some things a moment after their last user.
            assert!(Instant::now() < deadline, "{what}: left over {more:#?}, gone {less:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// True once the cgroup is empty and gone.
fn end_cgroup(folder: &Path) -> bool {
    for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status(); // gone already is as good
    }
    fs::remove_dir(folder).is_ok()
}

fn ns_pids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.process.kill(); // ended already is as good
            agent.process.wait().unwrap();
        }
        let config = config(self.folder.path(), &self.cgroup);
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(agent::remove_everything(config, Arc::new(support::FakeNetwork::default())))
        });
        let cleaned = cleaned.join().unwrap();
        proxy_userspace::Proxy::unload(&self.folder.path().join("bpf")).unwrap();
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
        if !std::thread::panicking() {
            cleaned.unwrap();
        }
    }
}
