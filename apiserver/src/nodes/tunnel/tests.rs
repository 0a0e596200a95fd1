use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::nodes::{NoNodes, agent};

/// A node whose commands repeat what they hear, and end with 7 when they hear no more.
struct Echoing {
    sizes: watch::Sender<Option<TerminalSize>>,
    sessions: watch::Sender<usize>,
}

/// Counts down when a session's process has gone.
struct Alive(watch::Sender<usize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_modify(|sessions| *sessions -= 1);
    }
}

#[async_trait]
impl Nodes for Echoing {
    async fn logs(&self, _: &Value, options: LogOptions) -> Result<BoxStream<'static, std::io::Result<Bytes>>, Status> {
        if options.previous {
            return Err(Status::bad_request("there is none before"));
        }
        let since = options.since.map(|since| since.to_string()).unwrap_or_default();
        let lines = [options.container, since].map(|text| Ok(Bytes::from(text + "\n")));
        let lines = futures::stream::iter(lines);
        Ok(if options.follow { lines.chain(futures::stream::pending()).boxed() } else { lines.boxed() })
    }

    async fn exec(&self, _: &Value, options: ExecOptions) -> Result<Session, Status> {
        let (stdin, mut heard) = duplex(BUFFER);
        let (stdout, mut said) = duplex(BUFFER);
        let (stderr, mut complained) = duplex(BUFFER);
        let (resize, mut sizes) = mpsc::channel(1);
        self.sessions.send_modify(|sessions| *sessions += 1);
        let (alive, shown) = (Alive(self.sessions.clone()), self.sizes.clone());
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                shown.send_replace(Some(size));
            }
        });
        let (ended, exit) = oneshot::channel();
        tokio::spawn(async move {
            let _alive = alive;
            // A terminal has no stream of its own for it.
            let _unheard = complained.write_all(options.command.join(" ").as_bytes()).await;
            drop(complained);
            let _gone = tokio::io::copy(&mut heard, &mut said).await;
            let _nobody = ended.send(Ok(7));
        });
        Ok(Session {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: (!options.tty).then(|| Box::new(stderr) as _),
            resize: options.tty.then_some(resize),
            exit: Box::pin(async { exit.await.unwrap_or_else(|_| Err("gone".into())) }),
        })
    }

    async fn dial(&self, _: &Value, port: u16) -> Result<Box<dyn Duplex>, Status> {
        if port == 1 {
            return Err(Status::internal("nobody listens"));
        }
        let (near, far) = duplex(BUFFER);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(far);
            let _gone = tokio::io::copy(&mut from, &mut to).await;
            to.shutdown().await.unwrap();
        });
        Ok(Box::new(near))
    }
}

struct World {
    fleet: Arc<Fleet>,
    sizes: watch::Receiver<Option<TerminalSize>>,
    sessions: watch::Receiver<usize>,
    agent: tokio::task::JoinHandle<()>,
}

fn pod(node: &str) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}})
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

impl World {
    /// With the node `a` at the other end of a tunnel.
    async fn new() -> Self {
        let fleet = Arc::new(Fleet::new(Arc::new(NoNodes)));
        let (echoing, far) =
            (Echoing { sizes: watch::Sender::new(None), sessions: watch::Sender::new(0) }, fleet.clone());
        let (sizes, sessions) = (echoing.sizes.subscribe(), echoing.sessions.subscribe());
        let (one, other) = duplex(BUFFER);
        tokio::spawn(async move { far.carry("a", one).await });
        let agent = tokio::spawn(async move { drop(agent::serve(other, Arc::new(echoing)).await) });
        let world = Self { fleet, sizes, sessions, agent };
        world.until("the tunnel is open", |fleet| fleet.to(&pod("a")).is_some()).await;
        world
    }

