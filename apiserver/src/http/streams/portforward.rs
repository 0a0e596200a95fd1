//! `pods/NAME/portforward`: connections into a pod.
//!
//! A client opens two SPDY/3.1 streams for each connection, one for its bytes and one for what went wrong, on the
//! connection itself or inside WebSocket messages that cut it anywhere. Clients without SPDY name their ports in the query
//! and get two WebSocket channels for each.

use std::collections::HashMap;
use std::sync::Arc;

use api::budget::Budget;
use api::status::Status;
use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream::SplitSink};
use hyper::http::request::Parts;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::io::StreamReader;

use super::super::path::Query;
use super::super::reply::Reply;
use super::super::spdy::{Frame, Writer};
use super::spdy::{self, Incoming, PATIENCE, SessionError};
use super::{CHUNK, unassigned};
use crate::limits::Seat;
use crate::nodes::{Duplex, Nodes};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";
/// Connections of one client at once, those included of which only one stream has come.
const CONNECTIONS: usize = 100;

/// Whom a session connects to.
#[derive(Clone)]
struct Dialer {
    nodes: Arc<dyn Nodes>,
    pod: Arc<Value>,
}

/// Serves the upgrade that the client asks for.
pub async fn forward(
    nodes: Arc<dyn Nodes>,
    pod: Value,
    query: &Query,
    mut parts: Parts,
    seat: Seat,
) -> Result<Reply, Status> {
    unassigned(&pod)?;
    let dialer = Dialer { nodes, pod: Arc::new(pod) };
    if let Some(upgrade) = spdy::requested(&mut parts, PROTOCOL) {
        let upgrade = upgrade?;
        tokio::spawn(async move {
            let _seat = seat;
            match upgrade.await {
                Ok(connection) => {
                    let (incoming, out) = tokio::io::split(TokioIo::new(connection));
                    let (frames, queue) = mpsc::channel(16);
                    let writer = tokio::spawn(spdy::write_all(queue, out));
                    told(session(incoming, frames, dialer).await);
                    // The last frames are taken before the connection closes; a client that takes none has gone.
                    let _gone = tokio::time::timeout(PATIENCE, writer).await;
                }
                Err(error) => tracing::debug!(%error, "a SPDY client went before its upgrade"),
            }
        });
        return Ok(spdy::switching(PROTOCOL));
    }
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|_| {
        Status::bad_request("Upgrade request required: port forwarding is served over WebSocket and SPDY/3.1")
    })?;
    let limit = Budget::CLIENT.frame;
    let upgrade = upgrade.protocols([TUNNEL, CHANNELS]).max_message_size(limit).max_frame_size(limit);
    let ports = match upgrade.selected_protocol().is_some_and(|chosen| chosen == TUNNEL) {
        true => None,
        false => Some(ports(query)?),
    };
    let served = move |socket: WebSocket| async move {
        let _seat = seat;
        match ports {
            None => tunnel(socket, dialer).await,
            Some(ports) => channels(socket, ports, dialer).await,
        }
    };
    Ok(upgrade.on_upgrade(served).into_response())
}

/// The `ports` of a query, each name one or several with commas.
fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let asked: Vec<&str> = query.all("ports").chain(query.all("port")).flat_map(|list| list.split(',')).collect();
    let port = |text: &&str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Status::bad_request(format!("unable to parse {text:?} as a port"))),
    };
    match asked.len() {
        0 => Err(Status::bad_request("query parameter \"port\" is required")),
        1..=CONNECTIONS => asked.iter().map(port).collect(),
        count => Err(Status::bad_request(format!("{count} ports are asked for: {CONNECTIONS} is the limit"))),
    }
}

fn told(ended: Result<(), SessionError>) {
    match ended {
        Ok(()) | Err(SessionError::Closed) => {}
        Err(error) => tracing::debug!(%error, "a port-forward session ended early"),
    }
}

/// SPDY inside WebSocket messages.
async fn tunnel(socket: WebSocket, dialer: Dialer) {
    let (out, incoming) = socket.split();
    let bytes = incoming.filter_map(|message| async {
        match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(std::io::Error::other(error))),
        }
    });
    let (frames, queue) = mpsc::channel(16);
    let writer = tokio::spawn(send_all(queue, out));
    told(session(StreamReader::new(Box::pin(bytes)), frames, dialer).await);
    let _gone = tokio::time::timeout(PATIENCE, writer).await;
}

