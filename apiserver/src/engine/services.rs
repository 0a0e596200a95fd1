//! Service addresses and node ports: allocated in the same transaction as the Service that has them.
//!
//! Nothing is held in memory: an address is an IPAddress object, a node port a create-only key, so two servers cannot
//! give out the same one.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use api::kind::Kind;
use api::kinds::service::Needs;
use api::status::{FieldError, Status};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use super::Engine;
use crate::object::{Collection, Encoded, Header, INTERNAL, ObjectKey, new_uid};
use crate::store::{Expect, Write};

/// What services may be given.
#[derive(Debug, Clone)]
pub struct ServiceNetwork {
    pub range: Ipv4Network,
    pub node_ports: RangeInclusive<u16>,
}

/// Where node ports come from, as Kubernetes has it.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Node ports in use: keys of a collection that no kind shows.
fn node_ports() -> Collection {
    Collection::new(INTERNAL, "nodeports")
}

fn addresses() -> Collection {
    Collection::new("networking.k8s.io", "ipaddresses")
}

/// Tries at random before the range is walked.
const RANDOM_TRIES: u32 = 64;

impl ServiceNetwork {
    /// With the usual node ports.
    pub fn new(range: Ipv4Network) -> Self {
        Self { range, node_ports: NODE_PORTS }
    }

    fn first(&self) -> u32 {
        u32::from(self.range.network())
    }

    /// Addresses that may be given out: neither the network's own nor the broadcast one.
    fn size(&self) -> u32 {
        (u32::from(self.range.broadcast()) - self.first()).saturating_sub(1)
    }

    fn usable(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.first());
        (1..=self.size()).contains(&offset)
    }

    /// The first address: the `kubernetes` Service.
    pub fn api_server(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first() + 1)
    }

    /// The tenth address: the cluster DNS service.
    pub fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first() + 10)
    }

    /// Addresses below this offset are for those who ask for one: dynamic ones come from above it first.
    fn reserved(&self) -> u32 {
        (self.size() / 16).clamp(0, 256).max(if self.size() >= 16 { 16 } else { 0 })
    }
}

impl std::fmt::Display for ServiceNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.range.network(), self.range.prefix())
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

/// Ranges of nodes' pods are given in [`super::pod_ranges`].
fn is_node(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "nodes"
}

impl Engine {
    /// Fills in what a Service has to be given, and returns the writes that reserve it.
    pub(crate) fn allocate(&self, kind: &Kind, old: Option<&Value>, service: &mut Value) -> Result<Vec<Write>, Status> {
        if is_node(kind) {
            return self.claim_ranges(old, service);
        }
        if !is_service(kind) {
            return Ok(Vec::new());
        }
        let mut writes = Vec::new();
        self.allocate_address(old, service, &mut writes)?;
        self.allocate_ports(old, service, &mut writes)?;
        Ok(writes)
    }

    /// The writes that free what a removed object held.
    pub(crate) fn released(&self, kind: &Kind, object: &Value) -> Vec<Write> {
        if is_node(kind) {
            return self.free_ranges(object);
        }
        if !is_service(kind) {
            return Vec::new();
        }
        let addresses = held_addresses(object).into_iter().filter_map(|address| self.free(addresses(), &address));
        addresses
            .chain(held_ports(object).into_iter().filter_map(|port| self.free(node_ports(), &port.to_string())))
            .collect()
    }

    fn free(&self, collection: Collection, name: &str) -> Option<Write> {
        let key = ObjectKey::new("", name);
        let found = self.cache().collection(&collection).get(&key)?;
        Some(Write::remove(collection, key, found.revision))
    }

    fn allocate_address(
        &self,
        old: Option<&Value>,
        service: &mut Value,
        writes: &mut Vec<Write>,
    ) -> Result<(), Status> {
        let held = old.map(held_addresses).unwrap_or_default();
        let type_ = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        if type_ == "ExternalName" {
            writes.extend(held.iter().filter_map(|address| self.free(addresses(), address)));
            return Ok(());
        }
        let asked = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        if asked == "None" || (!asked.is_empty() && held.contains(&asked)) {
            return Ok(());
        }
        let address = if asked.is_empty() { self.pick_address(service)? } else { self.claim_address(&asked, service)? };
        let Some(address) = address else { return Ok(()) };
        service["spec"]["clusterIP"] = json!(address.to_string());
        service["spec"]["clusterIPs"] = json!([address.to_string()]);
        api::kinds::service::service_families(service);
        writes.push(self.address_write(address, service));
        Ok(())
    }

