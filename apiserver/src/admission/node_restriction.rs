//! What a node's agent may write of what it may touch: its own node, lease and pods, not what steers pods towards it, and of
//! pods their end and their status.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::kind::Part;
use api::references::{self, Referent};
use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::certificates;
use super::service_account::MIRROR;
use super::{Cluster, Member, Operation, Review};
use crate::identity::NODE;
use crate::object::Object;
use crate::pki::request::{KUBELET_CLIENT, KUBELET_SERVING};

const LEASES: &str = "kube-node-lease";
/// Of a node's certificates, for what it serves and for what it asks.
const KUBELET_SIGNERS: [&str; 2] = [KUBELET_SERVING, KUBELET_CLIENT];

/// Labels with Kubernetes' own prefixes that an agent sets about its machine.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// What administrators mark nodes with that a node shall not give itself.
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io";

fn is_below(domain: &str, of: &str) -> bool {
    domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
}

fn is_forbidden(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let kubernetes = is_below(domain, "kubernetes.io") || is_below(domain, "k8s.io");
    let own = OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|prefix| is_below(domain, prefix));
    is_below(domain, RESTRICTED_PREFIX) || (kubernetes && !own)
}

/// Labels that differ and that an agent may not set.
fn forbidden_labels(new: &Value, old: &Value) -> Option<String> {
    let (new, old) = (&new["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys: BTreeSet<&String> =
        [new, old].iter().filter_map(|labels| labels.as_object()).flat_map(|l| l.keys()).collect();
    let forbidden = keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && is_forbidden(key));
    let forbidden: Vec<&str> = forbidden.map(String::as_str).collect();
    (!forbidden.is_empty()).then(|| forbidden.join(", "))
}

#[derive(Debug)]
pub(super) struct NodeRestriction;

#[async_trait]
impl Member for NodeRestriction {
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.context.user.as_node().is_some()
    }

    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        let user = &review.context.user;
        let node = user.as_node().unwrap_or_default();
        if node.is_empty() {
            return Err(review.forbidden(&format!("could not determine node from user {:?}", user.name)));
        }
        let mine = Mine { node, cluster, review };
        match (&*review.target.kind.plural, review.target.part) {
            ("pods", None) => mine.pod(),
            ("pods", Some(Part::Status)) => mine.pod_status(),
            ("pods", Some(Part::Eviction)) => mine.eviction(),
            ("pods", Some(part)) => mine.refused(format!(
                "unexpected pod subresource {:?}, only 'status' and 'eviction' are allowed",
                part.name()
            )),
            ("nodes", _) => mine.node(),
            ("persistentvolumeclaims", Some(Part::Status)) => mine.claim_status(),
            ("persistentvolumeclaims", _) => mine.refused("may only update PVC status".into()),
            ("serviceaccounts", Some(Part::Token)) => mine.token(),
            ("leases", _) => mine.lease(),
            ("certificatesigningrequests", None) => mine.certificate_request(),
            ("resourceslices", _) => mine.resource_slice(),
            ("csinodes", _) => mine.named("can only access CSINode with the same name as the requesting node"),
            _ => Ok(()),
        }
    }
}

/// One request of one node.
struct Mine<'a> {
    node: &'a str,
    cluster: Cluster<'a>,
    review: &'a Review<'a>,
}

