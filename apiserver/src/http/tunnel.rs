//! Where a node opens the tunnel through which it is asked for logs, streams and connections.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use axum::body::Body;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;

use super::Peer;
use super::read::header_of;
use super::reply::Reply;
use crate::identity::User;
use crate::nodes::TUNNEL_PROTOCOL;
use crate::shared::Shared;

/// Answers 101 to a node that proved itself by a certificate; its tunnel ends with that one.
pub fn open(shared: &Arc<Shared>, peer: &Peer, user: &User, mut parts: Parts) -> Result<Reply, Status> {
    let (Some(node), Some(certificate)) = (user.as_node().filter(|node| !node.is_empty()), &peer.certificate) else {
        let why = format!("User {:?} is no node with a certificate: only nodes open tunnels", user.name);
        return Err(Status::forbidden("", "", "", &why));
    };
    if header_of(&parts, header::UPGRADE) != Some(TUNNEL_PROTOCOL) {
        return Err(Status::bad_request(format!("unable to upgrade: {TUNNEL_PROTOCOL} is spoken here")));
    }
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| Status::bad_request("unable to upgrade this connection"))?;
    let left = certificate.expires.saturating_sub(jiff::Timestamp::now().as_second());
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
    let (fleet, node) = (shared.nodes.clone(), node.to_owned());
    tokio::spawn(async move {
        let carried = async {
            match upgrade.await {
                Ok(connection) => fleet.carry(&node, TokioIo::new(connection)).await,
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(left, carried).await {
            Ok(Ok(())) | Err(_) => tracing::debug!(node, "tunnel closed"),
            Ok(Err(error)) => tracing::info!(node, %error, "a node's tunnel broke"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(TUNNEL_PROTOCOL));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    Ok(response)
}