/// Sends each as one message.
async fn send_all(mut queue: mpsc::Receiver<Bytes>, mut out: SplitSink<WebSocket, Message>) {
    while let Some(bytes) = queue.recv().await {
        if out.send(Message::Binary(bytes)).await.is_err() {
            return;
        }
    }
    let _gone = out.close().await;
}

/// Two streams that belong together.
#[derive(Debug, Default)]
struct Pair {
    port: Option<u16>,
    data: Option<u32>,
    error: Option<u32>,
}

/// One session of SPDY streams.
struct Streams {
    dialer: Dialer,
    frames: mpsc::Sender<Bytes>,
    /// By the client's name for the connection.
    pairs: HashMap<String, Pair>,
    /// By data stream: what its client sends, until that ends.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    running: JoinSet<()>,
}

/// Serves until the client goes; its connections go with it.
async fn session(
    connection: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Bytes>,
    dialer: Dialer,
) -> Result<(), SessionError> {
    let (mut incoming, mut writer) = (Incoming::new(connection), Writer::default());
    let (pairs, inputs) = (HashMap::new(), HashMap::new());
    let mut streams = Streams { dialer, frames: frames.clone(), pairs, inputs, running: JoinSet::new() };
    loop {
        let frame = tokio::select! {
            frame = incoming.next() => frame?,
            Some(_) = streams.running.join_next() => continue,
        };
        match frame {
            Frame::Open { stream, headers } => {
                frames.send(writer.accept(stream)).await.map_err(|_| SessionError::Closed)?;
                streams.opened(stream, &headers).await;
            }
            Frame::Data { stream, bytes, last } => {
                streams.received(stream, bytes).await;
                if last {
                    streams.inputs.remove(&stream);
                }
            }
            Frame::Reset { stream } => drop(streams.inputs.remove(&stream)),
            Frame::Ping { id } => frames.send(Writer::pong(id)).await.map_err(|_| SessionError::Closed)?,
            Frame::GoAway => return Ok(()),
            Frame::Other => {}
        }
    }
}

impl Streams {
    async fn opened(&mut self, stream: u32, headers: &[(String, String)]) {
        let header = |wanted: &str| {
            headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
        };
        let kind = header("streamtype").unwrap_or_default();
        // Old clients give no name: their error stream comes first, and the data stream right after it.
        let before = if kind == "data" { stream.saturating_sub(2) } else { stream };
        let name = header("requestid").map_or_else(|| before.to_string(), str::to_owned);
        if self.pairs.len() + self.running.len() >= CONNECTIONS && !self.pairs.contains_key(&name) {
            let why = format!("too many connections: {CONNECTIONS} at once is the limit");
            return self.say(stream, &why).await;
        }
        let pair = self.pairs.entry(name.clone()).or_default();
        pair.port = header("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0).or(pair.port);
        match kind {
            "data" => pair.data = Some(stream),
            "error" => pair.error = Some(stream),
            other => {
                let why = format!("invalid stream type {other:?}");
                self.pairs.remove(&name);
                return self.say(stream, &why).await;
            }
        }
        if let Pair { port, data: Some(data), error: Some(error) } = *pair {
            self.pairs.remove(&name);
            match port {
                Some(port) => self.connect(port, data, error),
                None => self.say(error, "\"port\" header is required").await,
            }
        }
    }

    fn connect(&mut self, port: u16, data: u32, error: u32) {
        let (input, received) = mpsc::channel(16);
        self.inputs.insert(data, input);
        let (dialer, frames) = (self.dialer.clone(), self.frames.clone());
        self.running.spawn(async move {
            let failed = match dialer.nodes.dial(&dialer.pod, port).await {
                Ok(connection) => {
                    let wrap = |bytes: &[u8]| {
                        if bytes.is_empty() { Writer::last(data, b"") } else { Writer::data(data, bytes) }
                    };
                    carry(connection, received, Output { frames: frames.clone(), wrap: &wrap }).await;
                    String::new()
                }
                Err(status) => {
                    let _gone = frames.send(Writer::last(data, b"")).await;
                    format!("error forwarding port {port} to pod: {}", status.message)
                }
            };
            // A client that is gone needs no word.
            let _gone = frames.send(Writer::last(error, failed.as_bytes())).await;
        });
    }

    async fn received(&mut self, stream: u32, bytes: Bytes) {
        if let Some(input) = self.inputs.get(&stream)
            && !bytes.is_empty()
            && input.send(bytes).await.is_err()
        {
            self.inputs.remove(&stream);
        }
    }

    async fn say(&self, stream: u32, why: &str) {
        let _gone = self.frames.send(Writer::last(stream, why.as_bytes())).await;
    }
}

/// Where a connection's bytes go, and in which form; none at all mean its end.
struct Output<'a> {
    frames: mpsc::Sender<Bytes>,
    wrap: &'a (dyn Fn(&[u8]) -> Bytes + Send + Sync),
}

