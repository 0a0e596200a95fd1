//! Reading a request: its headers as text, its body up to the server's limit.

use std::time::Duration;

use api::budget::Budget;
use api::status::Status;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::Incoming;

/// A body is all there within this.
const BODY: Duration = Duration::from_secs(30);

/// Of a body that is too large, this much is read before the refusal, bytes.
const DROPPED: usize = 64 << 20;

pub(super) fn late() -> Status {
    Status::timeout("request did not complete within requested timeout - context deadline exceeded", 0)
}

/// Reads a body up to the server's limit. More is read too and dropped, for a while: whoever writes while nobody reads
/// finds a stream that was reset, and never the answer.
pub(super) async fn read_body(body: Incoming) -> Result<Bytes, Status> {
    let limit = Budget::CLIENT.body;
    let mut parts = Body::new(body).into_data_stream();
    let mut kept = BytesMut::new();
    let mut size = 0usize;
    let whole = async {
        while let Some(part) = parts.next().await {
            let part = part.map_err(|why| Status::bad_request(format!("the body ended early: {why}")))?;
            size = size.saturating_add(part.len());
            match size {
                _ if size <= limit => kept.extend_from_slice(&part),
                _ if size <= limit.saturating_add(DROPPED) => kept = BytesMut::new(),
                _ => break,
            }
        }
        if size <= limit { Ok(kept.freeze()) } else { Err(Status::too_large(limit)) }
    };
    tokio::time::timeout(BODY, whole).await.map_err(|_| late())?
}

/// A request header as text.
pub(super) fn header_of(parts: &hyper::http::request::Parts, name: hyper::header::HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}
