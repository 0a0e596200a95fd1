//! The Node object: made when there is none, given its part of the pods' range by the control plane, told how it is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::status::Status;
use client::Client;
use client::views::NODES;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::outlook::Own;
use crate::status::{self, Facts, Readiness};

/// After which it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// By which key a machine is known that joined: its Node's name is no other machine's until somebody deletes the Node. A node in one
/// process with its server has none.
pub const KEY: &str = "node.amphipod.io/key";

/// Makes the Node, unless it is there from before. `key` is the fingerprint of this machine's.
///
/// # Errors
/// What the server says, unless that is that the node is there; 503 when none answers. That the node is another machine's.
pub async fn register(name: &str, key: Option<&str>, client: &Client, facts: &Facts) -> Result<()> {
    let failed = || format!("cannot register node {name}");
    match client.create(&NODES, "", node(name, key, facts)).await {
        Ok(_) => return Ok(()),
        Err(status) if status.reason == "AlreadyExists" => {}
        Err(status) => return Err(status).with_context(failed),
    }
    let there = client.get(&NODES, "", name).await.with_context(failed)?;
    ensure!(
        there["metadata"]["annotations"][KEY].as_str() == key,
        "node {name} is another machine's: choose another --node-name, or delete it first (`kubectl delete node {name}`)"
    );
    Ok(())
}

fn node(name: &str, key: Option<&str>, facts: &Facts) -> Value {
    let (os, arch) = ("linux", status::architecture());
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": os,
            "kubernetes.io/arch": arch,
            "beta.kubernetes.io/os": os,
            "beta.kubernetes.io/arch": arch,
        }},
        "status": status::merged(&json!({}), facts, Readiness::Starting),
    });
    if let Some(key) = key {
        node["metadata"]["annotations"] = json!({KEY: key});
    }
    node
}

/// Waits for the node's part of the pods' range: one, or one of each family.
///
/// # Errors
/// When the watch of the own node ended, or what it was given is no range. Without a range it waits, and says so in the log.
pub async fn ranges(name: &str, own: &mut Own) -> Result<Vec<IpNetwork>> {
    let given = |node: &Option<std::sync::Arc<Value>>| -> Vec<String> {
        let ranges = node.as_ref().and_then(|node| node["spec"]["podCIDRs"].as_array()).into_iter().flatten();
        ranges.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let ranges = loop {
        match tokio::time::timeout(PATIENCE, own.wait_for(|node| !given(node).is_empty())).await {
            Ok(node) => break given(&*node.context("the watch of this node's object ended")?),
            Err(_) => tracing::warn!(
                node = name,
                "this node has no pod range yet: the controller node-ipam-controller gives one, while --pod-cidr has one left"
            ),
        }
    };
    let parse = |range: &String| range.parse().with_context(|| format!("node {name} has the pod range {range:?}"));
    ranges.iter().map(parse).collect()
}

/// Writes the status as it is now.
///
/// # Errors
/// What the server says: 404 when somebody removed the node; 503 when none answers.
pub async fn report(name: &str, client: &Client, facts: &Facts, readiness: Readiness) -> Result<(), Status> {
    let update = |current: &Value| {
        let mut next = current.clone();
        next["status"] = status::merged(&current["status"], facts, readiness);
        Ok(next)
    };
    client.update(&NODES, "", name, "status", update).await.map(drop)
}
