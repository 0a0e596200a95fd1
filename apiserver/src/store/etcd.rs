//! The store of several servers: an etcd, from 3.4 on.
//!
//! Every transaction is one of etcd's, and its revision is etcd's. What was committed, by this server or another, comes back by
//! one watch, and from there goes to the feed; a caller is answered once its own write has come back. A fresh read asks etcd for
//! its revision. When keys that are not ours have moved it, no watch says so (a request for progress may be answered too early
//! before 3.4.25), so a key of ours is written, and its coming back shows that nothing is missing before it.
//!
//! A call that was not answered may have been carried out. It is reported as failed; who tries again finds out by the revision
//! that it expects.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use self::wire::{
    Alarm, Aspect, Compare, Compared, DeleteRangeRequest, Event, EventKind, KeyValue, Operation, PutRequest,
    RangeRequest, Relation, TxnRequest, WatchResponse, Wire,
};
use super::{
    Change, CommitError, Committed, Content, Expect, Failure, Feed, Opened, Record, Store, StoreError, Transaction,
    Write, parse_key, seal_for_etcd, store_key, unseal,
};
use crate::object::Revision;

mod wire;

/// Everything of ours; other prefixes of the same etcd are other people's.
const PREFIX: &str = "/amphipod/";
/// Beside the objects, so that nobody's watch sees it.
const FORMAT_KEY: &str = "/amphipod-meta/format";
const COMPACTION_KEY: &str = "/amphipod-meta/compaction";
/// Written so that it comes back: see the module's text. No collection has this name.
const BARRIER_KEY: &str = "/amphipod/~";
/// The layout of keys and values. A store with a higher number is refused.
const FORMAT: u64 = 1;
/// Keys read at a time.
const PAGE: i64 = 500;
/// What servers of one etcd forget, and how often.
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long a read waits for its revision before it asks in a way that cannot be missed.
const GRACE: Duration = Duration::from_millis(5);
/// The watch is opened again after this, longer each time up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// One lease of etcd's serves the keys written within this, and at most so many.
const LEASE_SHARED: Duration = Duration::from_secs(60);
const LEASE_KEYS: usize = 1000;

/// Where etcd is, and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` of each member.
    pub endpoints: Vec<String>,
    pub tls: Option<Tls>,
}

/// PEM texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub authority: Vec<u8>,
    /// Certificate and key of the client.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Settings {
    fn place(&self) -> PathBuf {
        format!("etcd://{}", self.endpoints.join(",")).into()
    }
}

/// Connects, and reads everything.
///
/// # Errors
/// When no member answers, or what is there was written by a newer release.
pub async fn open(settings: &Settings) -> Result<Opened, StoreError> {
    let place = settings.place();
    let failed = |source: super::Cause| StoreError::Open { path: place.clone(), source };
    let wire = Wire::new(settings).map_err(|error| failed(error.into()))?;
    let outage = |status: Status| failed(status.into());
    check_format(&wire, &place).await?;
    let (revision, found) = read_all(&wire).await.map_err(outage)?;
    let records = found.into_iter().map(|entry| {
        let key = String::from_utf8(entry.key).map_err(|error| failed(error.into()))?;
        Ok(Record { key, revision: number(entry.mod_revision), value: Some(entry.value) })
    });
    let records = records.collect::<Result<Vec<_>, StoreError>>()?;
    let start_place = place.clone();
    let start =
        Box::new(move |feed: Box<dyn Feed>| Arc::new(Etcd::start(wire, start_place, feed, revision)) as Arc<dyn Store>);
    Ok(Opened { revision, records, place, start })
}

/// Notes our layout in an etcd that has none of ours, and refuses a newer one.
async fn check_format(wire: &Wire, place: &Path) -> Result<(), StoreError> {
    let failed = |source: super::Cause| StoreError::Open { path: place.to_owned(), source };
    let key = FORMAT_KEY.as_bytes().to_vec();
    let ours = PutRequest { key: key.clone(), value: FORMAT.to_string().into(), lease: 0 };
    let request = TxnRequest {
        compare: vec![compare(&key, Relation::Equal, Compared::Created(0))],
        success: vec![Operation::Put(ours).into()],
        failure: vec![Operation::Range(RangeRequest { key, ..RangeRequest::default() }).into()],
    };
    let answer = wire.txn(request).await.map_err(|status| failed(status.into()))?;
    let there = answer.responses.into_iter().find_map(|response| response.range?.kvs.into_iter().next());
    let Some(there) = there else { return Ok(()) };
    let text = String::from_utf8_lossy(&there.value).into_owned();
    match text.parse::<u64>() {
        Ok(found) if found > FORMAT => Err(StoreError::Newer { path: place.to_owned(), found, known: FORMAT }),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(format!("{FORMAT_KEY} says {text:?}: {error}").into())),
    }
}

