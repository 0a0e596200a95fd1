//! The least HTTPS client that a replay needs: exact headers, one connection per identity, kept open.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::http::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Largest answer, bytes.
const LIMIT: usize = 64 << 20;

/// Where the server is and how to prove who asks.
pub struct Credentials {
    address: SocketAddr,
    admin: Arc<ClientConfig>,
    anonymous: Arc<ClientConfig>,
}

impl Credentials {
    pub fn new(address: SocketAddr, ca: &str, certificate: &str, key: &str) -> Self {
        let builder = || {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            builder.with_root_certificates(roots)
        };
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Self {
            address,
            admin: Arc::new(builder().with_client_auth_cert(chain, key).unwrap()),
            anonymous: Arc::new(builder().with_no_client_auth()),
        }
    }

    /// The bare connection, for whoever speaks by himself.
    pub async fn stream(&self, identity: Identity) -> TlsStream<TcpStream> {
        let config = if identity == Identity::Admin { &self.admin } else { &self.anonymous };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(config.clone()).connect(name, stream).await.unwrap()
    }

    pub async fn connect(&self, identity: Identity) -> SendRequest<Body> {
        let (sender, connection) = handshake(TokioIo::new(self.stream(identity).await)).await.unwrap();
        // Its end shows as an error of the next request.
        tokio::spawn(connection);
        sender
    }
}

/// Which connection a request takes; tokens travel in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Admin,
    Anonymous,
}

pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub struct Client {
    credentials: Arc<Credentials>,
    open: [Option<SendRequest<Body>>; 2],
}

impl Client {
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, open: [None, None] }
    }

    pub async fn request(
        &mut self,
        identity: Identity,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Answer {
        for _ in 0..2 {
            let slot = usize::from(identity == Identity::Anonymous);
            if self.open[slot].as_ref().is_none_or(SendRequest::is_closed) {
                self.open[slot] = Some(self.credentials.connect(identity).await);
            }
            let sender = self.open[slot].as_mut().expect("made just above");
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let request = request.body(Body::from(body.to_vec())).unwrap();
            let answered = match sender.send_request(request).await {
                Ok(reply) => {
                    let (parts, body) = reply.into_parts();
                    axum::body::to_bytes(Body::new(body), LIMIT).await.ok().map(|body| (parts, body))
                }
                Err(_) => None,
            };
            match answered {
                Some((parts, body)) => return Answer { code: parts.status.as_u16(), headers: parts.headers, body },
                // The server may have closed a connection that idled: once more on a new one.
                None => self.open[slot] = None,
            }
        }
        panic!("{method} {path}: no answer")
    }
}
