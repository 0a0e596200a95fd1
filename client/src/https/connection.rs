//! One HTTP/2 connection, made when it is needed and made again when it is gone.
//!
//! How many requests and watches it carries at once is the server's to say (ours: 1,000); what is beyond waits for its turn
//! and fails with a 503 when that does not come in time.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Config, Identity};

/// To be connected, handshakes included.
const CONNECT: Duration = Duration::from_secs(10);
/// A server that says nothing for so long is asked whether it lives, while something waits for it; and how long it has.
const SILENCE: Duration = Duration::from_secs(30);
const LIVENESS: Duration = Duration::from_secs(15);

/// What may be under way to us, bytes: for one answer, and for all together. Many small answers at once, each read by
/// somebody of its own, are no flood; the HTTP library judges by the latter what is one.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("a certificate or key is no PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("{0:?} is not host:port")]
    Server(String),
    #[error("the token has characters that no header may have")]
    Token,
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failed {
    /// The server has not seen it.
    Unsent(String),
    /// It may have taken effect.
    Unknown(String),
}

impl Failed {
    pub fn status(self) -> Status {
        match self {
            Self::Unsent(why) => Status::service_unavailable(format!("the server cannot be reached: {why}")),
            Self::Unknown(why) => {
                Status::service_unavailable(format!("the connection broke before the server answered: {why}"))
            }
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

pub struct Connection {
    authority: String,
    name: ServerName<'static>,
    ca: String,
    line: Mutex<Line>,
}

/// How to connect, and what is connected.
struct Line {
    config: Arc<ClientConfig>,
    sender: Option<Sender>,
}

/// The name that a server's certificate has to have.
pub(super) fn name_of(server: &str) -> Result<ServerName<'static>, ConfigError> {
    let unusable = || ConfigError::Server(server.to_owned());
    let (host, port) = server.rsplit_once(':').ok_or_else(unusable)?;
    port.parse::<u16>().map_err(|_| unusable())?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(|_| unusable())
}

impl Connection {
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let name = name_of(&config.server)?;
        let tls = Arc::new(tls_config(&config.ca, &config.identity)?);
        let line = Mutex::new(Line { config: tls, sender: None });
        Ok(Self { authority: config.server.clone(), name, ca: config.ca.clone(), line })
    }

    /// What is asked from now on is asked as this identity, over a connection of its own.
    pub async fn renew(&self, identity: &Identity) -> Result<(), ConfigError> {
        let config = Arc::new(tls_config(&self.ca, identity)?);
        *self.line.lock().await = Line { config, sender: None };
        Ok(())
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request and gives the head of the answer. What an ending connection did not take goes over a new one.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        let mut sender = self.sender().await?;
        match sender.try_send_request(request).await {
            Ok(answer) => Ok(answer),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => {
                    let mut sender = self.sender().await?;
                    let again = sender.try_send_request(unsent).await;
                    again.map_err(|failed| Failed::Unsent(causes::chain(failed.error())))
                }
                None => Err(Failed::Unknown(causes::chain(failed.error()))),
            },
        }
    }

    /// Sends a request over a connection that may become something else, and gives the head of the answer.
    pub async fn upgrade(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        let mut config = (*self.line.lock().await.config).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let answered = async {
            let stream = self.dial(&TlsConnector::from(Arc::new(config))).await.map_err(Failed::Unsent)?;
            let told = |error: hyper::Error| Failed::Unsent(causes::chain(&error));
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
            // Ends with what it became, or with its answer.
            tokio::spawn(connection.with_upgrades());
            sender.send_request(request).await.map_err(|error| Failed::Unknown(causes::chain(&error)))
        };
        let late = |_| Failed::Unsent(format!("no answer within {} s", CONNECT.as_secs()));
        tokio::time::timeout(CONNECT, answered).await.map_err(late)?
    }

    async fn dial(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, String> {
        let stream = TcpStream::connect(&*self.authority).await.map_err(|error| causes::chain(&error))?;
        // A request is small and waited for.
        stream.set_nodelay(true).map_err(|error| causes::chain(&error))?;
        tls.connect(self.name.clone(), stream).await.map_err(|error| causes::chain(&error))
    }

    async fn sender(&self) -> Result<Sender, Failed> {
        // Held while connecting: who comes meanwhile takes the same connection.
        let mut line = self.line.lock().await;
        if let Some(sender) = line.sender.as_mut().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let connected = tokio::time::timeout(CONNECT, self.connect(&line.config)).await;
        let sender = connected.map_err(|_| Failed::Unsent(format!("not connected within {} s", CONNECT.as_secs())))?;
        let sender = sender.map_err(Failed::Unsent)?;
        line.sender = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> Result<Sender, String> {
        let stream = self.dial(&TlsConnector::from(config.clone())).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(SILENCE)
            .keep_alive_timeout(LIVENESS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| causes::chain(&error))?;
        let authority = self.authority.clone();
        // Its end closes every request over it, and they say why.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(server = authority, %error, "connection ended");
            }
        });
        Ok(sender)
    }
}

fn tls_config(ca: &str, identity: &Identity) -> Result<ClientConfig, ConfigError> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(authority?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut tls = match identity {
        Identity::Certificate { chain, key } => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
        }
        Identity::Token(_) => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}
