//! Connections through services that stay open, and new ones all the while: what a restart of the agent must not disturb.
//!
//! From a pod they take the socket path, from outside the packet path. TCP ends in containers; datagrams end in a thread of
//! this program inside a pod's network namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::{NODE_PORT, Space, until};
use proxy_userspace::sys::inside;
use socket2::{Domain, Socket, Type};

/// How long an answer may take on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
const UDP_PORT: u16 = 9000;
const EACH: usize = 6;

/// The network namespace of a running pod.
pub fn netns_of(space: &Space<'_>, pod: &str) -> Result<File> {
    let pids = processes_of(space, pod)?;
    let pid = pids.first().with_context(|| format!("pod {pod} has no process"))?;
    File::open(format!("/proc/{pid}/ns/net")).with_context(|| format!("open the network namespace of {pod}"))
}

/// The processes of a pod, its pod process first. Numbers say nothing about their order: they start again from the
/// lowest.
pub fn processes_of(space: &Space<'_>, pod: &str) -> Result<Vec<u32>> {
    let uid = space.get(&["pod", pod], "{.metadata.uid}")?;
    let (group, words) = (format!("pod{uid}"), format!("amphipod-pod\0{}/{pod}\0", space.namespace()));
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("cgroup").contains(&group) {
            // A child of the pod process bears its command line until it becomes a container's program.
            let is_pod_process = read("cmdline").starts_with(&words) && parent_is_not_of(&read("status"), &words);
            if is_pod_process { first.push(pid) } else { others.push(pid) }
        }
    }
    first.extend(others);
    Ok(first)
}

/// Whether the parent named in a process's status was started with other words.
fn parent_is_not_of(status: &str, words: &str) -> bool {
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim();
    !std::fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap_or_default().starts_with(words)
}

/// Two ways to the same pods.
struct Ways {
    web: [(File, SocketAddr); 2],
    echo: [(File, SocketAddr); 2],
}

pub struct Traffic {
    web: Vec<Web>,
    echo: Vec<Echo>,
    /// The far ends of datagrams, and new connections all the while.
    servers: Vec<Background>,
    load: Vec<Background>,
}

impl Traffic {
    /// Opens everything; each connection has carried a request when this returns.
    pub fn open(space: &Space<'_>) -> Result<Traffic> {
        let servers = serve_datagrams(space)?;
        let ways = ways(space)?;
        let (mut web, mut echo) = (Vec::new(), Vec::new());
        for (netns, address) in &ways.web {
            for _ in 0..EACH {
                web.push(Web::open(netns, *address)?);
            }
        }
        for (netns, address) in &ways.echo {
            for _ in 0..EACH {
                echo.push(Echo::open(netns, *address)?);
            }
        }
        let backends: BTreeSet<&str> = echo.iter().map(|echo| echo.backend.as_str()).collect();
        ensure!(backends.len() == 2, "the echo service has two endpoints, and {backends:?} answer");
        let names = ask_names(netns_of(space, "asker")?);
        let load = ways.web.into_iter().map(|(netns, address)| connect_and_close(netns, address));
        let load = load.chain([names]).collect();
        Ok(Traffic { web, echo, servers, load })
    }

    /// Every open connection carries a request, to the same backend as before; no short one has failed.
    pub fn goes_on(&mut self, when: &str) -> Result<()> {
        self.load.iter_mut().try_for_each(Background::goes_on).with_context(|| format!("short connections {when}"))?;
        self.servers.iter_mut().try_for_each(Background::goes_on).context("the datagrams' servers")?;
        let (mut web, mut echo) = (self.web.iter_mut(), self.echo.iter_mut());
        web.try_for_each(Web::goes_on).with_context(|| format!("TCP {when}"))?;
        echo.try_for_each(Echo::goes_on).with_context(|| format!("UDP {when}"))
    }

    /// Ends it all; tells how many short connections were made and names asked for. None may have failed.
    pub fn close(self) -> Result<u64> {
        drop((self.web, self.echo));
        let made = self.load.into_iter().map(Background::end).sum::<Result<u64>>().context("short connections")?;
        self.servers.into_iter().map(Background::end).sum::<Result<u64>>().context("the datagrams' servers")?;
        Ok(made)
    }
}

