//! This machine as a node: its pods, its network, its service path and DNS, and what the API knows of it.
//!
//! The parts do not know each other; they meet here. [`upstream`] gives the agent its API server, [`streams`] gives the
//! API server its way to containers, [`services`] feeds the service path and DNS, [`registration`] keeps the Node object.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use agent::Agent;
use agent::config::PodCidr;
use anyhow::{Context, Result};
use api::view::{EndpointSlice, Service};
use apiserver::identity::User;
use client::Kept;
use client::events::{Recorder, Reference};
use ipnetwork::{IpNetwork, Ipv4Network};
use network::{Network, PortRange};
use proxy_userspace::{ExternalIps, Proxy, SocketHooks};
use tokio::task::JoinSet;

use crate::control_plane::Running;
use crate::controllers::views::{ConfigMap, Secret};

pub mod links;
pub mod pods;
pub mod registration;
pub mod services;
pub mod streams;
pub mod upstream;

/// Validated settings of a node.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub name: String,
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
}

/// The views that a node of this process reads.
pub const READS: &[Kept] =
    &[Kept::of::<Service>(), Kept::of::<EndpointSlice>(), Kept::of::<ConfigMap>(), Kept::of::<Secret>()];

/// A started node; its tasks run in the set it was given.
pub struct Node {
    /// Kept alive: dropping the server stops DNS.
    _dns: Arc<dns::Server>,
}

/// Starts every part. What an earlier process left running is taken up.
pub async fn start(
    settings: &Settings,
    running: &Running,
    slot: &streams::AgentSlot,
    tasks: &mut JoinSet<()>,
) -> Result<Node> {
    let client = running.server.client(User::node(&settings.name), "amphipod");
    let recorder = Recorder::new(client.clone(), "kubelet", &settings.name);
    let about = node_reference(&settings.name);
    recorder.normal(&about, "Starting", "Starting kubelet.").await;
    let node_cidr =
        registration::register(settings, &running.server.client(User::node(&settings.name), "kubelet")).await?;
    let proxy = proxy_userspace::Config {
        bpf_root: settings.bpf_root.clone(),
        cgroup_root: settings.cgroup_root.clone(),
        socket_hooks: SocketHooks::Attached,
    };
    let proxy = Arc::new(Proxy::start(&proxy)?);
    let network = Network::start(&network_config(settings, node_cidr), proxy.clone()).await?;
    let dns = dns::Config {
        listen: SocketAddr::from((settings.ip, 0)),
        domain: settings.domain.clone(),
        upstreams: dns::upstreams_of(
            &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            &[SocketAddr::from((settings.cluster_dns, 53))],
        ),
        clients: dns_clients(settings.ip, node_cidr)?,
    };
    let dns = Arc::new(dns::Server::start(dns).await.context("cannot start DNS")?);
    slot.count(proxy.clone(), dns.clone());
    let feed = services::Feed::new(settings, proxy, dns.clone(), recorder.clone());
    let settled = feed.start(&running.caches, tasks);
    let upstream =
        Arc::new(upstream::ApiUpstream::new(client.clone(), recorder.clone(), running.caches.clone(), tasks));
    let agent =
        Agent::start(agent_config(settings, node_cidr)?, upstream, Arc::new(links::PodLinks::new(network))).await?;
    let agent = Arc::new(agent);
    slot.fill(agent.clone());
    pods::tell_content(&running.caches, &agent);
    let follower = pods::Follower {
        client: client.clone(),
        node: settings.name.clone(),
        agent,
        caches: running.caches.clone(),
        settled,
    };
    tasks.spawn(pods::follow(follower));
    tasks.spawn(registration::renew(settings.name.clone(), client));
    recorder.normal(&about, "NodeReady", &format!("Node {} status is now: NodeReady", settings.name)).await;
    // Its end is the node's: pods without names are better off where somebody notices.
    let names = dns.clone();
    tasks.spawn(async move { names.broken().await });
    Ok(Node { _dns: dns })
}

/// As a kubelet names its node in events: by its name alone.
fn node_reference(name: &str) -> Reference {
    let meta = api::view::Meta { name: name.into(), uid: name.into(), ..api::view::Meta::default() };
    Reference::new("v1", "Node", &meta)
}

/// This node and its pods: other nodes have name servers of their own.
fn dns_clients(node: Ipv4Addr, pods: Ipv4Network) -> Result<Vec<IpNetwork>> {
    Ok(vec![Ipv4Network::from(node).into(), pods.into(), Ipv4Network::new(Ipv4Addr::LOCALHOST, 8)?.into()])
}

fn network_config(settings: &Settings, node_cidr: Ipv4Network) -> network::Config {
    network::Config {
        node_ip: settings.ip,
        pod_cidr: node_cidr,
        cluster_cidr: settings.pod_cidr,
        service_cidr: settings.service_cidr,
        node_ports: settings.node_ports,
        snat_ports: network::Config::DEFAULT_SNAT_PORTS,
        state_file: state_file(&settings.data_dir),
    }
}

/// Where the network keeps the settings it found, for `reset`.
pub fn state_file(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("network.json")
}

pub fn agent_config(settings: &Settings, node_cidr: Ipv4Network) -> Result<agent::config::Config> {
    Ok(agent::config::Config {
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
    })
}
