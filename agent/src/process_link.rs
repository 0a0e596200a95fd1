//! The agent's end of a pod process's socket: calls with replies, and events.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pod::frame::{self, Inbox};
use pod::protocol::{ContainerState, Exec, Failure, Message, Op, Outcome, Request, State, VERSION};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Creating a container takes tens of milliseconds; a pod process that says nothing for this long is broken.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the pod process is gone")]
    Gone,
    #[error("talk to the pod process")]
    Io(#[from] io::Error),
    #[error("the pod process does not answer")]
    TimedOut,
    #[error("the pod process answered something else than asked")]
    Confused,
    #[error(transparent)]
    Failed(Failure),
}

/// What a pod process reports by itself.
#[derive(Debug)]
pub enum LinkEvent {
    Exited(ContainerState),
    /// The connection ended: the pod process died or was told to leave.
    Closed,
}

#[derive(Debug)]
pub struct ProcessLink {
    shared: Arc<Shared>,
    reader: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    writing: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    replies: HashMap<u64, oneshot::Sender<Outcome>>,
    execs: HashMap<String, oneshot::Sender<i32>>,
}

impl ProcessLink {
    /// Connects, says hello and returns what the pod process has. Events go to `events` from then on.
    pub async fn connect(
        socket: &Path,
        events: mpsc::UnboundedSender<LinkEvent>,
    ) -> Result<(ProcessLink, State), LinkError> {
        let stream = UnixStream::connect(socket).await?;
        let shared = Arc::new(Shared {
            stream,
            writing: tokio::sync::Mutex::default(),
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
        });
        let reader = tokio::spawn(read_loop(shared.clone(), events));
        let link = ProcessLink { shared, reader };
        let Outcome::State(state) = link.call(Op::Hello { version: VERSION }, &[]).await? else {
            return Err(LinkError::Confused);
        };
        #[cfg(feature = "next-protocol")]
        link.greet(&state).await?;
        Ok((link, state))
    }

    /// What only the next version knows, an older pod process is not asked for.
    #[cfg(feature = "next-protocol")]
    async fn greet(&self, state: &State) -> Result<(), LinkError> {
        if state.version >= VERSION {
            self.tell(Op::Greet).await?;
        }
        tracing::info!(before = state.greetings, asked = state.version >= VERSION, "greeted");
        Ok(())
    }

    /// The socket itself, for what the kernel tells of its other end.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.stream.as_fd()
    }

    pub async fn call(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<Outcome, LinkError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.closed {
                return Err(LinkError::Gone);
            }
            waiting.replies.insert(id, sender);
        }
        let request = serde_json::to_vec(&Request { id, fds: fds.len(), op }).map_err(io::Error::from)?;
        self.shared.send(&frame::encode(&request), fds).await?;
        match tokio::time::timeout(REPLY_TIMEOUT, receiver).await {
            Ok(Ok(Outcome::Failed(failure))) => Err(LinkError::Failed(failure)),
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(LinkError::Gone),
            Err(_) => {
                self.shared.waiting().replies.remove(&id);
                Err(LinkError::TimedOut)
            }
        }
    }

    /// A call whose success has no more to tell.
    pub async fn tell(&self, op: Op) -> Result<(), LinkError> {
        self.call(op, &[]).await.map(drop)
    }

    /// Starts a process; the receiver yields its exit code.
    pub async fn exec(&self, exec: Exec, fds: &[BorrowedFd<'_>]) -> Result<oneshot::Receiver<i32>, LinkError> {
        let (sender, receiver) = oneshot::channel();
        let name = exec.exec.clone();
        self.shared.waiting().execs.insert(name.clone(), sender);
        let started = self.call(Op::Exec(exec), fds).await;
        if started.is_err() {
            self.shared.waiting().execs.remove(&name);
        }
        started.map(|_| receiver)
    }
}

impl Drop for ProcessLink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let _order = self.writing.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { raw.as_slice() } else { &[] };
            let write = || frame::send(self.stream.as_raw_fd(), &bytes[sent..], fds);
            sent += self.stream.async_io(Interest::WRITABLE, write).await?;
        }
        Ok(())
    }

    fn dispatch(&self, message: Message, events: &mpsc::UnboundedSender<LinkEvent>) {
        // A receiver that is gone has lost interest: nothing to do.
        match message {
            Message::Reply { id, outcome } => {
                if let Some(sender) = self.waiting().replies.remove(&id) {
                    let _ = sender.send(outcome);
                }
            }
            Message::ExecExited { exec, exit_code } => {
                if let Some(sender) = self.waiting().execs.remove(&exec) {
                    let _ = sender.send(exit_code);
                }
            }
            Message::ContainerExited(state) => {
                let _ = events.send(LinkEvent::Exited(state));
            }
            #[cfg(feature = "next-protocol")]
            Message::Greeted { greetings } => tracing::info!(greetings, "pod process greeted"),
        }
    }
}