    /// A given address; `None` when validation will refuse it anyway.
    fn claim_address(&self, asked: &str, service: &Value) -> Result<Option<Ipv4Addr>, Status> {
        let refuse = |why: String| {
            let error = FieldError::invalid("spec.clusterIPs", json!([asked]), why);
            Status::invalid("", "Service", service["metadata"]["name"].as_str().unwrap_or_default(), vec![error])
        };
        let address = match asked.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => address,
            Ok(IpAddr::V6(_)) => {
                let error =
                    FieldError::invalid("spec.clusterIPs[0]", json!([asked]), "IPv6 is not configured on this cluster");
                return Err(Status::invalid(
                    "",
                    "Service",
                    service["metadata"]["name"].as_str().unwrap_or_default(),
                    vec![error],
                ));
            }
            Err(_) => return Ok(None),
        };
        if !self.services.range.contains(address) {
            return Err(refuse(format!(
                "failed to allocate IP {asked}: the provided network does not match the current range"
            )));
        }
        if !self.services.usable(address) {
            let range = self.services.to_string();
            return Err(refuse(format!(
                "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        if self.cache().collection(&addresses()).get(&ObjectKey::new("", asked)).is_some() {
            return Err(refuse(format!("failed to allocate IP {asked}: provided IP is already allocated")));
        }
        Ok(Some(address))
    }

    fn pick_address(&self, service: &Value) -> Result<Option<Ipv4Addr>, Status> {
        let network = &self.services;
        let taken = self.cache().collection(&addresses());
        let free = |offset: u32| {
            let address = Ipv4Addr::from(network.first() + offset);
            taken.get(&ObjectKey::new("", &address.to_string())).is_none().then_some(address)
        };
        let (low, high) = (network.reserved() + 1, network.size());
        let random = (0..RANDOM_TRIES).find_map(|_| free(low + random() % (high - low + 1)));
        let found = random.or_else(|| (low..=high).find_map(free)).or_else(|| (1..low).find_map(free));
        found.map(Some).ok_or_else(|| {
            let why = "failed to allocate a serviceIP: range is full";
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            Status::internal(format!("{why} ({network}, service {name})"))
        })
    }

    /// The IPAddress object that stands for an allocation.
    fn address_write(&self, address: Ipv4Addr, service: &Value) -> Write {
        let (uid, now) = (new_uid(), api::time::rfc3339(jiff::Timestamp::now()));
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IPAddress",
            "metadata": {
                "name": address.to_string(),
                "uid": uid,
                "creationTimestamp": now,
                "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
            },
            "spec": {"parentRef": {
                "resource": "services",
                "namespace": service["metadata"]["namespace"],
                "name": service["metadata"]["name"],
            }},
        });
        let header = Header { uid, ..Header::default() };
        let key = ObjectKey::new("", &address.to_string());
        Write::put(addresses(), key, Expect::Absent, Encoded::new(&object), header)
    }

