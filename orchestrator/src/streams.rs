//! The way to containers of this process's own node, for the API server: in the same process, or through this node's tunnel.

use std::sync::{Arc, OnceLock};

use agent::{Agent, AttachRequest, ExecError, ExecRequest, ExecSession, LogError};
use api::status::Status;
use api::uid::Uid;
use apiserver::nodes::{Duplex, ExecOptions, LogOptions, Nodes, Session, TerminalSize, unreachable};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use node::Running;
use serde_json::Value;
use tokio::sync::mpsc;

/// Holds the agent once it runs: the server is made before it.
#[derive(Clone)]
pub struct AgentSlot {
    node: String,
    running: Arc<OnceLock<Running>>,
}

impl AgentSlot {
    pub fn new(node: &str) -> Self {
        Self { node: node.to_owned(), running: Arc::default() }
    }

    pub fn fill(&self, node: Running) {
        // Filled once, at start.
        let _ = self.running.set(node);
    }

    /// The agent of the pod's node, if that is ours.
    fn of(&self, pod: &Value) -> Result<&Arc<Agent>, Status> {
        let running = self.running.get().filter(|_| pod["spec"]["nodeName"] == *self.node);
        running.map(|node| &node.agent).ok_or_else(|| unreachable(pod))
    }
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

#[async_trait]
impl Nodes for AgentSlot {
    async fn logs(
        &self,
        pod: &Value,
        options: LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        let wanted = agent::LogOptions {
            follow: options.follow,
            previous: options.previous,
            since: options.since,
            tail: options.tail_lines.map(|lines| lines as u64),
            timestamps: options.timestamps,
            limit_bytes: options.limit_bytes.map(|bytes| bytes as u64),
            stream: None,
        };
        match self.of(pod)?.logs(&Uid::of(pod), &options.container, wanted) {
            Ok(lines) => Ok(lines.boxed()),
            Err(error) => Err(log_refusal(&error, pod, &options.container)),
        }
    }

    async fn exec(&self, pod: &Value, options: ExecOptions) -> Result<Session, Status> {
        let agent = self.of(pod)?;
        let ExecOptions { container, command, stdin, stdout, stderr, tty } = options;
        let session = if command.is_empty() {
            agent.attach(&Uid::of(pod), &container, AttachRequest { stdin, stdout, stderr }).await
        } else {
            let user = agent::asked_user(pod, &container).map_err(|error| Status::bad_request(error.to_string()))?;
            agent.exec(&Uid::of(pod), &container, &ExecRequest { command, stdin, stdout, stderr, tty, user }).await
        };
        match session {
            Ok(session) => Ok(connect(session)),
            // By then the client has its streams, and hears the end of the session in them.
            Err(error @ ExecError::CannotRun { .. }) => Ok(never_ran(error)),
            Err(error) => Err(exec_refusal(&error, &container)),
        }
    }

    async fn dial(&self, pod: &Value, port: u16) -> Result<Box<dyn Duplex>, Status> {
        let dialled = self.of(pod)?.dial(&Uid::of(pod), port).await;
        dialled
            .map(|stream| Box::new(stream) as _)
            .map_err(|error| Status::internal(format!("{:#}", anyhow::Error::from(error))))
    }

    fn metrics(&self) -> String {
        self.running.get().map(metrics).unwrap_or_default()
    }
}

/// What the node's parts count, in Prometheus' text form.
fn metrics(node: &Running) -> String {
    let mut out = String::from("# TYPE amphipod_service_path_total counter\n");
    match node.proxy.counters() {
        Ok(all) => all.iter().for_each(|(what, count)| {
            out += &format!("amphipod_service_path_total{{what=\"{what}\"}} {count}\n");
        }),
        Err(error) => tracing::warn!(%error, "the service path's counters cannot be read"),
    }
    let (held, limit) = node.proxy.usage();
    let (in_doubt, failures) = node.proxy.doubts();
    out += &format!(
        "# TYPE amphipod_service_frontends gauge\namphipod_service_frontends {held}\n\
         # TYPE amphipod_service_frontends_limit gauge\namphipod_service_frontends_limit {limit}\n\
         # TYPE amphipod_services_refused gauge\namphipod_services_refused {}\n\
         # TYPE amphipod_services_in_doubt gauge\namphipod_services_in_doubt {in_doubt}\n\
         # TYPE amphipod_service_path_failed_writes_total counter\namphipod_service_path_failed_writes_total {failures}\n\
         # TYPE amphipod_service_path_ended_sockets_total counter\namphipod_service_path_ended_sockets_total {}\n\
         # TYPE amphipod_watched_objects gauge\namphipod_watched_objects {}\n",
        node.proxy.refused(),
        node.proxy.ended_sockets(),
        node.content.watched(),
    );
    out += &node.dns.metrics();
    out
}

fn log_refusal(error: &LogError, pod: &Value, container: &str) -> Status {
    let name = name(pod);
    match error {
        LogError::NotStarted { .. } => Status::bad_request(format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: {}",
            waits_for(pod, container)
        )),
        LogError::NoPrevious { .. } => {
            Status::bad_request(format!("previous terminated container \"{container}\" in pod \"{name}\" not found"))
        }
        LogError::Io(error) => Status::internal(format!("cannot read the log of container {container}: {error}")),
    }
}

/// Why a container has not begun, in the kubelet's words.
fn waits_for<'a>(pod: &'a Value, container: &str) -> &'a str {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.into_iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    let status = all.find(|status| status["name"] == container);
    match status.and_then(|status| status["state"]["waiting"]["reason"].as_str()) {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "ContainerCreating",
    }
}

fn exec_refusal(error: &ExecError, container: &str) -> Status {
    match error {
        ExecError::NotRunning { .. } => Status::internal(format!("container not found (\"{container}\")")),
        other => Status::internal(other),
    }
}

/// A session with nothing but an end.
fn never_ran(error: ExecError) -> Session {
    let why = format!("error executing command in container: {:#}", anyhow::Error::from(error));
    Session { stdin: None, stdout: None, stderr: None, resize: None, exit: Box::pin(std::future::ready(Err(why))) }
}

fn connect(session: ExecSession) -> Session {
    let resize = session.resize.map(|resizer| {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(4);
        tokio::spawn(async move {
            while let Some(TerminalSize { width, height }) = sizes.recv().await {
                if resizer.resize(width, height).await.is_err() {
                    return; // the terminal is gone with its process
                }
            }
        });
        sender
    });
    let exit = Box::pin(async move {
        match session.exit {
            Some(exit) => exit.await.map_err(|_| "the pod process ended before the command".to_owned()),
            // An attached client outlives nothing: its streams' end is the end.
            None => Ok(0),
        }
    });
    Session { stdin: session.stdin, stdout: session.stdout, stderr: session.stderr, resize, exit }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_log_that_is_not_there_yet_says_what_its_container_waits_for() {
        let waiting = |name: &str, reason: &str| json!({"name": name, "state": {"waiting": {"reason": reason}}});
        let pod = json!({"status": {"containerStatuses": [waiting("a", "ImagePullBackOff"), waiting("b", "PodInitializing")],
            "initContainerStatuses": [waiting("c", "ErrImagePull")]}});
        assert_eq!(waits_for(&pod, "a"), "trying and failing to pull image");
        assert_eq!(waits_for(&pod, "b"), "PodInitializing");
        assert_eq!(waits_for(&pod, "c"), "image can't be pulled");
        assert_eq!(waits_for(&pod, "d"), "ContainerCreating");
    }
}