impl Mine<'_> {
    fn refused(&self, why: String) -> Result<(), Status> {
        Err(self.review.forbidden(&why))
    }

    fn unexpected(&self) -> Result<(), Status> {
        self.refused(format!("unexpected operation {:?}", self.review.operation.name()))
    }

    /// A pod of the request's namespace that is there.
    fn found(&self, name: &str) -> Result<Arc<Object>, Status> {
        let found = self.cluster.reader.lookup("", "pods", self.review.namespace(), name);
        found.ok_or_else(|| Status::not_found("", "pods", name))
    }

    fn runs(&self, pod: &Value) -> bool {
        pod["spec"]["nodeName"] == self.node
    }

    fn named(&self, why: &str) -> Result<(), Status> {
        if self.review.name() == self.node { Ok(()) } else { self.refused(why.to_owned()) }
    }

    fn pod(&self) -> Result<(), Status> {
        let node = self.node;
        match (self.review.operation, self.review.old) {
            (Operation::Create, _) => self.mirror_pod(),
            (Operation::Delete, Some(old)) if self.runs(old) => Ok(()),
            (Operation::Delete, _) => {
                self.refused(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            (other, _) => self.refused(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.name()
            )),
        }
    }

    /// The copy of a pod that the node runs by itself: it belongs to the node, and refers to nothing.
    fn mirror_pod(&self) -> Result<(), Status> {
        let (node, pod) = (self.node, &self.review.object);
        if pod["metadata"]["annotations"].get(MIRROR).is_none() {
            let why = format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
            return self.refused(why);
        }
        if !self.runs(pod) {
            return self.refused(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        self.owned_by_node(pod)?;
        let spec = &pod["spec"];
        let claims = spec["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty());
        let what = match () {
            () if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() => "a service account",
            () if references::any(spec, Referent::Secret) => "secrets",
            () if references::any(spec, Referent::ConfigMap) => "configmaps",
            () if references::any(spec, Referent::ClusterTrustBundle) => "clustertrustbundles",
            () if references::any(spec, Referent::PersistentVolumeClaim) => "persistentvolumeclaims",
            () if claims => "resourceclaims",
            () => return Ok(()),
        };
        self.refused(format!("node {node:?} can not create pods that reference {what}"))
    }

    fn owned_by_node(&self, pod: &Value) -> Result<(), Status> {
        let node = self.node;
        let itself = format!("node {node:?} can only create pods with an owner reference set to itself");
        let owner = match pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => return self.refused(itself),
            [owner] => owner,
            _ => {
                let why = format!("node {node:?} can only create pods with a single owner reference set to itself");
                return self.refused(why);
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return self.refused(itself);
        }
        if owner["controller"] != true {
            let why = format!("node {node:?} can only create pods with a controller owner reference set to itself");
            return self.refused(why);
        }
        if owner["blockOwnerDeletion"] == true {
            return self.refused(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
        }
        let found = self.cluster.reader.lookup("", "nodes", "", node);
        let uid = found.ok_or_else(|| Status::not_found("", "nodes", node))?.header.uid.clone();
        let given = owner["uid"].as_str().unwrap_or_default();
        match given == uid.as_str() {
            true => Ok(()),
            false => self.refused(format!("node {node} UID mismatch: expected {given} got {uid}")),
        }
    }

    fn pod_status(&self) -> Result<(), Status> {
        let (node, new) = (self.node, &self.review.object);
        let Some(old) = self.review.old else { return self.unexpected() };
        if !self.runs(old) {
            return self.refused(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if !same_labels(new, old) {
            return self.refused(format!("node {node:?} cannot update labels through pod status"));
        }
        let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].clone();
        match claims(new) == claims(old) {
            true => Ok(()),
            false => self.refused(format!("node {node:?} cannot update resource claim statues")),
        }
    }

    fn eviction(&self) -> Result<(), Status> {
        let pod = self.found(self.review.name())?.value();
        match self.runs(&pod) {
            true => Ok(()),
            false => self.refused(format!("node {} can only evict pods with spec.nodeName set to itself", self.node)),
        }
    }

    fn node(&self) -> Result<(), Status> {
        let (node, new) = (self.node, &self.review.object);
        let name = self.review.name();
        if name != node {
            return self.refused(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        match (self.review.operation, self.review.old) {
            (Operation::Create, _) => {
                if let Some(labels) = forbidden_labels(new, &Value::Null) {
                    return self.refused(format!("node {node:?} is not allowed to set the following labels: {labels}"));
                }
                match new["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty) {
                    true => Ok(()),
                    false => self.refused(format!("node {node:?} is not allowed to set ownerReferences")),
                }
            }
            (Operation::Update, Some(old)) => {
                let changed = |path: &str| {
                    let list = |object: &Value| object.pointer(path).and_then(Value::as_array).cloned();
                    list(new).unwrap_or_default() != list(old).unwrap_or_default()
                };
                if changed("/metadata/ownerReferences") {
                    return self.refused(format!("node {node:?} is not allowed to modify ownerReferences"));
                }
                if changed("/spec/taints") {
                    return self.refused(format!("node {node:?} is not allowed to modify taints"));
                }
                match forbidden_labels(new, old) {
                    Some(labels) => self.refused(format!("is not allowed to modify labels: {labels}")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn claim_status(&self) -> Result<(), Status> {
        let Some(old) = self.review.old else { return self.unexpected() };
        let rest = |claim: &Value| {
            let mut claim = claim.clone();
            for (part, fields) in [
                ("metadata", &["resourceVersion", "managedFields"][..]),
                ("status", &["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"]),
            ] {
                if let Some(map) = claim[part].as_object_mut() {
                    fields.iter().for_each(|field| drop(map.remove(*field)));
                }
            }
            claim
        };
        match rest(old) == rest(&self.review.object) {
            true => Ok(()),
            false => self.refused(format!(
                "node {:?} is not allowed to update fields other than status.capacity and status.conditions",
                self.node
            )),
        }
    }

    /// Tokens are for pods, and for pods that run here.
    fn token(&self) -> Result<(), Status> {
        let reference = &self.review.object["spec"]["boundObjectRef"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return self.refused("node requested token not bound to a pod".into());
        }
        if text("uid").is_empty() {
            return self.refused("node requested token with a pod binding without a uid".into());
        }
        let pod = self.found(text("name"))?;
        if pod.header.uid.as_str() != text("uid") {
            return self.refused(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            ));
        }
        match self.runs(&pod.value()) {
            true => Ok(()),
            false => self.refused("node requested token bound to a pod scheduled on a different node".into()),
        }
    }

    /// A node asks its signers for its own certificates only; what else a request has to be, they say.
    fn certificate_request(&self) -> Result<(), Status> {
        let spec = &self.review.object["spec"];
        let of_kubelets = spec["signerName"].as_str().is_some_and(|signer| KUBELET_SIGNERS.contains(&signer));
        if self.review.operation != Operation::Create || !of_kubelets {
            return Ok(());
        }
        let request = spec["request"].as_str().unwrap_or_default();
        let subject = match certificates::subject(request) {
            Ok(subject) => subject,
            Err(why) => return self.refused(format!("unable to parse CSR: {why}")),
        };
        let own = format!("{NODE}{}", self.node);
        let name = subject.common_name;
        if name.starts_with(NODE) && name != own {
            return self.refused(format!("can only create a CSR with CN={own}"));
        }
        Ok(())
    }

    /// What devices are on this machine; which slices a node sees and changes is for the authorizer to say.
    fn resource_slice(&self) -> Result<(), Status> {
        let (verb, slice) = match (self.review.operation, self.review.old) {
            (Operation::Create, _) => ("create", &self.review.object),
            (Operation::Delete, Some(old)) => ("delete", old),
            _ => return Ok(()),
        };
        match slice["spec"]["nodeName"] == self.node {
            true => Ok(()),
            false => {
                self.refused(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
            }
        }
    }

    fn lease(&self) -> Result<(), Status> {
        if self.review.namespace() != LEASES {
            return self.refused(format!("can only access leases in the {LEASES:?} system namespace"));
        }
        self.named("can only access node lease with the same name as the requesting node")
    }
}

fn same_labels(new: &Value, old: &Value) -> bool {
    let labels = |pod: &Value| pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels(new) == labels(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_steer_pods_are_not_a_nodes_to_set() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        let told = |new: Value, old: Value| forbidden_labels(&node(new), &node(old));
        let own = json!({"kubernetes.io/os": "linux", "node.kubernetes.io/own": "1", "zone": "z"});
        assert_eq!(told(own, json!({})), None);
        for label in ["node-restriction.kubernetes.io/x", "node-role.kubernetes.io/x", "a.k8s.io/b"] {
            assert_eq!(told(json!({label: "y"}), json!({})).as_deref(), Some(label));
            assert_eq!(told(json!({}), json!({label: "y"})).as_deref(), Some(label), "nor to remove");
            assert_eq!(told(json!({label: "y"}), json!({label: "y"})), None);
        }
    }
}
