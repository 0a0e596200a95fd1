//! The store of one server: a file, written by one thread, which commits what waits in one go.
//!
//! A transaction is acknowledged after its batch is on the disk. Those that may be lost ([`Durability::Soon`]) are
//! acknowledged at once and go to the disk with the next batch, or by themselves, but not within [`SOON`] of the last one: renewing
//! leases then costs two syncs a second at most, and one that is alone does not wake the writer again. Revisions are reserved on the disk in blocks, so that one given to a lost write is never given again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use super::redb::RedbStore;
use super::values::Values;
use super::{
    Change, CommitError, Committed, Content, Durability, Failure, Feed, Opened, Record, Store, StoreError, Transaction,
    Write, seal,
};
use crate::object::Revision;

/// Transactions in one batch: bounds the latency a late comer adds to the first.
const BATCH: usize = 512;
/// How long an acknowledged write may wait for the disk, where it says that it may: until so long after the sync before.
pub const SOON: Duration = Duration::from_millis(500);
/// Revisions reserved at a time: what a restart after a power cut skips at most.
const BLOCK: Revision = 10_000;

/// Opens or creates the file.
///
/// # Errors
/// When it is in use, damaged, of a newer layout, or ends before what was acknowledged.
pub fn open(path: &Path) -> Result<Opened, StoreError> {
    let mut store = RedbStore::open(path)?;
    let (_, records) = store.load()?;
    store.shrink(&records);
    let revision = store.reserved();
    let start = Box::new(move |feed: Box<dyn Feed>| Arc::new(Local::start(store, feed, revision)) as Arc<dyn Store>);
    Ok(Opened { revision, records, place: path.to_owned(), start })
}

/// A handle to the writer, which ends when this is dropped, with everything on the disk.
pub(super) struct Local {
    queue: Option<SyncSender<Waiting>>,
    writer: Option<JoinHandle<()>>,
    failure: watch::Receiver<Failure>,
}

impl Local {
    /// Starts the writer thread on values that stand at `last`.
    pub fn start(values: impl Values, feed: Box<dyn Feed>, last: Revision) -> Self {
        let (queue, incoming) = sync_channel(4096);
        let (failed, failure) = watch::channel(None);
        let unsynced = Unsynced::default();
        let writer = Writer { values, feed, last, reserved: last, unsynced, refusing: false, failed };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&incoming))
            .expect("a thread at start: without it nothing can be written");
        Self { queue: Some(queue), writer: Some(writer), failure }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

#[async_trait]
impl Store for Local {
    async fn transact(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        let (reply, answer) = oneshot::channel();
        let mut waiting = Waiting { keys: transaction.keys(), transaction, reply };
        loop {
            let Some(queue) = &self.queue else { return Err(CommitError::Closed) };
            match queue.try_send(waiting) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(CommitError::Closed),
                Err(TrySendError::Full(back)) => {
                    waiting = back;
                    tokio::task::yield_now().await;
                }
            }
        }
        answer.await.map_err(|_| CommitError::Closed)?
    }

    /// Nobody else writes, and the feed has what was acknowledged.
    async fn fresh(&self) -> Result<(), CommitError> {
        Ok(())
    }

    fn failure(&self) -> watch::Receiver<Failure> {
        self.failure.clone()
    }
}

struct Waiting {
    keys: Vec<String>,
    transaction: Transaction,
    reply: oneshot::Sender<Result<Committed, CommitError>>,
}

impl Waiting {
    fn refuse(self, error: CommitError) {
        // The caller may have gone.
        let _gone = self.reply.send(Err(error));
    }
}

/// A transaction that passed its checks.
struct Accepted {
    waiting: Waiting,
    revision: Revision,
}

/// What was acknowledged and is not on the disk yet, by key.
#[derive(Default)]
struct Unsynced {
    records: BTreeMap<String, Record>,
    /// When the disk was tried last.
    tried: Option<Instant>,
}

