//! From Services and EndpointSlices to what the maps shall hold. Pure, and per service, so that one change costs one service.
//!
//! Endpoint choice follows kube-proxy: ready endpoints, else those still serving while they terminate, for all endpoints and for
//! the local ones apart.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::view::{Endpoint, EndpointSlice, Service, ServicePort};
use proxy_common::{Family, Scope, Slot, TCP, UDP};

const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// A service with this label is some other proxy's business.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// And one with this is nobody's, whatever addresses it has.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// `namespace/name`.
pub type ServiceName = String;

/// What one node knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub node_name: String,
    /// Service addresses that a server on this node answers (cluster DNS); they win over any Service of the same address.
    pub local_servers: Vec<LocalServer>,
    pub external_ips: ExternalIps,
}

/// Whether `spec.externalIPs` leads anywhere: whoever may write a Service would catch what everybody sends there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExternalIps {
    #[default]
    Ignored,
    Served,
}

/// A service address that leads to a server of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalServer {
    pub address: SocketAddr,
    pub server: SocketAddr,
}

/// What a client addresses. An unspecified address stands for every node address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub addr: IpAddr,
    pub port: u16,
    pub protocol: u8,
    pub scope: Scope,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            TCP => "TCP",
            UDP => "UDP",
            _ => "SCTP",
        };
        write!(f, "{}/{protocol}", SocketAddr::from((self.addr, self.port)))
    }
}

/// Where an endpoint listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub ip: IpAddr,
    pub port: u16,
}

/// The endpoints behind a frontend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// Sorted, each once.
    pub backends: Vec<Target>,
    /// `Slot` flags.
    pub flags: u16,
    pub affinity_seconds: u32,
}

/// One endpoint set and every frontend that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The service port it belongs to; entries of one port share their affinity.
    pub port: u16,
    pub protocol: u8,
    pub frontends: Vec<Frontend>,
    pub set: EndpointSet,
}

/// Everything that the maps shall hold, by service.
pub type Contents = BTreeMap<ServiceName, Vec<Entry>>;

/// The name under which local servers stand among the services; no Service can have it.
pub const LOCAL_SERVERS: &str = "local servers";

/// Computes all contents. For a single change see [`desired_service`].
pub fn desired(services: &[Service], slices: &[EndpointSlice], facts: &NodeFacts) -> Contents {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices {
        if let Some(name) = slice.service_name() {
            by_service.entry((&slice.metadata.namespace, name)).or_default().push(slice);
        }
    }
    let mut contents = Contents::new();
    for service in services {
        let meta = &service.metadata;
        let slices = by_service.get(&(meta.namespace.as_str(), meta.name.as_str())).map_or(&[][..], Vec::as_slice);
        let entries = desired_service(service, slices, facts);
        if !entries.is_empty() {
            contents.insert(format!("{}/{}", meta.namespace, meta.name), entries);
        }
    }
    let local = desired_local_servers(facts);
    if !local.is_empty() {
        contents.insert(LOCAL_SERVERS.to_owned(), local);
    }
    contents
}

/// The entries of one service; none for headless, ExternalName and other proxies' services.
pub fn desired_service(service: &Service, slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Entry> {
    let labels = &service.metadata.labels;
    let is_others = [PROXY_NAME_LABEL, HEADLESS_LABEL].iter().any(|label| labels.contains_key(*label));
    if service.spec.type_ == "ExternalName" || is_others {
        return Vec::new();
    }
    let cluster_ips: Vec<IpAddr> = service.spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let mut entries = Vec::new();
    for family in [Family::V4, Family::V6] {
        let own: Vec<IpAddr> = cluster_ips.iter().filter(|ip| family_of(ip) == family).copied().collect();
        // A service is in the families that it has addresses of.
        if own.is_empty() {
            continue;
        }
        for port in &service.spec.ports {
            if let Some(protocol) = protocol_number(&port.protocol) {
                let port = PortOf { service, port, protocol, family };
                entries.extend(port_entries(&port, &own, slices, facts));
            }
        }
    }
    entries
}

fn family_of(ip: &IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// One port of a service, in one family.
#[derive(Clone, Copy)]
struct PortOf<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    protocol: u8,
    family: Family,
}

/// The entries of the node's own servers.
pub fn desired_local_servers(facts: &NodeFacts) -> Vec<Entry> {
    let both = facts.local_servers.iter().flat_map(|local| [(local, UDP), (local, TCP)]);
    both.map(|(local, protocol)| {
        let (addr, port) = (local.address.ip(), local.address.port());
        let target = Target { ip: local.server.ip(), port: local.server.port() };
        let set = EndpointSet { backends: vec![target], ..Default::default() };
        let frontends = vec![Frontend { addr, port, protocol, scope: Scope::Internal }];
        Entry { port, protocol, frontends, set }
    })
    .collect()
}

/// A port of a container that the node answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// Every node address of the pod's families when none.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// As in IP headers.
    pub protocol: u8,
}

