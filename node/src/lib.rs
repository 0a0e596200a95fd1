//! This machine as a node: its pods, its network, its service path and DNS, and what the API knows of it.
//!
//! Entry point: [`start`]. What the node sees of the API is its [`outlook`]; the parts do not know each other and meet here:
//! [`pods`] tells the agent its pods, [`upstream`] answers what the agent asks ([`content`] what pods mount), [`services`]
//! feeds the service path and DNS, `peers` the network, [`registration`] makes the Node object and [`heartbeat`] keeps it. All of them are tasks
//! of the set that `start` is given.
//!
//! *Architecture invariant:* it knows a `client::Client`, not where the server is, and asks for nothing that a node may not
//! see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::Agent;
use anyhow::{Context, Result};
use client::Client;
use client::events::{Recorder, Reference};
use ipnetwork::IpNetwork;
use network::{Addresses, Network, PortRange};
use proxy_userspace::{Attachment, ExternalIps, Families, Proxy, SocketHooks};
use tokio::task::JoinSet;

use outlook::Outlook;
use share::Share;
use status::{Facts, Readiness, Rhythm};

mod agent_network;
pub mod content;
pub mod heartbeat;
pub mod outlook;
mod peers;
pub mod pods;
pub mod registration;
pub mod services;
mod share;
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
    /// This machine's, one of each of the cluster's families that it has, in the cluster's order: the first is the one by which it
    /// is known.
    pub ips: Vec<IpAddr>,
    /// All pods' addresses, and all Services': one range, or one of each family.
    pub pod_cidrs: Vec<IpNetwork>,
    pub service_cidrs: Vec<IpNetwork>,
    pub node_ports: PortRange,
    /// Of the first family.
    pub cluster_dns: IpAddr,
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
    let (proxy, shares) = begin(settings, &client, &outlook, &facts).await?;
    let peers = peers::follow(&outlook.views, &settings.name).await;
    let network = Network::start(&network_config(settings, &shares), proxy.clone(), peers).await?;
    let dns = Arc::new(start_dns(settings, &shares)?);
    let complaints = services::Complaints::start(recorder.clone(), tasks);
    let feed = services::Feed::new(settings, proxy.clone(), dns.clone(), complaints, outlook.own.clone());
    let settled = feed.start(&outlook.views, tasks);
    let upstream = upstream::ApiUpstream::new(client.clone(), recorder.clone(), outlook.clone(), tasks);
    let pod_network = Arc::new(agent_network::AgentNetwork::new(network, dns.clone()));
    let agent = Arc::new(Agent::start(agent_config(settings, &shares), Arc::new(upstream), pod_network).await?);
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

/// The programs of the service path, and the node's place in the cluster.
async fn begin(
    settings: &Settings,
    client: &Client,
    outlook: &Outlook,
    facts: &Facts,
) -> Result<(Arc<Proxy>, Vec<Share>)> {
    let place = place(settings, client, outlook, facts);
    match &*settings.ips {
        // Loading takes a while, in which the API is asked.
        [ip] => tokio::try_join!(load(settings, Addresses::from(*ip).families()), place),
        // A node may be older than the cluster's second family, and have none of its addresses for pods.
        _ => {
            let shares = place.await?;
            let ips: Addresses = shares.iter().map(|share| share.ip).collect();
            Ok((load(settings, ips.families()).await?, shares))
        }
    }
}

async fn load(settings: &Settings, families: Families) -> Result<Arc<Proxy>> {
    let config = proxy_userspace::Config {
        bpf_root: settings.bpf_root.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        socket_hooks: SocketHooks::Attached,
        attachment: Attachment::of_this_kernel(),
        families,
    };
    let loaded = tokio::task::spawn_blocking(move || Proxy::start(&config)).await;
    Ok(Arc::new(loaded.context("loading the service path failed")??))
}

/// This node's place in the cluster: its object, and its parts of the pods' ranges.
async fn place(settings: &Settings, client: &Client, outlook: &Outlook, facts: &Facts) -> Result<Vec<Share>> {
    registration::register(&settings.name, settings.key.as_deref(), client, facts).await?;
    let given = registration::ranges(&settings.name, &mut outlook.own.clone()).await?;
    share::of(settings, &given)
}

/// As a kubelet names its node in events: by its name alone.
fn node_reference(name: &str) -> Reference {
    let meta = api::view::Meta { name: name.into(), uid: api::uid::Uid::new(name), ..api::view::Meta::default() };
    Reference::new("v1", "Node", &meta)
}

fn start_dns(settings: &Settings, shares: &[Share]) -> Result<dns::Server> {
    let listening = dns_listening(settings).context("DNS cannot listen")?;
    let ours = [SocketAddr::from((settings.cluster_dns, 53)), listening.address()?];
    let upstreams = match &settings.names.upstreams {
        Some(servers) => servers.clone(),
        None => dns::upstreams_of(&resolv_conf(), &ours),
    };
    let config = dns::Config {
        domain: settings.domain.clone(),
        node: settings.name.clone(),
        pods: settings.pod_cidrs.clone(),
        servers: vec![settings.cluster_dns],
        upstreams,
        stubs: settings.names.stubs.clone(),
        clients: dns_clients(&settings.ips, shares)?,
        log: settings.names.log,
        autopath: settings.names.autopath,
    };
    dns::Server::start(config, listening).context("cannot start DNS")
}

fn dns_listening(settings: &Settings) -> Result<dns::Listening> {
    let ip = *settings.ips.first().context("the node has no address")?;
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
fn dns_clients(node: &[IpAddr], shares: &[Share]) -> Result<Vec<IpNetwork>> {
    let loopback = [IpNetwork::new(Ipv4Addr::LOCALHOST.into(), 8)?, IpAddr::from(Ipv6Addr::LOCALHOST).into()];
    let node = node.iter().copied().map(IpNetwork::from);
    Ok(node.chain(shares.iter().map(|share| share.pods)).chain(loopback).collect())
}

fn network_config(settings: &Settings, shares: &[Share]) -> network::Config {
    network::Config {
        v4: shares.iter().find_map(Share::v4),
        v6: shares.iter().find_map(Share::v6),
        node_ports: settings.node_ports,
        snat_ports: network::Config::DEFAULT_SNAT_PORTS,
        state_file: state_file(&settings.data_dir),
    }
}

/// Where the network keeps the settings it found, for `reset`.
pub fn state_file(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("network.json")
}

fn agent_config(settings: &Settings, shares: &[Share]) -> agent::config::Config {
    agent::config::Config {
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        node_name: settings.name.clone(),
        node_ips: settings.ips.clone(),
        pod_cidrs: shares.iter().map(|share| share.pods).collect(),
        cgroup_root: settings.pod_cgroup.clone(),
        pod_cgroup: settings.pod_cgroup.clone(),
        cluster_dns: Some(settings.cluster_dns),
        cluster_domain: settings.domain.clone(),
        registries: settings.registries.clone(),
        pod_max_pids: settings.pod_max_pids,
        allowed_unsafe_sysctls: settings.allowed_unsafe_sysctls.clone(),
    }
}
