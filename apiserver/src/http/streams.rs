//! Logs, port forwarding, and exec and attach over WebSocket (`v5.channel.k8s.io` and its elders) or, for older clients, SPDY.

mod channels;
mod exit;
mod portforward;
mod spdy;

pub use portforward::forward;

use channels::{Input, STATUS, STDERR, STDOUT};
use exit::exit_status;

use api::budget::Budget;
use api::status::Status;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt};
use hyper::http::request::Parts;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::path::Query;
use super::reply::{self, Reply};
use crate::limits::Seat;
use crate::nodes::{ExecOptions, LogOptions, Nodes, Session, TerminalSize};

const PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
const LOG_PROTOCOL: &str = "binary.k8s.io";
/// Bytes read from a container at a time.
const CHUNK: usize = 16 << 10;

/// The container a request names, or the only one there is.
fn container(pod: &Value, asked: Option<&str>) -> Result<String, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |field: &str| -> Vec<String> {
        pod["spec"][field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .map(str::to_owned)
            .collect()
    };
    let (main, init, extra) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    match asked.filter(|asked| !asked.is_empty()) {
        Some(asked) if main.iter().chain(&init).chain(&extra).any(|own| own == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None => match main.as_slice() {
            [one] => Ok(one.clone()),
            _ if init.is_empty() => Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                main.join(" ")
            ))),
            _ => Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}] or one of the init containers: [{}]",
                main.join(" "),
                init.join(" ")
            ))),
        },
    }
}

fn log_options(pod: &Value, query: &Query) -> Result<LogOptions, Status> {
    let since = match (query.number::<i64>("sinceSeconds"), query.get("sinceTime")) {
        (Some(seconds), _) => jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok(),
        (None, Some(time)) => {
            Some(time.parse().map_err(|_| Status::bad_request(format!("unable to parse sinceTime {time:?}")))?)
        }
        (None, None) => None,
    };
    Ok(LogOptions {
        container: container(pod, query.get("container"))?,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: query.number("tailLines"),
        limit_bytes: query.number("limitBytes"),
        since,
    })
}

/// Refuses what needs a node where there is none.
fn unassigned(pod: &Value) -> Result<(), Status> {
    match pod["spec"]["nodeName"].as_str() {
        Some(node) if !node.is_empty() => Ok(()),
        _ => {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            Err(Status::bad_request(format!("pod {name} does not have a host assigned")))
        }
    }
}

/// `pods/NAME/log` as a body.
pub async fn logs(nodes: &dyn Nodes, pod: &Value, query: &Query) -> Result<Reply, Status> {
    unassigned(pod)?;
    let lines = nodes.logs(pod, log_options(pod, query)?).await?;
    let mut reply = reply::bytes(200, "text/plain", Bytes::new());
    *reply.body_mut() = Body::from_stream(lines.into_stream());
    Ok(reply)
}

/// The same as WebSocket messages.
pub async fn logs_upgraded(
    nodes: &dyn Nodes,
    pod: &Value,
    query: &Query,
    mut parts: Parts,
    seat: Seat,
) -> Result<Reply, Status> {
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|_| Status::bad_request("unable to upgrade: logs are served over WebSocket"))?;
    unassigned(pod)?;
    let mut lines = nodes.logs(pod, log_options(pod, query)?).await?;
    let served = move |mut socket: WebSocket| async move {
        let _seat = seat;
        while let Some(Ok(bytes)) = lines.next().await {
            if socket.send(Message::Binary(bytes)).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: 1000, reason: "".into() };
        let _gone = socket.send(Message::Close(Some(close))).await;
    };
    Ok(upgrade.protocols([LOG_PROTOCOL]).on_upgrade(served).into_response())
}

/// `pods/NAME/exec` and `/attach`.
pub async fn exec(
    nodes: &dyn Nodes,
    pod: &Value,
    query: &Query,
    mut parts: Parts,
    seat: Seat,
) -> Result<Reply, Status> {
    let options = ExecOptions {
        container: container(pod, query.get("container"))?,
        command: query.all("command").map(str::to_owned).collect(),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    unassigned(pod)?;
    if let Some(upgrade) = spdy::requested(&mut parts, spdy::PROTOCOL) {
        let upgrade = upgrade?;
        let session = nodes.exec(pod, options.clone()).await?;
        return Ok(spdy::upgrade(upgrade, session, &options, seat));
    }
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|_| {
        Status::bad_request("Upgrade request required: exec and attach are served over WebSocket and SPDY/3.1")
    })?;
    let limit = Budget::CLIENT.frame;
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(limit).max_frame_size(limit);
    let session = nodes.exec(pod, options).await?;
    let version = upgrade.selected_protocol().and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    Ok(upgrade
        .on_upgrade(move |socket| async move {
            run(socket, session, version).await;
            drop(seat);
        })
        .into_response())
}

/// Moves bytes until the process ends or the client goes.
async fn run(socket: WebSocket, session: Session, version: String) {
    let (mut out, mut incoming) = socket.split();
    let (frames, mut queue) = mpsc::channel::<Message>(16);
    let Session { mut stdin, stdout, stderr, resize, exit } = session;
    let writer = async move {
        while let Some(message) = queue.recv().await {
            if out.send(message).await.is_err() {
                return;
            }
        }
        let close = CloseFrame { code: 1000, reason: "".into() };
        let _gone = out.send(Message::Close(Some(close))).await;
    };
    let reader = async {
        while let Some(Ok(message)) = incoming.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                _ => continue,
            };
            match channels::input(&bytes) {
                Some(Input::Data(data)) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(Input::End) => stdin = None,
                Some(Input::Resize { width, height }) => {
                    if let Some(resize) = &resize {
                        let _ended = resize.send(TerminalSize { width, height }).await;
                    }
                }
                None => {}
            }
        }
    };
    let process = {
        let frames = frames.clone();
        async move {
            let outputs = futures::future::join(pump(stdout, STDOUT, &frames), pump(stderr, STDERR, &frames));
            // Output first: a client shows what came before the exit code.
            let (_, exit) = futures::future::join(outputs, exit).await;
            let status = exit_status(exit).to_string();
            let text = if version == "channel.k8s.io" { Vec::new() } else { status.into_bytes() };
            let _gone = frames.send(frame(STATUS, &text)).await;
        }
    };
    drop(frames);
    let conversation = futures::future::join(process, writer);
    tokio::pin!(conversation, reader);
    tokio::select! {
        _ = &mut conversation => {}
        // A client that goes ends nothing by itself: the process sees its pipes close.
        () = &mut reader => {}
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut out = Vec::with_capacity(data.len() + 1);
    out.push(channel);
    out.extend_from_slice(data);
    Message::Binary(out.into())
}

async fn pump(from: Option<Box<dyn AsyncRead + Send + Unpin>>, channel: u8, to: &mpsc::Sender<Message>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(frame(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_only_container_needs_no_name() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
        assert_eq!(container(&two, Some("b")).unwrap(), "b");
        assert!(container(&two, None).unwrap_err().message.contains("choose one of: [a b]"));
        assert_eq!(container(&one, Some("x")).unwrap_err().message, "container x is not valid for pod p");
    }
}
