//! The pods of a StatefulSet: each has a number, and by it its name, its host name and its claims.

use client::events::Reference;
use serde_json::{Value, json};

use super::super::ownership;
use super::super::revisions::{POD_LABEL, Revision};
use super::super::views::Pod;
use super::view::StatefulSet;

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

pub fn owner(set: &StatefulSet) -> Value {
    ownership::owner("apps/v1", "StatefulSet", &set.metadata.meta)
}

pub fn about(set: &StatefulSet) -> Reference {
    Reference::new("apps/v1", "StatefulSet", &set.metadata.meta)
}

/// The number of a pod that has the set's name and one.
pub fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<i64> {
    let (parent, ordinal) = pod.metadata.meta.name.rsplit_once('-')?;
    let plain = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    (parent == set.metadata.meta.name && plain).then(|| ordinal.parse().ok())?
}

pub fn name_of(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set.metadata.meta.name)
}

/// The labels by which a pod is known.
fn identity(set: &StatefulSet, ordinal: i64) -> [(&'static str, String); 2] {
    [(NAME_LABEL, name_of(set, ordinal)), (INDEX_LABEL, ordinal.to_string())]
}

/// Labels that a pod lost, as a patch.
pub fn lost_identity(set: &StatefulSet, pod: &Pod, ordinal: i64) -> Option<Value> {
    let has = |(key, value): &(&str, String)| pod.metadata.meta.labels.get(*key) == Some(value);
    let lost: Vec<_> = identity(set, ordinal).into_iter().filter(|label| !has(label)).collect();
    (!lost.is_empty()).then(|| {
        let labels: serde_json::Map<String, Value> =
            lost.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        json!({"metadata": {"labels": labels}})
    })
}

pub fn pod(set: &StatefulSet, revision: &Revision, ordinal: i64) -> Value {
    let meta = &set.metadata.meta;
    let (template, name) = (revision.template(), name_of(set, ordinal));
    let mut labels = template["metadata"]["labels"].clone();
    for (key, value) in identity(set, ordinal) {
        labels[key] = json!(value);
    }
    labels[POD_LABEL] = json!(revision.name());
    let mut metadata =
        json!({"name": name, "namespace": meta.namespace, "labels": labels, "ownerReferences": [owner(set)]});
    for field in ["annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = template["spec"].clone();
    spec["hostname"] = json!(name);
    spec["subdomain"] = json!(set.spec.service_name);
    volumes(set, ordinal, &mut spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// The pod's claims, in place of volumes of their names.
fn volumes(set: &StatefulSet, ordinal: i64, spec: &mut Value) {
    let names: Vec<&str> = set.spec.volume_claim_templates.iter().filter_map(template_name).collect();
    if names.is_empty() {
        return;
    }
    let claim =
        |name: &&str| json!({"name": name, "persistentVolumeClaim": {"claimName": claim_name(set, name, ordinal)}});
    let own = spec["volumes"].as_array().cloned().unwrap_or_default();
    let others = own.into_iter().filter(|volume| !names.iter().any(|name| volume["name"] == **name));
    spec["volumes"] = names.iter().map(claim).chain(others).collect();
}

fn template_name(template: &Value) -> Option<&str> {
    template["metadata"]["name"].as_str()
}

fn claim_name(set: &StatefulSet, template: &str, ordinal: i64) -> String {
    format!("{template}-{}", name_of(set, ordinal))
}

/// The names of a pod's claims.
pub fn claim_names(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = String> {
    let names = set.spec.volume_claim_templates.iter().filter_map(template_name);
    names.map(move |template| claim_name(set, template, ordinal))
}

/// A pod's claims, with these owners.
pub fn claims(set: &StatefulSet, ordinal: i64, owners: &[Value]) -> impl Iterator<Item = Value> {
    set.spec.volume_claim_templates.iter().map(move |template| {
        let mut claim = template.clone();
        claim["apiVersion"] = json!("v1");
        claim["kind"] = json!("PersistentVolumeClaim");
        claim["metadata"]["name"] = json!(claim_name(set, template_name(template).unwrap_or_default(), ordinal));
        claim["metadata"]["namespace"] = json!(set.metadata.meta.namespace);
        for (key, value) in set.spec.selector["matchLabels"].as_object().into_iter().flatten() {
            claim["metadata"]["labels"][key] = value.clone();
        }
        if !owners.is_empty() {
            claim["metadata"]["ownerReferences"] = json!(owners);
        }
        if let Some(claim) = claim.as_object_mut() {
            claim.remove("status");
        }
        claim
    })
}
