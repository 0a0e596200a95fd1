//! The pure part of a write: what the server itself sets, keeps or strips before an object is validated.

mod pod;
mod service;
mod slice;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::status::Status;
use crate::time::rfc3339;

pub use self::pod::{admit_pod, mount_service_account, qos_class};
use self::pod::{drop_image_volumes, new_pod, tolerate_node_trouble};
pub use self::service::service_families;
use self::service::update_service;

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
    for path in ["/spec", "/template/spec", "/spec/template/spec"] {
        if let Some(spec) = object.pointer_mut(path).and_then(Value::as_object_mut) {
            drop_image_volumes(spec);
        }
    }
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => new_pod(object),
        ("", "namespaces") => new_namespace(object),
        ("", "nodes") => new_node(object),
        ("", "services") => service_families(object),
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
    match subresource {
        Some(subresource) => slice::take(kind, subresource, new, old),
        None => {
            if kind.subresource("status").is_some() {
                keep(new, old, "status");
            }
            match (&*kind.group, &*kind.plural) {
                ("", "namespaces") => keep_field(new, old, "spec", "finalizers"),
                ("", "pods") => tolerate_node_trouble(section(new, "spec")),
                ("", "services") => update_service(section(new, "spec"), &old["spec"]),
                // Who asked for what is said once.
                ("certificates.k8s.io", "certificatesigningrequests") => keep(new, old, "spec"),
                _ => {}
            }
        }
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
