//! `amphipod agent`: this machine as a node of a cluster whose server is elsewhere.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::status::Status;
use client::Client;
use client::follow::jittered;
use client::https::pin::authority_of;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::control_plane;
use crate::doctor::{self, Reached, Subject};
use crate::join::{self, Joined};
use crate::machine::Machine;
use crate::streams::AgentSlot;
use crate::token::JoinToken;
use crate::{claim, reset, tunnel};

/// Before a server that does not answer is asked again, and how long a look at it takes at most.
const AGAIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(5);

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `host:port`.
    pub server: String,
    /// Where one was given.
    pub token: Option<JoinToken>,
    pub machine: Machine,
}

/// Runs until told to stop; pods run on.
///
/// # Errors
/// When another agent has this network namespace, the machine cannot join or be a node, or a part does not start; later, when a task
/// ended. Pods run on.
pub async fn run(settings: Settings) -> Result<()> {
    let _only_one = claim::claim_namespace()?;
    let Settings { server, token, machine } = &settings;
    agent::claim::data_dir(&machine.data_dir).context("choose another folder with --data-dir")?;
    reset::remember(machine)?;
    let joined = join::join(server, token.as_ref(), &machine.data_dir, &machine.name).await?;
    let joined = Arc::new(joined);
    let client = joined.client();
    let cluster = cluster(&client, server).await?;
    let server_there = Some(Reached { address: server.clone(), refused: None });
    doctor::admit(&Subject { cluster: Some(cluster.clone()), server: server_there, ..unknown(machine) })?;
    let mut tasks = JoinSet::new();
    let node = machine.in_cluster(&cluster, Some(joined.files.fingerprint()));
    let slot = AgentSlot::new(&machine.name);
    slot.fill(node::start(&node, client, &mut tasks).await?);
    tasks.spawn(tunnel::keep(joined.https.clone(), Arc::new(slot)));
    tasks.spawn(keep(joined, machine.name.clone()));
    tracing::info!(server, node = machine.name, "ready");
    let ended = control_plane::wait(&mut tasks).await;
    tasks.shutdown().await;
    ended
}

/// Has the certificate renewed for ever.
async fn keep(joined: Arc<Joined>, node: String) {
    let first = joined.certificate.clone();
    let renew = move || {
        let (joined, node) = (joined.clone(), node.clone());
        async move { joined.renew(&node).await }
    };
    join::keep(first, Timestamp::now, renew).await;
}

/// What the cluster says; a server that is away is waited for, since the pods of this machine are.
async fn cluster(client: &Client, server: &str) -> Result<Cluster> {
    loop {
        match Cluster::read(client).await {
            Err(error) if is_away(&error) => {
                tracing::warn!(server, error = format!("{error:#}"), "the server does not answer: waiting for it");
                tokio::time::sleep(jittered(AGAIN)).await;
            }
            read => return read,
        }
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Status>().is_some_and(|status| status.code >= 500)
}

/// Of this machine alone.
fn unknown(machine: &Machine) -> Subject {
    Subject { machine: machine.clone(), cluster: None, listen: None, server: None }
}

/// `amphipod doctor agent`.
///
/// # Errors
/// The number of rows that fail, when any does.
pub async fn examine(settings: &Settings) -> Result<()> {
    let server = Some(Reached { address: settings.server.clone(), refused: refused(settings).await });
    doctor::run(&Subject { server, ..unknown(&settings.machine) })
}

/// Why the server cannot be used, as far as that shows without asking it for anything.
async fn refused(settings: &Settings) -> Option<String> {
    let Settings { server, token, machine } = settings;
    let known = match token {
        Some(token) => Some(token.authority),
        None => join::known_authority(&machine.data_dir),
    };
    match known {
        Some(authority) => authority_of(server, authority).await.err().map(|error| error.to_string()),
        None => match tokio::time::timeout(LOOK, TcpStream::connect(server)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{server} cannot be reached: {error}")),
            Err(_) => Some(format!("{server} does not answer within {} s", LOOK.as_secs())),
        },
    }
}
