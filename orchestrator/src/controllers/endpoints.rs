//! EndpointSlices and Endpoints of Services with a selector, and slices mirrored from hand-made Endpoints.
//!
//! What a Service's endpoints are is decided once ([`endpoints_of`]); the kinds are ways to write it down.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::uid::Uid;
use api::view::Service;
use client::{Caches, Key};
use serde_json::{Value, json};

use super::ownership;
use super::runtime::Queue;
use super::views::{Pod, label_entry};

mod mirroring;
mod objects;
mod slices;

pub use mirroring::Mirroring;
pub use objects::EndpointsObjects;
pub use slices::EndpointSlices;

const HEADLESS: &str = "service.kubernetes.io/headless";

/// Queues the Services that select a pod, before and after its change.
fn watch_pods(caches: &Caches, queue: &Queue) {
    let (queue, services) = (queue.clone(), caches.of::<Service>());
    caches.of::<Pod>().on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && same_for_services(old, new)
        {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            let meta = &pod.metadata.meta;
            let found = meta.labels.iter().flat_map(|label| services.indexed(&label_entry(&meta.namespace, label)));
            found.filter(|service| selects(service, pod)).for_each(|service| queue.add(Key::of(&service.metadata)));
        }
    });
}

/// Nothing of a pod changed that an endpoint shows.
fn same_for_services(old: &Pod, new: &Pod) -> bool {
    fn facts(pod: &Pod) -> impl PartialEq {
        let meta = &pod.metadata.meta;
        let state = (meta.deletion_timestamp.is_some(), pod.is_ready(), pod.has_ended());
        (state, &meta.labels, &pod.spec.node_name, &pod.status.pod_ips)
    }
    facts(old) == facts(new)
}

fn watch_services(caches: &Caches, queue: &Queue) {
    let queue = queue.clone();
    caches.of::<Service>().on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            queue.add(Key::of(&service.metadata));
        }
    });
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = &pod.metadata.meta.labels;
    !service.spec.selector.is_empty() && service.spec.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The pods that a Service selects.
fn selected(service: &Service, caches: &Caches) -> Vec<Arc<Pod>> {
    let Some(first) = service.spec.selector.first_key_value() else { return Vec::new() };
    let mut all = caches.of::<Pod>().indexed(&label_entry(&service.metadata.namespace, first));
    all.retain(|pod| selects(service, pod));
    all
}

fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ips.first().is_some_and(|ip| ip == "None")
}

/// One address of a Service, as both kinds need it.
#[derive(Debug, Clone, PartialEq)]
struct Address {
    ip: String,
    node: String,
    hostname: String,
    pod: String,
    namespace: String,
    uid: Uid,
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// Ports by number for pods that agree on them: name, protocol, port.
type Ports = Vec<(String, String, Option<u16>)>;

fn is_selected(service: &Service) -> bool {
    !service.spec.selector.is_empty() && service.spec.type_ != "ExternalName"
}

/// The endpoints of a Service, of the pods that it selects and in its families, grouped by the target ports that those resolve.
fn endpoints_of(service: &Service, pods: &[Arc<Pod>]) -> Vec<(Ports, Vec<Address>)> {
    let mut groups: Vec<(Ports, Vec<Address>)> = Vec::new();
    let families = families(service);
    for pod in pods.iter().filter(|pod| !pod.has_ended()) {
        let own = families.iter().filter_map(|family| ip_of(pod, *family));
        let own: Vec<Address> = own.map(|ip| address(service, pod, ip)).collect();
        if own.is_empty() {
            continue;
        }
        let ports = ports_of(service, pod);
        match groups.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, addresses)) => addresses.extend(own),
            None => groups.push((ports, own)),
        }
    }
    for (_, addresses) in &mut groups {
        addresses.sort_by(|a, b| a.pod.cmp(&b.pod));
    }
    groups
}

/// What a slice calls the family of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressType {
    V4,
    V6,
}

impl AddressType {
    /// Of an address as it is written.
    fn of(ip: &str) -> Self {
        if ip.contains(':') { Self::V6 } else { Self::V4 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The families that a Service's endpoints are wanted in, its own first; IPv4 where nobody said.
fn families(service: &Service) -> Vec<AddressType> {
    let named =
        service.spec.ip_families.iter().map(|name| if name == "IPv6" { AddressType::V6 } else { AddressType::V4 });
    let named: Vec<AddressType> = named.collect();
    if named.is_empty() { vec![AddressType::V4] } else { named }
}

/// The pod's address in a family.
fn ip_of(pod: &Pod, family: AddressType) -> Option<&str> {
    let all = pod.status.pod_ips.iter().map(|pod_ip| pod_ip.ip.as_str()).chain([pod.status.pod_ip.as_str()]);
    all.filter(|ip| !ip.is_empty()).find(|ip| AddressType::of(ip) == family)
}

fn address(service: &Service, pod: &Pod, ip: &str) -> Address {
    let meta = &pod.metadata.meta;
    let terminating = pod.is_deleting();
    let serving = pod.is_ready() || service.spec.publish_not_ready_addresses;
    let named = pod.spec.subdomain == service.metadata.name && meta.namespace == service.metadata.namespace;
    Address {
        ip: ip.to_owned(),
        node: pod.spec.node_name.clone(),
        hostname: if named { pod.spec.hostname.clone() } else { String::new() },
        pod: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        ready: service.spec.publish_not_ready_addresses || (pod.is_ready() && !terminating),
        serving,
        terminating,
    }
}

/// The Service's ports with numbers this pod gives them; a named port no container has is left out.
fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let containers =
        || pod.spec.containers.iter().chain(pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always"));
    let ports = service.spec.ports.iter();
    ports
        .filter_map(|port| {
            let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            let number = match &port.target_port {
                Value::Number(number) if number.as_u64() != Some(0) => u16::try_from(number.as_u64()?).ok()?,
                Value::String(name) => {
                    let mut named = containers().flat_map(|container| &container.ports);
                    named
                        .find(|own| {
                            own.name == *name
                                && (own.protocol == protocol || (own.protocol.is_empty() && protocol == "TCP"))
                        })?
                        .container_port
                }
                _ => port.port,
            };
            Some((port.name.clone(), protocol.to_owned(), Some(number)))
        })
        .collect()
}

/// The owner of what is made for a Service.
fn owners(service: &Service) -> Value {
    json!([ownership::owner("v1", "Service", &service.metadata)])
}

/// The patch that leaves just these labels of those that were found.
fn relabelled(found: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> Value {
    let gone = found.keys().filter(|key| !labels.contains_key(*key)).map(|key| (key, Value::Null));
    gone.chain(labels.iter().map(|(key, value)| (key, json!(value)))).map(|(key, value)| (key.clone(), value)).collect()
}

#[cfg(test)]
mod tests;
