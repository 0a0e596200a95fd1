//! A watch as a stream of JSON lines.

use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::status::Status;
use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::negotiate::{Accepted, Form};
use super::reply::{self, Include, Reply};
use crate::engine::{Engine, Event, EventKind, Watch};

/// How one watcher wants to see events.
pub struct Shape {
    pub engine: Arc<Engine>,
    pub kind: Arc<Kind>,
    pub accepted: Accepted,
    pub include: Include,
    pub bookmarks: bool,
}

struct State {
    watch: Watch,
    form: Shape,
    deadline: Instant,
    /// Tables carry their columns in the first event only.
    first: bool,
    ended: bool,
}

/// Streams a watch until its time-out, then ends cleanly.
pub fn stream(watch: Watch, form: Shape, timeout: Duration) -> Reply {
    let state = State { watch, form, deadline: Instant::now() + timeout, first: true, ended: false };
    let lines = stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(chunk), state))
    });
    let mut reply = reply::bytes(200, "application/json", Bytes::new());
    *reply.body_mut() = Body::from_stream(lines);
    reply
}

impl State {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        match tokio::time::timeout_at(self.deadline, self.watch.next()).await {
            Ok(Ok(events)) => Some(self.lines(&events)),
            // As upstream ends it: the client begins anew.
            Ok(Err(_)) if self.watch.is_replaced() => None,
            Ok(Err(status)) => {
                self.ended = true;
                Some(encode_error(&status))
            }
            Err(_) => {
                self.ended = true;
                let bookmark = self.form.bookmarks.then(|| self.watch.bookmark())?;
                Some(self.lines(&[bookmark]))
            }
        }
    }

    fn lines(&mut self, events: &[Event]) -> Bytes {
        let mut out = Vec::new();
        for event in events {
            self.line(event, &mut out);
        }
        out.into()
    }

    fn line(&mut self, event: &Event, out: &mut Vec<u8>) {
        let plain = self.form.accepted.form == Form::Plain && self.form.kind.is_storage();
        match event.object.as_ref().filter(|_| plain) {
            Some(object) => encode(event.kind, &object.json, out),
            None => encode(event.kind, self.shape(event).to_string().as_bytes(), out),
        }
    }

    fn shape(&mut self, event: &Event) -> Value {
        let kind = &self.form.kind;
        let object = match &event.object {
            Some(object) => self.form.engine.show(kind, object),
            None => bookmark(kind, event),
        };
        match (self.form.accepted.form, event.object.is_some()) {
            (Form::Plain, _) => object,
            (Form::Partial | Form::PartialList, _) => api::table::partial(&object),
            (Form::Table, shown) => {
                let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let rows = if shown {
                    vec![reply::row(kind, &object, self.form.include, Timestamp::now())]
                } else {
                    Vec::new()
                };
                let mut table = api::table::table(kind, meta, rows);
                if !std::mem::take(&mut self.first) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        }
    }
}

fn bookmark(kind: &Kind, event: &Event) -> Value {
    let mut object = json!({
        "kind": kind.kind,
        "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": event.revision.to_string()},
    });
    if event.kind == EventKind::InitialEnd {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    object
}

fn encode(kind: EventKind, object: &[u8], out: &mut Vec<u8>) {
    out.reserve(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// A watch with one error and nothing else.
pub fn refused(status: &Status) -> Reply {
    reply::bytes(200, "application/json", encode_error(status))
}

fn encode_error(status: &Status) -> Bytes {
    let mut line = json!({"type": "ERROR", "object": status.to_value()}).to_string();
    line.push('\n');
    line.into()
}
