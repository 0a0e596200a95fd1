//! What load balancers ask of a node (`healthCheckNodePort`): for each Service that keeps its clients' addresses, a port that says
//! whether an endpoint of it is here.
//!
//! The answers are kube-proxy's.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use client::events::Reference;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Response, StatusCode, http};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::complaints::{Complaint, Complaints};

const REASON: &str = "FailedToStartServiceHealthcheck";
/// Until a port that is somebody else's is tried again; it counts as taken from the second try on.
const AGAIN: Duration = Duration::from_secs(2);
/// Connections of one port at a time.
const MOST: usize = 64;
/// A client that asks nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is said of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub port: u16,
    /// Ready ones, on this node.
    pub endpoints: usize,
    /// Whether the kernel holds what it shall of the Service.
    pub certain: bool,
}

impl Health {
    fn answer(&self, about: &Reference) -> Result<Response<Full<Bytes>>, http::Error> {
        let body = json!({
            "service": {"namespace": about.namespace, "name": about.name},
            "localEndpoints": self.endpoints,
            "serviceProxyHealthy": self.certain,
        });
        let healthy = self.endpoints > 0 && self.certain;
        Response::builder()
            .status(if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
            .header("Content-Type", "application/json")
            .header("X-Content-Type-Options", "nosniff")
            .header("X-Load-Balancing-Endpoint-Weight", self.endpoints.to_string())
            .body(Full::new(Bytes::from(body.to_string())))
    }
}

/// The ports that are open, by Service.
pub struct HealthChecks {
    node: String,
    complaints: Complaints,
    open: HashMap<(String, String), Check>,
}

struct Check {
    said: watch::Sender<Health>,
    task: AbortHandle,
}

/// The port closes with it.
impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthChecks {
    pub fn new(node: &str, complaints: Complaints) -> Self {
        Self { node: node.to_owned(), complaints, open: HashMap::new() }
    }

    /// Opens the port of a Service, or says something else there.
    pub fn set(&mut self, about: &Reference, health: Health) {
        let key = (about.namespace.clone(), about.name.clone());
        match self.open.get(&key) {
            Some(check) if check.said.borrow().port == health.port => drop(check.said.send_replace(health)),
            _ => {
                let (said, heard) = watch::channel(health);
                let task = tokio::spawn(serve(self.node.clone(), about.clone(), self.complaints.clone(), heard));
                self.open.insert(key, Check { said, task: task.abort_handle() });
            }
        }
    }

    /// Closes the port of a Service, if it has one.
    pub fn close(&mut self, namespace: &str, name: &str) {
        self.open.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Closes the ports of Services that are none of these.
    pub fn retain(&mut self, is_there: impl Fn(&str, &str) -> bool) {
        self.open.retain(|(namespace, name), _| is_there(namespace, name));
    }
}

async fn serve(node: String, about: Reference, complaints: Complaints, said: watch::Receiver<Health>) {
    let port = said.borrow().port;
    let listener = listen(port, |error| {
        let (namespace, name) = (&about.namespace, &about.name);
        let message = format!("node {node} failed to start healthcheck \"{namespace}/{name}\" on port {port}: {error}");
        complaints.add(Complaint { about: about.clone(), reason: REASON, message });
    })
    .await;
    let (about, room) = (Arc::new(about), Arc::new(Semaphore::new(MOST)));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (about, said) = (Arc::clone(&about), said.clone());
                connections.spawn(async move {
                    answer(stream, about, said).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "a load balancer's question is lost");
                tokio::time::sleep(AGAIN).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Listens on every address, as soon as the port is free. `complain` is told once of what is in the way.
async fn listen(port: u16, complain: impl Fn(&io::Error)) -> TcpListener {
    for tries in 1.. {
        match bind(port).await {
            Ok(listener) => return listener,
            Err(error) if tries == 2 => complain(&error),
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
    unreachable!("it is tried for ever")
}

/// In both families, where the machine has IPv6.
async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
        }
        bound => bound,
    }
}

async fn answer(stream: TcpStream, about: Arc<Reference>, said: watch::Receiver<Health>) {
    let service = service_fn(move |_| {
        let answer = said.borrow().answer(&about);
        async move { answer }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    // Whoever does not take the answer is no better than who does not ask.
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE * 2, serving).await {
        tracing::debug!(%error, "a load balancer's question ends early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;

    /// Status line, headers and body of an answer.
    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn until_closed(port: u16) {
        let closes = async {
            while ask(port).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), closes).await.expect("the port closes");
    }

    async fn until_open(port: u16) -> String {
        let opens = async {
            loop {
                match ask(port).await {
                    Ok(answer) => return answer,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), opens).await.expect("the port opens")
    }

    fn checks() -> (HealthChecks, mpsc::Receiver<Complaint>, Reference) {
        let (complaints, said) = Complaints::queue();
        let meta = api::view::Meta { namespace: "default".into(), name: "web".into(), ..Default::default() };
        (HealthChecks::new("n1", complaints), said, Reference::new("v1", "Service", &meta))
    }

    async fn free_port() -> u16 {
        bind(0).await.unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn the_answer_is_kube_proxys_and_follows_the_endpoints() {
        let (mut checks, _said, about) = checks();
        let port = free_port().await;
        checks.set(&about, Health { port, endpoints: 2, certain: true });
        let answer = until_open(port).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let lower = answer.to_lowercase();
        assert!(lower.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
        assert!(lower.contains("content-type: application/json\r\n"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let service = json!({"namespace": "default", "name": "web"});
        assert_eq!(body, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
        for (endpoints, certain) in [(0, true), (2, false)] {
            checks.set(&about, Health { port, endpoints, certain });
            let answer = ask(port).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        }
        checks.close("default", "web");
        until_closed(port).await;
    }

    #[tokio::test]
    async fn a_taken_port_is_said_and_opens_when_it_is_free() {
        let (mut checks, mut said, about) = checks();
        let taken = bind(0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        checks.set(&about, Health { port, endpoints: 1, certain: true });
        let complaint = said.recv().await.unwrap();
        assert_eq!(complaint.reason, "FailedToStartServiceHealthcheck");
        let start = format!("node n1 failed to start healthcheck \"default/web\" on port {port}: ");
        assert!(complaint.message.starts_with(&start), "{}", complaint.message);
        drop(taken);
        assert!(until_open(port).await.starts_with("HTTP/1.1 200 "));
        checks.retain(|_, _| false);
        until_closed(port).await;
    }
}
