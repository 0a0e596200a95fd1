//! The EndpointSlices of a Service.
//!
//! An endpoint stays in the slice it is in, so that one pod of thousands changes one slice: readers are sent a slice whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::view::{Endpoint, EndpointSlice, Service};
use client::views::SLICES;
use client::{Caches, Kept, Key};
use serde_json::{Value, json};

use super::super::given::{Account, Given};
use super::super::runtime::{Action, Controller, Plan, Queue};
use super::super::views::{Node, Pod};
use super::{
    Address, AddressType, HEADLESS, Ports, endpoints_of, families, is_headless, is_selected, owners, relabelled,
    selected, watch_pods, watch_services,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
const PER_SLICE: usize = 100;

pub struct EndpointSlices;

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";
    const ACCOUNT: Account = Account::Service("endpointslice-controller");
    const READS: &'static [Kept] =
        &[Kept::of::<Service>(), Kept::of::<Pod>(), Kept::of::<Node>(), Kept::of::<EndpointSlice>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_pods(caches, queue);
        watch_zones(caches, queue);
        watch_slices(caches, queue, CONTROLLER);
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let existing = own_slices(caches, key, CONTROLLER);
        let Some(service) = caches.of::<Service>().get(&key.namespace, &key.name) else {
            return existing.iter().map(|slice| delete(slice)).collect();
        };
        // A Service that lost its selector keeps the endpoints it had, now in its owner's hands.
        if !is_selected(&service) {
            return Plan::new();
        }
        let groups = endpoints_of(&service, &selected(&service, caches));
        let nodes = caches.of::<Node>();
        let show = |address: &Address| {
            let node = nodes.get("", &address.node);
            placed(address, node.as_deref().map_or("", Node::zone), &service.spec.traffic_distribution)
        };
        plan_slices(&service, CONTROLLER, self::groups(&groups, show), &existing)
    }
}

/// A node that is in another zone now takes its endpoints with it.
fn watch_zones(caches: &Caches, queue: &Queue) {
    let (queue, slices) = (queue.clone(), Arc::downgrade(&caches.of::<EndpointSlice>()));
    caches.of::<Node>().on_change(move |old, new| {
        let (Some(node), Some(slices)) = (new.or(old), slices.upgrade()) else { return };
        if old.map_or("", Node::zone) == new.map_or("", Node::zone) {
            return;
        }
        let is_there = |slice: &EndpointSlice| {
            slice.endpoints.iter().any(|endpoint| endpoint.node_name == node.metadata.meta.name)
        };
        for slice in slices.all().iter().filter(|slice| is_there(slice)) {
            if let Some(name) = slice.service_name() {
                queue.add(Key::new(&slice.metadata.namespace, name));
            }
        }
    });
}

/// An endpoint with its zone, and whom it is meant for first if the Service wants its clients near (`trafficDistribution`).
pub(super) fn placed(address: &Address, zone: &str, distribution: &str) -> Value {
    let mut value = endpoint(address);
    let named = |name: &str| (!name.is_empty()).then(|| json!([{"name": name}]));
    if !zone.is_empty() {
        value["zone"] = json!(zone);
    }
    let (for_zones, for_nodes) = match distribution {
        "PreferClose" | "PreferSameZone" => (named(zone), None),
        "PreferSameNode" => (named(zone), named(&address.node)),
        _ => (None, None),
    };
    // Nobody is sent to one that is not ready.
    for (hint, names) in [("forZones", for_zones), ("forNodes", for_nodes)] {
        if let Some(names) = names.filter(|_| address.ready) {
            value["hints"][hint] = names;
        }
    }
    value
}

/// Slices of ours that somebody else changed or removed come back.
pub(super) fn watch_slices(caches: &Caches, queue: &Queue, manager: &'static str) {
    let queue = queue.clone();
    caches.of::<EndpointSlice>().on_change(move |old, new| {
        for slice in [old, new].into_iter().flatten() {
            let ours = slice.metadata.labels.get(MANAGED_BY).is_some_and(|own| own == manager);
            if let Some(name) = slice.service_name().filter(|_| ours) {
                queue.add(Key::new(&slice.metadata.namespace, name));
            }
        }
    });
}

pub(super) fn own_slices(caches: &Caches, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let all = caches.of::<EndpointSlice>().indexed(&format!("service/{}/{}", key.namespace, key.name));
    all.into_iter().filter(|slice| slice.metadata.labels.get(MANAGED_BY).is_some_and(|own| own == manager)).collect()
}

