//! The Node object: made when there is none, given its part of the pods' range by the control plane, told how it is.

use std::time::Duration;

use anyhow::{Context, Result};
use api::status::Status;
use client::Client;
use client::views::NODES;
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};

use crate::outlook::Own;
use crate::status::{self, Facts, Readiness};

/// After which it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the Node, unless it is there from before.
///
/// # Errors
/// What the server says, unless that is that the node is there; 503 when none answers.
pub async fn register(name: &str, client: &Client, facts: &Facts) -> Result<()> {
    match client.create(&NODES, "", node(name, facts)).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(status).with_context(|| format!("cannot register node {name}")),
    }
}

fn node(name: &str, facts: &Facts) -> Value {
    let (os, arch) = ("linux", status::architecture());
    json!({
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
    })
}

/// Waits for the node's part of the pods' range.
///
/// # Errors
/// When the watch of the own node ended, or the range it was given is no IPv4 range. Without a range it waits, and says
/// so in the log.
pub async fn range(name: &str, own: &mut Own) -> Result<Ipv4Network> {
    let given = |node: &Option<std::sync::Arc<Value>>| {
        node.as_ref().and_then(|node| node["spec"]["podCIDR"].as_str()).map(str::to_owned)
    };
    let range = loop {
        match tokio::time::timeout(PATIENCE, own.wait_for(|node| given(node).is_some())).await {
            Ok(node) => break given(&*node.context("the watch of this node's object ended")?),
            Err(_) => tracing::warn!(
                node = name,
                "this node has no pod range yet: the controller node-ipam-controller gives one, while --pod-cidr has one left"
            ),
        }
    };
    let range = range.unwrap_or_default();
    range.parse().with_context(|| format!("node {name} has the pod range {range:?}"))
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
