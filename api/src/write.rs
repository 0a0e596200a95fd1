//! The pure part of a write: what the server itself sets, keeps or strips before an object is validated.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::quantity::Quantity;
use crate::status::Status;
use crate::time::rfc3339;

/// What the server chooses for a new object.
#[derive(Debug, Clone)]
pub struct Birth<'a> {
    pub uid: &'a str,
    pub now: Timestamp,
    /// Of the request path; `None` for cluster-scoped kinds.
    pub namespace: Option<&'a str>,
    /// Five characters for a `generateName` (see [`crate::names::suffix`]).
    pub suffix: &'a str,
}

/// System metadata of a new object: uid, time, namespace, generated name; refuses a namespace other than the path's.
pub fn birth(kind: &Kind, object: &mut Value, birth: &Birth) -> Result<(), Status> {
    let metadata = section(object, "metadata");
    if let Some(namespace) = birth.namespace.filter(|_| kind.namespaced()) {
        set_namespace(metadata, namespace)?;
    } else {
        metadata.remove("namespace");
    }
    if text(metadata, "name").is_empty() && !text(metadata, "generateName").is_empty() {
        let base: String = text(metadata, "generateName").chars().take(58).collect();
        metadata.insert("name".into(), json!(format!("{base}{}", birth.suffix)));
    }
    for name in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
        metadata.remove(name);
    }
    metadata.insert("uid".into(), json!(birth.uid));
    metadata.insert("creationTimestamp".into(), json!(rfc3339(birth.now)));
    Ok(())
}

/// The namespace of the request path, which the object may repeat but not contradict.
pub fn set_namespace(metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), Status> {
    match text(metadata, "namespace") {
        given if given.is_empty() || given == namespace => {
            metadata.insert("namespace".into(), json!(namespace));
            Ok(())
        }
        _ => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

/// How a kind's generation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Generation {
    /// The kind has none: always absent.
    None,
    /// Raised when the spec changes.
    Spec,
    /// Raised when anything but metadata and status changes.
    Body,
    /// Kept as the client sends it.
    Client,
}

fn generation(kind: &Kind) -> Generation {
    match (&*kind.group, &*kind.plural) {
        ("", "pods" | "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs" | "cronjobs")
        | ("networking.k8s.io", "ingresses" | "networkpolicies" | "ingressclasses")
        | ("policy", _)
        | ("flowcontrol.apiserver.k8s.io", _)
        | ("apiextensions.k8s.io", _)
        | ("resource.k8s.io", "deviceclasses" | "resourceslices") => Generation::Spec,
        ("", "podtemplates")
        | ("discovery.k8s.io", _)
        | ("admissionregistration.k8s.io", _)
        | ("scheduling.k8s.io", _) => Generation::Body,
        _ if kind.schema.is_open() => Generation::Body,
        (
            "",
            "services" | "nodes" | "namespaces" | "configmaps" | "secrets" | "serviceaccounts" | "endpoints" | "events",
        )
        | ("apps" | "rbac.authorization.k8s.io" | "coordination.k8s.io" | "events.k8s.io", _) => Generation::Client,
        _ => Generation::None,
    }
}

/// Kinds whose status a client may set when it creates them.
fn keeps_initial_status(kind: &Kind) -> bool {
    matches!((&*kind.group, &*kind.plural), ("", "nodes"))
}

/// Strips status, sets the first generation and what the kind starts with.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    if kind.subresource("status").is_some() && !keeps_initial_status(kind) {
        clear_status(kind, object);
    }
    match generation(kind) {
        Generation::Spec | Generation::Body => {
            section(object, "metadata").insert("generation".into(), json!(1));
        }
        Generation::None => {
            section(object, "metadata").remove("generation");
        }
        Generation::Client => {}
    }
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => new_pod(object),
        ("", "namespaces") => new_namespace(object),
        ("", "nodes") => new_node(object),
        ("", "secrets") => fold_string_data(object),
        ("", "endpoints") => repack_endpoints(object),
        _ => {}
    }
}

