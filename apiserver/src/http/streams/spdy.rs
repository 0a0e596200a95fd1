//! exec and attach over SPDY/3.1 with the subprotocol `v4.channel.k8s.io`: one stream for each of error, stdin, stdout,
//! stderr and resize, opened by the client.

use std::collections::HashMap;
use std::time::Duration;

use api::status::Status;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hyper::http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::mpsc;

use super::super::reply::Reply;
use super::super::spdy::{Frame, Reader, SpdyError, Writer};
use super::CHUNK;
use super::channels::Size;
use super::exit::exit_status;
use crate::limits::Seat;
use crate::nodes::{ExecOptions, Session, TerminalSize};

pub const PROTOCOL: &str = "v4.channel.k8s.io";
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
/// How long a client may take to open its streams, and to take the last bytes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a client's streams are for, by their `streamType` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

impl Role {
    fn of(headers: &[(String, String)]) -> Option<Self> {
        let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("streamtype"))?;
        Some(match value.as_str() {
            "error" => Self::Error,
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "resize" => Self::Resize,
            _ => return None,
        })
    }
}

/// The streams that a client opens for these options.
fn expected(options: &ExecOptions) -> Vec<Role> {
    let asked = [
        (true, Role::Error),
        (options.stdin, Role::Stdin),
        (options.stdout, Role::Stdout),
        (options.stderr && !options.tty, Role::Stderr),
        (options.tty, Role::Resize),
    ];
    asked.into_iter().filter_map(|(asked, role)| asked.then_some(role)).collect()
}

/// The client's side of the upgrade, if it asks for SPDY; an error when it asks for another subprotocol than this.
pub fn requested(parts: &mut Parts, protocol: &str) -> Option<Result<OnUpgrade, Status>> {
    let upgrade = parts.headers.get(header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return None;
    }
    let offered = parts.headers.get_all(PROTOCOL_HEADER).iter().filter_map(|value| value.to_str().ok());
    if !offered.flat_map(|value| value.split(',')).any(|offered| offered.trim() == protocol) {
        return Some(Err(Status::bad_request(format!("unable to upgrade: the stream protocol {protocol} is needed"))));
    }
    parts.extensions.remove::<OnUpgrade>().map(Ok)
}

/// Answers 101 and serves the session on the connection.
pub fn upgrade(on: OnUpgrade, session: Session, options: &ExecOptions, seat: Seat) -> Reply {
    let roles = expected(options);
    tokio::spawn(async move {
        let _seat = seat;
        let served = match on.await {
            Ok(connection) => run(connection, session, roles).await,
            Err(error) => return tracing::debug!(%error, "a SPDY client went before its upgrade"),
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a SPDY session ended early");
        }
    });
    switching(PROTOCOL)
}

