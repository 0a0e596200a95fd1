//! This machine as a node: its pods, its network, its service path and DNS, and what the API knows of it.
//!
//! Entry point: [`start`]. What the node sees of the API is its [`outlook`]; the parts do not know each other and meet here:
//! [`pods`] tells the agent its pods, [`upstream`] answers what the agent asks ([`content`] what pods mount), [`services`]
//! feeds the service path and DNS, `peers` the network, [`registration`] makes the Node object and [`heartbeat`] keeps it. All of them are tasks
//! of the set that `start` is given.
//!
//! *Architecture invariant:* it knows a `client::Client`, not where the server is, and asks for nothing that a node may not
//! see.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::Agent;
use agent::config::PodCidr;
use anyhow::{Context, Result};
use client::Client;
use client::events::{Recorder, Reference};
use ipnetwork::{IpNetwork, Ipv4Network};
use network::{Network, PortRange};
use proxy_userspace::{Attachment, ExternalIps, Families, Proxy, SocketHooks};
use tokio::task::JoinSet;

use outlook::Outlook;
use status::{Facts, Readiness, Rhythm};

mod agent_network;
pub mod content;
pub mod heartbeat;
pub mod outlook;
mod peers;
pub mod pods;
pub mod registration;
pub mod services;
pub mod status;
pub mod upstream;

/// In the run folder: the way to whoever keeps the sockets of DNS, and their address.
const DNS_SOCKETS: &str = "dns.sock";
const DNS_ADDRESS: &str = "dns.address";

/// Validated settings of a node.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub name: String,
    /// The fingerprint of the key by which the cluster knows this machine; see [`registration::KEY`].
    pub key: Option<String>,
    pub ip: Ipv4Addr,
    /// All pods' addresses.
    pub pod_cidr: Ipv4Network,
    pub service_cidr: Ipv4Network,
    pub node_ports: PortRange,
    pub cluster_dns: Ipv4Addr,
    pub domain: String,
    /// The cgroup2 folder at which socket hooks attach.
    pub cgroup_root: PathBuf,
    /// Below each hierarchy's mount: the parent of the pods' cgroups.
    pub pod_cgroup: String,
    pub bpf_root: PathBuf,
    pub registries: Option<PathBuf>,
    pub external_ips: ExternalIps,
    pub pod_max_pids: Option<u64>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub names: Names,
}

/// Where names outside the cluster are asked for.
#[derive(Debug, Clone)]
pub struct Names {
    /// [default: those of the machine's resolv.conf]
    pub upstreams: Option<Vec<SocketAddr>>,
    pub stubs: Vec<dns::Stub>,
    pub log: dns::QueryLog,
    pub autopath: dns::Autopath,
    /// The command that becomes the keeper of the sockets; without it, they end with the process.
    pub keeper: Option<(PathBuf, Vec<String>)>,
}

/// A started node; its tasks run in the set it was given.
pub struct Running {
    pub agent: Arc<Agent>,
    pub proxy: Arc<Proxy>,
    /// Dropping the server stops DNS.
    pub dns: Arc<dns::Server>,
    pub content: Arc<content::Content>,
}

/// Starts every part. What an earlier process left running is taken up.
///
/// # Errors
/// The first part that does not start, in words. What was started by then is in `tasks`; pods of an earlier process run
/// on.
pub async fn start(settings: &Settings, client: Client, tasks: &mut JoinSet<()>) -> Result<Running> {
    let recorder = Recorder::new(client.clone(), "kubelet", &settings.name);
    let about = node_reference(&settings.name);
    recorder.normal(&about, "Starting", "Starting kubelet.").await;
    let (outlook, changed) = Outlook::open(&client, &settings.name, tasks);
    let facts = status::facts(settings)?;
    let (proxy, node_cidr) = tokio::try_join!(load(settings), place(settings, &client, &outlook, &facts))?;
    let peers = peers::follow(&outlook.views, &settings.name).await;
    let network = Network::start(&network_config(settings, node_cidr), proxy.clone(), peers).await?;
    let dns = Arc::new(start_dns(settings, node_cidr)?);
    let complaints = services::Complaints::start(recorder.clone(), tasks);
    let feed = services::Feed::new(settings, proxy.clone(), dns.clone(), complaints, outlook.own.clone());
    let settled = feed.start(&outlook.views, tasks);
    let upstream = upstream::ApiUpstream::new(client.clone(), recorder.clone(), outlook.clone(), tasks);
    let pod_network = Arc::new(agent_network::AgentNetwork::new(network, dns.clone()));
    let agent = Arc::new(Agent::start(agent_config(settings, node_cidr), Arc::new(upstream), pod_network).await?);
    let (own, content) = (outlook.own.clone(), outlook.content.clone());
    let (node, runner) = (settings.name.clone(), agent.clone());
    tasks.spawn(pods::follow(pods::Follower { client: client.clone(), node, runner, outlook, changed, settled }));
    let (lease, ready) = tokio::join!(
        heartbeat::renew_once(&settings.name, &own, &client),
        registration::report(&settings.name, &client, &facts, Readiness::Ready)
    );
    lease.context("cannot write this node's lease")?;
    ready.with_context(|| format!("cannot write the status of node {}", settings.name))?;
    recorder.normal(&about, "NodeReady", &format!("Node {} status is now: NodeReady", settings.name)).await;
    tasks.spawn(heartbeat::renew(settings.name.clone(), client.clone(), own.clone(), heartbeat::RENEW));
    let (name, settings) = (settings.name.clone(), settings.clone());
    tasks.spawn(heartbeat::keep(name, client, own, Rhythm::USUAL, facts, move || status::facts(&settings)));
    // Its end is the node's: pods without names are better off where somebody notices.
    let names = dns.clone();
    tasks.spawn(async move { names.broken().await });
    Ok(Running { agent, proxy, dns, content })
}

