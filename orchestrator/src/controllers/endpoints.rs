//! EndpointSlices and Endpoints of Services with a selector, and slices mirrored from hand-made Endpoints.
//!
//! What a Service's endpoints are is decided once ([`endpoints_of`]); the two kinds are two ways to write it down.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::view::{EndpointSlice, Service};
use serde_json::{Value, json};

use super::Caches;
use super::informer::Key;
use super::runtime::{Action, Controller, Plan, Queue};
use super::views::{ENDPOINTS, Endpoints, Pod, SLICES};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
/// Endpoints in one slice.
const PER_SLICE: usize = 100;
/// Addresses that an Endpoints object may hold; the rest is left out, and it says so.
const ENDPOINTS_LIMIT: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub struct EndpointSlices;
pub struct EndpointsObjects;
pub struct Mirroring;

/// Queues the Services that select a pod, before and after its change.
fn watch_pods(caches: &Caches, queue: &Queue) {
    let (queue, services) = (queue.clone(), caches.services.clone());
    caches.pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && same_for_services(old, new)
        {
            return;
        }
        let changed: Vec<&Pod> = [old, new].into_iter().flatten().collect();
        let Some(first) = changed.first() else { return };
        for service in services.namespace(&first.metadata.meta.namespace) {
            if changed.iter().any(|pod| selects(&service, pod)) {
                queue.add(Key::of(&service.metadata));
            }
        }
    });
}

/// Nothing of a pod changed that an endpoint shows.
fn same_for_services(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let meta = &pod.metadata.meta;
        (
            meta.labels.clone(),
            meta.deletion_timestamp.is_some(),
            pod.is_ready(),
            pod.has_ended(),
            pod.spec.node_name.clone(),
            pod.status.pod_ips.clone(),
        )
    };
    facts(old) == facts(new)
}

fn watch_services(caches: &Caches, queue: &Queue) {
    let queue = queue.clone();
    caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            queue.add(Key::of(&service.metadata));
        }
    });
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = &pod.metadata.meta.labels;
    !service.spec.selector.is_empty() && service.spec.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
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
    uid: String,
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// Ports by number for pods that agree on them: name, protocol, port.
type Ports = Vec<(String, String, Option<u16>)>;

fn is_selected(service: &Service) -> bool {
    !service.spec.selector.is_empty() && service.spec.type_ != "ExternalName"
}

/// The endpoints of a Service, grouped by the target ports that their pods resolve.
fn endpoints_of(service: &Service, pods: &[Arc<Pod>]) -> Vec<(Ports, Vec<Address>)> {
    let mut groups: Vec<(Ports, Vec<Address>)> = Vec::new();
    for pod in pods.iter().filter(|pod| selects(service, pod) && !pod.has_ended() && !pod.status.pod_ip.is_empty()) {
        let ports = ports_of(service, pod);
        let address = address(service, pod);
        match groups.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, addresses)) => addresses.push(address),
            None => groups.push((ports, vec![address])),
        }
    }
    for (_, addresses) in &mut groups {
        addresses.sort_by(|a, b| a.pod.cmp(&b.pod));
    }
    groups
}