fn clear_status(kind: &Kind, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    *object = crate::decode::canonical(&kind.gvk(), &kind.schema, object);
}

/// Copies what this path may not change from `old` (main: status; `/status`: the rest; system metadata always) and
/// raises the generation when the desired state changed.
pub fn prepare_update(kind: &Kind, subresource: Option<&str>, new: &mut Value, old: &Value) {
    if kind.plural == "secrets" && kind.group.is_empty() {
        fold_string_data(new);
    }
    match subresource {
        Some("status") => keep_all_but_status(kind, new, old),
        Some("finalize") => keep(new, old, "status"),
        Some("ephemeralcontainers" | "resize") => keep_all_but_spec(new, old),
        Some(_) => {}
        None => {
            if kind.subresource("status").is_some() {
                keep(new, old, "status");
            }
            if kind.plural == "namespaces" && kind.group.is_empty() {
                keep_field(new, old, "spec", "finalizers");
            }
        }
    }
    if kind.plural == "endpoints" && kind.group.is_empty() {
        repack_endpoints(new);
    }
    let changed = match generation(kind) {
        Generation::Spec => new.get("spec") != old.get("spec"),
        Generation::Body => body(new) != body(old),
        Generation::Client | Generation::None => {
            if subresource.is_some() || generation(kind) == Generation::None {
                return keep_metadata(new, old, false);
            }
            return keep_metadata(new, old, true);
        }
    };
    keep_metadata(new, old, false);
    if changed {
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        section(new, "metadata").insert("generation".into(), json!(before + 1));
    }
}

/// Everything but type, metadata and status.
fn body(object: &Value) -> Map<String, Value> {
    let mut map = object.as_object().cloned().unwrap_or_default();
    for name in ["apiVersion", "kind", "metadata", "status"] {
        map.remove(name);
    }
    map
}

/// System metadata of a stored object never changes through an update.
fn keep_metadata(new: &mut Value, old: &Value, client_generation: bool) {
    let sent = new["metadata"]["generation"].clone();
    let metadata = section(new, "metadata");
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "namespace",
        "name",
    ] {
        // A wrong uid, name or namespace is refused by whoever compares them, not repaired here.
        let identity = matches!(name, "uid" | "namespace" | "name");
        if identity && metadata.get(name).is_some_and(|v| v.as_str().is_some_and(|t| !t.is_empty())) {
            continue;
        }
        match old["metadata"].get(name) {
            Some(value) => metadata.insert(name.into(), value.clone()),
            None => metadata.remove(name),
        };
    }
    if client_generation && !sent.is_null() {
        metadata.insert("generation".into(), sent);
    }
}

fn keep(new: &mut Value, old: &Value, part: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(part) {
        Some(value) => map.insert(part.into(), value.clone()),
        None => map.remove(part),
    };
}

fn keep_field(new: &mut Value, old: &Value, part: &str, field: &str) {
    let before = old[part].get(field).cloned();
    let map = section(new, part);
    match before {
        Some(value) => map.insert(field.into(), value),
        None => map.remove(field),
    };
}

/// Metadata that a write to `/status` cannot change either.
pub(crate) fn status_keeps_metadata(kind: &Kind) -> &'static [&'static str] {
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => &["deletionTimestamp", "ownerReferences"],
        ("apps", "deployments") => &["labels"],
        _ => &[],
    }
}

fn keep_all_but_status(kind: &Kind, new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let metadata = new.get("metadata").cloned();
    let mut out = old.clone();
    if let Some(map) = out.as_object_mut() {
        match status {
            Some(status) => map.insert("status".into(), status),
            None => map.remove("status"),
        };
        map.extend(metadata.map(|m| ("metadata".to_string(), m)));
    }
    for name in status_keeps_metadata(kind) {
        keep_field(&mut out, old, "metadata", name);
    }
    *new = out;
}

