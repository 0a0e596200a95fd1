//! `amphipod up`: server and agent in one process.

use std::sync::Arc;

use anyhow::{Context, Result};
use api::status::Status;
use apiserver::identity::{MASTERS, User};
use apiserver::server::Server;
use serde_json::{Value, json};

use crate::claim;
use crate::control_plane;
use crate::controllers::views::NODES;
use crate::doctor;
use crate::machine::Machine;
use crate::reset;
use crate::streams::AgentSlot;

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Runs until told to stop; pods run on.
///
/// # Errors
/// When another agent has this network namespace, the machine cannot be a node, or a part does not start; later, as
/// [`control_plane::serve`]. Pods run on.
pub async fn run(control: control_plane::Settings, machine: Machine) -> Result<()> {
    let _only_one = claim::claim_namespace()?;
    doctor::admit(&look(&control, &machine))?;
    let slot = AgentSlot::new(&machine.name);
    let mut running = control_plane::start(&control, Arc::new(slot.clone())).await?;
    reset::remember(&machine)?;
    let settings = machine.in_cluster(&control.cluster(), None);
    let mut tasks = std::mem::take(&mut running.tasks);
    let client = running.server.client(User::node(&settings.name), "kubelet");
    let node = node::start(&settings, client, &mut tasks).await?;
    slot.fill(node);
    show_role(&running.server, &settings.name).await.context("cannot label this node with its role")?;
    tracing::info!(address = %running.server.address(), node = settings.name, "ready");
    control_plane::serve(running.server, &mut tasks, &running.parting).await
}

/// What `doctor` looks at.
pub fn look(control: &control_plane::Settings, machine: &Machine) -> doctor::Subject {
    let (cluster, listen) = (Some(control.cluster()), Some(control.listen));
    doctor::Subject { machine: machine.clone(), cluster, listen, server: None }
}

/// `kubectl get nodes` shows where the server runs. A node must not give itself a role, so the server does.
async fn show_role(server: &Server, node: &str) -> Result<(), Status> {
    let client = server.client(User::new("system:apiserver", &[MASTERS]), "kube-apiserver");
    let label = |current: &Value| {
        let mut next = current.clone();
        next["metadata"]["labels"][CONTROL_PLANE] = json!("");
        Ok(next)
    };
    client.update(&NODES, "", node, "", label).await.map(drop)
}
