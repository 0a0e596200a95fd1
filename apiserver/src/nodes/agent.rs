//! The node's end of a tunnel: answers what the server asks through it.

use std::convert::Infallible;
use std::sync::Arc;

use api::status::Status;
use axum::body::Body;
use bytes::Bytes;
use futures::TryStreamExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frames::{self, Kind};
use super::{Asked, Exit, KEEP_ALIVE, Nodes, STREAMS, Session, TerminalSize};

/// Serves the server until the tunnel ends.
///
/// # Errors
/// When it broke, or the server does not answer pings any more.
pub async fn serve<S>(stream: S, nodes: Arc<dyn Nodes>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let nodes = nodes.clone();
        async move { Ok::<_, Infallible>(answer(&*nodes, request).await.unwrap_or_else(|status| refusal(&status))) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    builder.max_concurrent_streams(STREAMS);
    builder.serve_connection(TokioIo::new(stream), service).await
}

fn refusal(status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::from(status.to_value().to_string()));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

async fn answer(nodes: &dyn Nodes, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let mut input = frames::reader(Body::new(request.into_body()));
    let Ok(Some((Kind::Open, text))) = frames::next(&mut input).await else {
        return Err(Status::bad_request("the server does not say what it asks for"));
    };
    let unknown = |error| Status::plain(501, "", format!("this node's agent does not know what is asked for: {error}"));
    match serde_json::from_slice::<Asked>(&text).map_err(unknown)? {
        Asked::Logs { pod, options } => {
            let lines = nodes.logs(&pod, options).await?;
            Ok(Response::new(Body::from_stream(lines.into_stream())))
        }
        Asked::Exec { pod, options } => {
            let session = nodes.exec(&pod, options).await?;
            let (out, body) = frames::body();
            tokio::spawn(carry(session, input, out));
            Ok(Response::new(body))
        }
        Asked::Dial { pod, port } => {
            let (from, mut to) = tokio::io::split(nodes.dial(&pod, port).await?);
            let (out, body) = frames::body();
            tokio::spawn(frames::pump_raw(from, out));
            tokio::spawn(async move {
                // What was sent before the other side closed is sent on; an end of one side is no end of the other.
                let _broken = tokio::io::copy(&mut input, &mut to).await;
                let _gone = to.shutdown().await;
            });
            Ok(Response::new(body))
        }
    }
}

/// Moves bytes until the process ends or the server lets go.
async fn carry(session: Session, mut input: impl AsyncRead + Unpin, out: mpsc::Sender<Bytes>) {
    let Session { mut stdin, stdout, stderr, resize, exit } = session;
    let reader = async {
        while let Ok(Some((kind, payload))) = frames::next(&mut input).await {
            match kind {
                Kind::Stdin => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&payload).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Kind::StdinEnd => stdin = None,
                Kind::Resize => {
                    if let (Some(resize), Ok(size)) = (&resize, serde_json::from_slice::<TerminalSize>(&payload)) {
                        let _ended = resize.send(size).await;
                    }
                }
                _ => {}
            }
        }
    };
    let process = async {
        let outputs =
            futures::future::join(frames::pump(stdout, Kind::Stdout, &out), frames::pump(stderr, Kind::Stderr, &out));
        // Output first: a client shows what came before the exit code.
        let (_, exit) = futures::future::join(outputs, exit).await;
        let end: Value = json!(Exit::from(exit));
        let _gone = out.send(frames::frame(Kind::Exit, end.to_string().as_bytes())).await;
    };
    tokio::pin!(reader, process);
    tokio::select! {
        () = &mut process => {}
        // A client that goes ends nothing by itself: the process sees its pipes close.
        () = &mut reader => {}
    }
}