/// Only the spec is taken (`ephemeralcontainers`, `resize`); metadata keeps its version and managers.
fn keep_all_but_spec(new: &mut Value, old: &Value) {
    let spec = new.get("spec").cloned();
    let managed = new["metadata"].get("managedFields").cloned();
    let version = new["metadata"].get("resourceVersion").cloned();
    let mut out = old.clone();
    if let Some(map) = out.as_object_mut() {
        map.extend(spec.map(|s| ("spec".to_string(), s)));
    }
    let metadata = section(&mut out, "metadata");
    metadata.extend(managed.map(|m| ("managedFields".to_string(), m)));
    metadata.extend(version.map(|v| ("resourceVersion".to_string(), v)));
    *new = out;
}

fn section<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object[name];
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("made an object just above")
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn new_pod(pod: &mut Value) {
    let class = qos_class(pod);
    let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
    let status = section(pod, "status");
    status.insert("phase".into(), json!("Pending"));
    status.insert("qosClass".into(), json!(class));
    if gated {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null, "lastTransitionTime": null});
        status.insert("conditions".into(), json!([condition]));
    }
}

/// `Guaranteed` when every container limits what it requests in cpu and memory, `BestEffort` when none asks for any.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|l| pod["spec"][l].as_array()).flatten();
    let amount = |c: &Value, list: &str, name: &str| {
        c["resources"][list][name].as_str().and_then(|t| Quantity::parse(t).ok()).filter(|q| !q.is_zero())
    };
    let (mut any, mut all) = (false, true);
    for container in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", name), amount(container, "limits", name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        _ => "Burstable",
    }
}

