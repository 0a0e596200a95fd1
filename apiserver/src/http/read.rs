//! Reading a request: its headers as text, its body up to the server's limit.

use std::time::Duration;

use api::budget::Budget;
use api::status::Status;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::{Body as _, Incoming};

use crate::identity::User;
use crate::limits::{Arriving, Level, Limits};

/// A body is all there within this.
const BODY: Duration = Duration::from_secs(30);

/// Of a body that is too large, this much is read before the refusal, bytes.
const DROPPED: usize = 64 << 20;

pub(super) fn late() -> Status {
    Status::timeout("request did not complete within requested timeout - context deadline exceeded", 0)
}

/// A body that came, or why it did not, and the place that it takes.
pub(super) struct Received {
    bytes: Result<Bytes, Status>,
    _place: Option<Arriving>,
}

/// There are too many bodies already.
pub(super) struct Busy;

impl Received {
    pub fn nothing() -> Self {
        Self { bytes: Ok(Bytes::new()), _place: None }
    }

    pub fn bytes(&self) -> Result<Bytes, Status> {
        self.bytes.clone()
    }
}

/// Receives a body before its request takes a seat. What is wrong with it is told when the request gets to it.
pub(super) async fn receive(limits: &Limits, level: Level, user: &User, body: Incoming) -> Result<Received, Busy> {
    if body.is_end_stream() {
        return Ok(Received::nothing());
    }
    let mut place = limits.receive(level, user).ok_or(Busy)?;
    let bytes = match tokio::time::timeout(BODY, read_body(body, &mut place)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Unread::Busy)) => return Err(Busy),
        Ok(Err(Unread::Refused(status))) => Err(status),
        Err(_) => Err(late()),
    };
    Ok(Received { bytes, _place: Some(place) })
}

enum Unread {
    Busy,
    Refused(Status),
}

/// Reads a body up to the server's limit. More is read too and dropped, for a while: whoever writes while nobody reads
/// finds a stream that was reset, and never the answer.
async fn read_body(body: Incoming, place: &mut Arriving) -> Result<Bytes, Unread> {
    let limit = Budget::CLIENT.body;
    let mut parts = Body::new(body).into_data_stream();
    let mut kept = BytesMut::new();
    let mut size = 0usize;
    while let Some(part) = parts.next().await {
        let early = |why| Unread::Refused(Status::bad_request(format!("the body ended early: {why}")));
        let part = part.map_err(early)?;
        size = size.saturating_add(part.len());
        match size {
            _ if size <= limit && !place.grow(part.len()) => return Err(Unread::Busy),
            _ if size <= limit => kept.extend_from_slice(&part),
            _ if size <= limit.saturating_add(DROPPED) => kept = BytesMut::new(),
            _ => break,
        }
    }
    if size <= limit { Ok(kept.freeze()) } else { Err(Unread::Refused(Status::too_large(limit))) }
}

/// A request header as text.
pub(super) fn header_of(parts: &hyper::http::request::Parts, name: hyper::header::HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}