fn ways(space: &Space<'_>) -> Result<Ways> {
    let facts = |service: &str| -> Result<(SocketAddr, SocketAddr)> {
        let text =
            space.get(&["service", service], "{.spec.clusterIP}:{.spec.ports[0].port} {.spec.ports[0].nodePort}")?;
        let (inside, port) = text.split_once(' ').context("address and node port")?;
        Ok((inside.parse()?, format!("{}:{port}", space.cluster.node_ip()).parse()?))
    };
    let place = |address: (SocketAddr, SocketAddr)| -> Result<[(File, SocketAddr); 2]> {
        Ok([(netns_of(space, "asker")?, address.0), (space.cluster.client().netns()?, address.1)])
    };
    Ok(Ways { web: place(facts(NODE_PORT)?)?, echo: place(facts("echo")?)? })
}

// ---- TCP ----

/// A connection that is kept alive to a web server.
struct Web {
    stream: BufReader<TcpStream>,
    backend: String,
}

impl Web {
    fn open(netns: &File, address: SocketAddr) -> Result<Web> {
        let stream = inside(netns, || TcpStream::connect_timeout(&address, PATIENCE)).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut web = Web { stream: BufReader::new(stream), backend: String::new() };
        web.backend = web.ask("keep-alive")?;
        Ok(web)
    }

    fn goes_on(&mut self) -> Result<()> {
        let answered = self.ask("keep-alive")?;
        ensure!(answered == self.backend, "{answered} answers instead of {}", self.backend);
        Ok(())
    }

    /// The server's name.
    fn ask(&mut self, connection: &str) -> Result<String> {
        let request = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: {connection}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).context("send a request")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line).context("read an answer")? > 0, "closed without an answer");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("read an answer")?;
        Ok(String::from_utf8(body)?.trim().to_owned())
    }
}

/// Asks for one name again and again, each time as a resolver does: once more after five seconds without an answer, and not
/// at all after a refusal.
fn ask_names(netns: File) -> Background {
    const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);
    const PATIENCE: Duration = Duration::from_secs(5);
    Background::start(move |stopped| {
        let socket = inside(&netns, || UdpSocket::bind("0.0.0.0:0")).context("a socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut made = 0;
        while !stopped(Duration::from_millis(5)) {
            let question = question(made as u16);
            let once = || -> std::io::Result<Vec<u8>> {
                // Connected anew each time, so that it is translated anew.
                socket.connect(SERVER)?;
                socket.send(&question)?;
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer)?;
                Ok(answer[..length].to_vec())
            };
            let answer = match once() {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => once(),
                other => other,
            };
            let answer = answer.context("a name")?;
            ensure!(answer.ends_with(&[10, 96, 0, 1]), "a name's answer: {answer:?}");
            made += 1;
        }
        Ok(made)
    })
}

/// For the address of the API server's name.
fn question(id: u16) -> Vec<u8> {
    const RECURSION_DESIRED: u8 = 1;
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["kubernetes", "default", "svc", "cluster", "local", ""] {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 1, 0, 1]);
    bytes
}

/// A new connection; one that fails tells the port it came from.
fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    let connected = socket.connect_timeout(&address.into(), PATIENCE);
    connected.map_err(|error| {
        let port = socket.local_addr().ok().and_then(|from| from.as_socket()).map_or(0, |from| from.port());
        std::io::Error::new(error.kind(), format!("from port {port}: {error}"))
    })?;
    Ok(socket.into())
}

