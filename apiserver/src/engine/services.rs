//! Service addresses and node ports: allocated in the same transaction as the Service that has them.
//!
//! Nothing is held in memory: an address is an IPAddress object, a node port a create-only key, so two servers cannot
//! give out the same one.

mod families;
mod network;

use std::net::IpAddr;

use api::kind::Kind;
use api::kinds::service::Needs;
use api::status::{FieldError, Status};
use serde_json::{Value, json};

use super::Engine;
use crate::object::{Collection, Encoded, Header, INTERNAL, ObjectKey, new_uid};
use crate::store::{Expect, Write};

pub use network::{BadRange, Family, ServiceNetwork, ServiceRange};

/// Node ports in use: keys of a collection that no kind shows.
fn node_ports() -> Collection {
    Collection::new(INTERNAL, "nodeports")
}

fn addresses() -> Collection {
    Collection::new("networking.k8s.io", "ipaddresses")
}

/// Tries at random before the range is walked.
const RANDOM_TRIES: u32 = 64;

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
        self.allocate_addresses(old, service, &mut writes)?;
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

    fn allocate_addresses(
        &self,
        old: Option<&Value>,
        service: &mut Value,
        writes: &mut Vec<Write>,
    ) -> Result<(), Status> {
        let held = old.map(held_addresses).unwrap_or_default();
        let mut given = Vec::new();
        if service["spec"]["type"] != "ExternalName" {
            families::decide(&self.services.families(), old, service).map_err(|errors| refused(service, errors))?;
            let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
            let asked: Vec<String> = list.filter_map(Value::as_str).map(str::to_owned).collect();
            if asked.first().is_some_and(|first| first == "None") {
                return Ok(());
            }
            for (place, family) in families::of(service).into_iter().enumerate() {
                let address = match asked.get(place) {
                    Some(kept) if held.contains(kept) => {
                        given.push(kept.clone());
                        continue;
                    }
                    Some(asked) => self.claim_address(asked, place, family, service)?,
                    None => self.pick_address(family, service)?,
                };
                writes.push(self.address_write(address, service));
                given.push(address.to_string());
            }
            service["spec"]["clusterIP"] = json!(given.first());
            service["spec"]["clusterIPs"] = json!(given);
        }
        let gone = held.iter().filter(|address| !given.contains(address));
        writes.extend(gone.filter_map(|address| self.free(addresses(), address)));
        Ok(())
    }

    /// An address that was asked for.
    fn claim_address(&self, asked: &str, place: usize, family: Family, service: &Value) -> Result<IpAddr, Status> {
        let refuse = |path: &str, why: String| {
            let list = service["spec"]["clusterIPs"].clone();
            refused(service, vec![FieldError::invalid(path, list, why)])
        };
        let address: Option<IpAddr> = asked.parse().ok();
        let (Some(address), Some(range)) = (address, self.services.range(family)) else {
            let family = address.map_or("it", |address| Family::of(&address).name());
            let why = format!("{family} is not configured on this cluster");
            return Err(refuse(&format!("spec.clusterIPs[{place}]"), why));
        };
        let why = if !range.network().contains(address) {
            "the provided network does not match the current range".to_owned()
        } else if !range.gives(&address) {
            let range = range.network();
            format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}")
        } else if self.cache().collection(&addresses()).get(&ObjectKey::new("", &address.to_string())).is_some() {
            "provided IP is already allocated".to_owned()
        } else {
            return Ok(address);
        };
        Err(refuse("spec.clusterIPs", format!("failed to allocate IP {asked}: {why}")))
    }

    fn pick_address(&self, family: Family, service: &Value) -> Result<IpAddr, Status> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        let full = |range: &str| {
            let why = "failed to allocate a serviceIP: range is full";
            Status::internal(format!("{why} ({range}, service {name})"))
        };
        let range = self.services.range(family).ok_or_else(|| full(family.name()))?;
        self.free_address(range).ok_or_else(|| full(&range.network().to_string()))
    }

    /// One at random from above what is reserved for those who ask, or the first one that is free.
    fn free_address(&self, range: ServiceRange) -> Option<IpAddr> {
        let taken = self.cache().collection(&addresses());
        let free = |offset: u64| {
            let address = range.at(offset);
            taken.get(&ObjectKey::new("", &address.to_string())).is_none().then_some(address)
        };
        let (low, high) = (range.reserved() + 1, range.size());
        let mut drawn = (0..RANDOM_TRIES).map(|_| low + random() % (high - low + 1));
        drawn.find_map(free).or_else(|| (low..=high).find_map(free)).or_else(|| (1..low).find_map(free))
    }

    /// The IPAddress object that stands for an allocation.
    fn address_write(&self, address: IpAddr, service: &Value) -> Write {
        let (uid, now) = (new_uid(), api::time::rfc3339(jiff::Timestamp::now()));
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IPAddress",
            "metadata": {
                "name": address.to_string(),
                "uid": uid,
                "creationTimestamp": now,
                "labels": {"ipaddress.kubernetes.io/ip-family": Family::of(&address).name(), "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
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
        let span = u64::from(high - low) + 1;
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

fn refused(service: &Value, errors: Vec<FieldError>) -> Status {
    Status::invalid("", "Service", service["metadata"]["name"].as_str().unwrap_or_default(), errors)
}

fn random() -> u64 {
    // None of these bytes holds the version or the variant.
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[9], bytes[10]])
}
