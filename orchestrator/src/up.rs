//! `amphipod up`: server and agent in one process.

use std::sync::Arc;

use anyhow::{Context, Result};
use network::Cidr;

use crate::claim;
use crate::control_plane::{self, ControlPlane};
use crate::doctor;
use crate::node::{self, Settings, streams::AgentSlot};
use crate::reset;

/// Runs until told to stop; pods run on.
pub async fn run(control: ControlPlane, settings: Settings) -> Result<()> {
    let _only_one = claim::claim_namespace()?;
    doctor::admit(&control, &settings)?;
    let slot = AgentSlot::new(&settings.name);
    let mut running = control_plane::start(&control, Arc::new(slot.clone())).await?;
    reset::remember(&settings)?;
    let mut tasks = std::mem::take(&mut running.tasks);
    let _node = node::start(&settings, &running, &slot, &mut tasks).await?;
    tracing::info!(address = %running.server.address(), node = settings.name, "ready");
    control_plane::serve(running.server, &mut tasks).await
}

/// A flag's value as a range of addresses.
pub fn parse_cidr(flag: &str, text: &str) -> Result<Cidr> {
    text.parse().with_context(|| format!("{flag} {text}"))
}
