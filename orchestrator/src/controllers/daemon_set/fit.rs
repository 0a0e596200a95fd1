//! Which nodes a DaemonSet is for, and the pod that it makes for one of them.

use std::sync::Arc;

use client::events::Reference;
use serde_json::{Value, json};

use super::super::ownership;
use super::super::revisions::POD_LABEL;
use super::super::runtime::Action;
use super::super::views::{Node, PODS, Pod};
use super::view::DaemonSet;
use crate::scheduler::demand::Demand;
use crate::scheduler::filter::{is_meant, is_tolerated};
use crate::scheduler::snapshot::Place;

const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
/// Taints that daemons outlive or do not mind: (what they say, what they do).
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// For pods in the node's own network.
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a node is to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It gets a pod.
    Wanted,
    /// It gets none, and keeps what it has.
    Borne,
    /// It has to be left.
    Unwanted,
}

/// A DaemonSet as the nodes see it.
pub struct Fit {
    demand: Demand,
    /// The only node, where the template names one.
    node: String,
}

impl Fit {
    pub fn of(set: &DaemonSet) -> Self {
        let mut spec = set.spec.template["spec"].clone();
        tolerate(&mut spec);
        // What was stored passed validation.
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap_or_default();
        Self { demand: Demand::of(&pod), node: pod.spec.node_name }
    }

    pub fn standing(&self, node: &Arc<Node>) -> Standing {
        let place = Place { node: Some(node.clone()), ..Place::default() };
        let named = self.node.is_empty() || self.node == node.metadata.meta.name;
        if !named || !is_meant(&self.demand, &place) {
            return Standing::Unwanted;
        }
        if is_tolerated(&self.demand, &place) {
            return Standing::Wanted;
        }
        let mut hard = node.spec.taints.iter().filter(|taint| taint.effect == "NoExecute");
        let borne = hard.all(|taint| self.demand.tolerations.iter().any(|toleration| toleration.tolerates(taint)));
        if borne { Standing::Borne } else { Standing::Unwanted }
    }
}

/// Adds what every daemon tolerates.
fn tolerate(spec: &mut Value) {
    let network = (spec["hostNetwork"] == true).then_some(NO_NETWORK);
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    spec["tolerations"] = json!(all);
}

/// The node that a pod was made for, before and after the scheduler put it there.
pub fn node_of(pod: &Pod) -> &str {
    if !pod.spec.node_name.is_empty() {
        return &pod.spec.node_name;
    }
    let required = pod.spec.affinity.as_ref().map(|affinity| {
        &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    });
    let terms = required.and_then(Value::as_array).into_iter().flatten();
    let mut fields = terms.flat_map(|term| term["matchFields"].as_array().into_iter().flatten());
    let named = fields.find(|field| field["key"] == "metadata.name" && field["operator"] == "In");
    named.and_then(|field| field["values"][0].as_str()).unwrap_or_default()
}

pub fn owner(set: &DaemonSet) -> Value {
    ownership::owner("apps/v1", "DaemonSet", &set.metadata.meta)
}

pub fn about(set: &DaemonSet) -> Reference {
    Reference::new("apps/v1", "DaemonSet", &set.metadata.meta)
}

/// A pod that only this node can be given.
pub fn create(set: &DaemonSet, hash: &str, node: &str) -> Action {
    let meta = &set.metadata.meta;
    let template = &set.spec.template;
    let mut labels = template["metadata"]["labels"].clone();
    labels[POD_LABEL] = json!(hash);
    if let Some(generation) = meta.annotations.get(GENERATION) {
        labels[GENERATION_LABEL] = json!(generation);
    }
    let mut metadata = json!({"generateName": format!("{}-", meta.name), "namespace": meta.namespace,
        "labels": labels, "ownerReferences": [owner(set)]});
    for field in ["annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = template["spec"].clone();
    tolerate(&mut spec);
    let name = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({"nodeSelectorTerms": [{"matchFields": [name]}]});
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    Action::Create { resource: PODS, namespace: meta.namespace.clone(), object, announce: Some(about(set)) }
}
