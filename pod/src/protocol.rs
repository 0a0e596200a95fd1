//! What the agent and a pod process say to each other.
//!
//! A frame is a JSON document (see [`crate::frame`]). The agent sends [`Request`]s; the pod process answers each with a
//! [`Message::Reply`] and sends events to every connection as they happen. The protocol only grows: unknown fields are
//! ignored, new fields have defaults, an unknown operation is answered with [`FailureKind::Unsupported`], an unknown event
//! is passed over. So a newer agent talks to the pod processes an older one left running, and after a downgrade the
//! older agent to those of the newer: an agent asks only for what [`State::version`] promises.
//!
//! The feature `next-protocol` is the release after this one: a version, a field, an operation and an event more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Counts up when an operation or a field is added.
pub const VERSION: u32 = if cfg!(feature = "next-protocol") { 3 } else { 2 };

/// What a pod process is told at its start, on its standard input.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Setup {
    pub uid: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// The file whose exclusive lock it holds as long as it lives.
    pub lock: PathBuf,
    /// libcontainer's state.
    pub state_dir: PathBuf,
    /// The cgroup2 folder joined before anything is cloned; children inherit it.
    pub cgroup: PathBuf,
    /// `None` keeps the host's UTS namespace.
    pub hostname: Option<String>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub host_ipc: bool,
    #[serde(default)]
    pub share_pid: bool,
    /// Kernel settings of the pod's namespaces, by their dotted names.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Where compiled seccomp filters are kept, for all pods of the node.
    #[serde(default)]
    pub seccomp_cache: Option<PathBuf>,
    /// Since version 2: the pod has users of its own. `None` shares the host's.
    #[serde(default)]
    pub users: Option<IdRange>,
}

impl Setup {
    /// A user or group of the pod's, as the host counts.
    pub fn host_id(&self, id: u32) -> u32 {
        self.users.map_or(id, |range| range.first + id)
    }
}

/// User and group ids from 0 on in a pod stand for these on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender, repeated in the reply.
    pub id: u64,
    /// How many file descriptors came with this frame.
    #[serde(default)]
    pub fds: usize,
    #[serde(flatten)]
    pub op: Op,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// First on every connection. Answered with [`State`].
    Hello {
        version: u32,
    },
    /// Creates a container from an OCI bundle; it waits for `Start`.
    Create(CreateContainer),
    Start {
        container: String,
    },
    Signal {
        container: String,
        signal: i32,
    },
    /// Forgets a container: what is left of it is killed, its cgroups are removed.
    Delete {
        container: String,
    },
    /// Runs one more process in a container. With it come stdin, stdout and stderr, or one pty (`terminal`).
    Exec(Exec),
    SignalExec {
        exec: String,
        signal: i32,
    },
    /// Joins a client to a container's streams. The descriptors come in the order stdin, stdout, stderr.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        container: String,
        width: u16,
        height: u16,
    },
    /// Ends the pod process; refused while a container runs.
    Exit,
    /// Counts the agents that have said this, and tells everyone.
    #[cfg(feature = "next-protocol")]
    Greet,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Unique in the pod over its whole life: a restarted container gets a new one.
    pub container: String,
    pub bundle: PathBuf,
    pub log: LogTarget,
    /// Keep a standard input open for attached clients; otherwise it is /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// Close the standard input when the first attached client does.
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogTarget {
    pub path: PathBuf,
    pub max_bytes: u64,
    pub max_files: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// Unique in the pod process.
    pub exec: String,
    pub container: String,
    /// An OCI `process` object.
    pub process: Value,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    Reply {
        id: u64,
        #[serde(flatten)]
        outcome: Outcome,
    },
    ContainerExited(ContainerState),
    ExecExited {
        exec: String,
        exit_code: i32,
    },
    #[cfg(feature = "next-protocol")]
    Greeted {
        greetings: u32,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    State(State),
    /// The process id of a new process, as the host sees it.
    Started(i32),
    Done,
    Failed(Failure),
}

#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    NotFound,
    Exists,
    Invalid,
    Unsupported,
    /// The program could not be run (missing, not executable, bad working directory, …).
    CannotRun,
    Internal,
    /// A kind this side doesn't know yet.
    #[serde(other)]
    Unknown,
}

/// All that a newly connected agent needs to go on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub pid: i32,
    /// The pod's own PID namespace, when its containers share one.
    pub pid_namespace: Option<PathBuf>,
    /// The user namespace of the pod's containers, when they have one of their own.
    #[serde(default)]
    pub user_namespace: Option<PathBuf>,
    pub containers: Vec<ContainerState>,
    #[cfg(feature = "next-protocol")]
    #[serde(default)]
    pub greetings: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    pub container: String,
    pub pid: i32,
    /// Nanoseconds since 1970; `None` until `Start`.
    pub started_at: Option<i64>,
    pub exit: Option<Exit>,
    /// Log bytes lost because the disk refused them.
    #[serde(default)]
    pub log_bytes_lost: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + n when signal n ended it.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub finished_at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_flat_objects() {
        let request = Request { id: 7, fds: 0, op: Op::Start { container: "web-0".into() } };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"id":7,"fds":0,"op":"start","container":"web-0"}"#);
    }

    #[test]
    fn a_newer_peer_may_add_fields() {
        let text = r#"{"id":1,"op":"hello","version":9,"colour":"red"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert!(matches!(request.op, Op::Hello { version: 9 }));
        let failure: Failure = serde_json::from_str(r#"{"kind":"tired","message":"m"}"#).unwrap();
        assert_eq!(failure.kind, FailureKind::Unknown);
    }

    #[test]
    fn every_message_survives_the_wire() {
        let exited = ContainerState {
            container: "c".into(),
            pid: 3,
            started_at: Some(5),
            exit: Some(Exit { code: 137, signal: Some(9), oom_killed: true, finished_at: 6 }),
            log_bytes_lost: 0,
        };
        let state = State { version: 1, pid: 2, containers: vec![exited.clone()], ..State::default() };
        let failed = Failure { kind: FailureKind::CannotRun, message: "no".into() };
        for message in [
            Message::Reply { id: 1, outcome: Outcome::State(state) },
            Message::Reply { id: 2, outcome: Outcome::Started(4) },
            Message::Reply { id: 3, outcome: Outcome::Done },
            Message::Reply { id: 4, outcome: Outcome::Failed(failed) },
            Message::ContainerExited(exited),
            Message::ExecExited { exec: "e".into(), exit_code: 1 },
        ] {
            let text = serde_json::to_string(&message).unwrap();
            let back: Message = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), text);
        }
    }
}