pub(super) fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        resource: SLICES,
        key: Key::of(&slice.metadata),
        uid: Some(slice.metadata.uid.clone()),
        propagation: None,
    }
}

pub(super) fn endpoint(address: &Address) -> Value {
    let mut value = json!({
        "addresses": [address.ip],
        "conditions": {"ready": address.ready, "serving": address.serving, "terminating": address.terminating},
    });
    if !address.hostname.is_empty() {
        value["hostname"] = json!(address.hostname);
    }
    if !address.node.is_empty() {
        value["nodeName"] = json!(address.node);
    }
    if !address.uid.is_empty() {
        value["targetRef"] =
            json!({"kind": "Pod", "namespace": address.namespace, "name": address.pod, "uid": address.uid});
    }
    value
}

/// An endpoint as it is to be: as it is written, and as it is compared.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    written: Value,
    read: Endpoint,
}

/// The endpoints of a family that share ports.
#[derive(Debug, Clone)]
pub(super) struct Group {
    family: AddressType,
    ports: Value,
    endpoints: BTreeMap<Identity, Wanted>,
}

/// What makes an endpoint the same one: its address, and the pod behind it.
type Identity = (String, String);

fn identity(endpoint: &Endpoint) -> Identity {
    let pod = endpoint.target_ref.as_ref().map(|target| format!("{}/{}", target.name, target.uid));
    (pod.unwrap_or_default(), endpoint.addresses.join(","))
}

/// What slices are to hold.
pub(super) fn groups(groups: &[(Ports, Vec<Address>)], show: impl Fn(&Address) -> Value) -> Vec<Group> {
    let wanted = |address: &Address| {
        let written = show(address);
        // Made just above, of the members that the view has.
        let read: Endpoint = serde_json::from_value(written.clone()).unwrap_or_default();
        (identity(&read), Wanted { written, read })
    };
    let group = |(ports, addresses): &(Ports, Vec<Address>), family: AddressType| {
        let port = |(name, protocol, port): &(String, String, Option<u16>)| json!({"name": name, "protocol": protocol, "port": port});
        let ports = Value::Array(ports.iter().map(port).collect());
        let own = addresses.iter().filter(|address| AddressType::of(&address.ip) == family);
        Group { family, ports, endpoints: own.map(wanted).collect() }
    };
    let all = groups.iter().flat_map(|found| [AddressType::V4, AddressType::V6].map(|family| group(found, family)));
    all.filter(|group| !group.endpoints.is_empty()).collect()
}

/// A slice on its way to what it is to hold.
struct Draft<'a> {
    stored: Option<&'a EndpointSlice>,
    ports: Value,
    endpoints: Vec<Wanted>,
    changed: bool,
}

impl Draft<'_> {
    fn room(&self) -> usize {
        PER_SLICE.saturating_sub(self.endpoints.len())
    }
}

/// Brings existing slices to the wanted contents, family by family: a slice never changes its own.
pub(super) fn plan_slices(
    service: &Service,
    manager: &str,
    mut wanted: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let labels = labels(service, manager);
    let mut families = families(service);
    for group in &wanted {
        if !families.contains(&group.family) {
            families.push(group.family);
        }
    }
    let (mut plan, mut rest) = (Plan::new(), existing.iter().map(|slice| &**slice).collect::<Vec<_>>());
    for family in families {
        let (own, others) = wanted.into_iter().partition(|group| group.family == family);
        wanted = others;
        let (found, strange) = rest.into_iter().partition(|slice| slice.address_type == family.name());
        rest = strange;
        plan.extend(plan_family(service, family, &labels, own, found));
    }
    plan.extend(rest.into_iter().map(delete));
    plan
}

