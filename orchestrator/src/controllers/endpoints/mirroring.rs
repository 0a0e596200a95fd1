//! Slices for hand-made Endpoints: whoever reads slices alone misses nothing.

use api::uid::Uid;
use api::view::{EndpointSlice, Service};
use client::{Caches, Kept, Key};
use serde_json::{Value, json};

use super::super::given::{Account, Given};
use super::super::runtime::{Controller, Plan, Queue};
use super::super::views::Endpoints;
use super::slices::{self, endpoint, own_slices, plan_slices, watch_slices};
use super::{Address, Ports, watch_services};

const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
pub(super) const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

pub struct Mirroring;

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslice-mirroring-controller";
    const ACCOUNT: Account = Account::Service("endpointslicemirroring-controller");
    const READS: &'static [Kept] = &[Kept::of::<Service>(), Kept::of::<EndpointSlice>(), Kept::of::<Endpoints>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_slices(caches, queue, MIRROR);
        let queue = queue.clone();
        caches.of::<Endpoints>().on_change(move |old, new| {
            if let Some(endpoints) = new.or(old) {
                queue.add(Key::of(&endpoints.metadata.meta));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let existing = own_slices(caches, key, MIRROR);
        let service =
            caches.of::<Service>().get(&key.namespace, &key.name).filter(|service| service.spec.selector.is_empty());
        let endpoints = caches.of::<Endpoints>().get(&key.namespace, &key.name).filter(|endpoints| mirrored(endpoints));
        let (Some(service), Some(endpoints)) = (service, endpoints) else {
            return existing.iter().map(|slice| slices::delete(slice)).collect();
        };
        let groups: Vec<_> =
            endpoints.subsets.iter().map(mirror).filter(|(_, addresses)| !addresses.is_empty()).collect();
        plan_slices(&service, MIRROR, slices::groups(&groups, mirrored_endpoint), &existing)
    }
}

pub(super) fn mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata.meta;
    meta.labels.get(SKIP_MIRROR).is_none_or(|skip| skip != "true")
        && !meta.annotations.contains_key("control-plane.alpha.kubernetes.io/leader")
}

pub(super) fn mirror(subset: &Value) -> (Ports, Vec<Address>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ports = subset["ports"].as_array().into_iter().flatten();
    let ports = ports.map(|port| {
        let number = port["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        (text(&port["name"]), port["protocol"].as_str().unwrap_or("TCP").to_owned(), number)
    });
    let addresses = [("addresses", true), ("notReadyAddresses", false)].into_iter().flat_map(|(field, ready)| {
        subset[field].as_array().into_iter().flatten().map(move |address| Address {
            ip: text(&address["ip"]),
            node: text(&address["nodeName"]),
            hostname: text(&address["hostname"]),
            pod: text(&address["targetRef"]["name"]),
            namespace: text(&address["targetRef"]["namespace"]),
            uid: Uid::new(text(&address["targetRef"]["uid"])),
            ready,
            serving: ready,
            terminating: false,
        })
    });
    (ports.collect(), addresses.collect())
}

fn mirrored_endpoint(address: &Address) -> Value {
    let mut value = endpoint(address);
    value["conditions"] = json!({"ready": address.ready});
    value
}
