//! The server's end of tunnels: nodes elsewhere connect to it, and through that connection it asks them, so that no port of a node need be
//! reachable.
//!
//! A tunnel is HTTP/2 with the roles exchanged: the node, which opened the connection, answers. Each session is one stream with its own
//! flow control.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use api::status::Status;
use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};

use super::frames::{self, Kind};
use super::{Asked, Duplex, ExecOptions, Exit, KEEP_ALIVE, LogOptions, Nodes, Session, TerminalSize};

/// Bytes that may wait in each direction of a stream.
const BUFFER: usize = 64 << 10;
const BROKEN: &str = "the connection to the pod's node broke";

type Sender = SendRequest<Body>;

/// Nodes elsewhere, by their tunnels, and those of this process.
pub struct Fleet {
    local: Arc<dyn Nodes>,
    tunnels: Mutex<HashMap<String, (u64, Sender)>>,
    /// Tunnels that were ever opened.
    opened: AtomicU64,
}

impl Fleet {
    pub fn new(local: Arc<dyn Nodes>) -> Self {
        Self { local, tunnels: Mutex::default(), opened: AtomicU64::default() }
    }

    /// Asks a node through this connection until it ends. A later one of the same node takes its place.
    ///
    /// # Errors
    /// When it broke, or the node does not answer pings any more.
    pub async fn carry<S>(&self, node: &str, stream: S) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        builder.keep_alive_while_idle(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let number = self.take_in(node, sender);
        let _registered = Registered { fleet: self, node, number };
        tracing::debug!(node, "tunnel opened");
        connection.await
    }

    fn take_in(&self, node: &str, sender: Sender) -> u64 {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.insert(node.to_owned(), (number, sender));
        number
    }

    fn forget(&self, node: &str, number: u64) {
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        if tunnels.get(node).is_some_and(|(current, _)| *current == number) {
            tunnels.remove(node);
        }
    }

    /// The way to a pod's node, if it is one elsewhere.
    fn to(&self, pod: &Value) -> Option<Sender> {
        let node = pod["spec"]["nodeName"].as_str()?;
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.get(node).map(|(_, sender)| sender.clone())
    }
}

/// A tunnel that is open; ends also with a task that is aborted.
struct Registered<'a> {
    fleet: &'a Fleet,
    node: &'a str,
    number: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.fleet.forget(self.node, self.number);
    }
}

/// Asks, and gives what goes in and what comes out of the stream that this begins.
async fn ask(mut sender: Sender, asked: &Asked) -> Result<(mpsc::Sender<Bytes>, Incoming), Status> {
    let (input, body) = frames::body();
    let open = frames::frame(Kind::Open, json!(asked).to_string().as_bytes());
    // There is room for one.
    let _taken = input.try_send(open);
    let request = Request::post("http://node/").body(body).map_err(Status::internal)?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| Status::internal(format!("{BROKEN}: {}", causes::chain(&error))))?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Ok((input, body));
    }
    drop(input);
    let mut text = Vec::new();
    let read = frames::reader(Body::new(body)).read_to_end(&mut text).await;
    read.map_err(|error| Status::internal(format!("{BROKEN}: {error}")))?;
    Err(client::https::refusal(head.status.as_u16(), &text))
}

#[async_trait]
impl Nodes for Fleet {
    async fn logs(
        &self,
        pod: &Value,
        options: LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        let Some(sender) = self.to(pod) else { return self.local.logs(pod, options).await };
        let (_, lines) = ask(sender, &Asked::Logs { pod: pod.clone(), options }).await?;
        Ok(Body::new(lines).into_data_stream().map_err(std::io::Error::other).boxed())
    }

    async fn exec(&self, pod: &Value, options: ExecOptions) -> Result<Session, Status> {
        let Some(sender) = self.to(pod) else { return self.local.exec(pod, options).await };
        let asked = Asked::Exec { pod: pod.clone(), options: options.clone() };
        let (input, output) = ask(sender, &asked).await?;
        Ok(session(&options, input, output))
    }

