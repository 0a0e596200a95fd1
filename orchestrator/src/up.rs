//! `amphipod up`: server and agent in one process.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::sync::Arc;

use anyhow::{Context, Result};
use network::Cidr;

use crate::control_plane::{self, ControlPlane};
use crate::doctor;
use crate::node::{self, Settings, streams::AgentSlot};
use crate::reset;

/// One agent per network namespace: abstract sockets are scoped by it.
const AGENT_SOCKET: &[u8] = b"amphipod-agent";

/// Runs until told to stop; pods run on.
pub async fn run(control: ControlPlane, settings: Settings) -> Result<()> {
    let _only_one = claim_namespace()?;
    doctor::admit(&control, &settings)?;
    let slot = AgentSlot::new(&settings.name);
    let mut running = control_plane::start(&control, Arc::new(slot.clone())).await?;
    reset::remember(&settings)?;
    let mut tasks = std::mem::take(&mut running.tasks);
    let _node = node::start(&settings, &running, &slot, &mut tasks).await?;
    tracing::info!(address = %running.server.address(), node = settings.name, "ready");
    control_plane::serve(running.server, &mut tasks).await
}

/// Held as long as an agent runs here, or `reset`.
pub fn claim_namespace() -> Result<UnixListener> {
    let address = UnixAddress::from_abstract_name(AGENT_SOCKET).context("abstract socket names")?;
    UnixListener::bind_addr(&address).context("another amphipod agent runs in this network namespace: stop it first")
}

/// The whole range, for those who parse one.
pub fn parse_cidr(flag: &str, text: &str) -> Result<Cidr> {
    text.parse().with_context(|| format!("{flag} {text}"))
}
