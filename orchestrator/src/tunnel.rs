//! This node's tunnel to its server: kept open, and opened again when it ends.

use std::sync::Arc;
use std::time::Duration;

use apiserver::nodes::{Nodes, TUNNEL, TUNNEL_PROTOCOL, agent};
use client::follow::jittered;
use client::https::Https;

/// Before it is opened again, doubled each time that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Lets the server reach what runs here, for ever.
pub async fn keep(https: Https, nodes: Arc<dyn Nodes>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match https.upgrade(TUNNEL, TUNNEL_PROTOCOL).await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                if let Err(error) = agent::serve(stream, nodes.clone()).await {
                    tracing::debug!(%error, "the tunnel to the server broke");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no tunnel to the server: kubectl logs, exec and port-forward do not reach this node");
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
        tokio::time::sleep(jittered(pause)).await;
    }
}
