//! The Endpoints object of a Service: every address in one place, up to a limit.

use std::sync::Arc;

use api::view::Service;
use client::{Caches, Kept, Key};
use serde_json::{Value, json};

use super::super::given::{Account, Given};
use super::super::runtime::{Action, Controller, Plan, Queue};
use super::super::views::{ENDPOINTS, Endpoints, Pod};
use super::{
    Address, AddressType, HEADLESS, Ports, endpoints_of, families, is_headless, is_selected, relabelled, selected,
    watch_pods, watch_services,
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Addresses that an Endpoints object may hold; the rest is left out, and it says so.
pub(super) const LIMIT: usize = 1000;
pub(super) const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub struct EndpointsObjects;

impl Controller for EndpointsObjects {
    const NAME: &'static str = "endpoints-controller";
    const ACCOUNT: Account = Account::Service("endpoint-controller");
    const READS: &'static [Kept] = &[Kept::of::<Service>(), Kept::of::<Pod>(), Kept::of::<Endpoints>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_pods(caches, queue);
        let queue = queue.clone();
        caches.of::<Endpoints>().on_change(move |old, new| {
            if let (Some(gone), None) = (old, new) {
                queue.add(Key::of(&gone.metadata.meta));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let found = caches.of::<Endpoints>().get(&key.namespace, &key.name);
        let Some(service) = caches.of::<Service>().get(&key.namespace, &key.name) else {
            let ours = |found: &Arc<Endpoints>| found.metadata.meta.labels.contains_key(MANAGED_BY);
            return found.filter(ours).map(|found| remove_endpoints(&found)).into_iter().collect();
        };
        if !is_selected(&service) {
            return Plan::new();
        }
        let mut groups = endpoints_of(&service, &selected(&service, caches));
        // Endpoints show one address of a pod.
        let first = families(&service).into_iter().next();
        for (_, addresses) in &mut groups {
            addresses.retain(|address| Some(AddressType::of(&address.ip)) == first);
        }
        write_endpoints(&service, found.as_deref(), subsets(&groups))
    }
}

fn remove_endpoints(found: &Endpoints) -> Action {
    let meta = &found.metadata.meta;
    Action::Delete { resource: ENDPOINTS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }
}

/// What an Endpoints object shows, and whether that is all.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Subsets {
    pub list: Vec<Value>,
    pub truncated: bool,
}

/// Ready and unready addresses per set of ports, ready ones first where there are too many; terminating ones are not shown.
pub(super) fn subsets(groups: &[(Ports, Vec<Address>)]) -> Subsets {
    let visible = |address: &&Address| !address.terminating || address.ready;
    let count = |ready: bool| {
        let all = groups.iter().flat_map(|(_, addresses)| addresses).filter(visible);
        all.filter(|address| address.ready == ready).count()
    };
    let (ready, unready) = (count(true), count(false));
    let mut room = [LIMIT.saturating_sub(ready).min(unready), LIMIT.min(ready)];
    let mut all = Vec::new();
    for (ports, addresses) in groups {
        let mut shown: Vec<&Address> = Vec::new();
        for address in addresses.iter().filter(visible) {
            let left = &mut room[usize::from(address.ready)];
            if *left > 0 {
                *left -= 1;
                shown.push(address);
            }
        }
        if shown.is_empty() {
            continue;
        }
        let list = |ready: bool| -> Vec<Value> {
            shown.iter().filter(|address| address.ready == ready).map(|address| endpoint_address(address)).collect()
        };
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, protocol, port)| {
                let mut value = json!({"port": port, "protocol": protocol});
                if !name.is_empty() {
                    value["name"] = json!(name);
                }
                value
            })
            .collect();
        let mut subset = json!({"ports": ports});
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let list = list(ready);
            if !list.is_empty() {
                subset[field] = json!(list);
            }
        }
        all.push(subset);
    }
    Subsets { list: all, truncated: ready + unready > LIMIT }
}

fn endpoint_address(address: &Address) -> Value {
    let mut value = json!({"ip": address.ip, "targetRef": {"kind": "Pod", "namespace": address.namespace, "name": address.pod, "uid": address.uid}});
    if !address.node.is_empty() {
        value["nodeName"] = json!(address.node);
    }
    if !address.hostname.is_empty() {
        value["hostname"] = json!(address.hostname);
    }
    value
}

pub(super) fn write_endpoints(service: &Service, found: Option<&Endpoints>, subsets: Subsets) -> Plan {
    let meta = &service.metadata;
    let mut labels = meta.labels.clone();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let capacity = if subsets.truncated { json!("truncated") } else { Value::Null };
    match found {
        Some(found)
            if found.subsets == subsets.list
                && found.metadata.meta.labels == labels
                && found.metadata.meta.annotations.contains_key(OVER_CAPACITY) == subsets.truncated =>
        {
            Plan::new()
        }
        Some(found) => vec![Action::Patch {
            resource: ENDPOINTS,
            key: Key::of(&found.metadata.meta),
            subresource: "",
            version: None,
            patch: json!({"metadata": {"labels": relabelled(&found.metadata.meta.labels, &labels), "annotations": {OVER_CAPACITY: capacity}}, "subsets": subsets.list}),
        }],
        None => {
            let mut metadata = json!({"name": meta.name, "namespace": meta.namespace, "labels": labels});
            if subsets.truncated {
                metadata["annotations"] = json!({OVER_CAPACITY: capacity});
            }
            let object =
                json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets.list});
            vec![Action::Create { resource: ENDPOINTS, namespace: meta.namespace.clone(), object, announce: None }]
        }
    }
}
