//! A client of the API server: one HTTPS connection with the administrator's certificate.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where the server is, and who we are.
#[derive(Clone)]
pub struct Api {
    address: String,
    config: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

/// PEM texts, for other clients than this one.
struct Identity {
    ca: String,
    chain: String,
    key: String,
}

/// One connection, one request at a time.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Api {
    /// From a kubeconfig as `amphipod` writes it.
    pub fn from_kubeconfig(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?;
        let pem = |pointer: &str| -> Result<Vec<u8>> {
            let text = config.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer}"))?;
            base64::engine::general_purpose::STANDARD.decode(text).with_context(|| format!("{pointer} is not base64"))
        };
        let server = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str).context("no server")?;
        let address = server.strip_prefix("https://").context("the server is not reached over HTTPS")?.to_owned();
        let pem = |pointer: &str| String::from_utf8(pem(pointer)?).with_context(|| format!("{pointer} is not PEM"));
        let identity = Identity {
            ca: pem("/clusters/0/cluster/certificate-authority-data")?,
            chain: pem("/users/0/user/client-certificate-data")?,
            key: pem("/users/0/user/client-key-data")?,
        };
        Self::new(address, identity)
    }

    /// The same server for somebody else.
    pub fn of(&self, whose: &client::https::Identity) -> Result<Self> {
        let client::https::Identity::Certificate { chain, key } = whose else {
            bail!("only certificates are known here")
        };
        let identity = Identity { ca: self.identity.ca.clone(), chain: chain.clone(), key: key.clone() };
        Self::new(self.address.clone(), identity)
    }

    fn new(address: String, identity: Identity) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(identity.ca.as_bytes())?)?;
        let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { address, config: Arc::new(config), identity: identity.into() })
    }

    /// The same for the client that agents have, under another identity if one is given.
    pub fn client(&self, manager: &str, identity: Option<client::https::Identity>) -> client::https::Config {
        let Identity { ca, chain, key } = &*self.identity;
        let own = || client::https::Identity::Certificate { chain: chain.clone(), key: key.clone() };
        let identity = identity.unwrap_or_else(own);
        client::https::Config { server: self.address.clone(), ca: ca.clone(), identity, manager: manager.to_owned() }
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address).await.with_context(|| format!("connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(self.config.clone()).connect(name, stream).await.context("TLS")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its end shows as an error of the next request.
        tokio::spawn(connection);
        Ok(Connection { sender, host: self.address.clone() })
    }
}

impl Connection {
    pub async fn send(&mut self, method: &str, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await.with_context(|| format!("{method} {path}"))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let said = response.into_body().collect().await?.to_bytes();
        anyhow::bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&said));
    }

    /// The whole answer.
    pub async fn call(&mut self, method: &str, path: &str, body: Bytes) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.into_body().collect().await?.to_bytes())
    }

    pub async fn get(&mut self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.call("GET", path, Bytes::new()).await?)?)
    }

    pub async fn create(&mut self, path: &str, object: &Value) -> Result<Value> {
        Ok(serde_json::from_slice(&self.call("POST", path, object.to_string().into()).await?)?)
    }
}

/// Events of a watch, one JSON line each.
pub struct Watch {
    body: Incoming,
    rest: Vec<u8>,
}

impl Watch {
    pub async fn start(mut connection: Connection, path: &str) -> Result<Self> {
        let body = connection.send("GET", path, Bytes::new()).await?.into_body();
        Ok(Self { body, rest: Vec::new() })
    }

    pub async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

/// Creates many objects over several connections.
pub async fn create_all(api: &Api, path: &str, objects: Vec<Value>) -> Result<()> {
    const CONNECTIONS: usize = 16;
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let objects = Arc::new(objects);
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let (next, objects, mut connection, path) =
            (next.clone(), objects.clone(), api.connect().await?, path.to_owned());
        tasks.push(tokio::spawn(async move {
            while let Some(object) = objects.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                connection.call("POST", &path, object.to_string().into()).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    ensure!(next.load(std::sync::atomic::Ordering::Relaxed) >= objects.len(), "not all objects were created");
    Ok(())
}

/// Runs asynchronous work on the calling thread (which may be inside a network namespace).
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