/// The answer after which SPDY is spoken.
pub fn switching(protocol: &'static str) -> Reply {
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("SPDY/3.1"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(PROTOCOL_HEADER, header::HeaderValue::from_static(protocol));
    reply
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Frame(#[from] SpdyError),
    #[error(transparent)]
    Connection(#[from] std::io::Error),
    #[error("the client did not open its streams in time")]
    Streams(#[from] tokio::time::error::Elapsed),
    #[error("the client closed the connection")]
    Closed,
}

/// Frames as they come in.
pub struct Incoming<C> {
    connection: C,
    buffer: BytesMut,
    reader: Reader,
}

impl<C: AsyncRead + Unpin> Incoming<C> {
    pub fn new(connection: C) -> Self {
        Self { connection, buffer: BytesMut::new(), reader: Reader::new() }
    }

    /// Loses nothing when it is dropped before it is done.
    pub async fn next(&mut self) -> Result<Frame, SessionError> {
        loop {
            if let Some(frame) = self.reader.take(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.connection.read_buf(&mut self.buffer).await? == 0 {
                return Err(SessionError::Closed);
            }
        }
    }
}

type Streams = HashMap<Role, u32>;

/// Accepts streams until all are there that the options imply.
async fn open<C: AsyncRead + Unpin>(
    incoming: &mut Incoming<C>,
    roles: &[Role],
    frames: &mpsc::Sender<Bytes>,
) -> Result<Streams, SessionError> {
    let mut writer = Writer::default();
    let mut streams = Streams::new();
    while !roles.iter().all(|role| streams.contains_key(role)) {
        let answer = match incoming.next().await? {
            Frame::Open { stream, headers } => {
                streams.extend(Role::of(&headers).map(|role| (role, stream)));
                writer.accept(stream)
            }
            Frame::Ping { id } => Writer::pong(id),
            Frame::GoAway => return Err(SessionError::Closed),
            _ => continue,
        };
        frames.send(answer).await.map_err(|_| SessionError::Closed)?;
    }
    Ok(streams)
}

/// Writes frames until no more will come.
pub async fn write_all(mut queue: mpsc::Receiver<Bytes>, mut out: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    while let Some(frame) = queue.recv().await {
        out.write_all(&frame).await?;
    }
    out.shutdown().await
}

/// Moves bytes until the process ends or the client goes.
async fn run(connection: Upgraded, session: Session, roles: Vec<Role>) -> Result<(), SessionError> {
    let (connection, out) = tokio::io::split(TokioIo::new(connection));
    let (frames, queue) = mpsc::channel::<Bytes>(16);
    let writer = tokio::spawn(write_all(queue, out));
    let mut incoming = Incoming::new(connection);
    let streams = tokio::time::timeout(PATIENCE, open(&mut incoming, &roles, &frames)).await??;
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let id = |role| streams.get(&role).copied();
    let process = async {
        let outputs =
            futures::future::join(pump(stdout, id(Role::Stdout), &frames), pump(stderr, id(Role::Stderr), &frames));
        let (_, exit) = futures::future::join(outputs, exit).await;
        if let Some(stream) = id(Role::Error) {
            let status = exit_status(exit).to_string();
            let _gone = frames.send(Writer::last(stream, status.as_bytes())).await;
        }
        for role in [Role::Stdin, Role::Resize] {
            if let Some(stream) = id(role) {
                let _gone = frames.send(Writer::last(stream, b"")).await;
            }
        }
    };
    // A client that goes ends nothing by itself: the process sees its pipes close.
    let ended = tokio::select! {
        () = process => Ok(()),
        ended = listen(&mut incoming, stdin, resize, &streams, &frames) => ended,
    };
    drop(frames);
    // The last frames are taken before the connection closes; a client that takes none has gone.
    let _gone = tokio::time::timeout(PATIENCE, writer).await;
    ended
}

type Pipe = Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>;

/// What the client sends: input, sizes, pings.
async fn listen(
    incoming: &mut Incoming<ReadHalf<TokioIo<Upgraded>>>,
    mut stdin: Pipe,
    resize: Option<mpsc::Sender<TerminalSize>>,
    streams: &Streams,
    frames: &mpsc::Sender<Bytes>,
) -> Result<(), SessionError> {
    let is = |role, stream| streams.get(&role) == Some(&stream);
    loop {
        match incoming.next().await? {
            Frame::Data { stream, bytes, last } if is(Role::Stdin, stream) => {
                let written = match &mut stdin {
                    Some(pipe) => pipe.write_all(&bytes).await.is_ok(),
                    None => false,
                };
                if last || !written {
                    stdin = None;
                }
            }
            Frame::Data { stream, bytes, .. } if is(Role::Resize, stream) => {
                if let (Some(resize), Some(size)) = (&resize, newest_size(&bytes)) {
                    let _ended = resize.send(size).await;
                }
            }
            Frame::Reset { stream } if is(Role::Stdin, stream) => stdin = None,
            Frame::Ping { id } => frames.send(Writer::pong(id)).await.map_err(|_| SessionError::Closed)?,
            Frame::GoAway => return Ok(()),
            _ => {}
        }
    }
}

/// Sizes come as JSON objects one after the other; only the last one matters.
fn newest_size(bytes: &[u8]) -> Option<TerminalSize> {
    let sizes = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    sizes.flatten().last().map(|Size { width, height }| TerminalSize { width, height })
}

/// Copies one output to its stream and closes that.
async fn pump(from: Option<Box<dyn AsyncRead + Send + Unpin>>, stream: Option<u32>, to: &mpsc::Sender<Bytes>) {
    let Some(stream) = stream else { return };
    if let Some(mut from) = from {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if to.send(Writer::data(stream, &buffer[..count])).await.is_err() {
                return;
            }
        }
    }
    let _gone = to.send(Writer::last(stream, b"")).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_sizes_and_no_stderr() {
        let options = ExecOptions { stdin: true, stdout: true, stderr: true, tty: true, ..ExecOptions::default() };
        assert_eq!(expected(&options), [Role::Error, Role::Stdin, Role::Stdout, Role::Resize]);
        let plain = ExecOptions { stdout: true, stderr: true, ..ExecOptions::default() };
        assert_eq!(expected(&plain), [Role::Error, Role::Stdout, Role::Stderr]);
    }

    #[test]
    fn the_newest_size_counts() {
        let sizes = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":30}\n";
        assert_eq!(newest_size(sizes), Some(TerminalSize { width: 100, height: 30 }));
        assert_eq!(newest_size(b"x"), None);
    }

    #[test]
    fn a_streams_role_is_in_its_headers() {
        let headers = |value: &str| vec![("streamtype".to_owned(), value.to_owned())];
        assert_eq!(Role::of(&headers("stdin")), Some(Role::Stdin));
        assert_eq!(Role::of(&headers("other")), None);
        assert_eq!(Role::of(&[]), None);
    }
}