/// The name under which the host ports of a pod's address stand among the services; no Service can have it.
pub fn host_ports_of(pod_ip: IpAddr) -> ServiceName {
    format!("host ports of {pod_ip}")
}

/// The entries of the host ports of a pod's address: those of addresses of the node in its family.
pub fn desired_host_ports(pod_ip: IpAddr, ports: &[HostPort]) -> Vec<Entry> {
    let every = match pod_ip {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let entry = |host: &HostPort| {
        let addr = host.host_ip.unwrap_or(every);
        let frontend = |scope| Frontend { addr, port: host.host_port, protocol: host.protocol, scope };
        // Clients keep their address, as with port mapping by a network plugin.
        let set = EndpointSet {
            backends: vec![Target { ip: pod_ip, port: host.container_port }],
            flags: Slot::KEEP_SOURCE | Slot::HOST_PORT,
            affinity_seconds: 0,
        };
        let frontends = vec![frontend(Scope::Internal), frontend(Scope::External)];
        Entry { port: host.host_port, protocol: host.protocol, frontends, set }
    };
    let is_of_family = |host: &&HostPort| host.host_ip.is_none_or(|ip| ip.is_ipv4() == pod_ip.is_ipv4());
    ports.iter().filter(is_of_family).map(entry).collect()
}

/// SCTP is not translated: the kernels this runs on lack it and its checksum needs another way.
pub fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        _ => None,
    }
}

fn port_entries(of: &PortOf<'_>, cluster_ips: &[IpAddr], slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Entry> {
    let PortOf { service, port, protocol, .. } = *of;
    let candidates = candidates(of, slices, facts);
    let all = preferred(&candidates, |_| true);
    let local = preferred(&candidates, |candidate| candidate.local);
    let affinity_seconds = affinity_seconds(service);
    let frontends = Frontends::of(of, cluster_ips, facts);
    let affinity = if affinity_seconds > 0 { Slot::AFFINITY } else { 0 };
    let drop_when_empty = if all.is_empty() { 0 } else { Slot::DROP_WHEN_EMPTY };

    let entry = |frontends: Vec<Frontend>, backends: &Vec<Target>, flags: u16| Entry {
        port: port.port,
        protocol,
        frontends,
        set: EndpointSet { backends: backends.clone(), flags: flags | affinity, affinity_seconds },
    };
    let mut by_all = Vec::new();
    let mut entries = Vec::new();
    match service.spec.internal_traffic_policy.as_str() {
        "Local" => entries.push(entry(frontends.cluster, &local, drop_when_empty)),
        _ => by_all.extend(frontends.cluster),
    }
    by_all.extend(frontends.inside);
    match service.spec.external_traffic_policy.as_str() {
        "Local" => entries.push(entry(frontends.outside, &local, Slot::KEEP_SOURCE | drop_when_empty)),
        _ => by_all.extend(frontends.outside),
    }
    entries.push(entry(by_all, &all, 0));
    entries.retain(|entry| !entry.frontends.is_empty());
    entries
}

