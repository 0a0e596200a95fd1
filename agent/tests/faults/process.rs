//! The agent as a process of its own, with the real network: it takes commands as lines of JSON and prints what it would
//! tell its API server.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use agent::boundary::{
    Attachment, EventKind, NetworkError, PodEvent, PodNetwork, PodRef, ServiceLinks, Token, TokenRequest, Upstream,
    UpstreamError,
};
use agent::{Agent, Config, ExecRequest};
use api::uid::Uid;
use network::Network;
use proxy_userspace::{Families, Proxy, SocketHooks};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

/// Names the settings of the process; without it the test below does nothing.
pub const ROLE: &str = "AMPHIPOD_TEST_AGENT";
pub const TEST: &str = "process::the_agent_process";

#[test]
#[ignore = "run by the other tests as a process of its own"]
fn the_agent_process() {
    let Ok(text) = std::env::var(ROLE) else { return };
    let settings: Value = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(&settings));
}

async fn serve(settings: &Value) {
    let _ = tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).try_init();
    let (folder, cgroup) = (settings["folder"].as_str().unwrap(), settings["cgroup"].as_str().unwrap());
    let network = Arc::new(RealNetwork::start(Path::new(folder)).await);
    let agent = Agent::start(config(Path::new(folder), cgroup), Arc::new(Teller), network).await.unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if sender.send(serde_json::from_str::<Value>(&line.unwrap()).unwrap()).is_err() {
                return;
            }
        }
    });
    tell(json!({"started": true}));
    while let Some(command) = receiver.recv().await {
        obey(&agent, &command).await;
    }
}

async fn obey(agent: &Agent, command: &Value) {
    if command["sync"].is_object() {
        agent.sync(Arc::new(command["sync"].clone()));
    } else if let Some(pods) = command["resync"].as_array() {
        agent.resync(pods.iter().cloned().map(Arc::new).collect());
    } else if let Some(uid) = command["exec"].as_str() {
        let outcome = exec(agent, uid, command["script"].as_str().unwrap()).await;
        tell(json!({"executed": outcome}));
    } else if let Some(uid) = command["settle"].as_str() {
        // The record goes after the object.
        while agent.pods().iter().any(|pod| pod.uid.as_str() == uid) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        tell(json!({"settled": uid}));
    }
}

/// What the script printed; an error is told as such.
async fn exec(agent: &Agent, uid: &str, script: &str) -> Value {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, stdout: true, ..ExecRequest::default() };
    let session = match agent.exec(&Uid::new(uid), "main", &request).await {
        Ok(session) => session,
        Err(error) => return json!({"failed": causes::chain(&error)}),
    };
    let mut out = String::new();
    session.stdout.unwrap().read_to_string(&mut out).await.unwrap();
    match session.exit.unwrap().await {
        Ok(code) => json!({"code": code, "out": out}),
        Err(_) => json!({"failed": "the pod process is gone"}),
    }
}

pub fn config(folder: &Path, cgroup: &str) -> Config {
    Config {
        data_dir: folder.join("data"),
        run_dir: folder.join("run"),
        node_name: "node".into(),
        node_ips: vec![world_ip()],
        // Five addresses: one that leaks is soon missed.
        pod_cidrs: vec!["10.244.0.0/29".parse().unwrap()],
        pod_cgroup: format!("{cgroup}/pods"),
        cgroup_root: cgroup.to_owned(),
        cluster_dns: None,
        cluster_domain: "cluster.local".into(),
        registries: None,
        pod_max_pids: None,
        allowed_unsafe_sysctls: Vec::new(),
    }
}

fn world_ip() -> IpAddr {
    super::world::NODE_IP.parse().unwrap()
}

fn tell(what: Value) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // The test runner may have left a line open.
    writeln!(out, "\n{what}").unwrap();
    out.flush().unwrap();
}

/// The API server is the test: it reads lines.
struct Teller;

#[async_trait::async_trait]
impl Upstream for Teller {
    async fn write_status(&self, pod: &PodRef, status: Value) -> Result<(), UpstreamError> {
        tell(json!({"status": status, "uid": pod.uid}));
        Ok(())
    }
    async fn event(&self, event: PodEvent) {
        let warning = event.kind == EventKind::Warning;
        tell(json!({"event": event.reason, "uid": event.pod.uid, "message": event.message, "warning": warning}));
    }
    async fn config_map(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        Err(UpstreamError::NotFound(format!("configmap {name:?} not found")))
    }
    async fn secret(&self, _: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError> {
        Err(UpstreamError::NotFound(format!("secret {name:?} not found")))
    }
    async fn service_account_token(&self, _: &TokenRequest) -> Result<Token, UpstreamError> {
        Err(UpstreamError::Refused("no tokens here".into()))
    }
    async fn runtime_handler(&self, class: &str) -> Result<String, UpstreamError> {
        Err(UpstreamError::NotFound(format!("runtimeclass.node.k8s.io {class:?} not found")))
    }
    async fn service_environment(&self, _: &str, _: ServiceLinks) -> Result<Vec<(String, String)>, UpstreamError> {
        Ok(Vec::new())
    }
    async fn pod_removed(&self, pod: &PodRef) -> Result<(), UpstreamError> {
        tell(json!({"removed": pod.uid}));
        Ok(())
    }
}

struct RealNetwork(Network);

impl RealNetwork {
    async fn start(folder: &Path) -> RealNetwork {
        let proxy = proxy_userspace::Config {
            bpf_root: folder.join("bpf"),
            cgroup_root: super::world::cgroup2(),
            socket_hooks: SocketHooks::Absent,
            attachment: proxy_userspace::Attachment::of_this_kernel(),
            families: Families::V4,
        };
        let proxy = Arc::new(Proxy::start(&proxy).unwrap());
        let IpAddr::V4(node_ip) = world_ip() else { panic!("an IPv4 address") };
        let v4 = network::Ranges {
            node_ip,
            pod_cidr: "10.244.0.0/29".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
        };
        let config = network::Config {
            v4: Some(v4),
            v6: None,
            node_ports: network::PortRange { first: 30_000, last: 32_767 },
            snat_ports: network::Config::DEFAULT_SNAT_PORTS,
            state_file: folder.join("network.json"),
        };
        RealNetwork(Network::start(&config, proxy, tokio::sync::watch::channel(Vec::new()).1).await.unwrap())
    }
}

#[async_trait::async_trait]
impl PodNetwork for RealNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError> {
        let (uid, netns) = (attachment.pod.uid.to_string(), attachment.netns.clone());
        let addresses = attachment.ips.iter().copied().collect();
        let attached = self.0.attach(&network::PodNetwork { uid, addresses, netns, host_ports: Vec::new() }).await;
        attached.map(|_| Vec::new()).map_err(|error| NetworkError(causes::chain(&error)))
    }
    async fn detach(&self, uid: &Uid, _: &[IpAddr]) -> Result<(), NetworkError> {
        self.0.detach(uid.as_str()).await.map_err(|error| NetworkError(causes::chain(&error)))
    }
}
