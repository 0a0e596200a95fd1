//! From Services and EndpointSlices to what the maps shall hold. Pure, and per service, so that one change costs one service.
//!
//! [`endpoints`] chooses whom it leads to.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::view::{EndpointSlice, Service, ServicePort};
use ipnetwork::IpNetwork;
use proxy_common::{Family, Scope, Slot, TCP, UDP};

use endpoints::Choice;
pub use endpoints::ready_here;
use numbers::{family_of, parse_range};
pub use numbers::{protocol_number, range};

mod endpoints;
mod numbers;

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
    /// Empty where it is in none.
    pub zone: String,
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
    /// With [`Slot::SOURCE_RANGES`], whom it is for: sorted, each once.
    pub ranges: Vec<IpNetwork>,
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
    if service.spec.type_ == "ExternalName" || is_others(service) {
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

fn is_others(service: &Service) -> bool {
    let labels = &service.metadata.labels;
    [PROXY_NAME_LABEL, HEADLESS_LABEL].iter().any(|label| labels.contains_key(*label))
}

/// The port by which balancers ask whether a service has endpoints here, if it has one.
pub fn health_check_port(service: &Service) -> Option<u16> {
    let spec = &service.spec;
    let is_asked = spec.type_ == "LoadBalancer" && spec.external_traffic_policy == "Local" && !is_others(service);
    Some(spec.health_check_node_port).filter(|port| is_asked && *port != 0)
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
            ..Default::default()
        };
        let frontends = vec![frontend(Scope::Internal), frontend(Scope::External)];
        Entry { port: host.host_port, protocol: host.protocol, frontends, set }
    };
    let is_of_family = |host: &&HostPort| host.host_ip.is_none_or(|ip| ip.is_ipv4() == pod_ip.is_ipv4());
    ports.iter().filter(is_of_family).map(entry).collect()
}

fn port_entries(of: &PortOf<'_>, cluster_ips: &[IpAddr], slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Entry> {
    let PortOf { service, port, protocol, .. } = *of;
    let Choice { all, local } = endpoints::choose(of, slices, facts);
    let affinity_seconds = affinity_seconds(service);
    let frontends = Frontends::of(of, cluster_ips, facts);
    let affinity = if affinity_seconds > 0 { Slot::AFFINITY } else { 0 };
    let drop_when_empty = if all.is_empty() { 0 } else { Slot::DROP_WHEN_EMPTY };
    let for_everybody = |backends: &[Target], flags: u16| EndpointSet {
        backends: backends.to_vec(),
        flags: flags | affinity,
        affinity_seconds,
        ranges: Vec::new(),
    };
    let ranges = source_ranges(of);
    let balanced = |set: &EndpointSet| match ranges.as_slice() {
        [] => set.clone(),
        some => EndpointSet { flags: set.flags | Slot::SOURCE_RANGES, ranges: some.to_vec(), ..set.clone() },
    };
    let inside = for_everybody(&all, 0);
    let cluster = match service.spec.internal_traffic_policy.as_str() {
        "Local" => for_everybody(&local, drop_when_empty),
        _ => inside.clone(),
    };
    let outside = match service.spec.external_traffic_policy.as_str() {
        "Local" => for_everybody(&local, Slot::KEEP_SOURCE | drop_when_empty),
        _ => inside.clone(),
    };
    let (balanced_inside, balanced_outside) = (balanced(&inside), balanced(&outside));
    let mut entries: Vec<Entry> = Vec::new();
    for (frontends, set) in [
        (frontends.cluster, cluster),
        (frontends.inside, inside),
        (frontends.balanced_inside, balanced_inside),
        (frontends.outside, outside),
        (frontends.balanced_outside, balanced_outside),
    ] {
        match entries.iter_mut().find(|entry| entry.set == set) {
            Some(entry) => entry.frontends.extend(frontends),
            None if frontends.is_empty() => {}
            None => entries.push(Entry { port: port.port, protocol, frontends, set }),
        }
    }
    entries
}

/// Whom the addresses of load balancers are for, in the family; none: everybody. As with kube-proxy, ranges of the other family alone
/// leave this one open.
fn source_ranges(of: &PortOf<'_>) -> Vec<IpNetwork> {
    let all = of.service.spec.load_balancer_source_ranges.iter().filter_map(|range| parse_range(range));
    let mut own: Vec<IpNetwork> = all.filter(|range| family_of(&range.ip()) == of.family).collect();
    own.sort_unstable();
    own.dedup();
    own
}

/// The addresses of one service port, by who uses them.
struct Frontends {
    /// ClusterIPs, from inside.
    cluster: Vec<Frontend>,
    /// NodePort and external addresses, from inside.
    inside: Vec<Frontend>,
    /// The same from outside.
    outside: Vec<Frontend>,
    /// Load balancers' addresses, from inside.
    balanced_inside: Vec<Frontend>,
    balanced_outside: Vec<Frontend>,
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
        // The unspecified address would be every address of the node.
        let in_family = |ip: &IpAddr| family_of(ip) == family && !ip.is_unspecified();
        let addresses = |texts: Vec<&str>| -> Vec<(IpAddr, u16)> {
            let parsed = texts.into_iter().filter_map(|ip| ip.parse().ok());
            parsed.filter(in_family).map(|ip| (ip, port.port)).collect()
        };
        // What goes by way of the balancer itself (`Proxy`) is none of this node's.
        let bound = service.status.load_balancer.ingress.iter().filter(|ingress| ingress.ip_mode != "Proxy");
        let balanced: Vec<&str> =
            bound.filter(|_| spec.type_ == "LoadBalancer").map(|ingress| ingress.ip.as_str()).collect();
        let own = spec.external_ips.iter().filter(|_| facts.external_ips == ExternalIps::Served);
        let (balanced, own) = (addresses(balanced), addresses(own.map(String::as_str).collect()));
        // One that is both is the balancer's: that may be for some only.
        external.extend(own.into_iter().filter(|own| !balanced.contains(own)));
        let taken =
            |ip: &IpAddr| facts.local_servers.iter().any(|local| local.address == SocketAddr::new(*ip, port.port));
        let cluster = cluster_ips.iter().filter(|ip| !taken(ip));
        let seen = |addresses: &[(IpAddr, u16)], scope| {
            addresses.iter().map(|(ip, port)| frontend(*ip, *port, scope)).collect::<Vec<_>>()
        };
        Self {
            cluster: cluster.map(|ip| frontend(*ip, port.port, Scope::Internal)).collect(),
            inside: seen(&external, Scope::Internal),
            outside: seen(&external, Scope::External),
            balanced_inside: seen(&balanced, Scope::Internal),
            balanced_outside: seen(&balanced, Scope::External),
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

#[cfg(test)]
mod tests;
