//! What a node's agent may touch: its own node and lease, its own pods, and what these refer to.
//!
//! The refusals' reasons are upstream's (`node_authorizer.go`).

use std::sync::Arc;

use api::references::Referent;

use super::{Attributes, Rule};
use crate::cache::by_node::node_of;
use crate::object::Object;
use crate::reader::Reader;

const READS: [&str; 3] = ["get", "list", "watch"];
/// What a node does with the one object that stands for it.
const CHANGES: [&str; 5] = ["get", "create", "update", "patch", "delete"];
const SLICE_VERBS: &str = "get, watch, list, create, update, patch, delete, deletecollection";

/// What a node reads that the `system:node` role does not grant: upstream's proxy and network agents have identities of
/// their own (and so has CoreDNS, which reads namespaces), here they are part of the node.
const OWN: [(&str, &str); 3] =
    [("", "namespaces"), ("discovery.k8s.io", "endpointslices"), ("node.amphipod.io", "peers")];

fn is_own(asked: &Attributes) -> bool {
    let kind = (&*asked.group, &*asked.resource);
    OWN.contains(&kind) && asked.subresource.is_empty() && READS.contains(&&*asked.verb)
}

/// Narrows what the `system:node` role grants to this node's own objects. A refusal says why, or nothing where no role
/// of a node speaks of it.
pub(super) fn decide(reader: &Reader, node: &str, asked: &Attributes, role: &[Rule]) -> Result<(), String> {
    if is_own(asked) {
        return Ok(());
    }
    let ask = Ask { reader, node, asked };
    match (&*asked.group, &*asked.resource) {
        ("", "nodes" | "pods") if !role.iter().any(|rule| rule.covers(asked)) => Err(String::new()),
        ("", "nodes") => ask.nodes(),
        ("", "pods") => ask.pods(),
        ("", "secrets") => ask.content(Referent::Secret),
        ("", "configmaps") => ask.content(Referent::ConfigMap),
        ("", "persistentvolumeclaims") => ask.claims(),
        ("", "persistentvolumes") => ask.single(Ask::claims_volume),
        ("", "serviceaccounts") => ask.tokens(),
        ("coordination.k8s.io", "leases") => ask.leases(),
        ("storage.k8s.io", "csinodes") => ask.csi_nodes(),
        ("storage.k8s.io", "volumeattachments") => ask.single(Ask::is_here),
        ("resource.k8s.io", "resourceslices") => ask.slices(),
        _ if role.iter().any(|rule| rule.covers(asked)) => Ok(()),
        _ => Err(String::new()),
    }
}

/// One question of one node.
struct Ask<'a> {
    reader: &'a Reader,
    node: &'a str,
    asked: &'a Attributes,
}

