//! Starting a pod process, finding a living one, and attaching its network.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::sysctl::dotted;
use api::uid::Uid;
use api::view::ContainerPort;
use pod::protocol::{Setup, State};
use tokio::sync::mpsc;

use crate::boundary::{Attachment, HostPort, NetworkError};
use crate::disk;
use crate::env::hostname;
use crate::files::{Resolver, cluster_searches};
use crate::model::{Pod, PodSpec};
use crate::node::Node;
use crate::process_link::{LinkError, LinkEvent, ProcessLink};
use crate::record::Record;
use crate::step::Step;

/// A pod process starts in milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A living pod process.
pub struct Sandbox {
    pub link: Arc<ProcessLink>,
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
}

/// What there is of a pod's process.
#[derive(Default)]
pub enum Presence {
    /// Nothing: none was begun, or all of the last one has been taken away.
    #[default]
    Absent,
    /// One was begun and does not answer (any more): what is left of it goes before the next.
    Remains,
    /// It lives; its network is not attached, or by an earlier agent.
    Unlinked(Sandbox),
    /// It lives, with its network.
    Alive(Sandbox),
}

impl Presence {
    pub fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Presence::Absent | Presence::Remains => None,
            Presence::Unlinked(sandbox) | Presence::Alive(sandbox) => Some(sandbox),
        }
    }

    pub fn sandbox_mut(&mut self) -> Option<&mut Sandbox> {
        match self {
            Presence::Absent | Presence::Remains => None,
            Presence::Unlinked(sandbox) | Presence::Alive(sandbox) => Some(sandbox),
        }
    }

    /// The pod process is gone, or given up.
    pub fn lose(&mut self) {
        if self.sandbox().is_some() {
            *self = Presence::Remains;
        }
    }
}

/// Starts a new pod process.
pub async fn spawn(node: &Node, pod: &Pod, record: &Record) -> Result<Sandbox, SandboxError> {
    let uid = &record.pod.uid;
    let folder = node.pod_run(uid);
    let setup_file = write_setup(node, pod, record).map_err(SandboxError::Folders)?;
    Step::WriteSetup.done();
    let log = File::options().create(true).append(true).open(folder.join("pod.log")).map_err(SandboxError::Folders)?;
    let setup = File::open(setup_file).map_err(SandboxError::Folders)?;
    let run = tokio::process::Command::new(node.executable.path())
        .arg0("amphipod-pod")
        .arg(format!("{}/{}", record.pod.namespace, record.pod.name))
        .env_clear()
        .envs(pod::faults::environment())
        .stdin(setup)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(SandboxError::Spawn)?
        .wait_with_output();
    let output = tokio::time::timeout(START_TIMEOUT, run).await;
    let output = output.map_err(|_| SandboxError::NotReady("it says nothing".into()))?.map_err(SandboxError::Spawn)?;
    Step::SpawnProcess.done();
    match String::from_utf8_lossy(&output.stdout).trim() {
        "ready" => {}
        "" => return Err(SandboxError::NotReady("it ended before it was ready".into())),
        said => return Err(SandboxError::NotReady(said.to_owned())),
    }
    let sandbox = connect(node, uid).await?;
    Step::Connect.done();
    Ok(sandbox)
}

fn write_setup(node: &Node, pod: &Pod, record: &Record) -> io::Result<PathBuf> {
    let (folder, setup) = (node.pod_run(&record.pod.uid), setup(node, pod, record));
    match record.users {
        None => disk::create_folder(&folder, 0o700)?,
        // The pod's own root passes through on its way to the containers' root file systems.
        Some(range) => {
            disk::create_folder(&folder, 0o710)?;
            std::os::unix::fs::chown(&folder, None, Some(range.first))?;
        }
    }
    fs::create_dir_all(&setup.state_dir)?;
    let file = folder.join("setup.json");
    fs::write(&file, serde_json::to_vec(&setup)?)?;
    Ok(file)
}

fn setup(node: &Node, pod: &Pod, record: &Record) -> Setup {
    let uid = &record.pod.uid;
    let folder = node.pod_run(uid);
    Setup {
        uid: uid.to_string(),
        socket: folder.join("socket"),
        lock: folder.join("lock"),
        state_dir: folder.join("state"),
        cgroup: node.cgroups.pod_process(uid),
        hostname: hostname(pod),
        host_network: pod.spec.host_network,
        host_ipc: pod.spec.host_ipc,
        share_pid: pod.spec.share_process_namespace,
        seccomp_cache: Some(node.config.run_dir.join("seccomp")),
        users: record.users,
        sysctls: sysctls(&pod.spec),
    }
}