fn new_namespace(namespace: &mut Value) {
    let finalizers = section(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.contains(&json!("kubernetes"))
    {
        list.push(json!("kubernetes"));
    }
    section(namespace, "status").insert("phase".into(), json!("Active"));
}

/// A node is not ready until something says so.
fn new_node(node: &mut Value) {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    let taints = section(node, "spec").entry("taints").or_insert_with(|| json!([]));
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list.iter().any(|t| t["key"] == taint["key"] && t["effect"] == taint["effect"])
    {
        list.push(taint);
    }
}

/// `stringData` is write-only: it lands in `data`.
fn fold_string_data(secret: &mut Value) {
    use base64::Engine;
    let Some(map) = secret.as_object_mut() else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| json!({}));
    if !data.is_object() {
        *data = json!({});
    }
    for (key, value) in plain {
        let bytes = value.as_str().unwrap_or_default().as_bytes();
        data[key] = json!(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
}

/// One subset per distinct list of ports, addresses and ports in a stable order.
fn repack_endpoints(endpoints: &mut Value) {
    let Some(subsets) = endpoints.get_mut("subsets").and_then(Value::as_array_mut) else { return };
    let mut packed: Vec<(Vec<Value>, Vec<Value>, Vec<Value>)> = Vec::new();
    for subset in subsets.iter() {
        let list = |name: &str| subset[name].as_array().cloned().unwrap_or_default();
        let mut ports = list("ports");
        ports.sort_by_key(|p| {
            (p["name"].as_str().unwrap_or_default().to_string(), p["port"].as_i64(), p["protocol"].to_string())
        });
        let at = match packed.iter().position(|(p, ..)| *p == ports) {
            Some(at) => at,
            None => {
                packed.push((ports, Vec::new(), Vec::new()));
                packed.len() - 1
            }
        };
        packed[at].1.extend(list("addresses"));
        packed[at].2.extend(list("notReadyAddresses"));
    }
    *subsets = packed.into_iter().map(|(ports, ready, waiting)| subset(ports, ready, waiting)).collect();
}

fn subset(ports: Vec<Value>, mut ready: Vec<Value>, mut waiting: Vec<Value>) -> Value {
    let mut out = Map::new();
    waiting.retain(|a| !ready.contains(a));
    for (name, list) in [("addresses", &mut ready), ("notReadyAddresses", &mut waiting)] {
        list.sort_by_key(|a| {
            let octets: Vec<u8> =
                a["ip"].as_str().unwrap_or_default().split('.').filter_map(|o| o.parse().ok()).collect();
            (octets, a["ip"].to_string(), a["targetRef"]["uid"].to_string())
        });
        list.dedup();
        if !list.is_empty() {
            out.insert(name.into(), json!(list));
        }
    }
    if !ports.is_empty() {
        out.insert("ports".into(), json!(ports));
    }
    Value::Object(out)
}

/// Built-in admission of a new pod that needs no other object: service account name, priority, tolerations.
/// `priority` is of the pod's priority class, 0 without one.
pub fn admit_pod(pod: &mut Value, priority: i32) {
    let spec = section(pod, "spec");
    if text(spec, "serviceAccountName").is_empty() {
        spec.insert("serviceAccountName".into(), json!("default"));
    }
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    spec.insert("priority".into(), json!(priority));
    spec.entry("preemptionPolicy").or_insert_with(|| json!("PreemptLowerPriority"));
    let mut tolerations = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let (of, effect) = (t["key"].as_str().unwrap_or_default(), t["effect"].as_str().unwrap_or_default());
            (of == key || of.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !tolerations.iter().any(covers) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    spec.insert("tolerations".into(), json!(tolerations));
}

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Adds the token volume and its mounts, and the account's image pull secrets; `suffix` ends the volume's name.
pub fn mount_service_account(pod: &mut Value, account: &Value, suffix: &str) {
    let spec = section(pod, "spec");
    if let (None, Some(secrets)) = (spec.get("imagePullSecrets"), account.get("imagePullSecrets")) {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let wanted = spec.get("automountServiceAccountToken").or_else(|| account.get("automountServiceAccountToken"));
    if wanted == Some(&json!(false)) {
        return;
    }
    let existing = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let existing = existing.filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-"));
    let name = existing.map_or_else(|| format!("kube-api-access-{suffix}"), String::from);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            mounted |= mount(container, &name);
        }
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if !volumes.is_array() {
        *volumes = json!([]);
    }
    if let Some(list) = volumes.as_array_mut().filter(|l| mounted && !l.iter().any(|v| v["name"] == json!(name))) {
        list.push(token_volume(&name));
    }
}

/// False when the container mounts something there itself.
fn mount(container: &mut Value, volume: &str) -> bool {
    let Some(container) = container.as_object_mut() else { return false };
    let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
    if !mounts.is_array() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else { return false };
    if mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) {
        return false;
    }
    mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
    true
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

/// The `autoscaling/v1` Scale of an object.
pub fn scale_of(object: &Value) -> Value {
    let old = &object["metadata"];
    let mut metadata = Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata.extend(old.get(name).map(|v| (name.to_string(), v.clone())));
    }
    let mut spec = Map::new();
    spec.extend(
        object["spec"].get("replicas").filter(|r| **r != json!(0)).map(|r| ("replicas".to_string(), r.clone())),
    );
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = &object["spec"]["selector"];
    let text = match crate::selector::Labels::from_object(selector) {
        Ok(selector) if object["kind"] != "ReplicationController" => selector.to_string(),
        _ => crate::selector::Labels::from_map(selector).to_string(),
    };
    if !text.is_empty() {
        status["selector"] = json!(text);
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// Sets an object's replicas (and the version to match) from a Scale.
pub fn apply_scale(object: &mut Value, scale: &Value) {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    section(object, "spec").insert("replicas".into(), json!(replicas));
    if let Some(version) = scale["metadata"].get("resourceVersion") {
        section(object, "metadata").insert("resourceVersion".into(), version.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(qos_class(&pod(all)), "Guaranteed");
    }

    #[test]
    fn the_token_is_mounted_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": TOKEN_PATH}]}]}});
        mount_service_account(&mut pod, &json!({}), "abcde");
        let once = pod.clone();
        mount_service_account(&mut pod, &json!({}), "fghij");
        assert_eq!(pod, once);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }
}