impl Ask<'_> {
    /// Refuses other verbs than these.
    fn only(&self, verbs: &[&str], why: &str) -> Result<(), String> {
        if verbs.contains(&&*self.asked.verb) { Ok(()) } else { Err(why.to_owned()) }
    }

    /// Refuses what is below an object.
    fn whole(&self, why: &str) -> Result<(), String> {
        if self.asked.subresource.is_empty() { Ok(()) } else { Err(why.to_owned()) }
    }

    /// Lets pass what has to do with this node.
    fn related(&self, is: impl FnOnce() -> bool) -> Result<(), String> {
        match () {
            () if self.asked.name.is_empty() => Err("No Object name found".to_owned()),
            () if is() => Ok(()),
            () => Err(format!("no relationship found between node '{}' and this object", self.node)),
        }
    }

    /// Which of all it sees a node has to say in its selector.
    fn selects_itself(&self) -> bool {
        self.asked.node_name.as_deref() == Some(self.node)
    }

    fn found(&self) -> Option<Arc<Object>> {
        let asked = self.asked;
        self.reader.lookup(&asked.group, &asked.resource, &asked.namespace, &asked.name)
    }

    fn refers(&self, kind: Referent, namespace: &str, name: &str) -> bool {
        self.reader.cache().by_node().refers(self.node, kind, namespace, name)
    }

    /// Whether a pod here refers to the object that is asked for.
    fn is_referent(&self, kind: Referent) -> bool {
        self.refers(kind, &self.asked.namespace, &self.asked.name)
    }

    /// Whether the object's spec names this node.
    fn is_here(&self) -> bool {
        self.found().is_some_and(|object| object.value()["spec"]["nodeName"] == self.node)
    }

    /// Whether a volume belongs to a claim that a pod here refers to.
    fn claims_volume(&self) -> bool {
        let Some(volume) = self.found() else { return false };
        let claim = &volume.value()["spec"]["claimRef"];
        let (namespace, name) = (claim["namespace"].as_str(), claim["name"].as_str());
        namespace.zip(name).is_some_and(|(of, name)| self.refers(Referent::PersistentVolumeClaim, of, name))
    }

    /// Its own object; of the others' heartbeats it is told nothing.
    fn nodes(&self) -> Result<(), String> {
        let node = self.node;
        match &*self.asked.name {
            name if name == node => Ok(()),
            "" if self.asked.verb == "create" => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            other if READS.contains(&&*self.asked.verb) => {
                Err(format!("node '{node}' cannot read '{other}', only its own Node object"))
            }
            _ => Err(String::new()),
        }
    }

    fn pods(&self) -> Result<(), String> {
        match (&*self.asked.verb, &*self.asked.subresource) {
            ("list" | "watch", _) if self.selects_itself() => Ok(()),
            ("list" | "watch", _) if self.asked.name.is_empty() => {
                Err("can only list/watch pods with spec.nodeName field selector".to_owned())
            }
            ("create", "") => Ok(()),
            // A pod that is gone is nobody's: the answer is then "not found", which tells nothing.
            _ => self.related(|| self.found().is_none_or(|pod| node_of(&pod) == Some(self.node))),
        }
    }

    fn content(&self, kind: Referent) -> Result<(), String> {
        self.only(&READS, "can only read resources of this type")?;
        self.whole("cannot read subresource")?;
        if self.asked.namespace.is_empty() {
            return Err("can only read namespaced object of this type".to_owned());
        }
        self.related(|| self.is_referent(kind))
    }

    fn single(&self, is: impl FnOnce(&Self) -> bool) -> Result<(), String> {
        self.only(&["get"], "can only get individual resources of this type")?;
        self.whole("cannot get subresource")?;
        self.related(|| is(self))
    }

    fn claims(&self) -> Result<(), String> {
        let is = |ask: &Self| ask.is_referent(Referent::PersistentVolumeClaim);
        if self.asked.subresource != "status" {
            return self.single(is);
        }
        self.only(&["update", "patch"], "can only get/update/patch this type")?;
        self.related(|| is(self))
    }

    fn tokens(&self) -> Result<(), String> {
        if self.asked.verb != "create" || self.asked.name.is_empty() {
            return Err("can only create tokens for individual service accounts".to_owned());
        }
        if self.asked.subresource != "token" {
            return Err("can only create token subresource of serviceaccount".to_owned());
        }
        self.related(|| self.is_referent(Referent::ServiceAccount))
    }

    fn leases(&self) -> Result<(), String> {
        self.only(&CHANGES, "can only get, create, update, patch, or delete a node lease")?;
        if self.asked.namespace != "kube-node-lease" {
            return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
        }
        self.named("can only access node lease with the same name as the requesting node")
    }

    fn csi_nodes(&self) -> Result<(), String> {
        self.only(&CHANGES, "can only get, create, update, patch, or delete a CSINode")?;
        self.whole("cannot authorize CSINode subresources")?;
        self.named("can only access CSINode with the same name as the requesting node")
    }

    /// Of a new object, admission looks at the name.
    fn named(&self, why: &str) -> Result<(), String> {
        if self.asked.verb == "create" || self.asked.name == self.node { Ok(()) } else { Err(why.to_owned()) }
    }

    /// What devices are on other machines is not for a node to see.
    fn slices(&self) -> Result<(), String> {
        self.whole("cannot authorize ResourceSlice subresources")?;
        match &*self.asked.verb {
            // Whose it is, admission sees.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(|| self.is_here()),
            "watch" | "list" | "deletecollection" if self.selects_itself() => Ok(()),
            "watch" | "list" | "deletecollection" => {
                Err("can only list/watch/deletecollection resourceslices with nodeName field selector".to_owned())
            }
            _ => Err(format!("only the following verbs are allowed for a ResourceSlice: {SLICE_VERBS}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::identity::{MASTERS, User};
    use crate::nodes::NoNodes;
    use crate::server::{Config, Server};

    /// `verb group/resource namespace name node`, `-` for none; a selected node stands for a field selector.
    fn asked(line: &str) -> Attributes {
        let words: Vec<String> = line.split(' ').map(|word| if word == "-" { "" } else { word }.to_owned()).collect();
        let [verb, kind, namespace, name, node] = <[String; 5]>::try_from(words).unwrap();
        let (group, resource) = kind.rsplit_once('/').unwrap_or(("", &kind));
        let (resource, subresource) = resource.split_once(':').unwrap_or((resource, ""));
        let node_name = Some(node).filter(|node| !node.is_empty());
        let own = str::to_owned;
        let (group, resource, subresource) = (own(group), own(resource), own(subresource));
        Attributes { verb, group, resource, subresource, namespace, name, node_name, path: None }
    }

    #[tokio::test]
    async fn a_node_sees_itself_its_pods_and_what_they_refer_to() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let client = server.client(User::new("tester", &[MASTERS]), "tester");
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        client.create(&::client::Resource::core("serviceaccounts"), "default", account).await.unwrap();
        let create = async |group: &'static str, plural: &'static str, kind: &str, mut object: serde_json::Value| {
            object["apiVersion"] = json!(format!("{group}/v1").trim_start_matches('/'));
            object["kind"] = json!(kind);
            let namespace = if kind == "Pod" { "default" } else { "" };
            client.create(&::client::Resource::new(group, plural), namespace, object).await.unwrap();
        };
        for (node, secret) in [("a", "mine"), ("b", "theirs")] {
            let (claim, name) = (format!("disk-{node}"), json!({"name": format!("of-{node}")}));
            let pod = json!({"metadata": {"name": format!("on-{node}")}, "spec": {
                "nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
                "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": secret}}]}]}});
            create("", "pods", "Pod", pod).await;
            let volume = json!({"metadata": name, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/disk"},
                "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": claim}}});
            create("", "persistentvolumes", "PersistentVolume", volume).await;
            let attachment = json!({"metadata": name, "spec": {
                "attacher": "a.example", "nodeName": node, "source": {"persistentVolumeName": "of-a"}}});
            create("storage.k8s.io", "volumeattachments", "VolumeAttachment", attachment).await;
            let slice = json!({"metadata": name, "spec": {"driver": "d.example", "nodeName": node,
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}});
            create("resource.k8s.io", "resourceslices", "ResourceSlice", slice).await;
        }
        let engine = &server.shared().engine;
        let check = |line: &str| engine.authorizer.check(engine, &User::node("a"), &asked(line));
        for line in [
            "get nodes - a -",
            "watch nodes - a -",
            "create nodes - - -",
            "update nodes:status - a -",
            "patch coordination.k8s.io/leases kube-node-lease a -",
            "create coordination.k8s.io/leases kube-node-lease - -",
            "list pods - - a",
            "watch pods - - a",
            "get pods default on-a -",
            "update pods:status default on-a -",
            "delete pods default on-a -",
            "get secrets default mine -",
            "watch secrets default mine -",
            "list configmaps default kube-root-ca.crt -",
            "create serviceaccounts:token default default -",
            "list services - - -",
            "watch services - - -",
            "watch discovery.k8s.io/endpointslices - - -",
            "watch namespaces - - -",
            "list node.amphipod.io/peers - - -",
            "get node.k8s.io/runtimeclasses - x -",
            "get persistentvolumeclaims default disk-a -",
            "patch persistentvolumeclaims:status default disk-a -",
            "get persistentvolumes - of-a -",
            "get storage.k8s.io/volumeattachments - of-a -",
            "get storage.k8s.io/csinodes - a -",
            "create storage.k8s.io/csinodes - - -",
            "get resource.k8s.io/resourceslices - of-a -",
            "patch resource.k8s.io/resourceslices - of-a -",
            "create resource.k8s.io/resourceslices - - -",
            "list resource.k8s.io/resourceslices - - a",
            "watch resource.k8s.io/resourceslices - - a",
            "deletecollection resource.k8s.io/resourceslices - - a",
            "create events default - -",
        ] {
            check(line).unwrap_or_else(|refused| panic!("{line}: {refused}"));
        }
        let unrelated = "no relationship found between node 'a' and this object";
        let slices = "can only list/watch/deletecollection resourceslices with nodeName field selector";
        let selector = "can only list/watch pods with spec.nodeName field selector";
        for (line, why) in [
            ("list nodes - - -", "node 'a' cannot read all nodes, only its own Node object"),
            ("watch nodes - - -", "node 'a' cannot read all nodes, only its own Node object"),
            ("get nodes - b -", "node 'a' cannot read 'b', only its own Node object"),
            ("update nodes:status - b -", ""),
            ("delete nodes - a -", ""),
            (
                "list coordination.k8s.io/leases kube-node-lease - -",
                "can only get, create, update, patch, or delete a node lease",
            ),
            (
                "get coordination.k8s.io/leases kube-node-lease b -",
                "can only access node lease with the same name as the requesting node",
            ),
            (
                "get coordination.k8s.io/leases kube-system a -",
                "can only access leases in the \"kube-node-lease\" system namespace",
            ),
            ("list pods - - -", selector),
            ("watch pods - - b", selector),
            ("get pods default on-b -", unrelated),
            ("update pods:status default on-b -", unrelated),
            ("get secrets default theirs -", unrelated),
            ("watch secrets default theirs -", unrelated),
            ("get secrets default other -", unrelated),
            ("list secrets default - -", "No Object name found"),
            ("watch secrets - - -", "can only read namespaced object of this type"),
            ("list configmaps - - -", "can only read namespaced object of this type"),
            ("update secrets default mine -", "can only read resources of this type"),
            ("create serviceaccounts:token default other -", unrelated),
            ("get serviceaccounts default default -", "can only create tokens for individual service accounts"),
            ("get persistentvolumeclaims default other -", unrelated),
            ("list persistentvolumeclaims default - -", "can only get individual resources of this type"),
            ("get persistentvolumes - of-b -", unrelated),
            ("get persistentvolumes - absent -", unrelated),
            ("get storage.k8s.io/volumeattachments - of-b -", unrelated),
            ("list storage.k8s.io/volumeattachments - - -", "can only get individual resources of this type"),
            ("get storage.k8s.io/csinodes - b -", "can only access CSINode with the same name as the requesting node"),
            ("list storage.k8s.io/csinodes - - -", "can only get, create, update, patch, or delete a CSINode"),
            ("get resource.k8s.io/resourceslices - of-b -", unrelated),
            ("update resource.k8s.io/resourceslices - of-b -", unrelated),
            ("delete resource.k8s.io/resourceslices - absent -", unrelated),
            ("list resource.k8s.io/resourceslices - - -", slices),
            ("watch resource.k8s.io/resourceslices - - b", slices),
            ("deletecollection resource.k8s.io/resourceslices - - -", slices),
            ("get resource.k8s.io/resourceslices - - a", "No Object name found"),
            ("create discovery.k8s.io/endpointslices default - -", ""),
            ("create node.amphipod.io/peers - a -", ""),
            ("update node.amphipod.io/peers - a -", ""),
            ("list apps/deployments - - -", ""),
            ("create namespaces - - -", ""),
        ] {
            let refused = check(line).expect_err(line);
            let end = if why.is_empty() { asked(line).refusal(&User::node("a")) } else { format!(": {why}") };
            assert!(refused.code == 403 && refused.message.ends_with(&end), "{line}: {refused}");
        }
    }
}