    async fn until(&self, what: &str, holds: impl Fn(&Fleet) -> bool) {
        let held = async {
            while !holds(&self.fleet) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(what, held).await;
    }

    async fn exec(&self, tty: bool) -> Session {
        let command = vec!["say".into(), "it".into()];
        let options = ExecOptions { command, stdin: true, stdout: true, stderr: true, tty, ..ExecOptions::default() };
        self.fleet.exec(&pod("a"), options).await.unwrap()
    }
}

#[tokio::test]
async fn what_goes_in_comes_out_and_then_the_exit_code() {
    let world = World::new().await;
    let Session { stdin, stdout, stderr, resize, exit } = world.exec(false).await;
    let (mut stdin, mut stdout, mut stderr) = (stdin.unwrap(), stdout.unwrap(), stderr.unwrap());
    assert!(resize.is_none());
    // More than all buffers together hold.
    let much = vec![b'x'; 4 * BUFFER + 1];
    let writing = async {
        stdin.write_all(&much).await.unwrap();
        drop(stdin);
    };
    let (mut out, mut errors) = (Vec::new(), String::new());
    let reading = async {
        stdout.read_to_end(&mut out).await.unwrap();
        stderr.read_to_string(&mut errors).await.unwrap();
    };
    soon("all of it", futures::future::join(writing, reading)).await;
    assert_eq!((out.len(), &*errors, soon("the end", exit).await), (much.len(), "say it", Ok(7)));
}

#[tokio::test]
async fn a_terminal_has_a_size_and_one_stream_of_output() {
    let mut world = World::new().await;
    let session = world.exec(true).await;
    assert!(session.stderr.is_none());
    let size = TerminalSize { width: 80, height: 24 };
    session.resize.unwrap().send(size).await.unwrap();
    soon("the size", world.sizes.wait_for(|seen| *seen == Some(size))).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_lets_the_process_see_its_streams_close() {
    let mut world = World::new().await;
    let session = world.exec(false).await;
    soon("it runs", world.sessions.wait_for(|sessions| *sessions == 1)).await.unwrap();
    drop(session);
    soon("it ended", world.sessions.wait_for(|sessions| *sessions == 0)).await.unwrap();
}

#[tokio::test]
async fn logs_come_as_they_are_written_and_refusals_as_they_were_meant() {
    let world = World::new().await;
    let since = Some("2026-01-01T00:00:00Z".parse().unwrap());
    let options = LogOptions { container: "c".into(), follow: true, since, ..LogOptions::default() };
    let mut lines = world.fleet.logs(&pod("a"), options).await.unwrap();
    let mut text = String::new();
    while text != "c\n2026-01-01T00:00:00Z\n" {
        let more = soon("lines", lines.next()).await.unwrap().unwrap();
        text += &String::from_utf8_lossy(&more);
    }
    let refused = world.fleet.logs(&pod("a"), LogOptions { previous: true, ..LogOptions::default() }).await;
    assert_eq!(refused.err(), Some(Status::bad_request("there is none before")));
    let elsewhere = world.fleet.logs(&pod("b"), LogOptions::default()).await;
    assert!(elsewhere.err().unwrap().message.contains("no connection to the agent of node"));
}

#[tokio::test]
async fn a_connection_ends_in_each_direction_by_itself() {
    let world = World::new().await;
    let mut stream = world.fleet.dial(&pod("a"), 80).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    soon("the echo", stream.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "hello");
    assert_eq!(world.fleet.dial(&pod("a"), 1).await.err(), Some(Status::internal("nobody listens")));
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_forgotten_and_told() {
    let world = World::new().await;
    let session = world.exec(false).await;
    world.agent.abort();
    assert!(soon("the end", session.exit).await.unwrap_err().starts_with(BROKEN));
    world.until("it is forgotten", |fleet| fleet.to(&pod("a")).is_none()).await;
}

#[tokio::test]
async fn the_later_of_two_tunnels_stays() {
    let world = World::new().await;
    let (one, other) = duplex(BUFFER);
    let far = world.fleet.clone();
    let later = tokio::spawn(async move { far.carry("a", one).await });
    let echoing = Echoing { sizes: watch::Sender::new(None), sessions: watch::Sender::new(0) };
    let mut sessions = echoing.sessions.subscribe();
    tokio::spawn(agent::serve(other, Arc::new(echoing)));
    world.until("it is the later one", |fleet| fleet.tunnels.lock().unwrap()["a"].0 == 1).await;
    world.agent.abort();
    let _session = world.exec(false).await;
    soon("the later one runs it", sessions.wait_for(|sessions| *sessions == 1)).await.unwrap();
    later.abort();
    world.until("it is forgotten", |fleet| fleet.to(&pod("a")).is_none()).await;
}
