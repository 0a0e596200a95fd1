//! Probes and hooks: a command in the container, an HTTP request, a gRPC call, a TCP connection.

mod grpc;
mod http;
mod words;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::uid::Uid;
use causes::chain;
use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::exec::{ExecError, ExecRequest, ExecSession, exec};
use crate::model::{Container, Handler, Probe};
use crate::node::Node;
use words::dial_error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// What one probe found.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub container: String,
    pub run: String,
    pub kind: Kind,
    /// Why it failed this time.
    pub failure: Option<Failure>,
    /// The new state, once a threshold is reached.
    pub changed: Option<bool>,
}

/// Why a handler did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was asked, and this is what it said.
    Said(String),
    /// It could not be asked, which says nothing about the container.
    NotAsked(String),
}

impl Failure {
    /// What an event says of a probe that ended so.
    pub fn of_probe(&self, kind: Kind) -> String {
        match self {
            Failure::Said(said) => format!("{} probe failed: {said}", kind.name()),
            Failure::NotAsked(why) => format!("{} probe errored and resulted in unknown state: {why}", kind.name()),
        }
    }
}

impl From<String> for Failure {
    fn from(said: String) -> Failure {
        Failure::Said(said)
    }
}

/// Where a handler's target is.
#[derive(Clone)]
pub struct Target {
    pub node: Arc<Node>,
    pub uid: Uid,
    pub ip: Option<IpAddr>,
    pub container: Arc<Container>,
}

/// The running probes of a pod's containers.
#[derive(Debug, Default)]
pub struct Probes {
    tasks: HashMap<String, Vec<(Kind, JoinHandle<()>)>>,
}

impl Probes {
    /// Each verdict is told, until nobody hears them any more.
    pub fn start(
        &mut self,
        target: Target,
        run: &str,
        kind: Kind,
        probe: Probe,
        tell: impl Fn(Verdict) -> ControlFlow<()> + Send + 'static,
    ) {
        let name = target.container.name.clone();
        let task = tokio::spawn(watch(target, run.to_owned(), kind, probe, tell));
        self.tasks.entry(name).or_default().push((kind, task));
    }

    pub fn stop(&mut self, container: &str) {
        for (_, task) in self.tasks.remove(container).into_iter().flatten() {
            task.abort();
        }
    }

    /// Of a container that is to end: nothing restarts it any more.
    pub fn keep_readiness(&mut self, container: &str) {
        if let Some(tasks) = self.tasks.get_mut(container) {
            for (_, task) in tasks.extract_if(.., |(kind, _)| *kind != Kind::Readiness) {
                task.abort();
            }
        }
    }

    pub fn stop_all(&mut self) {
        let names: Vec<String> = self.tasks.keys().cloned().collect();
        names.iter().for_each(|name| self.stop(name));
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop_all();
    }
}

async fn watch(target: Target, run: String, kind: Kind, probe: Probe, tell: impl Fn(Verdict) -> ControlFlow<()>) {
    let seconds = |value: Option<u64>, default| Duration::from_secs(value.filter(|n| *n > 0).unwrap_or(default));
    tokio::time::sleep(Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0))).await;
    let (period, timeout) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let mut streak = Streak::new(&probe, kind);
    loop {
        let outcome = run_handler(&target, &probe.handler, timeout).await;
        let failure = outcome.err();
        let changed = match &failure {
            Some(Failure::NotAsked(_)) => None,
            failure => streak.count(failure.is_none()),
        };
        if failure.is_some() || changed.is_some() {
            let container = target.container.name.clone();
            let verdict = Verdict { container, run: run.clone(), kind, failure, changed };
            if tell(verdict).is_break() {
                return;
            }
        }
        if kind == Kind::Startup && changed == Some(true) {
            return;
        }
        tokio::time::sleep(period).await;
    }
}

/// Successes or failures in a row against their thresholds.
#[derive(Debug)]
struct Streak {
    good: Option<bool>,
    last: bool,
    length: u32,
    success: u32,
    failure: u32,
}

impl Streak {
    fn new(probe: &Probe, kind: Kind) -> Streak {
        let at_least_one = |value: Option<u32>, default| value.filter(|n| *n > 0).unwrap_or(default);
        // A container is alive until shown otherwise; ready or started only once shown.
        let good = (kind == Kind::Liveness).then_some(true);
        let (success, failure) = (at_least_one(probe.success_threshold, 1), at_least_one(probe.failure_threshold, 3));
        Streak { good, last: true, length: 0, success, failure }
    }

    /// The new state when this result changes it.
    fn count(&mut self, good: bool) -> Option<bool> {
        self.length = if good == self.last { self.length + 1 } else { 1 };
        self.last = good;
        let threshold = if good { self.success } else { self.failure };
        if self.length < threshold || self.good == Some(good) {
            return None;
        }
        self.good = Some(good);
        Some(good)
    }
}