/// All of ours at one revision.
async fn read_all(wire: &Wire) -> Result<(Revision, Vec<KeyValue>), Status> {
    let (mut found, mut from, mut revision) = (Vec::new(), PREFIX.as_bytes().to_vec(), 0);
    loop {
        let request =
            RangeRequest { key: from, range_end: wire::after(PREFIX), limit: PAGE, revision, keys_only: false };
        let page = wire.range(request).await?;
        if revision == 0 {
            revision = page.header.map_or(0, |header| header.revision);
        }
        let last = page.kvs.last().map(|entry| entry.key.clone());
        found.extend(page.kvs.into_iter().filter(|entry| entry.key != BARRIER_KEY.as_bytes()));
        match last.filter(|_| page.more) {
            Some(mut last) => {
                last.push(0);
                from = last;
            }
            None => return Ok((number(revision), found)),
        }
    }
}

/// etcd counts revisions from 1 on, as signed numbers.
fn number(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or_default()
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn compare(key: &[u8], relation: Relation, with: Compared) -> Compare {
    let aspect = match with {
        Compared::Created(_) => Aspect::Created,
        Compared::Modified(_) => Aspect::Modified,
    };
    Compare { relation: relation.into(), aspect: aspect.into(), key: key.into(), with: Some(with) }
}

struct Etcd {
    wire: Wire,
    place: PathBuf,
    /// Up to where the feed has everything.
    heard: watch::Receiver<Revision>,
    failure: watch::Receiver<Failure>,
    /// Held by who writes the barrier: those who wait for it meanwhile are served by the same one, or the next.
    barrier: Mutex<()>,
    lease: Mutex<Option<SharedLease>>,
    _tasks: JoinSet<()>,
}

struct SharedLease {
    id: i64,
    lifetime: Duration,
    granted: Instant,
    keys: usize,
}

impl Etcd {
    fn start(wire: Wire, place: PathBuf, feed: Box<dyn Feed>, revision: Revision) -> Self {
        let (told, heard) = watch::channel(revision);
        let (failed, failure) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let follower = Follower { wire: wire.clone(), place: place.clone(), feed, told, failed };
        tasks.spawn(follower.run(revision));
        tasks.spawn(compact(wire.clone()));
        Self { wire, place, heard, failure, barrier: Mutex::default(), lease: Mutex::default(), _tasks: tasks }
    }

    fn failed(&self, status: Status) -> CommitError {
        let path = self.place.clone();
        CommitError::Store(Arc::new(match status.code() {
            Code::ResourceExhausted if status.message().contains("space") => StoreError::Space { path },
            _ => StoreError::Outage { path, source: status.into() },
        }))
    }

    /// Waits until the feed has what was committed at a revision.
    async fn wait(&self, revision: Revision) -> Result<(), CommitError> {
        let mut heard = self.heard.clone();
        match tokio::time::timeout(wire::PATIENCE, heard.wait_for(|heard| *heard >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(CommitError::Closed),
            Err(_) => Err(self.failed(Status::new(Code::DeadlineExceeded, "its watch tells nothing"))),
        }
    }

    /// A lease under which keys live at least this long.
    async fn lease(&self, lifetime: Duration) -> Result<i64, Status> {
        let mut shared = self.lease.lock().await;
        if let Some(lease) = shared.as_mut().filter(|lease| {
            lease.lifetime == lifetime && lease.granted.elapsed() < LEASE_SHARED && lease.keys < LEASE_KEYS
        }) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let seconds = i64::try_from((lifetime + LEASE_SHARED).as_secs()).unwrap_or(i64::MAX);
        let id = self.wire.grant(seconds).await?.id;
        *shared = Some(SharedLease { id, lifetime, granted: Instant::now(), keys: 1 });
        Ok(id)
    }

    async fn request(&self, transaction: &Transaction) -> Result<TxnRequest, Status> {
        let mut request = TxnRequest::default();
        let looked = |key: Vec<u8>| {
            let range = RangeRequest { key, keys_only: true, ..RangeRequest::default() };
            Operation::Range(range).into()
        };
        for (collection, key) in &transaction.requires {
            let key = store_key(collection, key).into_bytes();
            request.compare.push(compare(&key, Relation::Greater, Compared::Created(0)));
            request.failure.push(looked(key));
        }
        for Write { collection, key, expect, content, lifetime } in &transaction.writes {
            let name = store_key(collection, key);
            let key = name.clone().into_bytes();
            request.compare.push(match expect {
                Expect::Absent => compare(&key, Relation::Equal, Compared::Created(0)),
                Expect::At(revision) => compare(&key, Relation::Equal, Compared::Modified(signed(*revision))),
            });
            request.success.push(match content {
                Some((encoded, _)) => {
                    let lease = match lifetime {
                        Some(lifetime) => self.lease(*lifetime).await?,
                        None => 0,
                    };
                    let value = seal_for_etcd(&name, encoded.stored());
                    Operation::Put(PutRequest { key: key.clone(), value, lease }).into()
                }
                None => Operation::Delete(DeleteRangeRequest { key: key.clone() }).into(),
            });
            request.failure.push(looked(key));
        }
        Ok(request)
    }
}

#[async_trait]
impl Store for Etcd {
    async fn transact(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        let request = self.request(&transaction).await.map_err(|status| self.failed(status))?;
        let answer = self.wire.txn(request).await.map_err(|status| self.failed(status))?;
        let revision = number(answer.header.map_or(0, |header| header.revision));
        if !answer.succeeded {
            let found = answer.responses.into_iter().map(|response| {
                let entry = response.range.and_then(|range| range.kvs.into_iter().next());
                entry.map(|entry| number(entry.mod_revision))
            });
            let found: Vec<Option<Revision>> = found.collect();
            // Whoever reads now sees what stood in the way.
            self.wait(found.iter().copied().flatten().max().unwrap_or_default()).await?;
            let unclear = || self.failed(Status::internal("a transaction was refused for no reason"));
            return Err(transaction.refusal(found.into_iter()).unwrap_or_else(unclear));
        }
        self.wait(revision).await?;
        let writes = transaction.writes.into_iter();
        let objects = writes.map(|Write { key, content, .. }| Write::outcome(key, content, revision));
        Ok(Committed { revision, objects: objects.collect() })
    }

    async fn fresh(&self) -> Result<(), CommitError> {
        let asked = RangeRequest { key: FORMAT_KEY.into(), keys_only: true, ..RangeRequest::default() };
        let answer = self.wire.range(asked).await.map_err(|status| self.failed(status))?;
        let now = number(answer.header.map_or(0, |header| header.revision));
        let mut heard = self.heard.clone();
        if tokio::time::timeout(GRACE, heard.wait_for(|heard| *heard >= now)).await.is_ok() {
            return Ok(());
        }
        let _mine = self.barrier.lock().await;
        if *self.heard.borrow() >= now {
            return Ok(());
        }
        let barrier = PutRequest { key: BARRIER_KEY.into(), value: Vec::new(), lease: 0 };
        let answer = self.wire.put(barrier).await.map_err(|status| self.failed(status))?;
        self.wait(number(answer.header.map_or(0, |header| header.revision))).await
    }

    fn failure(&self) -> watch::Receiver<Failure> {
        self.failure.clone()
    }

    fn keeps_lifetimes(&self) -> bool {
        true
    }

    async fn health(&self) -> Result<(), String> {
        let alarms =
            self.wire.alarms().await.map_err(|status| format!("etcd does not answer: {}", status.message()))?;
        match alarms.iter().map(|member| member.alarm()).find(|alarm| *alarm != Alarm::None) {
            Some(Alarm::NoSpace) => Err("etcd raises NOSPACE: its space quota is used up".into()),
            Some(_) => Err("etcd raises CORRUPT: members hold different data".into()),
            None => Ok(()),
        }
    }
}

/// Reads the one watch, and tells the feed.
struct Follower {
    wire: Wire,
    place: PathBuf,
    feed: Box<dyn Feed>,
    told: watch::Sender<Revision>,
    failed: watch::Sender<Failure>,
}

/// Why a watch is over.
enum Ended {
    /// To be opened again.
    Broken(Status),
    /// What comes next is no longer there.
    Compacted,
}

impl Follower {
    async fn run(mut self, mut revision: Revision) {
        let mut pause = AGAIN.0;
        loop {
            let began = revision;
            match self.follow(&mut revision).await {
                Ended::Compacted => {
                    let failure = StoreError::Behind { path: self.place.clone(), revision };
                    self.failed.send_replace(Some(Arc::new(failure)));
                    return;
                }
                Ended::Broken(status) => {
                    tracing::warn!(code = ?status.code(), reason = status.message(), revision, "etcd's watch broke off");
                }
            }
            pause = if revision > began { AGAIN.0 } else { (pause * 2).min(AGAIN.1) };
            // Servers that lost the same etcd do not come back at once.
            tokio::time::sleep(pause.mul_f64(0.5 + f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 256.0)).await;
        }
    }

    async fn follow(&mut self, revision: &mut Revision) -> Ended {
        let mut stream = match self.wire.watch(PREFIX, signed(*revision + 1)).await {
            Ok(stream) => stream,
            Err(status) => return Ended::Broken(status),
        };
        let mut events = Vec::new();
        loop {
            let WatchResponse { canceled, compact_revision, cancel_reason, fragment, events: more, .. } =
                match stream.message().await {
                    Ok(Some(response)) => response,
                    Ok(None) => return Ended::Broken(Status::unavailable("the stream ended")),
                    Err(status) => return Ended::Broken(status),
                };
            if compact_revision > 0 {
                return Ended::Compacted;
            }
            if canceled {
                return Ended::Broken(Status::aborted(cancel_reason));
            }
            events.extend(more);
            if !fragment {
                self.tell(std::mem::take(&mut events), revision);
            }
        }
    }

    /// Events of one transaction stand together, and have one revision.
    fn tell(&mut self, events: Vec<Event>, revision: &mut Revision) {
        let dated = events.into_iter().filter_map(|event| {
            let kind = event.r#type();
            event.kv.map(|entry| (number(entry.mod_revision), kind, entry))
        });
        let dated: Vec<(Revision, EventKind, KeyValue)> = dated.collect();
        for transaction in dated.chunk_by(|a, b| a.0 == b.0) {
            let at = transaction[0].0;
            let changes: Vec<Change> =
                transaction.iter().filter_map(|(_, kind, entry)| change(at, *kind, entry)).collect();
            match changes.is_empty() {
                true => self.feed.reached(at),
                false => self.feed.committed(at, changes),
            }
            *revision = at;
            self.told.send_replace(at);
        }
    }
}

/// A change of ours; `None` for the barrier. What is damaged goes on as an empty text, which nobody can read.
fn change(revision: Revision, kind: EventKind, entry: &KeyValue) -> Option<Change> {
    let name = std::str::from_utf8(&entry.key).ok()?;
    let (collection, key) = parse_key(name)?;
    let content = match kind {
        EventKind::Delete => Content::Removed,
        EventKind::Put => Content::Text(unseal(name, revision, entry.value.clone()).unwrap_or_default()),
    };
    Some(Change { collection, key, content })
}

/// Lets etcd forget what happened more than one turn ago. Of several servers, the one that moves the key does it.
async fn compact(wire: Wire) {
    let mut seen: Option<KeyValue> = None;
    loop {
        tokio::time::sleep(COMPACT_EVERY).await;
        match compact_once(&wire, seen.take()).await {
            Ok(now) => seen = now,
            Err(status) => tracing::warn!(code = ?status.code(), reason = status.message(), "etcd is not compacted"),
        }
    }
}

/// The key says up to where the next turn may compact: where etcd was when it was written.
async fn compact_once(wire: &Wire, seen: Option<KeyValue>) -> Result<Option<KeyValue>, Status> {
    let key = COMPACTION_KEY.as_bytes().to_vec();
    let asked = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let now = wire.range(asked.clone()).await?;
    let revision = now.header.map_or(0, |header| header.revision);
    let there = now.kvs.into_iter().next();
    // Another server has had this turn.
    if there.as_ref().map(|entry| entry.mod_revision) != seen.as_ref().map(|entry| entry.mod_revision) {
        return Ok(there);
    }
    let expected =
        compare(&key, Relation::Equal, Compared::Modified(there.as_ref().map_or(0, |entry| entry.mod_revision)));
    let put = PutRequest { key, value: revision.to_string().into(), lease: 0 };
    let moved = TxnRequest { compare: vec![expected], success: vec![Operation::Put(put).into()], failure: Vec::new() };
    if wire.txn(moved).await?.succeeded
        && let Some(until) = there.and_then(|entry| String::from_utf8_lossy(&entry.value).parse::<i64>().ok())
    {
        wire.compact(until).await?;
    }
    Ok(wire.range(asked).await?.kvs.into_iter().next())
}

#[cfg(test)]
mod tests;
