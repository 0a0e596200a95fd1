//! Connections: hickory's streams before our request handler.
//!
//! Accepting them is ours. hickory's listener would tell strangers that they are refused, lets one client take all connections,
//! and spins while there is no descriptor for the next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hickory_proto::op::SerialMessage;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_server::net::xfer::Protocol;
use hickory_server::net::{DnsStreamHandle, tcp};
use hickory_server::server::{Request, RequestHandler, ResponseHandle, TimeoutStream};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{Clients, Quota};
use crate::message;
use crate::names::Names;

/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Connections at once, and those of one client.
const CONNECTIONS: (usize, usize) = (256, 32);
/// Answers that wait to be taken by their client.
const ANSWERS: usize = 4;

/// Accepts connections and serves each in a task of its own.
pub(crate) async fn serve(names: Arc<Names>, clients: Arc<Clients>, listener: TcpListener) {
    let places = Arc::new(Quota::new(CONNECTIONS.0, CONNECTIONS.1));
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection failed");
                // Out of descriptors: they need a moment to come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !clients.admits(client.ip()) {
            continue;
        }
        let (names, places) = (Arc::clone(&names), Arc::clone(&places));
        tokio::spawn(async move {
            match places.take(client.ip()) {
                Some(_place) => converse(&names, stream, client).await,
                None => tracing::debug!(%client, "too many DNS connections: one was closed"),
            }
        });
    }
}

/// Answers one question after the other until the client leaves, or is silent for too long.
async fn converse(names: &Names, stream: TcpStream, client: SocketAddr) {
    let (stream, mut answers) =
        tcp::TcpStream::from_stream_with_buffer_size(AsyncIoTokioAsStd(stream), client, ANSWERS);
    let mut questions = TimeoutStream::new(stream, IDLE);
    while let Some(question) = questions.next().await {
        let bytes = match question {
            Ok(message) => message.into_parts().0,
            Err(error) => {
                tracing::debug!(%client, %error, "DNS connection ended");
                return;
            }
        };
        let malformed = message::malformed(&bytes);
        match (Request::from_bytes(bytes, client, Protocol::Tcp), malformed) {
            (_, None) => return,
            (Ok(request), Some(_)) => {
                let handle = ResponseHandle::new(client, answers.clone(), Protocol::Tcp);
                names.handle_request::<_, TokioTime>(&request, handle).await;
            }
            (Err(error), Some(answer)) => {
                tracing::debug!(%client, %error, "unreadable question");
                if let Err(error) = answers.send(SerialMessage::new(answer, client)) {
                    tracing::debug!(%client, %error, "sending an answer failed");
                }
            }
        }
    }
}