/// New connections, one after the other, until told to stop.
fn connect_and_close(netns: File, address: SocketAddr) -> Background {
    Background::start(move |stopped| {
        let made = AtomicU64::new(0);
        let connect = || {
            while !stopped(Duration::from_millis(5)) {
                let stream = connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let asked = Web { stream: BufReader::new(stream), backend: String::new() }.ask("close");
                asked.map_err(|error| std::io::Error::other(format!("{error:#}")))?;
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        inside(&netns, connect)
            .with_context(|| format!("after {} good ones to {address}", made.load(Ordering::Relaxed)))?;
        Ok(made.into_inner())
    })
}

// ---- UDP ----

struct Echo {
    socket: UdpSocket,
    backend: String,
    asked: u32,
}

impl Echo {
    fn open(netns: &File, address: SocketAddr) -> Result<Echo> {
        let connected = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let mut echo = Echo { socket: inside(netns, connected)?, backend: String::new(), asked: 0 };
        echo.backend = echo.ask()?;
        Ok(echo)
    }

    fn goes_on(&mut self) -> Result<()> {
        let answered = self.ask()?;
        ensure!(answered == self.backend, "{answered} answers instead of {}", self.backend);
        Ok(())
    }

    /// The server's name. One datagram: none may be lost.
    fn ask(&mut self) -> Result<String> {
        self.asked += 1;
        self.socket.send(self.asked.to_string().as_bytes()).context("send a datagram")?;
        let mut buffer = [0; 100];
        let count = self.socket.recv(&mut buffer).with_context(|| format!("no answer to datagram {}", self.asked))?;
        let answer = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let (name, number) = answer.split_once(' ').context("an answer")?;
        ensure!(number == self.asked.to_string(), "answer {number} to datagram {}", self.asked);
        Ok(name.to_owned())
    }
}

/// Two pods behind one service, and a server in each.
fn serve_datagrams(space: &Space<'_>) -> Result<Vec<Background>> {
    space.apply_text(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: echo}}, spec: {{type: NodePort, selector: {{app: echo}}, ports: [{{port: 7, targetPort: {UDP_PORT}, protocol: UDP}}]}}}}"
    ))?;
    for name in ["echo-0", "echo-1"] {
        space.kubectl(&["run", name, "--labels=app=echo", "--image=busybox:latest", "--", "sleep", "100000"])?;
    }
    space.wait_ready(&["pod/echo-0", "pod/echo-1"])?;
    until("both are endpoints", || {
        let found = space.get(
            &["endpointslices", "-l", "kubernetes.io/service-name=echo"],
            "{.items[*].endpoints[*].addresses[0]}",
        )?;
        Ok(found.split_whitespace().count() == 2)
    })?;
    ["echo-0", "echo-1"].into_iter().map(|name| Ok(answer_with(name, netns_of(space, name)?))).collect()
}

fn answer_with(name: &'static str, netns: File) -> Background {
    Background::start(move |stopped| {
        let socket = inside(&netns, || UdpSocket::bind(("0.0.0.0", UDP_PORT)))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 100];
        let mut answered = 0;
        while !stopped(Duration::ZERO) {
            let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
            let answer = format!("{name} {}", String::from_utf8_lossy(&buffer[..count]));
            socket.send_to(answer.as_bytes(), from)?;
            answered += 1;
        }
        Ok(answered)
    })
}

/// Work that goes on until it is told to stop; its thread ends with it.
struct Background {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Background {
    /// `work` asks whether to stop, waiting so long for the word.
    fn start(work: impl FnOnce(&(dyn Fn(Duration) -> bool + Sync)) -> Result<u64> + Send + 'static) -> Background {
        let (stop, told) = channel::<()>();
        let told = std::sync::Mutex::new(told);
        let thread = std::thread::spawn(move || {
            let stopped = |wait: Duration| {
                let told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                !matches!(told.recv_timeout(wait), Err(std::sync::mpsc::RecvTimeoutError::Timeout))
            };
            work(&stopped)
        });
        Background { stop: Some(stop), thread: Some(thread) }
    }

    /// What has ended unasked has failed.
    fn goes_on(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let made = self.join()?;
            bail!("ended unasked after {made}");
        }
        Ok(())
    }

    fn end(mut self) -> Result<u64> {
        self.join()
    }

    fn join(&mut self) -> Result<u64> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(0) };
        thread.join().map_err(|_| anyhow!("a background thread panicked"))?
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // After a failure: what failed before matters more.
        let _ = self.join();
    }
}

// ---- a log that must not miss a line ----

/// A pod that counts aloud.
pub fn start_counting(space: &Space<'_>) -> Result<()> {
    let script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done";
    space.run_pod("counter", &["sh", "-c", script])
}

/// Its log has every number once; the last one.
pub fn count_is_whole(space: &Space<'_>) -> Result<usize> {
    let log = space.kubectl(&["logs", "counter"])?;
    let mut last = 0;
    for (index, line) in log.lines().enumerate() {
        ensure!(line == format!("line {}", index + 1), "line {} of the log is {line:?}", index + 1);
        last = index + 1;
    }
    Ok(last)
}

/// Where a volume of a pod lies on the node.
pub fn volume(space: &Space<'_>, pod: &str, name: &str) -> Result<PathBuf> {
    let uid = space.get(&["pod", pod], "{.metadata.uid}")?;
    Ok(PathBuf::from(space.cluster.data_dir()).join("volumes").join(uid).join(name))
}