impl Unsynced {
    fn add(&mut self, records: Vec<Record>) {
        self.records.extend(records.into_iter().map(|record| (record.key.clone(), record)));
    }

    /// How long the writer may wait for more to do; for ever when nothing waits for it.
    fn patience(&self, now: Instant) -> Option<Duration> {
        if self.records.is_empty() {
            return None;
        }
        let since = self.tried.map_or(SOON, |tried| now.saturating_duration_since(tried));
        Some(SOON.saturating_sub(since))
    }
}

struct Writer<V> {
    values: V,
    feed: Box<dyn Feed>,
    last: Revision,
    /// No revision up to here is given again, whatever happens.
    reserved: Revision,
    unsynced: Unsynced,
    /// The disk was full when it was tried last.
    refusing: bool,
    failed: watch::Sender<Failure>,
}

impl<V: Values> Writer<V> {
    fn run(mut self, incoming: &Receiver<Waiting>) {
        loop {
            let first = match self.unsynced.patience(Instant::now()) {
                None => incoming.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => incoming.recv_timeout(patience),
            };
            match first {
                Ok(first) => {
                    let mut batch = vec![first];
                    batch.extend(incoming.try_iter().take(BATCH - 1));
                    self.take(batch);
                }
                Err(RecvTimeoutError::Timeout) => self.sync(Vec::new(), Vec::new()),
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
        }
    }

    /// An orderly end loses nothing and skips no revisions.
    fn end(mut self) {
        if self.failed.borrow().is_none() && self.reserved > self.last {
            self.reserved = self.last;
            self.sync(Vec::new(), Vec::new());
        }
    }

    fn take(&mut self, batch: Vec<Waiting>) {
        // Nobody knows what the disk holds, so nothing is promised on top of it.
        let failed = self.failed.borrow().clone();
        if let Some(failure) = failed {
            return batch.into_iter().for_each(|waiting| waiting.refuse(CommitError::Store(failure.clone())));
        }
        let mut now = match self.known(&batch) {
            Ok(known) => known,
            Err(error) => return self.refuse_all(batch, error),
        };
        let (mut accepted, mut records) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for waiting in batch {
            let Waiting { keys, transaction, .. } = &waiting;
            match transaction.refusal(keys.iter().map(|key| now.get(key).copied().flatten())) {
                Some(conflict) => waiting.refuse(conflict),
                None => {
                    self.last += 1;
                    let written = &keys[transaction.requires.len()..];
                    for (key, write) in written.iter().zip(&transaction.writes) {
                        let record = record(key, write, self.last);
                        now.insert(record.key.clone(), record.value.as_ref().map(|_| self.last));
                        records.push(record);
                    }
                    accepted.push(Accepted { waiting, revision: self.last });
                }
            }
        }
        if accepted.is_empty() {
            return;
        }
        let can_wait = accepted.iter().all(|accepted| accepted.waiting.transaction.durability == Durability::Soon);
        if can_wait && !self.refusing && self.last <= self.reserved {
            self.unsynced.add(records);
            return accepted.into_iter().for_each(|accepted| self.publish(accepted));
        }
        self.sync(records, accepted);
    }

    /// The revisions of all keys that a batch asks about: from what waits for the disk, else from the disk.
    fn known(&mut self, batch: &[Waiting]) -> Result<HashMap<String, Option<Revision>>, StoreError> {
        let mut known = HashMap::new();
        let mut stored: Vec<&str> = Vec::new();
        for key in batch.iter().flat_map(|waiting| &waiting.keys) {
            match self.unsynced.records.get(key) {
                Some(record) => drop(known.insert(key.clone(), record.value.as_ref().map(|_| record.revision))),
                None => stored.push(key),
            }
        }
        let revisions = self.values.revisions(&stored)?;
        known.extend(stored.into_iter().map(str::to_owned).zip(revisions));
        Ok(known)
    }

    /// Brings what waits, and this, to the disk; then the world hears of it.
    fn sync(&mut self, records: Vec<Record>, accepted: Vec<Accepted>) {
        // Later records of a key come later, and win.
        let mut all: Vec<Record> = self.unsynced.records.values().cloned().collect();
        all.extend(records);
        if self.last > self.reserved {
            self.reserved = self.last + BLOCK;
        }
        let outcome = self.values.commit(&all, self.last, self.reserved);
        self.unsynced.tried = Some(Instant::now());
        match outcome {
            Ok(()) => {
                self.refusing = false;
                self.unsynced.records.clear();
                accepted.into_iter().for_each(|accepted| self.publish(accepted));
            }
            Err(error) => self.refuse_all(accepted.into_iter().map(|accepted| accepted.waiting).collect(), error),
        }
    }

    fn refuse_all(&mut self, batch: Vec<Waiting>, error: StoreError) {
        if !self.refusing || !batch.is_empty() {
            tracing::error!(error = &error as &dyn std::error::Error, "store commit failed");
        }
        let error = Arc::new(error);
        self.refusing = error.is_refusal();
        if !self.refusing {
            self.failed.send_replace(Some(error.clone()));
        }
        batch.into_iter().for_each(|waiting| waiting.refuse(CommitError::Store(error.clone())));
    }

    fn publish(&mut self, accepted: Accepted) {
        let Accepted { waiting: Waiting { transaction, reply, .. }, revision } = accepted;
        let (mut objects, mut changes) = (Vec::new(), Vec::new());
        for Write { collection, key, content, .. } in transaction.writes {
            let object = Write::outcome(key.clone(), content, revision);
            let content = object.clone().map_or(Content::Removed, Content::Object);
            changes.push(Change { collection, key, content });
            objects.push(object);
        }
        self.feed.committed(revision, changes);
        // The caller may have gone; the write stands all the same.
        let _gone = reply.send(Ok(Committed { revision, objects }));
    }
}

fn record(key: &str, write: &Write, revision: Revision) -> Record {
    let key = key.to_owned();
    let value = write.content.as_ref().map(|(encoded, _)| seal(&key, revision, encoded.stored()));
    Record { key, revision, value }
}

#[cfg(test)]
mod tests {
    use super::super::Expect;
    use super::super::contract::{self, Ground, Heard, commit, put};
    use super::*;

