//! Probes and hooks: a command in the container, an HTTP request, a TCP connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::exec::{ExecRequest, exec};
use crate::model::{Container, Handler, HttpHandler, Probe};
use crate::node::Node;
use crate::worker::Command;

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
    pub failure: Option<String>,
    /// The new state, once a threshold is reached.
    pub changed: Option<bool>,
}

/// Where a handler's target is.
#[derive(Clone)]
pub struct Target {
    pub node: Arc<Node>,
    pub uid: String,
    pub ip: Option<IpAddr>,
    pub container: Arc<Container>,
}

/// The running probes of a pod's containers.
#[derive(Debug, Default)]
pub struct Probes {
    tasks: HashMap<String, Vec<JoinHandle<()>>>,
}

impl Probes {
    pub fn start(&mut self, target: Target, run: &str, kind: Kind, probe: Probe, to: mpsc::UnboundedSender<Command>) {
        let name = target.container.name.clone();
        let task = tokio::spawn(watch(target, run.to_owned(), kind, probe, to));
        self.tasks.entry(name).or_default().push(task);
    }

    pub fn stop(&mut self, container: &str) {
        for task in self.tasks.remove(container).into_iter().flatten() {
            task.abort();
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

async fn watch(target: Target, run: String, kind: Kind, probe: Probe, to: mpsc::UnboundedSender<Command>) {
    let seconds = |value: Option<u64>, default| Duration::from_secs(value.filter(|n| *n > 0).unwrap_or(default));
    tokio::time::sleep(Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0))).await;
    let (period, timeout) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let mut streak = Streak::new(&probe, kind);
    loop {
        let outcome = run_handler(&target, &probe.handler, timeout).await;
        let changed = streak.count(outcome.is_ok());
        let failure = outcome.err();
        if failure.is_some() || changed.is_some() {
            let container = target.container.name.clone();
            let verdict = Verdict { container, run: run.clone(), kind, failure, changed };
            if to.send(Command::Probe(verdict)).is_err() {
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

/// Runs a handler once; the error is what an event says.
pub async fn run_handler(target: &Target, handler: &Handler, timeout: Duration) -> Result<(), String> {
    let run = async {
        if let Some(command) = &handler.exec {
            return run_command(target, &command.command).await;
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds)).await;
            return Ok(());
        }
        if let Some(http) = &handler.http_get {
            return get(target, http).await;
        }
        if let Some(tcp) = &handler.tcp_socket {
            let address = address(target, &tcp.port, tcp.host.as_deref())?;
            return TcpStream::connect(&address)
                .await
                .map(drop)
                .map_err(|error| format!("dial tcp {address}: {error}"));
        }
        Err("no handler".to_owned())
    };
    match tokio::time::timeout(timeout, run).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("command timed out after {timeout:?}")),
    }
}

async fn run_command(target: &Target, command: &[String]) -> Result<(), String> {
    let request = ExecRequest { command: command.to_vec(), stdout: true, stderr: true, ..ExecRequest::default() };
    let session = exec(&target.node, &target.uid, &target.container.name, &request).await;
    let mut session = session.map_err(|error| pod::causes::chain(&error))?;
    let mut output = Vec::new();
    for stream in [session.stdout.take(), session.stderr.take()].into_iter().flatten() {
        let read = stream.take(10 << 10).read_to_end(&mut output).await;
        read.map_err(|error| error.to_string())?;
    }
    let Some(exit) = session.exit else { return Err("no exit code".into()) };
    match exit.await {
        Ok(0) => Ok(()),
        Ok(_) => Err(String::from_utf8_lossy(&output).trim().to_owned()),
        Err(_) => Err("the pod process is gone".into()),
    }
}

fn address(target: &Target, port: &Value, host: Option<&str>) -> Result<String, String> {
    let number = match port {
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::String(name) => {
            let named = target.container.ports.iter().find(|port| port.name.as_deref() == Some(name));
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

async fn get(target: &Target, http: &HttpHandler) -> Result<(), String> {
    if http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        return Err("probes over HTTPS are not supported by this node".into());
    }
    let address = address(target, &http.port, http.host.as_deref())?;
    let path = if http.path.starts_with('/') { http.path.clone() } else { format!("/{}", http.path) };
    let url = format!("http://{address}{path}");
    let failed = |error: std::io::Error| format!("Get {url:?}: {error}");
    let mut stream = TcpStream::connect(&address).await.map_err(failed)?;
    stream.write_all(request(&address, &path, http).as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.contains(&b'\n') && answer.len() < 4096 {
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    match status_code(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get {url:?}: malformed HTTP response")),
    }
}

fn request(address: &str, path: &str, http: &HttpHandler) -> String {
    let own = |name: &str| http.http_headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let host = own("host").map_or(address, |header| header.value.as_str());
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    if own("user-agent").is_none() {
        text.push_str("User-Agent: kube-probe/1.34\r\n");
    }
    for header in http.http_headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("host")) {
        text.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    text + "\r\n"
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(line).ok()?;
    text.strip_prefix("HTTP/")?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn status_lines() {
        assert_eq!(status_code(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_code(b"SSH-2.0"), None);
    }
}