fn address(service: &Service, pod: &Pod) -> Address {
    let meta = &pod.metadata.meta;
    let terminating = pod.is_deleting();
    let serving = pod.is_ready() || service.spec.publish_not_ready_addresses;
    let named = pod.spec.subdomain == service.metadata.name && meta.namespace == service.metadata.namespace;
    Address {
        ip: pod.status.pod_ip.clone(),
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

fn owner(service: &Service) -> Value {
    let meta = &service.metadata;
    json!([{"apiVersion": "v1", "kind": "Service", "name": meta.name, "uid": meta.uid, "controller": true, "blockOwnerDeletion": true}])
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";
    const ACCOUNT: &'static str = "endpointslice-controller";

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_pods(caches, queue);
        watch_slices(caches, queue, CONTROLLER);
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let existing = own_slices(caches, key, CONTROLLER);
        let Some(service) = caches.services.get(&key.namespace, &key.name) else {
            return existing.iter().map(|slice| delete(slice)).collect();
        };
        // A Service that lost its selector keeps the endpoints it had, now in its owner's hands.
        if !is_selected(&service) {
            return Plan::new();
        }
        let groups = endpoints_of(&service, &caches.pods.namespace(&key.namespace));
        let wanted = slices(&groups, endpoint);
        plan_slices(&service, CONTROLLER, wanted, &existing)
    }
}

/// Slices of ours that somebody else changed or removed come back.
fn watch_slices(caches: &Caches, queue: &Queue, manager: &'static str) {
    let queue = queue.clone();
    caches.slices.on_change(move |old, new| {
        for slice in [old, new].into_iter().flatten() {
            let ours = slice.metadata.labels.get(MANAGED_BY).is_some_and(|own| own == manager);
            if let Some(name) = slice.service_name().filter(|_| ours) {
                queue.add(Key::new(&slice.metadata.namespace, name));
            }
        }
    });
}

fn own_slices(caches: &Caches, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let all = caches.slices.indexed(&format!("service/{}/{}", key.namespace, key.name));
    all.into_iter().filter(|slice| slice.metadata.labels.get(MANAGED_BY).is_some_and(|own| own == manager)).collect()
}

fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        resource: SLICES,
        key: Key::of(&slice.metadata),
        uid: Some(slice.metadata.uid.clone()),
        propagation: None,
    }
}

