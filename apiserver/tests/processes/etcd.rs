//! A real etcd of one member on loopback, for tests. Included by path where it is wanted.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// It ends with this, and its data goes.
pub struct Etcd {
    process: Child,
    folder: tempfile::TempDir,
    ports: Ports,
    words: Vec<String>,
}

#[derive(Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    /// Where it says over plain HTTP how it is, whatever its clients need.
    health: u16,
}

impl Etcd {
    /// Its clients have TLS when the words name a certificate for it.
    pub fn start(words: &[&str]) -> Self {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let scheme = if words.iter().any(|word| word == "--cert-file") { "https" } else { "http" };
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports { client: port(), peer: port(), health: port() };
        let client = format!("{scheme}://127.0.0.1:{}", ports.client);
        words.extend(["--listen-client-urls".to_owned(), client.clone(), "--advertise-client-urls".to_owned(), client]);
        let etcd = Self { process: spawn(&folder, ports, &words), folder, ports, words };
        etcd.wait();
        etcd
    }

    /// `host:port` for clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.process = spawn(&self.folder, self.ports, &self.words);
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_healthy() {
            assert!(Instant::now() < deadline, "etcd does not become healthy");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_healthy(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.ports.health))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        ask().is_ok_and(|answer| answer.contains("true"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &tempfile::TempDir, ports: Ports, words: &[String]) -> Child {
    let (peer, health) = (format!("http://127.0.0.1:{}", ports.peer), format!("http://127.0.0.1:{}", ports.health));
    let mut command = Command::new("etcd");
    command.args(["--name", "test", "--log-level", "error", "--data-dir"]).arg(folder.path().join("data"));
    command.args(["--listen-metrics-urls", &health]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("test={peer}")]).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("etcd is there: cargo xtask test installs it")
}

/// A port that nobody listens on now; each time another one, and other processes' begin elsewhere.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 1000).unwrap() * 20;
    loop {
        let port = 12_000 + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