    fn allocate_ports(&self, old: Option<&Value>, service: &mut Value, writes: &mut Vec<Write>) -> Result<(), Status> {
        let held = old.map(held_ports).unwrap_or_default();
        let Needs { node_ports: wanted, health_port: health, .. } = Needs::of(service);
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut kept: Vec<u16> = Vec::new();
        if let Some(ports) = service["spec"]["ports"].as_array_mut().filter(|_| wanted) {
            let mut fresh: Vec<(u64, String, u16)> = Vec::new();
            for (index, port) in ports.iter_mut().enumerate() {
                let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
                let number = port["port"].as_u64().unwrap_or(0);
                let asked = u16::try_from(port["nodePort"].as_u64().unwrap_or(0)).unwrap_or(0);
                // TCP and UDP on one port number share a node port, as upstream gives it.
                let shared =
                    fresh.iter().find(|(port, other, _)| *port == number && *other != protocol).map(|(.., node)| *node);
                let node = match (asked, shared) {
                    (0, Some(shared)) => shared,
                    (0, None) => self.pick_port(&kept)?,
                    (asked, _) => asked,
                };
                if fresh.iter().any(|(_, other, taken)| *taken == node && *other == protocol) {
                    let why = "provided port is already allocated";
                    let error = FieldError::invalid(format!("spec.ports[{index}].nodePort"), node, why);
                    return Err(Status::invalid("", "Service", &name, vec![error]));
                }
                let mine = held.contains(&node) || kept.contains(&node);
                if !mine {
                    self.check_port(&name, &format!("spec.ports[{index}].nodePort"), node)?;
                    writes.push(self.port_write(node));
                }
                kept.push(node);
                fresh.push((number, protocol, node));
                port["nodePort"] = json!(node);
            }
        }
        if health {
            let asked = u16::try_from(service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0)).unwrap_or(0);
            let node = if asked == 0 { self.pick_port(&kept)? } else { asked };
            if !held.contains(&node) && !kept.contains(&node) {
                self.check_port(&name, "spec.healthCheckNodePort", node)?;
                writes.push(self.port_write(node));
            }
            kept.push(node);
            service["spec"]["healthCheckNodePort"] = json!(node);
        }
        let gone = held.into_iter().filter(|port| !kept.contains(port));
        writes.extend(gone.filter_map(|port| self.free(node_ports(), &port.to_string())));
        Ok(())
    }

    fn check_port(&self, service: &str, field: &str, port: u16) -> Result<(), Status> {
        let range = &self.services.node_ports;
        let why = if !range.contains(&port) {
            format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            )
        } else if self.port_taken(port) {
            "provided port is already allocated".to_owned()
        } else {
            return Ok(());
        };
        Err(Status::invalid("", "Service", service, vec![FieldError::invalid(field, port, why)]))
    }

    fn port_taken(&self, port: u16) -> bool {
        self.cache().collection(&node_ports()).get(&ObjectKey::new("", &port.to_string())).is_some()
    }

    fn pick_port(&self, kept: &[u16]) -> Result<u16, Status> {
        let (low, high) = (*self.services.node_ports.start(), *self.services.node_ports.end());
        let free = |port: &u16| !kept.contains(port) && !self.port_taken(*port);
        let span = u32::from(high - low) + 1;
        let mut tries = (0..RANDOM_TRIES).map(|_| low + u16::try_from(random() % span).unwrap_or(0));
        tries
            .find(free)
            .or_else(|| (low..=high).find(free))
            .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    }

    fn port_write(&self, port: u16) -> Write {
        let object = json!({"metadata": {"name": port.to_string()}});
        let key = ObjectKey::new("", &port.to_string());
        Write::put(node_ports(), key, Expect::Absent, Encoded::new(&object), Header::default())
    }
}

fn held_addresses(service: &Value) -> Vec<String> {
    let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    all.filter(|address| address.parse::<IpAddr>().is_ok()).map(str::to_owned).collect()
}

fn held_ports(service: &Value) -> Vec<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let all = ports.chain([&service["spec"]["healthCheckNodePort"]]).filter_map(Value::as_u64);
    let mut held: Vec<u16> = all.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect();
    held.sort_unstable();
    held.dedup();
    held
}

fn random() -> u32 {
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> ServiceNetwork {
        ServiceNetwork::new("10.96.0.0/12".parse().unwrap())
    }

    #[test]
    fn the_range_knows_its_ends() {
        let network = network();
        assert_eq!(network.api_server(), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(network.dns(), Ipv4Addr::new(10, 96, 0, 10));
        assert!(network.usable(Ipv4Addr::new(10, 111, 255, 254)));
        assert!(!network.usable(Ipv4Addr::new(10, 111, 255, 255)) && !network.usable(Ipv4Addr::new(10, 112, 0, 1)));
        assert_eq!(network.to_string(), "10.96.0.0/12");
    }
}