/// The addresses of one service port, by who uses them.
struct Frontends {
    /// ClusterIPs, from inside.
    cluster: Vec<Frontend>,
    /// NodePort, load balancer and external addresses, from inside.
    inside: Vec<Frontend>,
    /// The same from outside.
    outside: Vec<Frontend>,
}

impl Frontends {
    fn of(of: &PortOf<'_>, cluster_ips: &[IpAddr], facts: &NodeFacts) -> Self {
        let PortOf { service, port, protocol, family } = *of;
        let frontend = |addr, port, scope| Frontend { addr, port, protocol, scope };
        let spec = &service.spec;
        let mut external: Vec<(IpAddr, u16)> = Vec::new();
        if port.node_port != 0 && matches!(spec.type_.as_str(), "NodePort" | "LoadBalancer") {
            let every = match family {
                Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            };
            external.push((every, port.node_port));
        }
        let balanced = service.status.load_balancer.ingress.iter().map(|ingress| ingress.ip.as_str());
        let balanced = balanced.filter(|_| spec.type_ == "LoadBalancer");
        let own = spec.external_ips.iter().map(String::as_str).filter(|_| facts.external_ips == ExternalIps::Served);
        let addresses = balanced.chain(own).filter_map(|ip| ip.parse::<IpAddr>().ok());
        // The unspecified address would be every address of the node.
        let addresses = addresses.filter(|ip| family_of(ip) == family && !ip.is_unspecified());
        external.extend(addresses.map(|ip| (ip, port.port)));
        let taken =
            |ip: &IpAddr| facts.local_servers.iter().any(|local| local.address == SocketAddr::new(*ip, port.port));
        let cluster = cluster_ips.iter().filter(|ip| !taken(ip));
        Self {
            cluster: cluster.map(|ip| frontend(*ip, port.port, Scope::Internal)).collect(),
            inside: external.iter().map(|(ip, port)| frontend(*ip, *port, Scope::Internal)).collect(),
            outside: external.iter().map(|(ip, port)| frontend(*ip, *port, Scope::External)).collect(),
        }
    }
}

fn affinity_seconds(service: &Service) -> u32 {
    if service.spec.session_affinity != "ClientIP" {
        return 0;
    }
    let config = service.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS)
}

/// An endpoint of a service port, with what the choice depends on.
struct Candidate {
    target: Target,
    ready: bool,
    /// Terminating, but still answering.
    leaving: bool,
    local: bool,
}

fn candidates(of: &PortOf<'_>, slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Candidate> {
    let kind = match of.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == kind) {
        let numbers = slice.ports.iter().filter(|candidate| {
            candidate.name == of.port.name && protocol_number(&candidate.protocol) == Some(of.protocol)
        });
        for number in numbers.filter_map(|candidate| candidate.port) {
            found.extend(slice.endpoints.iter().filter_map(|endpoint| candidate(endpoint, number, facts)));
        }
    }
    found.retain(|candidate| family_of(&candidate.target.ip) == of.family);
    found
}

fn candidate(endpoint: &Endpoint, port: u16, facts: &NodeFacts) -> Option<Candidate> {
    let conditions = &endpoint.conditions;
    Some(Candidate {
        target: Target { ip: endpoint.addresses.first()?.parse().ok()?, port },
        ready: conditions.is_ready(),
        leaving: conditions.is_serving() && conditions.is_terminating(),
        local: !facts.node_name.is_empty() && endpoint.node_name == facts.node_name,
    })
}

/// Ready ones among those that match; when there are none, those that still serve.
fn preferred(candidates: &[Candidate], matches: impl Fn(&Candidate) -> bool) -> Vec<Target> {
    let pick = |wanted: fn(&Candidate) -> bool| -> Vec<Target> {
        let picked = candidates.iter().filter(|candidate| matches(candidate) && wanted(candidate));
        let mut targets: Vec<Target> = picked.map(|candidate| candidate.target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    };
    let ready = pick(|candidate| candidate.ready);
    if ready.is_empty() { pick(|candidate| candidate.leaving) } else { ready }
}

#[cfg(test)]
mod tests;
