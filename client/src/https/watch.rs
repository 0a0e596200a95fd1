//! A watch over HTTPS: lines of JSON, gone on with over a new connection after the last revision that came.

use std::collections::VecDeque;
use std::time::Duration;

use api::status::Status;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::undecodable;
use super::{Call, Https, PATIENCE, answer};
use crate::follow::jittered;
use crate::object::{Event, Item, Revision};
use crate::transport::EventStream;

/// The longest line, bytes: no object is as large.
const LINE: usize = 64 << 20;
/// Before a lost watch is asked for again, doubled each time it brings nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

pub struct Watch {
    https: Https,
    /// Path and query, without where to begin.
    base: String,
    body: Option<Incoming>,
    /// Read and not taken apart yet: less than a line, but for a moment.
    buffer: BytesMut,
    /// Why the server ended it; told after what came before.
    ended: Option<Status>,
    /// Taken apart and not told yet.
    waiting: VecDeque<Event>,
    /// Everything up to here came; `None` while the first state is not complete.
    reached: Option<Revision>,
    losses: u32,
}

/// What came over the wire.
#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Watch {
    pub async fn open(https: Https, base: String, after: Option<Revision>) -> Result<Self, Status> {
        let (buffer, waiting) = (BytesMut::new(), VecDeque::new());
        let mut watch = Self { https, base, body: None, buffer, ended: None, waiting, reached: after, losses: 0 };
        watch.connect().await?;
        Ok(watch)
    }

    async fn connect(&mut self) -> Result<(), Status> {
        let from = match self.reached {
            Some(revision) => format!("resourceVersion={revision}"),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".into(),
        };
        // A server that takes no more streams on this connection leaves one waiting: that is said, too.
        let call = Call::get(format!("{}&{from}", self.base));
        let late = |_| Status::service_unavailable(format!("no watch began within {} s", PATIENCE.as_secs()));
        let answer = tokio::time::timeout(PATIENCE, self.https.answer(&call)).await.map_err(late)??;
        let code = answer.status();
        let body = answer.into_body();
        if !code.is_success() {
            let text = body.collect().await.map(|text| text.to_bytes()).unwrap_or_default();
            return Err(answer::refusal(code.as_u16(), &text));
        }
        self.buffer.clear();
        self.body = Some(body);
        Ok(())
    }

    /// Connects again after a loss; ends the watch where only the whole state would do.
    async fn resume(&mut self) -> Result<(), Status> {
        self.body = None;
        if self.reached.is_none() {
            return Err(Status::service_unavailable("the watch broke off before its first state was complete"));
        }
        loop {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.losses.min(16)).min(LAST_PAUSE);
            self.losses = self.losses.saturating_add(1);
            tokio::time::sleep(jittered(pause)).await;
            match self.connect().await {
                Ok(()) => return Ok(()),
                // Whether it comes back, nobody knows: it is asked until it does.
                Err(lost) if lost.code >= 500 || lost.code == 429 => {
                    tracing::debug!(error = %lost, "watch not resumed yet");
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// Waits for more bytes, over a new connection where the old one is lost.
    async fn fill(&mut self) -> Result<(), Status> {
        let frame = match &mut self.body {
            Some(body) => body.frame().await,
            None => None,
        };
        let Some(Ok(frame)) = frame else { return self.resume().await };
        if let Some(data) = frame.data_ref() {
            self.buffer.extend_from_slice(data);
        }
        if self.buffer.len() > LINE && !self.buffer.contains(&b'\n') {
            return Err(Status::internal(format!("an event of more than {LINE} bytes")));
        }
        Ok(())
    }

    fn take(&mut self, line: &Bytes) -> Result<(), Status> {
        let told: Line<'_> = serde_json::from_slice(line).map_err(undecodable)?;
        let text = told.object.get().as_bytes();
        let item = || Item::from_json(line.slice_ref(text)).map_err(undecodable);
        let event = match told.r#type {
            "ADDED" | "MODIFIED" => Event::Applied(item()?),
            "DELETED" => Event::Deleted(item()?),
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_slice(text).map_err(undecodable)?;
                let revision = bookmark.metadata.resource_version.parse().map_err(undecodable)?;
                let ends = bookmark.metadata.annotations.get("k8s.io/initial-events-end");
                if ends.is_some_and(|ends| ends == "true") {
                    Event::Synced(revision)
                } else {
                    Event::Bookmark(revision)
                }
            }
            "ERROR" => return Err(answer::refusal(500, text)),
            // A type of event that a later server has says nothing about objects.
            _ => return Ok(()),
        };
        if self.reached.is_some() || matches!(event, Event::Synced(_)) {
            self.reached = Some(event.revision());
        }
        self.losses = 0;
        self.waiting.push_back(event);
        Ok(())
    }

    /// Takes apart what is here, up to what ends the watch.
    fn take_lines(&mut self) {
        // Lines end within what came last; its end is found from behind, so a long line is searched once per piece.
        let Some(end) = self.buffer.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines = self.buffer.split_to(end + 1).freeze();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if let Err(why) = self.take(&lines.slice_ref(line)) {
                self.ended = Some(why);
                return;
            }
        }
    }
}

#[async_trait]
impl EventStream for Watch {
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        loop {
            self.take_lines();
            if !self.waiting.is_empty() {
                return Ok(self.waiting.drain(..).collect());
            }
            if let Some(why) = self.ended.take() {
                return Err(why);
            }
            self.fill().await?;
        }
    }
}