/// The programs of the service path. Loading them takes a while, in which the API is asked.
async fn load(settings: &Settings) -> Result<Arc<Proxy>> {
    let config = proxy_userspace::Config {
        bpf_root: settings.bpf_root.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        socket_hooks: SocketHooks::Attached,
        attachment: Attachment::of_this_kernel(),
        families: Families::V4,
    };
    let loaded = tokio::task::spawn_blocking(move || Proxy::start(&config)).await;
    Ok(Arc::new(loaded.context("loading the service path failed")??))
}

/// This node's place in the cluster: its object, and its part of the pods' range.
async fn place(settings: &Settings, client: &Client, outlook: &Outlook, facts: &Facts) -> Result<Ipv4Network> {
    registration::register(&settings.name, settings.key.as_deref(), client, facts).await?;
    registration::range(&settings.name, &mut outlook.own.clone()).await
}

/// As a kubelet names its node in events: by its name alone.
fn node_reference(name: &str) -> Reference {
    let meta = api::view::Meta { name: name.into(), uid: api::uid::Uid::new(name), ..api::view::Meta::default() };
    Reference::new("v1", "Node", &meta)
}

fn start_dns(settings: &Settings, node_cidr: Ipv4Network) -> Result<dns::Server> {
    let listening = dns_listening(settings).context("DNS cannot listen")?;
    let own = [SocketAddr::from((settings.cluster_dns, 53)), listening.address()?];
    let upstreams = match &settings.names.upstreams {
        Some(servers) => servers.clone(),
        None => dns::upstreams_of(&resolv_conf(), &own),
    };
    let config = dns::Config {
        domain: settings.domain.clone(),
        node: settings.name.clone(),
        pods: vec![settings.pod_cidr.into()],
        servers: vec![settings.cluster_dns.into()],
        upstreams,
        stubs: settings.names.stubs.clone(),
        clients: dns_clients(settings.ip, node_cidr)?,
        log: settings.names.log,
        autopath: settings.names.autopath,
    };
    dns::Server::start(config, listening).context("cannot start DNS")
}

fn dns_listening(settings: &Settings) -> Result<dns::Listening> {
    let ip = IpAddr::from(settings.ip);
    let open = || dns::Sockets::open(ip);
    let listening = match settings.names.keeper.clone() {
        Some((program, arguments)) => {
            let path = settings.run_dir.join(DNS_SOCKETS);
            dns::Listening::keep(ip, open, dns::Keeper { path, program, arguments })?
        }
        None => open()?.into(),
    };
    let file = settings.run_dir.join(DNS_ADDRESS);
    std::fs::write(&file, listening.address()?.to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(listening)
}

/// Where the node's DNS listens, for `amphipod dns`.
///
/// # Errors
/// When no node has noted there where it listens, or the note is no address.
pub fn dns_address(run_dir: &Path) -> Result<SocketAddr> {
    let file = run_dir.join(DNS_ADDRESS);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    text.parse().with_context(|| format!("{} holds no address", file.display()))
}

/// For `reset`: the sockets of DNS are closed, and nothing in the run folder tells of them.
///
/// # Errors
/// When the keeper does not let go of the sockets, or the file cannot be removed; may be repeated. What is gone already
/// is no failure.
pub fn forget_dns(run_dir: &Path) -> Result<()> {
    dns::let_go(&run_dir.join(DNS_SOCKETS)).context("the keeper of DNS' sockets does not let go")?;
    match std::fs::remove_file(run_dir.join(DNS_ADDRESS)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove DNS' address"),
        _ => Ok(()),
    }
}

/// A machine without one has no name servers, and names outside the cluster fail.
fn resolv_conf() -> String {
    const PATH: &str = "/etc/resolv.conf";
    std::fs::read_to_string(PATH).unwrap_or_else(|error| {
        tracing::warn!(%error, "{PATH} cannot be read: names outside the cluster need --dns-upstream");
        String::new()
    })
}

/// This node and its pods: other nodes have name servers of their own.
fn dns_clients(node: Ipv4Addr, pods: Ipv4Network) -> Result<Vec<IpNetwork>> {
    Ok(vec![Ipv4Network::from(node).into(), pods.into(), Ipv4Network::new(Ipv4Addr::LOCALHOST, 8)?.into()])
}

fn network_config(settings: &Settings, node_cidr: Ipv4Network) -> network::Config {
    let v4 = network::Ranges {
        node_ip: settings.ip,
        pod_cidr: node_cidr,
        cluster_cidr: settings.pod_cidr,
        service_cidr: settings.service_cidr,
    };
    network::Config {
        v4: Some(v4),
        v6: None,
        node_ports: settings.node_ports,
        snat_ports: network::Config::DEFAULT_SNAT_PORTS,
        state_file: state_file(&settings.data_dir),
    }
}

/// Where the network keeps the settings it found, for `reset`.
pub fn state_file(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("network.json")
}

fn agent_config(settings: &Settings, node_cidr: Ipv4Network) -> agent::config::Config {
    agent::config::Config {
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        node_name: settings.name.clone(),
        node_ip: settings.ip.into(),
        pod_cidr: PodCidr { base: node_cidr.network(), prefix: node_cidr.prefix() },
        cgroup_root: settings.pod_cgroup.clone(),
        pod_cgroup: settings.pod_cgroup.clone(),
        cluster_dns: Some(settings.cluster_dns.into()),
        cluster_domain: settings.domain.clone(),
        registries: settings.registries.clone(),
        pod_max_pids: settings.pod_max_pids,
        allowed_unsafe_sysctls: settings.allowed_unsafe_sysctls.clone(),
    }
}