fn endpoint(address: &Address) -> Value {
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

/// What slices hold: ports and up to [`PER_SLICE`] endpoints each.
fn slices(groups: &[(Ports, Vec<Address>)], show: impl Fn(&Address) -> Value) -> Vec<(Value, Value)> {
    let mut all = Vec::new();
    for (ports, addresses) in groups {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
            .collect();
        for chunk in addresses.chunks(PER_SLICE) {
            all.push((json!(ports), Value::Array(chunk.iter().map(&show).collect())));
        }
    }
    if all.is_empty() {
        all.push((Value::Null, json!([])));
    }
    all
}

/// Brings existing slices to the wanted contents: keeps those that fit, changes what differs, makes and removes the rest.
fn plan_slices(service: &Service, manager: &str, wanted: Vec<(Value, Value)>, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::new();
    let mut free: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    let mut missing = Vec::new();
    let labels = labels(service, manager);
    for (ports, endpoints) in wanted {
        let fits = free.iter().position(|slice| shows(slice, &ports, &endpoints) && has_labels(slice, &labels));
        match fits {
            Some(at) => drop(free.swap_remove(at)),
            None => missing.push((ports, endpoints)),
        }
    }
    for (ports, endpoints) in missing {
        match free.pop() {
            Some(slice) => plan.push(Action::Patch {
                resource: SLICES,
                key: Key::of(&slice.metadata),
                subresource: "",
                version: Some(slice.metadata.resource_version.clone()),
                patch: json!({"metadata": {"labels": relabelled(&slice.metadata.labels, &labels)}, "ports": ports, "endpoints": endpoints}),
            }),
            None => plan.push(create(service, &labels, ports, endpoints)),
        }
    }
    plan.extend(free.into_iter().map(|slice| delete(slice)));
    plan
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

fn has_labels(slice: &EndpointSlice, labels: &BTreeMap<String, String>) -> bool {
    slice.metadata.labels == *labels
}

/// The patch that leaves just these labels of those that were found.
fn relabelled(found: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> Value {
    let gone = found.keys().filter(|key| !labels.contains_key(*key)).map(|key| (key, Value::Null));
    gone.chain(labels.iter().map(|(key, value)| (key, json!(value)))).map(|(key, value)| (key.clone(), value)).collect()
}

/// The slice holds just this.
fn shows(slice: &EndpointSlice, ports: &Value, endpoints: &Value) -> bool {
    let wanted = json!({"ports": ports.as_array().cloned().unwrap_or_default(), "endpoints": endpoints});
    serde_json::from_value::<EndpointSlice>(wanted)
        .is_ok_and(|wanted| wanted.ports == slice.ports && wanted.endpoints == slice.endpoints)
}

fn create(service: &Service, labels: &BTreeMap<String, String>, ports: Value, endpoints: Value) -> Action {
    let meta = &service.metadata;
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": labels, "ownerReferences": owner(service)},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    });
    Action::Create { resource: SLICES, namespace: meta.namespace.clone(), object, announce: None }
}

impl Controller for EndpointsObjects {
    const NAME: &'static str = "endpoints-controller";
    const ACCOUNT: &'static str = "endpoint-controller";

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_pods(caches, queue);
        let queue = queue.clone();
        caches.endpoints.on_change(move |old, new| {
            if let (Some(gone), None) = (old, new) {
                queue.add(Key::of(&gone.metadata.meta));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let found = caches.endpoints.get(&key.namespace, &key.name);
        let Some(service) = caches.services.get(&key.namespace, &key.name) else {
            let ours = |found: &Arc<Endpoints>| found.metadata.meta.labels.contains_key(ENDPOINTS_MANAGED_BY);
            return found.filter(ours).map(|found| remove_endpoints(&found)).into_iter().collect();
        };
        if !is_selected(&service) {
            return Plan::new();
        }
        let groups = endpoints_of(&service, &caches.pods.namespace(&key.namespace));
        write_endpoints(&service, found.as_deref(), subsets(&groups))
    }
}

fn remove_endpoints(found: &Endpoints) -> Action {
    let meta = &found.metadata.meta;
    Action::Delete { resource: ENDPOINTS, key: Key::of(meta), uid: Some(meta.uid.clone()), propagation: None }
}

/// What an Endpoints object shows, and whether that is all.
#[derive(Debug, Clone, PartialEq)]
struct Subsets {
    list: Vec<Value>,
    truncated: bool,
}

/// Ready and unready addresses per set of ports, ready ones first where there are too many; terminating ones are not shown.
fn subsets(groups: &[(Ports, Vec<Address>)]) -> Subsets {
    let visible = |address: &&Address| !address.terminating || address.ready;
    let count = |ready: bool| {
        let all = groups.iter().flat_map(|(_, addresses)| addresses).filter(visible);
        all.filter(|address| address.ready == ready).count()
    };
    let (ready, unready) = (count(true), count(false));
    let mut room = [ENDPOINTS_LIMIT.saturating_sub(ready).min(unready), ENDPOINTS_LIMIT.min(ready)];
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
    Subsets { list: all, truncated: ready + unready > ENDPOINTS_LIMIT }
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

fn write_endpoints(service: &Service, found: Option<&Endpoints>, subsets: Subsets) -> Plan {
    let meta = &service.metadata;
    let mut labels = meta.labels.clone();
    labels.insert(ENDPOINTS_MANAGED_BY.into(), "endpoint-controller".into());
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

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslice-mirroring-controller";
    const ACCOUNT: &'static str = "endpointslicemirroring-controller";

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_services(caches, queue);
        watch_slices(caches, queue, MIRROR);
        let queue = queue.clone();
        caches.endpoints.on_change(move |old, new| {
            if let Some(endpoints) = new.or(old) {
                queue.add(Key::of(&endpoints.metadata.meta));
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let existing = own_slices(caches, key, MIRROR);
        let service = caches.services.get(&key.namespace, &key.name).filter(|service| service.spec.selector.is_empty());
        let endpoints = caches.endpoints.get(&key.namespace, &key.name).filter(|endpoints| mirrored(endpoints));
        let (Some(service), Some(endpoints)) = (service, endpoints) else {
            return existing.iter().map(|slice| delete(slice)).collect();
        };
        let groups: Vec<_> =
            endpoints.subsets.iter().map(mirror).filter(|(_, addresses)| !addresses.is_empty()).collect();
        plan_slices(&service, MIRROR, slices(&groups, mirrored_endpoint), &existing)
    }
}

fn mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata.meta;
    meta.labels.get(SKIP_MIRROR).is_none_or(|skip| skip != "true")
        && !meta.annotations.contains_key("control-plane.alpha.kubernetes.io/leader")
}

fn mirror(subset: &Value) -> (Ports, Vec<Address>) {
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
            uid: text(&address["targetRef"]["uid"]),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service(target: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
            "spec": {"clusterIPs": ["10.96.0.9"], "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": target, "protocol": "TCP"}]},
        }))
        .unwrap()
    }

    fn pod(name: &str, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": format!("10.244.0.{}", name.len()), "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn conditions_tell_ready_serving_and_terminating() {
        let service = service(json!(8080));
        let groups = endpoints_of(&service, &[pod("a", true, false), pod("bb", false, false), pod("ccc", true, true)]);
        let facts: Vec<_> = groups[0].1.iter().map(|a| (a.ready, a.serving, a.terminating)).collect();
        assert_eq!(facts, [(true, true, false), (false, false, false), (false, true, true)]);
    }

    #[test]
    fn a_named_port_is_found_in_the_pod() {
        let service = service(json!("web"));
        let groups = endpoints_of(&service, &[pod("a", true, false)]);
        assert_eq!(groups[0].0[0].2, Some(8080));
    }

    #[test]
    fn slices_that_fit_stay_and_one_that_differs_is_changed() {
        let service = service(json!(8080));
        let one = slices(&endpoints_of(&service, &[pod("a", true, false)]), endpoint);
        let made = plan_slices(&service, CONTROLLER, one.clone(), &[]);
        let Action::Create { object, .. } = &made[0] else { panic!() };
        let mut stored = object.clone();
        stored["metadata"]["name"] = json!("web-x");
        let stored: Arc<EndpointSlice> = Arc::new(serde_json::from_value(stored).unwrap());
        assert!(plan_slices(&service, CONTROLLER, one, std::slice::from_ref(&stored)).is_empty());
        let two = slices(&endpoints_of(&service, &[pod("a", true, false), pod("bb", true, false)]), endpoint);
        assert!(matches!(&plan_slices(&service, CONTROLLER, two, &[stored])[..], [Action::Patch { .. }]));
    }

    #[test]
    fn endpoints_show_ready_and_unready_apart() {
        let service = service(json!(8080));
        let shown =
            subsets(&endpoints_of(&service, &[pod("a", true, false), pod("bb", false, false), pod("ccc", true, true)]));
        assert_eq!(shown.list[0]["addresses"].as_array().unwrap().len(), 1);
        assert_eq!(shown.list[0]["notReadyAddresses"].as_array().unwrap().len(), 1);
        assert!(!shown.truncated);
    }

    #[test]
    fn too_many_addresses_are_cut_and_said_so() {
        let address = |index: usize, ready| Address {
            ip: format!("10.244.{}.{}", index / 250, index % 250),
            node: String::new(),
            hostname: String::new(),
            pod: format!("p{index}"),
            namespace: "ns".into(),
            uid: String::new(),
            ready,
            serving: ready,
            terminating: false,
        };
        let all = (0..1100).map(|index| address(index, index % 11 != 0)).collect();
        let shown = subsets(&[(Ports::new(), all)]);
        assert_eq!(shown.list[0]["addresses"].as_array().unwrap().len(), 1000, "ready ones first");
        assert!(shown.list[0].get("notReadyAddresses").is_none() && shown.truncated);
        let service = service(json!(80));
        let made = write_endpoints(&service, None, shown.clone());
        let Action::Create { object, .. } = &made[0] else { panic!("{made:?}") };
        assert_eq!(object["metadata"]["annotations"][OVER_CAPACITY], "truncated");
        let mut fits: Endpoints = serde_json::from_value(object.clone()).unwrap();
        assert!(write_endpoints(&service, Some(&fits), shown.clone()).is_empty());
        fits.subsets.clear();
        let cleared = write_endpoints(&service, Some(&fits), Subsets { list: Vec::new(), truncated: false });
        assert!(
            matches!(&cleared[..], [Action::Patch { patch, .. }] if patch["metadata"]["annotations"][OVER_CAPACITY].is_null())
        );
    }

    #[test]
    fn a_label_that_the_service_lost_goes_from_its_slices() {
        let found = [("tier".to_owned(), "front".to_owned()), ("kept".to_owned(), "yes".to_owned())].into();
        let wanted = [("kept".to_owned(), "yes".to_owned())].into();
        assert_eq!(relabelled(&found, &wanted), json!({"tier": null, "kept": "yes"}));
    }

    #[test]
    fn hand_made_endpoints_are_mirrored_unless_they_say_no() {
        let subset = json!({"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 80}]});
        let (ports, addresses) = mirror(&subset);
        assert_eq!((ports[0].2, addresses[0].ip.as_str(), addresses[0].ready), (Some(80), "10.1.1.1", true));
        let skip: Endpoints = serde_json::from_value(json!({"metadata": {"labels": {SKIP_MIRROR: "true"}}})).unwrap();
        assert!(!mirrored(&skip));
    }
}
