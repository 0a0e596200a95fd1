//! The narrow boundary between a [`Client`](crate::Client) and the server: what may differ between a caller of the same
//! process and one behind a network, and nothing else.

use api::status::Status;
use api::uid::Uid;
use async_trait::async_trait;
use serde_json::Value;

use crate::object::{Event, Key, List, Resource, Revision, ServedKind, revision_of};

/// An object, a slice of it, or (without a name) a collection.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub resource: &'a Resource,
    /// Empty for cluster-scoped kinds and for all namespaces.
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
}

/// Which objects of a collection, in the words of the API: `a=b,c!=d`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub labels: String,
    pub fields: String,
}

impl Selector {
    pub fn fields(fields: impl Into<String>) -> Self {
        Self { fields: fields.into(), ..Self::default() }
    }
}

/// A change to attempt: gives the next state for the current one. It may run several times.
pub type Change<'a> = dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    /// Only this object, not a namesake.
    pub uid: Option<Uid>,
    /// Only while it is as it was seen.
    pub version: Option<Revision>,
}

/// What a deletion did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// The object is gone; servers do not always say at which revision.
    Gone { uid: Uid, revision: Option<Revision> },
    /// It goes when its finalizers or its node are done.
    Going { revision: Revision },
}

/// A write of ours that a view must show before it is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrote {
    /// This object's own change: other kinds' revisions say nothing about a view of this kind.
    At(Revision),
    /// This object is not to be there any more.
    Gone { key: Key, uid: Uid },
}

impl Wrote {
    /// What a view has to show of an object that the server answered with.
    pub fn of(answer: &Value) -> Self {
        Self::At(revision_of(answer))
    }
}

impl Deleted {
    /// What a view has to show of it.
    pub fn wrote(self, key: Key) -> Wrote {
        match self {
            Self::Gone { revision: Some(revision), .. } | Self::Going { revision } => Wrote::At(revision),
            Self::Gone { uid, revision: None } => Wrote::Gone { key, uid },
        }
    }
}

/// The changes after the state a watch began with. Dropping it ends the watch.
#[async_trait]
pub trait EventStream: Send {
    /// The next events, at least one; waits for them. Cancel-safe.
    ///
    /// # Errors
    /// 410 when the history does not reach back to where this watch stood: only a new one, with the whole state, goes on.
    /// Any other error ends it before its first state was complete.
    async fn next(&mut self) -> Result<Vec<Event>, Status>;
}

/// How requests reach an API server, under one identity.
///
/// # Errors
/// The server's own words for every call: 403 for what this identity may not do, 404 for a resource that is not served;
/// 500 and 507 by its store. 503 when none answered: what was to be written may have been written.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn get(&self, target: Target<'_>) -> Result<Value, Status>;

    /// Everything that is selected, in one piece.
    async fn list(&self, target: Target<'_>, selector: &Selector) -> Result<List, Status>;

    /// The present state, [`Event::Synced`], then every change. With `after`, the changes alone.
    async fn watch(
        &self,
        target: Target<'_>,
        selector: &Selector,
        after: Option<Revision>,
    ) -> Result<Box<dyn EventStream>, Status>;

    /// Creates an object, or answers what is posted to a subresource of one.
    async fn create(&self, target: Target<'_>, object: Value) -> Result<Value, Status>;

    /// Read, change, write, until nobody came in between.
    async fn update(&self, target: Target<'_>, change: &Change<'_>) -> Result<Value, Status>;

    /// A JSON merge patch (RFC 7386). A `metadata.resourceVersion` in it must be the present one.
    async fn patch(&self, target: Target<'_>, patch: &Value) -> Result<Value, Status>;

    async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status>;

    /// The kinds that are served now.
    async fn kinds(&self) -> Result<Vec<ServedKind>, Status>;
}