async fn read_loop(shared: Arc<Shared>, events: mpsc::UnboundedSender<LinkEvent>) {
    if let Err(error) = read_messages(&shared, &events).await {
        tracing::warn!(%error, "pod process connection");
    }
    {
        let mut waiting = shared.waiting();
        *waiting = Waiting { closed: true, ..Waiting::default() };
    }
    let _ = events.send(LinkEvent::Closed); // nobody listens any more: fine
}

async fn read_messages(shared: &Shared, events: &mpsc::UnboundedSender<LinkEvent>) -> io::Result<()> {
    let mut inbox = Inbox::default();
    loop {
        let received = shared.stream.async_io(Interest::READABLE, || inbox.receive(shared.stream.as_raw_fd())).await;
        match received {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(frame) = inbox.next_frame()? {
            match serde_json::from_slice(&frame) {
                Ok(message) => shared.dispatch(message, events),
                Err(error) => tracing::debug!(%error, "message of a newer pod process"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::os::unix::net::UnixListener;

    /// A pod process of another release: answers each request as it is told to.
    fn pod_process(answer: impl Fn(&Value) -> Vec<Value> + Send + 'static) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut inbox = Inbox::default();
            while inbox.receive(stream.as_raw_fd()).unwrap() > 0 {
                while let Some(frame) = inbox.next_frame().unwrap() {
                    let request: Value = serde_json::from_slice(&frame).unwrap();
                    for message in answer(&request) {
                        frame::send(stream.as_raw_fd(), &frame::encode(message.to_string().as_bytes()), &[]).unwrap();
                    }
                }
            }
        });
        folder
    }

    #[tokio::test]
    async fn a_newer_pod_process_is_taken_over_after_a_downgrade() {
        let folder = pod_process(|request| {
            let state = json!({"version": 9, "pid": 7, "pid_namespace": null, "mood": "fine",
                "containers": [{"container": "main-0", "pid": 8, "started_at": 5, "exit": null, "paused": false}]});
            let reply = match request["op"].as_str() {
                Some("hello") => json!({"type": "reply", "id": request["id"], "state": state}),
                _ => json!({"type": "reply", "id": request["id"], "done": null}),
            };
            let exited = json!({"type": "container_exited", "container": "main-0", "pid": 8, "started_at": 5,
                "exit": {"code": 3, "signal": null, "oom_killed": false, "finished_at": 6, "core": "/x"}});
            vec![json!({"type": "sun_rose", "at": 6}), reply, exited]
        });
        let (sender, mut events) = mpsc::unbounded_channel();
        let (link, state) = ProcessLink::connect(&folder.path().join("socket"), sender).await.unwrap();
        assert_eq!((state.version, state.containers[0].container.as_str()), (9, "main-0"));
        let Some(LinkEvent::Exited(exited)) = events.recv().await else { panic!("an event that is known") };
        assert_eq!(exited.exit.unwrap().code, 3);
        link.tell(Op::Signal { container: "main-0".into(), signal: 15 }).await.unwrap();
    }

    #[tokio::test]
    async fn an_older_pod_process_says_what_it_cannot_do() {
        let folder = pod_process(|request| {
            let reply = match request["op"].as_str() {
                Some("hello") => json!({"state": {"version": 0, "pid": 7, "pid_namespace": null, "containers": []}}),
                _ => json!({"failed": {"kind": "unsupported", "message": "unknown operation"}}),
            };
            let mut reply = reply;
            (reply["type"], reply["id"]) = (json!("reply"), request["id"].clone());
            vec![reply]
        });
        let (sender, _events) = mpsc::unbounded_channel();
        let (link, state) = ProcessLink::connect(&folder.path().join("socket"), sender).await.unwrap();
        assert_eq!(state.version, 0);
        let refused = link.tell(Op::Resize { container: "main-0".into(), width: 1, height: 1 }).await;
        assert!(
            matches!(&refused, Err(LinkError::Failed(failure)) if failure.kind == pod::protocol::FailureKind::Unsupported),
            "{refused:?}"
        );
    }
}