    async fn dial(&self, pod: &Value, port: u16) -> Result<Box<dyn Duplex>, Status> {
        let Some(sender) = self.to(pod) else { return self.local.dial(pod, port).await };
        let (input, output) = ask(sender, &Asked::Dial { pod: pod.clone(), port }).await?;
        let (near, far) = duplex(BUFFER);
        let (from, mut to) = tokio::io::split(far);
        tokio::spawn(frames::pump_raw(from, input));
        tokio::spawn(async move {
            let _broken = tokio::io::copy(&mut frames::reader(Body::new(output)), &mut to).await;
            let _gone = to.shutdown().await;
        });
        Ok(Box::new(near))
    }

    fn metrics(&self) -> String {
        self.local.metrics()
    }
}

fn session(options: &ExecOptions, input: mpsc::Sender<Bytes>, output: Incoming) -> Session {
    let pipe = |wanted: bool| wanted.then(|| duplex(BUFFER)).unzip();
    let (stdin, typed) = pipe(options.stdin);
    let (stdout, out) = pipe(options.stdout);
    let (stderr, errors) = pipe(options.stderr && !options.tty);
    let (resize, sizes) = options.tty.then(|| mpsc::channel(4)).unzip();
    let (ended, exit) = oneshot::channel();
    tokio::spawn(carry(Ends { typed, out, errors, sizes, ended }, input, output));
    let exit: BoxFuture<'static, Result<i32, String>> =
        Box::pin(async { exit.await.unwrap_or_else(|_| Err(BROKEN.to_owned())) });
    Session {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: stdout.map(|stdout| Box::new(stdout) as _),
        stderr: stderr.map(|stderr| Box::new(stderr) as _),
        resize,
        exit,
    }
}

/// The far ends of a session's streams.
struct Ends {
    typed: Option<DuplexStream>,
    out: Option<DuplexStream>,
    errors: Option<DuplexStream>,
    sizes: Option<mpsc::Receiver<TerminalSize>>,
    ended: oneshot::Sender<Result<i32, String>>,
}

/// Moves bytes until the process ends or nobody waits for that any more.
async fn carry(ends: Ends, input: mpsc::Sender<Bytes>, output: Incoming) {
    let Ends { typed, out, errors, sizes, mut ended } = ends;
    let typing = async {
        if typed.is_some() {
            frames::pump(typed, Kind::Stdin, &input).await;
            let _gone = input.send(frames::frame(Kind::StdinEnd, b"")).await;
        }
    };
    let resizing = async {
        let Some(mut sizes) = sizes else { return };
        while let Some(size) = sizes.recv().await {
            let _gone = input.send(frames::frame(Kind::Resize, json!(size).to_string().as_bytes())).await;
        }
    };
    let upwards = async {
        futures::future::join(typing, resizing).await;
        // The end of this direction would be the client's.
        std::future::pending::<()>().await;
    };
    // The streams of output end with it: before the exit code is told.
    let downwards = async move {
        let (mut out, mut errors) = (out, errors);
        let mut output = frames::reader(Body::new(output));
        loop {
            match frames::next(&mut output).await {
                Ok(Some((Kind::Stdout, bytes))) => write(&mut out, &bytes).await,
                Ok(Some((Kind::Stderr, bytes))) => write(&mut errors, &bytes).await,
                Ok(Some((Kind::Exit, text))) => {
                    let exit = serde_json::from_slice::<Exit>(&text).map_err(|error| error.to_string());
                    return exit.and_then(Result::from);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(BROKEN.to_owned()),
                Err(error) => return Err(format!("{BROKEN}: {error}")),
            }
        }
    };
    tokio::pin!(upwards, downwards);
    let exit = tokio::select! {
        exit = &mut downwards => exit,
        () = &mut upwards => return,
        () = ended.closed() => return,
    };
    let _gone = ended.send(exit);
}

/// Who does not read any more gets no more.
async fn write(to: &mut Option<DuplexStream>, bytes: &[u8]) {
    if let Some(stream) = to
        && stream.write_all(bytes).await.is_err()
    {
        *to = None;
    }
}

#[cfg(test)]
mod tests;
