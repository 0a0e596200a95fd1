//! Events do not stay: each goes an hour after its last change (by the store, where it keeps such times), and earlier when
//! there are too many.
//!
//! Nothing polls: the task sleeps until the next deadline or the next change of the collection. Leases need no such
//! care: renewing one replaces its value, and the store keeps current values only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::object::{Collection, Object, ObjectKey, Revision};
use crate::reader::Reader;
use crate::store::{CommitError, Durability, Transaction, Write};

/// As kube-apiserver's `--event-ttl`.
const LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// How long an object of a collection may live without a change.
pub fn lifetime(collection: &Collection) -> Option<Duration> {
    (*collection == events()).then_some(LIFETIME.unsigned_abs())
}

/// More Events than this push the oldest out: about 30 MiB of memory.
pub const LIMIT: usize = 20_000;
/// Removals before the queue is brought up to date again.
const BATCH: usize = 256;
/// A store that refuses is asked again after this.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// What became of Events, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Gone by age.
    pub expired: AtomicU64,
    /// Gone before their time, because there were more than [`LIMIT`].
    pub pushed_out: AtomicU64,
}

/// The living Events by the time at which they go.
#[derive(Debug, Default)]
struct Queue {
    deadlines: BTreeMap<(Timestamp, Revision), ObjectKey>,
    known: HashMap<ObjectKey, (Timestamp, Revision)>,
}

/// Events to remove, with the revision they must still have.
type Due = Vec<(ObjectKey, Revision)>;

impl Queue {
    fn note(&mut self, key: &ObjectKey, revision: Revision, changed: Timestamp) {
        self.forget(key);
        let place = (changed.checked_add(LIFETIME).unwrap_or(Timestamp::MAX), revision);
        self.known.insert(key.clone(), place);
        self.deadlines.insert(place, key.clone());
    }

    fn forget(&mut self, key: &ObjectKey) {
        if let Some(place) = self.known.remove(key) {
            self.deadlines.remove(&place);
        }
    }

    fn next(&self) -> Option<Timestamp> {
        self.deadlines.keys().next().map(|(deadline, _)| *deadline)
    }

    fn aged(&self, now: Timestamp) -> Due {
        let old = self.deadlines.iter().take_while(|((deadline, _), _)| *deadline <= now);
        old.take(BATCH).map(|((_, revision), key)| (key.clone(), *revision)).collect()
    }

    fn too_many(&self, limit: usize) -> Due {
        let over = self.known.len().saturating_sub(limit).min(BATCH);
        self.deadlines.iter().take(over).map(|((_, revision), key)| (key.clone(), *revision)).collect()
    }
}

fn events() -> Collection {
    Collection::new("", "events")
}

/// Removes Events until told to stop.
pub async fn run(reader: Reader, counters: Arc<Counters>, stop: CancellationToken) {
    let mut changed = reader.cache().collection(&events()).subscribe();
    let mut queue = Queue::default();
    let mut cursor = None;
    loop {
        changed.mark_unchanged();
        cursor = Some(follow(&reader, cursor, &mut queue));
        let aged = if reader.store().keeps_lifetimes() { Due::new() } else { queue.aged(Timestamp::now()) };
        let aged = remove(&reader, aged, &counters.expired).await;
        let pushed = remove(&reader, queue.too_many(LIMIT), &counters.pushed_out).await;
        let wait = match (aged, pushed) {
            (Removed::Failed, _) | (_, Removed::Failed) => RETRY,
            (Removed::Some, _) | (_, Removed::Some) => continue,
            _ if reader.store().keeps_lifetimes() => LIFETIME,
            _ => queue.next().map_or(LIFETIME, |next| next.duration_since(Timestamp::now())),
        };
        let wait = Duration::try_from(wait).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            ended = changed.changed() => if ended.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Brings the queue up to date; the result is where to go on.
fn follow(reader: &Reader, cursor: Option<Revision>, queue: &mut Queue) -> Revision {
    let cache = reader.cache().collection(&events());
    if let Some(cursor) = cursor
        && let Ok(changes) = cache.since(cursor)
    {
        for change in &changes {
            let object = &change.object;
            match change.kind {
                crate::cache::ChangeKind::Deleted => queue.forget(&object.key),
                _ => queue.note(&object.key, object.revision, Timestamp::now()),
            }
        }
        return changes.last().map_or(cursor, |last| last.revision());
    }
    let snapshot = cache.list("");
    *queue = Queue::default();
    for object in &snapshot.objects {
        queue.note(&object.key, object.revision, last_seen(object));
    }
    snapshot.revision
}

/// When an Event of an earlier run changed last: the newest of the times it carries, and never the future.
fn last_seen(object: &Object) -> Timestamp {
    let event = object.value();
    let now = Timestamp::now();
    let times = ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"];
    let parsed = times.iter().filter_map(|path| event.pointer(path).and_then(Value::as_str)?.parse::<Timestamp>().ok());
    parsed.max().unwrap_or(now).min(now)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removed {
    Nothing,
    Some,
    Failed,
}

/// Removes what is due. One that changed meanwhile stays: its change brings a new deadline.
async fn remove(reader: &Reader, due: Due, counter: &AtomicU64) -> Removed {
    let outcome = if due.is_empty() { Removed::Nothing } else { Removed::Some };
    for (key, revision) in due {
        let write = Write::remove(events(), key, revision);
        let removal = Transaction { writes: vec![write], durability: Durability::Soon, ..Transaction::default() };
        match reader.store().transact(removal).await {
            Ok(_) => drop(counter.fetch_add(1, Ordering::Relaxed)),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an old Event cannot be removed");
                return Removed::Failed;
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn names(due: &Due) -> Vec<&str> {
        due.iter().map(|(key, _)| key.name()).collect()
    }

    #[test]
    fn an_event_goes_an_hour_after_its_last_change() {
        let mut queue = Queue::default();
        let (a, b) = (ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"));
        queue.note(&a, 1, at(0));
        queue.note(&b, 2, at(10));
        queue.note(&a, 3, at(20));
        assert_eq!(queue.next(), Some(at(3610)));
        assert!(queue.aged(at(3609)).is_empty());
        assert_eq!(queue.aged(at(3620)), [(b.clone(), 2), (a, 3)]);
        queue.forget(&b);
        assert_eq!(queue.next(), Some(at(3620)));
    }

    #[test]
    fn too_many_push_the_oldest_out() {
        let mut queue = Queue::default();
        for (index, name) in ["a", "b", "c"].iter().enumerate() {
            queue.note(&ObjectKey::new("ns", name), index as Revision, at(index as i64));
        }
        assert_eq!(names(&queue.too_many(2)), ["a"]);
        assert!(queue.too_many(3).is_empty());
    }
}
