//! How the server reaches what runs on nodes: logs, streams into containers, connections into pods.
//!
//! One trait, implemented by whoever knows the way: the agent of the same process, and for nodes elsewhere the tunnels that they open
//! ([`tunnel`]; [`agent`] is their end of it).

use std::time::Duration;

use api::status::Status;
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub mod agent;
mod frames;
pub(crate) mod tunnel;

/// Where a node opens its tunnel, and the word by which the connection becomes one.
pub const TUNNEL: &str = "/amphipod/tunnel";
pub const TUNNEL_PROTOCOL: &str = "amphipod-tunnel-1";

/// Who says nothing for so long is asked whether it lives, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Sessions in one tunnel.
const STREAMS: u32 = 1000;

/// What is asked for through a tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Asked {
    Dial { pod: Value, port: u16 },
    Exec { pod: Value, options: ExecOptions },
    Logs { pod: Value, options: LogOptions },
}

/// How a process ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Exit {
    Code(i32),
    Failed(String),
}

impl From<Result<i32, String>> for Exit {
    fn from(exit: Result<i32, String>) -> Self {
        exit.map_or_else(Self::Failed, Self::Code)
    }
}

impl From<Exit> for Result<i32, String> {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Ok(code),
            Exit::Failed(why) => Err(why),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogOptions {
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<usize>,
    /// Only what was written at or after this.
    #[serde(with = "as_text")]
    pub since: Option<jiff::Timestamp>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecOptions {
    pub container: String,
    /// Empty: attach to the container's own process.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// A running exec or attach.
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, or why there is none.
    pub exit: BoxFuture<'static, Result<i32, String>>,
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// # Errors
/// As the client is to read them: 400 for a log that is not there, or what the pod does not let be asked; 500 for a
/// container that does not run, and (see [`unreachable()`]) when the node's agent cannot be reached or fails.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// A container's log as text. `pod` is the stored object.
    async fn logs(
        &self,
        pod: &Value,
        options: LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status>;
    async fn exec(&self, pod: &Value, options: ExecOptions) -> Result<Session, Status>;
    /// A connection to a port of the pod's own loopback address.
    async fn dial(&self, pod: &Value, port: u16) -> Result<Box<dyn Duplex>, Status>;
    /// What a node of this process counts, in Prometheus' text form.
    fn metrics(&self) -> String {
        String::new()
    }
}

/// A server without nodes.
pub struct NoNodes;

#[async_trait]
impl Nodes for NoNodes {
    async fn logs(&self, pod: &Value, _: LogOptions) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        Err(unreachable(pod))
    }

    async fn exec(&self, pod: &Value, _: ExecOptions) -> Result<Session, Status> {
        Err(unreachable(pod))
    }

    async fn dial(&self, pod: &Value, _: u16) -> Result<Box<dyn Duplex>, Status> {
        Err(unreachable(pod))
    }
}

/// 500 as upstream gives it when a node's agent cannot be reached.
pub fn unreachable(pod: &Value) -> Status {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    Status::internal(format!("no connection to the agent of node {node:?}"))
}

/// A time as RFC 3339 has it.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(time: &Option<jiff::Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.to_string()).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<jiff::Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}