/// The slices of one family. An endpoint stays where it is. New ones go to slices that change anyway,
/// then to one with room for all that are left, then to new slices; a slice that is left with none goes.
fn plan_family(
    service: &Service,
    family: AddressType,
    labels: &BTreeMap<String, String>,
    wanted: Vec<Group>,
    mut rest: Vec<&EndpointSlice>,
) -> Plan {
    let mut drafts = Vec::new();
    for group in wanted {
        let (own, others) = rest.into_iter().partition(|slice| has_ports(slice, &group.ports));
        rest = others;
        drafts.extend(fill(group, own, labels));
    }
    let (mut drafts, empty): (Vec<_>, Vec<_>) = drafts.into_iter().partition(|draft| !draft.endpoints.is_empty());
    rest.extend(empty.iter().filter_map(|draft| draft.stored));
    // A Service without endpoints has a slice that says so.
    if drafts.is_empty() {
        let blank = rest.iter().position(|slice| slice.endpoints.is_empty() && slice.ports.is_empty());
        let stored = blank.map(|at| rest.swap_remove(at));
        let changed = stored.is_none_or(|stored| stored.metadata.labels != *labels);
        drafts.push(Draft { stored, ports: Value::Null, endpoints: Vec::new(), changed });
    }
    // What would go takes the place of what would be made.
    for draft in drafts.iter_mut().filter(|draft| draft.stored.is_none()) {
        draft.stored = rest.pop();
    }
    let written = drafts.iter().filter(|draft| draft.changed).map(|draft| write(service, family, labels, draft));
    written.chain(rest.into_iter().map(delete)).collect()
}

/// One group's endpoints over its slices.
fn fill<'a>(mut group: Group, own: Vec<&'a EndpointSlice>, labels: &BTreeMap<String, String>) -> Vec<Draft<'a>> {
    let mut drafts: Vec<Draft<'a>> = Vec::new();
    for stored in own {
        let kept = stored.endpoints.iter().filter_map(|old| group.endpoints.remove(&identity(old)));
        let endpoints: Vec<Wanted> = kept.collect();
        let same = endpoints.iter().map(|wanted| &wanted.read).eq(&stored.endpoints);
        let changed = !same || stored.metadata.labels != *labels;
        drafts.push(Draft { stored: Some(stored), ports: group.ports.clone(), endpoints, changed });
    }
    let mut left = group.endpoints.into_values().collect::<Vec<_>>().into_iter();
    // The fullest first: fewer, fuller slices.
    let mut changing: Vec<_> = drafts.iter_mut().filter(|draft| draft.changed).collect();
    changing.sort_by_key(|draft| draft.room());
    for draft in changing {
        draft.endpoints.extend(left.by_ref().take(draft.room()));
    }
    let count = left.len();
    let fitting = drafts.iter_mut().filter(|draft| draft.room() >= count).min_by_key(|draft| draft.room());
    if let Some(draft) = fitting.filter(|_| count > 0) {
        draft.endpoints.extend(left.by_ref());
        draft.changed = true;
    }
    while left.len() > 0 {
        let endpoints = left.by_ref().take(PER_SLICE).collect();
        drafts.push(Draft { stored: None, ports: group.ports.clone(), endpoints, changed: true });
    }
    drafts
}

fn has_ports(slice: &EndpointSlice, ports: &Value) -> bool {
    let wanted = json!({"ports": ports.as_array().cloned().unwrap_or_default()});
    serde_json::from_value::<EndpointSlice>(wanted).is_ok_and(|wanted| wanted.ports == slice.ports)
}

fn write(service: &Service, family: AddressType, labels: &BTreeMap<String, String>, draft: &Draft<'_>) -> Action {
    let endpoints: Vec<&Value> = draft.endpoints.iter().map(|wanted| &wanted.written).collect();
    match draft.stored {
        Some(stored) => Action::Patch {
            resource: SLICES,
            key: Key::of(&stored.metadata),
            subresource: "",
            version: Some(stored.metadata.resource_version.clone()),
            patch: json!({"metadata": {"labels": relabelled(&stored.metadata.labels, labels)}, "ports": draft.ports, "endpoints": endpoints}),
        },
        None => create(service, family, labels, draft.ports.clone(), json!(endpoints)),
    }
}

fn labels(service: &Service, manager: &str) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone();
    labels.retain(|key, _| !matches!(key.as_str(), SERVICE_NAME | MANAGED_BY));
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), manager.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn create(
    service: &Service,
    family: AddressType,
    labels: &BTreeMap<String, String>,
    ports: Value,
    endpoints: Value,
) -> Action {
    let meta = &service.metadata;
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": labels, "ownerReferences": owners(service)},
        "addressType": family.name(),
        "ports": ports,
        "endpoints": endpoints,
    });
    Action::Create { resource: SLICES, namespace: meta.namespace.clone(), object, announce: None }
}
