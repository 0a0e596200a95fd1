//! What a node's agent may touch: its own node and lease, its own pods, and what these refer to.
//!
//! The refusals' reasons are upstream's (`node_authorizer.go`).

use api::references::{self, Referent};
use serde_json::Value;

use super::{Attributes, Rule};
use crate::reader::Reader;

const READS: [&str; 3] = ["get", "list", "watch"];

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
    let granted = role.iter().any(|rule| rule.covers(asked));
    let referent = Referent::of_plural(&asked.resource).filter(|_| asked.group.is_empty());
    let why = match (&*asked.group, &*asked.resource) {
        _ if !granted => String::new(),
        ("", "nodes") => return of_nodes(node, asked),
        ("coordination.k8s.io", "leases") => return of_leases(node, asked),
        // Which of all it sees a node has to say in its selector.
        ("", "pods") if matches!(&*asked.verb, "list" | "watch") => match asked.node_name.as_deref() {
            Some(selected) if selected == node => return Ok(()),
            _ => "can only list/watch pods with spec.nodeName field selector".to_owned(),
        },
        ("", "pods") if asked.verb == "create" && asked.subresource.is_empty() => return Ok(()),
        ("", "pods") if bound_here(reader, node, asked) => return Ok(()),
        ("", "pods") => unrelated(node),
        _ => match referent {
            None => return Ok(()),
            Some(_) if asked.name.is_empty() => "No Object name found".to_owned(),
            Some(kind) if is_referred_to(reader, node, asked, kind) => return Ok(()),
            Some(_) => unrelated(node),
        },
    };
    Err(why)
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// Its own object; of the others' heartbeats it is told nothing.
fn of_nodes(node: &str, asked: &Attributes) -> Result<(), String> {
    match &*asked.name {
        name if name == node => Ok(()),
        "" if asked.verb == "create" => Ok(()),
        "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
        other if READS.contains(&&*asked.verb) => {
            Err(format!("node '{node}' cannot read '{other}', only its own Node object"))
        }
        _ => Err(String::new()),
    }
}

fn of_leases(node: &str, asked: &Attributes) -> Result<(), String> {
    if asked.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    if asked.verb == "create" || asked.name == node {
        return Ok(());
    }
    Err("can only access node lease with the same name as the requesting node".to_owned())
}

fn bound_here(reader: &Reader, node: &str, asked: &Attributes) -> bool {
    // A pod that is gone is nobody's: the answer is then "not found", which tells nothing.
    reader.lookup("", "pods", &asked.namespace, &asked.name).is_none_or(|pod| pod.value()["spec"]["nodeName"] == node)
}

fn is_referred_to(reader: &Reader, node: &str, asked: &Attributes, kind: Referent) -> bool {
    let wanted = (kind, asked.name.clone());
    own_pods(reader, node, &asked.namespace).any(|pod| references::of_pod(&pod["spec"]).contains(&wanted))
}

fn own_pods(reader: &Reader, node: &str, namespace: &str) -> impl Iterator<Item = Value> {
    let pods = reader.listed("", "pods", namespace);
    pods.into_iter()
        .filter(move |pod| pod.header.fields.iter().any(|(field, value)| field == "spec.nodeName" && **value == *node))
        .map(|pod| pod.value())
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
        for (node, secret) in [("a", "mine"), ("b", "theirs")] {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}")}, "spec": {
                "nodeName": node, "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": secret}}]}]}});
            client.create(&::client::Resource::core("pods"), "default", pod).await.unwrap();
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
            "create events default - -",
        ] {
            check(line).unwrap_or_else(|refused| panic!("{line}: {refused}"));
        }
        let unrelated = "no relationship found between node 'a' and this object";
        let selector = "can only list/watch pods with spec.nodeName field selector";
        for (line, why) in [
            ("list nodes - - -", "node 'a' cannot read all nodes, only its own Node object"),
            ("watch nodes - - -", "node 'a' cannot read all nodes, only its own Node object"),
            ("get nodes - b -", "node 'a' cannot read 'b', only its own Node object"),
            ("update nodes:status - b -", ""),
            ("delete nodes - a -", ""),
            ("list coordination.k8s.io/leases kube-node-lease - -", ""),
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
            ("watch secrets - - -", "No Object name found"),
            ("list configmaps - - -", "No Object name found"),
            ("create serviceaccounts:token default other -", unrelated),
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