    struct Folder(tempfile::TempDir);

    #[async_trait]
    impl Ground for Folder {
        async fn open(&self) -> Result<Opened, StoreError> {
            open(&self.0.path().join("store.redb"))
        }
    }

    #[tokio::test]
    async fn the_contract_holds() {
        contract::hold(async || Folder(tempfile::tempdir().unwrap())).await;
    }

    /// Refuses or fails the batch that ends with a revision, and counts those it takes.
    #[derive(Default)]
    struct Memory {
        records: HashMap<String, Revision>,
        commits: Arc<std::sync::Mutex<Vec<(usize, Revision)>>>,
        refuse: Revision,
        fail: Revision,
    }

    impl Values for Memory {
        fn revisions(&mut self, keys: &[&str]) -> Result<Vec<Option<Revision>>, StoreError> {
            Ok(keys.iter().map(|key| self.records.get(*key).copied()).collect())
        }

        fn commit(&mut self, batch: &[Record], last: Revision, reserved: Revision) -> Result<(), StoreError> {
            if last == self.refuse {
                return Err(StoreError::Full { path: "memory".into() });
            }
            if last == self.fail {
                return Err(StoreError::Commit { revision: last, source: "an I/O error".into() });
            }
            for record in batch {
                match &record.value {
                    Some(_) => drop(self.records.insert(record.key.clone(), record.revision)),
                    None => drop(self.records.remove(&record.key)),
                }
            }
            self.commits.lock().unwrap().push((batch.len(), reserved));
            Ok(())
        }
    }