/// Runs a handler once.
pub async fn run_handler(target: &Target, handler: &Handler, timeout: Duration) -> Result<(), Failure> {
    if let Some(command) = &handler.exec {
        return run_command(target, &command.command, timeout).await;
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds).min(timeout)).await;
        return Ok(());
    }
    if let Some(http) = &handler.http_get {
        let address = address(target, &http.port, http.host.as_deref())?;
        return Ok(http::get(&address, http, timeout).await?);
    }
    if let Some(grpc) = &handler.grpc {
        return Ok(grpc::check(&address(target, &grpc.port, None)?, &grpc.service, timeout).await?);
    }
    if let Some(tcp) = &handler.tcp_socket {
        let address = address(target, &tcp.port, tcp.host.as_deref())?;
        return match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
            Ok(connected) => connected.map(drop).map_err(|error| Failure::Said(dial_error(&address, &error))),
            Err(_) => Err(Failure::Said(format!("dial tcp {address}: i/o timeout"))),
        };
    }
    Err(Failure::NotAsked("no handler".to_owned()))
}

/// What an event may say of a command's output.
const MAX_OUTPUT: usize = 10 << 10;
/// A command that has ended may have left its streams to others: they are not waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Runs a command in the container. One that takes too long is killed.
async fn run_command(target: &Target, command: &[String], timeout: Duration) -> Result<(), Failure> {
    let request = ExecRequest { command: command.to_vec(), stdout: true, stderr: true, ..ExecRequest::default() };
    let deadline = tokio::time::Instant::now() + timeout;
    let late = || Failure::Said(format!("command timed out: {:?} timed out after {timeout:?}", command.join(" ")));
    // A process that a stuck container never starts is one that takes too long. Should it be started yet, it is killed.
    let mut starting = tokio::spawn({
        let target = target.clone();
        async move { exec(&target.node, &target.uid, &target.container.name, &request).await }
    });
    let Ok(started) = tokio::time::timeout_at(deadline, &mut starting).await else {
        tokio::spawn(async move {
            if let Ok(Ok(ExecSession { process: Some(process), .. })) = starting.await {
                process.kill().await;
            }
        });
        return Err(late());
    };
    let session = started.map_err(|ended| Failure::NotAsked(ended.to_string()))?;
    let not_asked = |error: &ExecError| Failure::NotAsked(format!("rpc error: code = Unknown desc = {}", chain(error)));
    let mut session = session.map_err(|error| not_asked(&error))?;
    let (Some(exit), process) = (session.exit.take(), session.process.take()) else {
        return Err(Failure::NotAsked("no exit code".into()));
    };
    let output = Mutex::new(Vec::new());
    let streams = [session.stdout.take(), session.stderr.take()].into_iter().flatten();
    let mut reading = Box::pin(join_all(streams.map(|stream| collect(stream, &output))));
    let ended = async {
        tokio::pin!(exit);
        // Both at once: a command that says much goes on only while it is listened to.
        tokio::select! {
            code = &mut exit => {
                let _ = tokio::time::timeout(LAST_WORDS, &mut reading).await; // what has not come by then is not told
                code
            }
            _ = &mut reading => exit.await,
        }
    };
    let ended = tokio::time::timeout_at(deadline, ended).await;
    let said = || String::from_utf8_lossy(&output.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned();
    match ended {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(Failure::Said(said())),
        Ok(Err(_)) => Err(Failure::NotAsked("the pod process is gone".into())),
        Err(_) => {
            if let Some(process) = process {
                process.kill().await;
            }
            Err(late())
        }
    }
}

/// Reads a stream to its end and keeps the beginning.
async fn collect(mut stream: impl AsyncRead + Unpin, output: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    // An error ends the stream as its end does: the exit code tells how the command fared.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        let left = MAX_OUTPUT.saturating_sub(output.len());
        output.extend_from_slice(&buffer[..count.min(left)]);
    }
}

fn address(target: &Target, port: &Value, host: Option<&str>) -> Result<String, String> {
    let number = match port {
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::String(name) => {
            let named = target.container.ports.iter().find(|port| port.name == *name);
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
        _ => None,
    };
    let number = number.ok_or_else(|| format!("couldn't find port {port} in container"))?;
    match (host.filter(|host| !host.is_empty()), target.ip) {
        (Some(host), _) => Ok(format!("{host}:{number}")),
        (None, Some(ip)) => Ok(std::net::SocketAddr::new(ip, number).to_string()),
        (None, None) => Err("the pod has no address".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_connections_in_the_usual_words() {
        let error = std::io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(dial_error("10.0.0.1:80", &error), "dial tcp 10.0.0.1:80: connect: connection refused");
    }

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(2), ..Probe::default() };
        let mut ready = Streak::new(&probe, Kind::Readiness);
        let changes: Vec<_> = [true, true, false, true, false, false].map(|good| ready.count(good)).into();
        assert_eq!(changes, [None, Some(true), None, None, None, Some(false)]);
        let mut alive = Streak::new(&Probe::default(), Kind::Liveness);
        let changes: Vec<_> = [true, false, false, false].map(|good| alive.count(good)).into();
        assert_eq!(changes, [None, None, None, Some(false)]);
    }
}
