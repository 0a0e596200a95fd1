//! Watch: the changes after a revision, as one selector sees them.

use std::sync::Arc;
use std::time::Duration;

use api::selector::{Fields, Labels};
use api::status::Status;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::read::selected;
use super::{Engine, Target};
use crate::cache::topics::{NODE, Topic};
use crate::cache::{Change, ChangeKind, Expired, Follow};
use crate::object::{Object, ObjectKey, Revision};

/// Bookmarks come about each minute: a client that only ever sees other objects' changes can still continue.
const BOOKMARKS: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    pub labels: Labels,
    pub fields: Fields,
    /// `None` and `0`: the current state first, as ADDED.
    pub version: Option<Revision>,
    pub bookmarks: bool,
    /// The current state, then a bookmark that says so.
    pub initial_events: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    /// The bookmark that ends the initial state.
    InitialEnd,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark | Self::InitialEnd => "BOOKMARK",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventKind,
    /// Bookmarks carry only this.
    pub revision: Revision,
    pub object: Option<Arc<Object>>,
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    follow: Follow,
    namespace: String,
    labels: Labels,
    fields: Fields,
    initial: Vec<Event>,
    bookmarks: Option<Interval>,
}

impl Engine {
    /// # Errors
    /// 410 when the revision is older than the history.
    pub fn watch(&self, target: &Target, options: WatchOptions) -> Result<Watch, Status> {
        let objects = self.objects(&target.kind);
        let topic = topic(target, &options.fields);
        let state = matches!(options.version, None | Some(0)) || options.initial_events;
        let mut initial = Vec::new();
        let mut cursor = options.version.unwrap_or(0);
        if state {
            let snapshot = objects.list(&target.namespace);
            cursor = snapshot.revision;
            let shown = snapshot.objects.into_iter().filter(|o| selected(o, &options.labels, &options.fields));
            initial.extend(shown.map(|object| Event {
                kind: EventKind::Added,
                revision: object.revision,
                object: Some(object),
            }));
            if options.initial_events {
                initial.push(Event { kind: EventKind::InitialEnd, revision: cursor, object: None });
            }
            initial.reverse();
        }
        let follow = objects.follow(topic.as_ref(), cursor).map_err(|expired| too_old(cursor, expired))?;
        let bookmarks = options.bookmarks.then(|| {
            let mut interval = tokio::time::interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let namespace = target.namespace.clone();
        let WatchOptions { labels, fields, .. } = options;
        Ok(Watch { follow, namespace, labels, fields, initial, bookmarks })
    }
}

fn too_old(asked: Revision, expired: Expired) -> Status {
    Status::expired(format!("too old resource version: {asked} ({})", expired.oldest))
}

/// What a watch looks at, if that is little.
fn topic(target: &Target, fields: &Fields) -> Option<Topic> {
    let whole = target.kind.namespaced() && target.namespace.is_empty();
    let object = fields.exact_name().filter(|_| !whole).map(|name| ObjectKey::new(&target.namespace, name));
    let node = || fields.exact(NODE).filter(|node| !node.is_empty()).map(|node| Topic::Node(node.to_owned()));
    object.map(Topic::Object).or_else(node)
}

impl Watch {
    /// The next events, at least one; waits for them. Cancel-safe.
    ///
    /// # Errors
    /// 410 when the watcher fell behind the history.
    pub async fn next(&mut self) -> Result<Vec<Event>, Status> {
        if !self.initial.is_empty() {
            let mut events = std::mem::take(&mut self.initial);
            events.reverse();
            return Ok(events);
        }
        let mut due = false;
        loop {
            let cursor = self.follow.cursor();
            let changes = self.follow.next().map_err(|expired| too_old(cursor, expired))?;
            let events: Vec<_> = changes.iter().filter_map(|change| self.event(change)).collect();
            if !events.is_empty() {
                return Ok(events);
            }
            if due {
                return Ok(vec![self.bookmark()]);
            }
            tokio::select! {
                more = self.follow.changed() => {
                    if !more {
                        return Err(Status::service_unavailable("the server is shutting down"));
                    }
                }
                () = tick(&mut self.bookmarks) => due = true,
            }
        }
    }

    /// It ended because its kind was defined anew.
    pub fn is_replaced(&self) -> bool {
        self.follow.is_replaced()
    }

    /// A bookmark at the revision up to which nothing was missed.
    pub fn bookmark(&self) -> Event {
        Event { kind: EventKind::Bookmark, revision: self.follow.cursor(), object: None }
    }

    /// What this watch's selector makes of a change.
    fn event(&self, change: &Change) -> Option<Event> {
        if !self.namespace.is_empty() && change.object.key.namespace() != self.namespace {
            return None;
        }
        let sees = |object: &Arc<Object>| selected(object, &self.labels, &self.fields);
        let before = change.previous.as_ref().is_some_and(sees);
        let after = change.kind != ChangeKind::Deleted && sees(&change.object);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        let object = match (kind, &change.previous, change.kind) {
            // It left the selector: what is shown is its last state within, at this revision.
            (EventKind::Deleted, Some(previous), ChangeKind::Modified) => Arc::new(previous.at(change.revision())),
            _ => change.object.clone(),
        };
        Some(Event { kind, revision: change.revision(), object: Some(object) })
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
