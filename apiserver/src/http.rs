//! HTTPS: connections, who is behind them, and the way from a request to its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::budget::Budget;
use api::status::Status;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::identity::User;
use crate::pki::Identity;
use crate::server::Shared;

mod dispatch;
mod documents;
mod metrics;
mod negotiate;
mod params;
mod path;
mod reply;
mod spdy;
mod streams;
mod watch;

/// A client gets this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The head of a request takes no longer; a connection that idles longer between requests is closed.
const HEADERS: Duration = Duration::from_secs(120);
/// A peer that went without a word is found out by pings.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests, watches among them, on one connection.
const STREAMS: u32 = 1000;

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the serving certificate cannot be read")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the serving certificate cannot be used")]
    Config(#[from] rustls::Error),
    #[error("the client CA cannot be used")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

/// TLS with our certificate; client certificates of our CA are asked for and not required.
pub fn tls(ca_certificate: &str, identity: &Identity) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_certificate.as_bytes())?)?;
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts connections until told to stop; open ones are cut then (clients retry).
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, tls: TlsAcceptor, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(connection(shared.clone(), stream, peer, tls.clone(), stop.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back instead of spinning.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    stop: CancellationToken,
) {
    let _best_effort = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| crate::authn::certificate_user(chain.first()?));
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, user) = (shared.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(handle(shared, user, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(STREAMS);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::debug!(%peer, error = &*error, "connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
}

async fn handle(shared: Arc<Shared>, certificate: Option<User>, request: Request<Incoming>) -> Response<Body> {
    let accept = request.headers().get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    let encoding = negotiate::of_refusal(accept);
    match dispatch::answer(&shared, certificate, request).await {
        Ok(reply) => reply,
        Err(status) => reply::status(&status, encoding),
    }
}

/// A refusal where the route is not even a resource, as upstream's mux gives it.
fn page_not_found() -> reply::Reply {
    reply::text(404, "404 page not found\n")
}

/// Reads a body up to the server's limit.
async fn read_body(body: Incoming) -> Result<bytes::Bytes, Status> {
    let limit = Budget::CLIENT.body;
    axum::body::to_bytes(Body::new(body), limit).await.map_err(|_| Status::too_large(limit))
}

/// A request header as text.
fn header_of(parts: &hyper::http::request::Parts, name: hyper::header::HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}
