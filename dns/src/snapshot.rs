//! What the cluster zone holds: a pure function of namespaces, Services and EndpointSlices, updated one object at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::view::{Endpoint, EndpointPort, EndpointSlice, Service};

use crate::shards::Shards;

/// `(namespace, name)` of a Service.
pub(crate) type Key = (String, String);

/// What marks a Service that no proxy serves, whatever address it has: its names lead to its endpoints.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The zone's content. Cloning is cheap: what did not change is shared.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By [`wire_key`].
    services: Shards<Box<[u8]>, Arc<Records>>,
    namespaces: Arc<HashSet<String>>,
    /// Number of services by namespace: one that has a service is there, even if its own object is still on the way.
    inhabited: Arc<HashMap<String, usize>>,
    /// Address → whose it is; an endpoint may be of several services.
    reverse: Shards<IpAddr, Vec<Owner>>,
    serial: u32,
}

/// A service's two labels as a message carries them, in small letters: so the name of a question is the key as it stands.
fn wire_key(namespace: &str, name: &str) -> Box<[u8]> {
    let mut key = Vec::with_capacity(namespace.len() + name.len() + 2);
    for label in [name, namespace] {
        key.push(label.len() as u8);
        key.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    key.into()
}

/// Whose an address is: a service's, or that of one endpoint of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub service: Key,
    pub endpoint: Option<String>,
}

/// The names of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Records {
    ClusterIp {
        addresses: Vec<IpAddr>,
        ports: Vec<Port>,
    },
    /// Endpoints by address and name, and their addresses, each once.
    Headless {
        endpoints: Vec<Host>,
        addresses: Vec<IpAddr>,
    },
    External {
        target: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub number: u16,
}

/// An endpoint of a headless service under its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub name: String,
    pub address: IpAddr,
    pub ports: Vec<Port>,
}

impl Snapshot {
    pub fn compute(
        namespaces: impl IntoIterator<Item = String>,
        services: &[Service],
        slices: &[EndpointSlice],
    ) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            if let Some(name) = slice.service_name() {
                by_service.entry((&slice.metadata.namespace, name)).or_default().push(slice);
            }
        }
        let mut snapshot = Self { namespaces: Arc::new(namespaces.into_iter().collect()), ..Self::default() };
        for service in services {
            let key = (service.metadata.namespace.as_str(), service.metadata.name.as_str());
            snapshot.set(service, by_service.get(&key).map_or(&[][..], Vec::as_slice));
        }
        snapshot
    }

    /// Puts a service in, or brings it up to date.
    pub fn set(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let key = (service.metadata.namespace.clone(), service.metadata.name.clone());
        let records = records(service, slices);
        if records.is_some() && self.service(&key.0, &key.1) == records.as_ref() {
            return;
        }
        self.remove(&key.0, &key.1);
        let Some(records) = records else { return };
        for (address, endpoint) in owned(&records) {
            let mut owners = self.reverse.get(&address).cloned().unwrap_or_default();
            owners.push(Owner { service: key.clone(), endpoint });
            owners.sort();
            owners.dedup();
            self.reverse.insert(address, owners);
        }
        self.services.insert(wire_key(&key.0, &key.1), Arc::new(records));
        *Arc::make_mut(&mut self.inhabited).entry(key.0).or_default() += 1;
        self.serial = self.serial.wrapping_add(1);
    }

    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(records) = self.services.remove(&*wire_key(namespace, name)) else { return };
        for (address, _) in owned(&records) {
            self.disown(&address, |(owner, service)| owner == namespace && service == name);
        }
        let inhabited = Arc::make_mut(&mut self.inhabited);
        if let Some(count) = inhabited.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                inhabited.remove(namespace);
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    fn disown(&mut self, address: &IpAddr, of: impl Fn(&Key) -> bool) {
        let Some(owners) = self.reverse.get(address) else { return };
        let rest: Vec<Owner> = owners.iter().filter(|owner| !of(&owner.service)).cloned().collect();
        match rest.is_empty() {
            true => drop(self.reverse.remove(address)),
            false => drop(self.reverse.insert(*address, rest)),
        }
    }

    pub fn set_namespace(&mut self, name: &str) {
        if !self.namespaces.contains(name) {
            Arc::make_mut(&mut self.namespaces).insert(name.to_owned());
            self.serial = self.serial.wrapping_add(1);
        }
    }

    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.contains(name) {
            Arc::make_mut(&mut self.namespaces).remove(name);
            self.serial = self.serial.wrapping_add(1);
        }
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Records> {
        self.service_by_labels(&wire_key(namespace, name))
    }

    /// By both labels as in a message, in small letters.
    pub(crate) fn service_by_labels(&self, labels: &[u8]) -> Option<&Records> {
        self.services.get(labels).map(Arc::as_ref)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace) || self.inhabited.contains_key(namespace)
    }

    /// In their order; none for an address of nobody here.
    pub(crate) fn owners(&self, address: &IpAddr) -> &[Owner] {
        self.reverse.get(address).map_or(&[], Vec::as_slice)
    }

    /// Grows with every change.
    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }
}

/// The addresses that lead back to names. Endpoints of services with a ClusterIP are no names of the zone.
fn owned(records: &Records) -> Vec<(IpAddr, Option<String>)> {
    match records {
        Records::ClusterIp { addresses, .. } => addresses.iter().map(|address| (*address, None)).collect(),
        Records::Headless { endpoints, .. } => {
            endpoints.iter().map(|host| (host.address, Some(host.name.clone()))).collect()
        }
        Records::External { .. } => Vec::new(),
    }
}