/// Both ways, until both ends are done.
async fn carry(connection: Box<dyn Duplex>, mut input: mpsc::Receiver<Bytes>, output: Output<'_>) {
    let (mut from, mut to) = tokio::io::split(connection);
    let up = async {
        while let Some(bytes) = input.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The pod may have closed it already.
        let _closed = to.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if output.frames.send((output.wrap)(&buffer[..count])).await.is_err() {
                return;
            }
        }
        // The client hears of the pod's end when it comes, whatever it has to say itself.
        let _gone = output.frames.send((output.wrap)(&[])).await;
    };
    tokio::join!(up, down);
}

/// Ports in the query: channel 2n carries the bytes of port n, 2n + 1 what went wrong. Each begins with the port's number.
async fn channels(socket: WebSocket, ports: Vec<u16>, dialer: Dialer) {
    let (out, mut incoming) = socket.split();
    let (frames, queue) = mpsc::channel(16);
    let writer = tokio::spawn(send_all(queue, out));
    let mut running = JoinSet::new();
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        // At most CONNECTIONS of them, so both numbers fit.
        let (data, error) = (2 * index as u8, 2 * index as u8 + 1);
        let (input, received) = mpsc::channel(16);
        inputs.push(Some(input));
        let (dialer, frames) = (dialer.clone(), frames.clone());
        running.spawn(async move {
            for channel in [data, error] {
                let _gone = frames.send(message(channel, &port.to_le_bytes())).await;
            }
            match dialer.nodes.dial(&dialer.pod, port).await {
                Ok(connection) => {
                    carry(connection, received, Output { frames, wrap: &|bytes| message(data, bytes) }).await;
                }
                Err(status) => {
                    let why = format!("error forwarding port {port} to pod: {}", status.message);
                    let _gone = frames.send(message(error, why.as_bytes())).await;
                }
            }
        });
    }
    drop(frames);
    loop {
        let next = tokio::select! {
            next = incoming.next() => next,
            ended = running.join_next() => match ended {
                Some(_) => continue,
                None => break,
            },
        };
        let Some(Ok(next)) = next else { break };
        let Message::Binary(bytes) = next else { continue };
        let Some(channel) = bytes.first() else { continue };
        let place = inputs.get_mut(usize::from(*channel / 2)).filter(|_| channel % 2 == 0);
        if let Some(input) = place
            && let Some(sender) = input
            && sender.send(bytes.slice(1..)).await.is_err()
        {
            *input = None;
        }
    }
    drop(running);
    let _gone = tokio::time::timeout(PATIENCE, writer).await;
}

fn message(channel: u8, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 1);
    out.put_u8(channel);
    out.put_slice(bytes);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_limited() {
        let of = |query: &str| ports(&Query::parse(query)).map_err(|status| status.message);
        assert_eq!(of("ports=80&ports=443,8080"), Ok(vec![80, 443, 8080]));
        assert!(of("").unwrap_err().contains("required"));
        assert!(of("ports=0").unwrap_err().contains("unable to parse"));
        assert!(of(&format!("ports={}", ["1"; 101].join(","))).unwrap_err().contains("limit"));
    }
}