/// What the pod asks for, and in a network of its own what any user may there: low ports, and echo requests.
fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let own_network = !spec.host_network;
    // Groups beyond those of the pod's own user namespace are no valid range there.
    let own_users = spec.has_own_users();
    let defaults = [
        ("net.ipv4.ip_unprivileged_port_start", "0", own_network),
        ("net.ipv4.ping_group_range", "0 2147483647", own_network && !own_users),
    ];
    let defaults = defaults.iter().filter(|(.., wanted)| *wanted).map(|(name, value, _)| (*name, *value));
    let asked = spec.security_context.sysctls.iter().map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone()));
    defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(asked).collect()
}

async fn connect(node: &Node, uid: &Uid) -> Result<Sandbox, LinkError> {
    let (sender, events) = mpsc::unbounded_channel();
    let (link, state) = ProcessLink::connect(&node.pod_run(uid).join("socket"), sender).await?;
    Ok(Sandbox { link: Arc::new(link), state, events })
}

/// Attaches the network, or repairs what an earlier agent attached. Gives what of the host ports the pod has to do without.
pub async fn attach(node: &Node, pod: &Pod, record: &Record, sandbox: &Sandbox) -> Result<Vec<String>, NetworkError> {
    if record.ips.is_empty() {
        return Ok(Vec::new());
    }
    let netns = PathBuf::from(format!("/proc/{}/ns/net", sandbox.state.pid));
    let host_ports = host_ports(&pod.spec);
    let searches = searches(node, pod, record);
    let attachment = Attachment { pod: record.pod.clone(), ips: record.ips.clone(), netns, host_ports, searches };
    let refused = node.network.attach(&attachment).await?;
    Step::AttachNetwork.done();
    Ok(refused)
}

/// Unknown in a sandbox of an earlier version, whose containers may differ.
fn searches(node: &Node, pod: &Pod, record: &Record) -> Option<Vec<String>> {
    let resolver = Resolver::of(&node.config, record.host_resolv.as_deref()?);
    cluster_searches(&pod.spec, &record.pod.namespace, &resolver)
}

/// Of containers that run all the time; what init containers say is for readers only.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().filter(|container| container.is_sidecar());
    let ports = sidecars.chain(&spec.containers).flat_map(|container| &container.ports);
    let host_port = |port: &ContainerPort| HostPort {
        host_ip: port.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.clone(),
    };
    ports.filter(|port| port.host_port != 0).map(host_port).collect()
}

/// What an earlier agent left of the pod's process.
pub async fn find(node: &Node, record: &Record) -> Result<Presence, LinkError> {
    if record.sandboxes == 0 {
        return Ok(Presence::Absent);
    }
    if !lives(&node.pod_run(&record.pod.uid).join("lock")) {
        return Ok(Presence::Remains);
    }
    connect(node, &record.pod.uid).await.map(Presence::Unlinked)
}

/// Liveness is a lock: a pid may belong to another process by now.
fn lives(lock: &std::path::Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) // when it was free, closing the file frees it again
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn host_ports_are_those_of_containers_that_run_all_the_time() {
        let port = |number: u16| json!({"containerPort": 80, "hostPort": number, "protocol": "TCP"});
        let of_one = json!({"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"});
        let every =
            |ip: &str, number: u16| json!({"containerPort": 81, "hostPort": number, "protocol": "TCP", "hostIP": ip});
        let spec = json!({
            "initContainers": [
                {"name": "init", "ports": [port(1)]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [port(2)]},
            ],
            "containers": [
                {"name": "a", "ports": [of_one, {"containerPort": 90, "protocol": "TCP"}]},
                {"name": "b", "ports": [every("0.0.0.0", 8), every("::", 9)]},
            ],
        });
        let found = host_ports(&serde_json::from_value(spec).unwrap());
        let expected = |host_ip: Option<&str>, host_port, container_port, protocol: &str| HostPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port,
            protocol: protocol.into(),
        };
        let expected = [
            expected(None, 2, 80, "TCP"),
            expected(Some("192.0.2.1"), 5353, 53, "UDP"),
            expected(None, 8, 81, "TCP"),
            expected(None, 9, 81, "TCP"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn any_user_may_serve_low_ports_and_ping_unless_the_pod_says_otherwise() {
        let of = |spec: serde_json::Value| sysctls(&serde_json::from_value(spec).unwrap());
        let own = of(json!({}));
        assert_eq!(own["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(own["net.ipv4.ping_group_range"], "0 2147483647");
        let asked = [json!({"name": "net/ipv4/ip_unprivileged_port_start", "value": "1024"})];
        let asked = of(json!({"securityContext": {"sysctls": asked}}));
        assert_eq!(asked["net.ipv4.ip_unprivileged_port_start"], "1024");
        assert!(of(json!({"hostNetwork": true})).is_empty());
        assert!(!of(json!({"hostUsers": false})).contains_key("net.ipv4.ping_group_range"));
    }
}