fn records(service: &Service, slices: &[&EndpointSlice]) -> Option<Records> {
    let spec = &service.spec;
    if spec.type_ == "ExternalName" {
        let target = spec.external_name.trim_end_matches('.').to_lowercase();
        // An alias cannot lead to an address: such a service has no name, as with CoreDNS.
        return target.parse::<IpAddr>().is_err().then_some(Records::External { target });
    }
    let labelled = service.metadata.labels.contains_key(HEADLESS_LABEL);
    if labelled || spec.cluster_ips.first().is_some_and(|ip| ip == "None") {
        let not_ready = if spec.publish_not_ready_addresses { NotReady::Published } else { NotReady::LeftOut };
        let endpoints = hosts(slices, not_ready);
        let mut addresses: Vec<IpAddr> = endpoints.iter().map(|host| host.address).collect();
        addresses.dedup();
        return Some(Records::Headless { endpoints, addresses });
    }
    let addresses: Vec<IpAddr> = spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let ports = spec.ports.iter().map(|port| Port {
        name: port.name.to_lowercase(),
        protocol: protocol(&port.protocol),
        number: port.port,
    });
    (!addresses.is_empty()).then(|| Records::ClusterIp { addresses, ports: ports.collect() })
}

/// What becomes of endpoints that are not ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NotReady {
    Published,
    LeftOut,
}

fn hosts(slices: &[&EndpointSlice], not_ready: NotReady) -> Vec<Host> {
    // One endpoint may stand in several slices, each with some of its ports.
    let mut hosts: BTreeMap<(IpAddr, String), Vec<Port>> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<Port> = slice.ports.iter().filter_map(port).collect();
        let named = |endpoint: &&Endpoint| not_ready == NotReady::Published || endpoint.conditions.is_ready();
        for endpoint in slice.endpoints.iter().filter(named) {
            for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                hosts.entry((address, host_name(endpoint, address))).or_default().extend(ports.iter().cloned());
            }
        }
    }
    let host = |((address, name), mut ports): ((IpAddr, String), Vec<Port>)| {
        ports.sort();
        ports.dedup();
        Host { name, address, ports }
    };
    hosts.into_iter().map(host).collect()
}

fn port(port: &EndpointPort) -> Option<Port> {
    Some(Port { name: port.name.to_lowercase(), protocol: protocol(&port.protocol), number: port.port? })
}

/// The endpoint's own host name, else its address with dashes.
fn host_name(endpoint: &Endpoint, address: IpAddr) -> String {
    match endpoint.hostname.as_str() {
        "" => address.to_string().replace(['.', ':'], "-"),
        name => name.to_lowercase(),
    }
}

fn protocol(name: &str) -> String {
    if name.is_empty() { "tcp".into() } else { name.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIPs": [ip], "ports": [{"name": "Web", "port": 80}]}}))
        .unwrap()
    }

    #[test]
    fn a_service_comes_and_goes_without_a_trace() {
        let mut snapshot = Snapshot::default();
        snapshot.set(&service("a", "10.96.0.1"), &[]);
        let serial = snapshot.serial();
        snapshot.set(&service("a", "10.96.0.1"), &[]);
        assert_eq!(snapshot.serial(), serial);
        assert!(snapshot.has_namespace("default"));
        snapshot.set(&service("a", "10.96.0.2"), &[]);
        assert!(snapshot.owners(&"10.96.0.1".parse().unwrap()).is_empty());
        snapshot.remove("default", "a");
        assert!(snapshot.reverse.is_empty() && snapshot.inhabited.is_empty() && snapshot.services.is_empty());
    }

    #[test]
    fn a_namespace_is_there_by_itself_or_by_its_services() {
        let mut snapshot = Snapshot::default();
        snapshot.set_namespace("empty");
        snapshot.set(&service("a", "10.96.0.1"), &[]);
        assert!(snapshot.has_namespace("empty") && snapshot.has_namespace("default"));
        snapshot.remove_namespace("empty");
        snapshot.remove("default", "a");
        assert!(!snapshot.has_namespace("empty") && !snapshot.has_namespace("default"));
    }

    #[test]
    fn an_endpoint_of_two_services_stays_the_other_ones() {
        let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"namespace": "default"},
            "endpoints": [{"addresses": ["10.244.0.1"]}]}))
        .unwrap();
        let mut snapshot = Snapshot::default();
        for name in ["b", "a"] {
            snapshot.set(&service(name, "None"), &[&slice]);
        }
        let owners = |snapshot: &Snapshot| -> Vec<String> {
            let owners = snapshot.owners(&"10.244.0.1".parse().unwrap());
            owners.iter().map(|owner| owner.service.1.clone()).collect()
        };
        assert_eq!(owners(&snapshot), ["a", "b"]);
        snapshot.remove("default", "a");
        assert_eq!(owners(&snapshot), ["b"]);
        snapshot.remove("default", "b");
        assert!(snapshot.reverse.is_empty());
    }

    #[test]
    fn only_ready_endpoints_have_names_unless_told_otherwise() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "h"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.1"], "conditions": {"ready": true}, "hostname": "web-0"},
                {"addresses": ["10.244.0.2"], "conditions": {"ready": false}}]}))
        .unwrap();
        let cases = [(NotReady::LeftOut, vec!["web-0"]), (NotReady::Published, vec!["web-0", "10-244-0-2"])];
        for (not_ready, expected) in cases {
            let names: Vec<_> = hosts(&[&slice], not_ready).into_iter().map(|host| host.name).collect();
            assert_eq!(names, expected);
        }
    }
}
