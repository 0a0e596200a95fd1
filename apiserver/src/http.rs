//! HTTPS: connections, who is behind them, and the way from a request to its answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::activity::{Activity, Sending};
use crate::authn::Certificate;
use crate::limits::Connection;
use crate::shared::Shared;

mod activity;
mod caller;
mod components;
mod connect;
mod dispatch;
mod documents;
mod health;
mod kept;
mod metrics;
mod negotiate;
mod params;
mod path;
mod pretty;
mod proxy;
mod read;
mod reply;
mod serving;
mod spdy;
mod streams;
mod tunnel;
mod watch;

pub use kept::Documents;
pub use serving::{Serving, TlsError};

/// A client gets this long for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A request is answered, or its stream begun, within this; as upstream's `--request-timeout`.
const REQUEST: Duration = Duration::from_secs(60);
/// The head of a request takes no longer.
const HEADERS: Duration = Duration::from_secs(120);
/// A connection on which nothing is asked for longer is closed: one on which somebody authenticated, and any other.
const IDLE: Duration = Duration::from_secs(120);
const SILENT: Duration = Duration::from_secs(30);
/// What a closing connection gets for what was asked in the same moment.
const CLOSING: Duration = Duration::from_secs(5);
/// A peer that went without a word is found out by pings.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests, watches among them, on one connection.
const STREAMS: u32 = 1000;

/// Accepts connections until told to stop; open ones are cut then (clients retry).
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, tls: TlsAcceptor, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // One too many is closed unread.
                if let Some(open) = shared.limits.connections.open(peer.ip()) {
                    tokio::spawn(connection(shared.clone(), stream, peer, tls.clone(), stop.clone(), open));
                }
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
    address: SocketAddr,
    tls: TlsAcceptor,
    stop: CancellationToken,
    open: Connection,
) {
    let _best_effort = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(peer = %address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|chain| Certificate::read(chain.first()?));
    let peer = Arc::new(Peer { certificate, connection: open, activity: Arc::new(Activity::new()) });
    let of_connection = peer.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, peer) = (shared.clone(), peer.clone());
        async move { Ok::<_, Infallible>(handle(shared, &peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(STREAMS);
    let serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        ended = until_idle(serving, &of_connection) => {
            if let Err(error) = ended {
                tracing::debug!(peer = %address, error = &*error, "connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
}

/// Serves a connection until it ends, or nobody has asked for anything for too long.
async fn until_idle<S>(mut serving: Pin<&mut Served<'_, S>>, peer: &Peer) -> Result<(), Failure>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let limit = || if peer.connection.is_proven() { IDLE } else { SILENT };
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = peer.activity.idle(limit) => {}
    }
    serving.as_mut().graceful_shutdown();
    peer.activity.touch();
    tokio::select! {
        ended = serving => ended,
        () = peer.activity.idle(|| CLOSING) => Ok(()),
    }
}

type Served<'a, S> = auto::UpgradeableConnection<'a, TokioIo<TlsStream<TcpStream>>, S, TokioExecutor>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Whoever is at the other end of a connection.
struct Peer {
    certificate: Option<Certificate>,
    connection: Connection,
    activity: Arc<Activity>,
}

async fn handle(shared: Arc<Shared>, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
    let accept = request.headers().get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    let encoding = negotiate::of_refusal(accept);
    let (parts, body) = request.into_parts();
    let people = pretty::is_wanted(&parts);
    let busy = peer.activity.begin();
    let answer = dispatch::answer(&shared, peer, Request::from_parts(parts, body));
    let reply = match tokio::time::timeout(REQUEST, answer).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(status)) => reply::status(&status, encoding),
        Err(_) => reply::status(&read::late(), encoding),
    };
    let reply = if people { pretty::indented(reply).await } else { reply };
    reply.map(|body| Body::new(Sending::new(body, busy)))
}