    fn started(memory: Memory) -> (Arc<dyn Store>, Heard) {
        let heard = Heard::default();
        (Arc::new(Local::start(memory, Box::new(heard.clone()), 0)), heard)
    }

    #[tokio::test]
    async fn a_refused_commit_is_neither_acknowledged_nor_heard_of() {
        let (store, heard) = started(Memory { refuse: 2, ..Memory::default() });
        commit(&store, put("a", Expect::Absent)).await.unwrap();
        let refused = commit(&store, put("b", Expect::Absent)).await;
        assert!(matches!(refused, Err(CommitError::Store(error)) if error.is_refusal()));
        assert_eq!(commit(&store, put("b", Expect::Absent)).await.unwrap(), 3);
        assert_eq!(heard.revisions(), [1, 3]);
    }

    #[tokio::test]
    async fn after_a_failed_commit_nothing_is_acknowledged() {
        let (store, heard) = started(Memory { fail: 2, ..Memory::default() });
        commit(&store, put("a", Expect::Absent)).await.unwrap();
        for _ in 0..2 {
            let outcome = commit(&store, put("b", Expect::Absent)).await;
            assert!(matches!(outcome, Err(CommitError::Store(error)) if !error.is_refusal()));
        }
        assert_eq!(heard.revisions(), [1]);
        assert!(store.failure().borrow().is_some());
    }

    fn soon(write: Write) -> Transaction {
        Transaction { writes: vec![write], durability: Durability::Soon, ..Transaction::default() }
    }

    #[tokio::test]
    async fn what_may_wait_for_the_disk_costs_no_commit_of_its_own() {
        let memory = Memory::default();
        let commits = memory.commits.clone();
        let (store, heard) = started(memory);
        let mut revision = commit(&store, put("lease", Expect::Absent)).await.unwrap();
        for _ in 0..50 {
            revision = store.transact(soon(put("lease", Expect::At(revision)))).await.unwrap().revision;
        }
        let outcome = store.transact(soon(put("lease", Expect::At(revision - 1)))).await;
        assert!(matches!(outcome, Err(CommitError::Conflict { found, .. }) if found == Some(revision)));
        assert_eq!(heard.revisions().len(), 51);
        commit(&store, put("other", Expect::Absent)).await.unwrap();
        drop(store);
        let commits = commits.lock().unwrap();
        let records: usize = commits.iter().map(|(records, _)| records).sum();
        assert!(commits.len() <= 4 && records <= 6, "{commits:?}");
        assert_eq!(commits.last().unwrap().1, revision + 1, "an orderly end skips no revision");
    }

    #[test]
    fn one_alone_goes_to_the_disk_at_once_and_a_crowd_twice_a_second() {
        let began = Instant::now();
        let key = "/lease".to_owned();
        let mut unsynced = Unsynced::default();
        assert_eq!(unsynced.patience(began), None);
        unsynced.add(vec![Record { key: key.clone(), revision: 1, value: None }]);
        assert_eq!(unsynced.patience(began), Some(Duration::ZERO));
        unsynced.tried = Some(began);
        let after = |elapsed| unsynced.patience(began + elapsed);
        assert_eq!(after(SOON / 5), Some(SOON - SOON / 5));
        assert_eq!(after(SOON * 3), Some(Duration::ZERO));
        unsynced.records.clear();
        assert_eq!(unsynced.patience(began + SOON), None);
    }

    #[tokio::test]
    async fn what_waits_is_on_the_disk_soon() {
        let memory = Memory::default();
        let commits = memory.commits.clone();
        let (store, _) = started(memory);
        let revision = commit(&store, put("lease", Expect::Absent)).await.unwrap();
        store.transact(soon(put("lease", Expect::At(revision)))).await.unwrap();
        assert_eq!(commits.lock().unwrap().len(), 1);
        tokio::time::sleep(SOON * 3).await;
        assert_eq!(commits.lock().unwrap().len(), 2);
    }
}
