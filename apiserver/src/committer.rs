//! The one writer: checks compare-and-swap, commits groups of transactions at once, publishes in order.
//!
//! A transaction is acknowledged only after its batch is durable; readers see it no earlier than its caller could.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::cache::Cache;
use crate::object::{Collection, Encoded, Header, Object, ObjectKey, Revision};
use crate::store::{Record, Store, StoreError, seal, store_key};

/// Transactions in one batch: bounds the latency a late comer adds to the first.
const BATCH: usize = 512;

/// What must be true of a key for its transaction to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The same, and its namespace is there: it may have gone since the request looked.
    AbsentInNamespace,
    At(Revision),
    /// What the write before this one in the same transaction left.
    Preceding,
    /// Stored, and not to be read: such an object can only be removed.
    Unreadable,
}

#[derive(Debug, Clone)]
pub struct Write {
    pub collection: Collection,
    pub key: ObjectKey,
    pub expect: Expect,
    /// `None` removes the key.
    pub content: Option<(Encoded, Header)>,
}

#[derive(Debug, Error)]
pub enum CommitError {
    /// `key` was not as expected; `found` is its revision now.
    #[error("{key:?} of {collection:?} changed meanwhile")]
    Conflict { collection: Collection, key: ObjectKey, found: Option<Revision> },
    #[error("the namespace {0} is gone")]
    NoNamespace(String),
    #[error("{key:?} of {collection:?} is stored, but cannot be read")]
    Unreadable { collection: Collection, key: ObjectKey },
    /// The batch was refused, and the store is as it was; or it failed, and nothing will be acknowledged any more.
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("the server is shutting down")]
    Closed,
}

/// The objects of a committed transaction, in the order of its writes; `None` for removed keys.
pub type Committed = (Revision, Vec<Option<Arc<Object>>>);

struct Transaction {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<Committed, CommitError>>,
}

impl Transaction {
    fn refuse(self, error: &Arc<StoreError>) {
        // The caller may have gone.
        let _gone = self.reply.send(Err(CommitError::Store(error.clone())));
    }
}

/// Why the writer acknowledges nothing any more; `None` as long as it does.
pub type Failure = Option<Arc<StoreError>>;

/// A handle to the writer; clones share it.
#[derive(Clone)]
pub struct Committer {
    queue: SyncSender<Transaction>,
    failure: watch::Receiver<Failure>,
}

impl Committer {
    /// Starts the writer thread. It ends when the last handle is dropped.
    pub fn start(store: impl Store, cache: Arc<Cache>, last: Revision) -> Self {
        let (queue, incoming) = sync_channel(4096);
        let (failed, failure) = watch::channel(None);
        let writer = Writer { store, cache, last, failed };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&incoming))
            .expect("a thread at start: without it nothing can be written");
        Self { queue, failure }
    }

    /// Announces that the store failed: the process cannot go on and has to say why.
    pub fn failure(&self) -> watch::Receiver<Failure> {
        self.failure.clone()
    }

    /// All of the writes or none of them.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Committed, CommitError> {
        let (reply, answer) = oneshot::channel();
        let mut transaction = Transaction { writes, reply };
        loop {
            match self.queue.try_send(transaction) {
                Ok(()) => break,
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return Err(CommitError::Closed),
                Err(std::sync::mpsc::TrySendError::Full(back)) => {
                    transaction = back;
                    tokio::task::yield_now().await;
                }
            }
        }
        answer.await.map_err(|_| CommitError::Closed)?
    }
}

struct Writer<S> {
    store: S,
    cache: Arc<Cache>,
    last: Revision,
    failed: watch::Sender<Failure>,
}

/// A transaction that passed its checks, with the revision of each write.
struct Accepted {
    transaction: Transaction,
    first: Revision,
}

impl<S: Store> Writer<S> {
    fn run(mut self, incoming: &Receiver<Transaction>) {
        while let Ok(first) = incoming.recv() {
            let mut batch = vec![first];
            batch.extend(incoming.try_iter().take(BATCH - 1));
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Transaction>) {
        // Nobody knows what the disk holds, so nothing is promised on top of it.
        let failed = self.failed.borrow().clone();
        if let Some(failure) = failed {
            return batch.into_iter().for_each(|transaction| transaction.refuse(&failure));
        }
        let mut pending = HashMap::new();
        let mut accepted = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        for transaction in batch {
            match self.check(&transaction.writes, &pending) {
                Err(conflict) => drop(transaction.reply.send(Err(conflict))),
                Ok(()) => {
                    let first = self.last + 1;
                    for write in &transaction.writes {
                        self.last += 1;
                        let revision = write.content.as_ref().map(|_| self.last);
                        pending.insert((write.collection.clone(), write.key.clone()), revision);
                        records.push(record(write, self.last));
                    }
                    accepted.push(Accepted { transaction, first });
                }
            }
        }
        if records.is_empty() {
            return;
        }
        match self.store.commit(&records) {
            Ok(()) => accepted.into_iter().for_each(|accepted| self.publish(accepted)),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "store commit failed");
                let error = Arc::new(error);
                if !error.is_refusal() {
                    self.failed.send_replace(Some(error.clone()));
                }
                accepted.into_iter().for_each(|accepted| accepted.transaction.refuse(&error));
            }
        }
    }

    /// Holds each write's expectation against the batch so far, then against the cache.
    fn check(
        &self,
        writes: &[Write],
        pending: &HashMap<(Collection, ObjectKey), Option<Revision>>,
    ) -> Result<(), CommitError> {
        for write in writes {
            let place = (write.collection.clone(), write.key.clone());
            let found = match pending.get(&place) {
                Some(revision) => *revision,
                None => self.cache.collection(&write.collection).get(&write.key).map(|object| object.revision),
            };
            let aside = self.cache.is_set_aside(&write.collection, &write.key);
            let holds = match write.expect {
                Expect::Absent | Expect::AbsentInNamespace if aside => {
                    return Err(CommitError::Unreadable { collection: place.0, key: place.1 });
                }
                Expect::AbsentInNamespace if !self.has_namespace(write.key.namespace(), pending) => {
                    return Err(CommitError::NoNamespace(write.key.namespace().to_owned()));
                }
                Expect::Absent | Expect::AbsentInNamespace => found.is_none(),
                Expect::At(revision) => found == Some(revision),
                // Looked at by the write before.
                Expect::Preceding => true,
                Expect::Unreadable => aside && write.content.is_none(),
            };
            if !holds {
                return Err(CommitError::Conflict { collection: place.0, key: place.1, found });
            }
        }
        Ok(())
    }

    fn has_namespace(&self, name: &str, pending: &HashMap<(Collection, ObjectKey), Option<Revision>>) -> bool {
        let place = (Collection::new("", "namespaces"), ObjectKey::new("", name));
        match pending.get(&place) {
            Some(revision) => revision.is_some(),
            None => self.cache.collection(&place.0).get(&place.1).is_some(),
        }
    }

    fn publish(&self, accepted: Accepted) {
        let Accepted { transaction: Transaction { writes, reply }, first } = accepted;
        let mut objects = Vec::with_capacity(writes.len());
        let mut revision = first;
        for write in writes {
            let object = write.content.map(|(encoded, header)| {
                Arc::new(Object { key: write.key.clone(), revision, header, json: encoded.with_version(revision) })
            });
            self.cache.apply(&write.collection, &write.key, revision, object.clone());
            objects.push(object);
            revision += 1;
        }
        // The caller may have gone; the write stands all the same.
        let _gone = reply.send(Ok((revision - 1, objects)));
    }
}

fn record(write: &Write, revision: Revision) -> Record {
    let key = store_key(&write.collection, &write.key);
    let value = write.content.as_ref().map(|(encoded, _)| seal(&key, revision, encoded.stored()));
    Record { key, revision, value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Counts batches; refuses or fails the one that ends with a revision.
    #[derive(Default)]
    struct Memory {
        batches: Arc<std::sync::Mutex<Vec<usize>>>,
        refuse: Revision,
        fail: Revision,
    }

    impl Store for Memory {
        fn load(&mut self) -> Result<(Revision, Vec<Record>), StoreError> {
            Ok((0, Vec::new()))
        }

        fn commit(&mut self, batch: &[Record]) -> Result<(), StoreError> {
            match batch.iter().map(|record| record.revision).max() {
                Some(last) if last == self.refuse => return Err(StoreError::Full { path: self.place() }),
                Some(last) if last == self.fail => {
                    return Err(StoreError::Commit { revision: last, source: "an I/O error".into() });
                }
                _ => {}
            }
            self.batches.lock().unwrap().push(batch.len());
            Ok(())
        }

        fn place(&self) -> std::path::PathBuf {
            "memory".into()
        }
    }

    fn write(name: &str, expect: Expect) -> Vec<Write> {
        let content = Some((Encoded::new(&json!({"metadata": {"name": name}})), Header::default()));
        vec![Write { collection: Collection::new("", "pods"), key: ObjectKey::new("ns", name), expect, content }]
    }

    fn committer(store: Memory) -> (Committer, Arc<Cache>) {
        let cache = Arc::new(Cache::new(0));
        (Committer::start(store, cache.clone(), 0), cache)
    }

    #[tokio::test]
    async fn of_two_writers_at_one_revision_one_wins() {
        let (committer, cache) = committer(Memory::default());
        let (first, _) = committer.commit(write("a", Expect::Absent)).await.unwrap();
        let both = futures::future::join_all((0..8).map(|_| committer.commit(write("a", Expect::At(first))))).await;
        assert_eq!(both.iter().filter(|result| result.is_ok()).count(), 1);
        assert_eq!(cache.collection(&Collection::new("", "pods")).len(), 1);
    }

    #[tokio::test]
    async fn a_refused_commit_is_neither_acknowledged_nor_seen() {
        let (committer, cache) = committer(Memory { refuse: 2, ..Memory::default() });
        committer.commit(write("a", Expect::Absent)).await.unwrap();
        assert!(matches!(committer.commit(write("b", Expect::Absent)).await, Err(CommitError::Store(_))));
        assert_eq!((cache.collection(&Collection::new("", "pods")).len(), cache.revision()), (1, 1));
        assert_eq!(committer.commit(write("b", Expect::Absent)).await.unwrap().0, 3);
    }

    #[tokio::test]
    async fn after_a_failed_commit_nothing_is_acknowledged() {
        let (committer, cache) = committer(Memory { fail: 2, ..Memory::default() });
        committer.commit(write("a", Expect::Absent)).await.unwrap();
        for _ in 0..2 {
            let outcome = committer.commit(write("b", Expect::Absent)).await;
            assert!(matches!(outcome, Err(CommitError::Store(error)) if !error.is_refusal()));
        }
        assert_eq!((cache.collection(&Collection::new("", "pods")).len(), cache.revision()), (1, 1));
        assert!(committer.failure().borrow().is_some());
    }

    #[tokio::test]
    async fn nothing_is_created_in_a_namespace_that_went_meanwhile() {
        let (committer, cache) = committer(Memory::default());
        let namespace = |content, expect| {
            let (collection, key) = (Collection::new("", "namespaces"), ObjectKey::new("", "ns"));
            vec![Write { collection, key, expect, content }]
        };
        let made = namespace(write("ns", Expect::Absent).remove(0).content, Expect::Absent);
        let (revision, _) = committer.commit(made).await.unwrap();
        committer.commit(write("a", Expect::AbsentInNamespace)).await.unwrap();
        // In one batch, so that neither is published when the other is looked at.
        let gone = committer.commit(namespace(None, Expect::At(revision)));
        let (gone, late) = tokio::join!(gone, committer.commit(write("b", Expect::AbsentInNamespace)));
        assert!(gone.is_ok() && matches!(late, Err(CommitError::NoNamespace(name)) if name == "ns"));
        assert_eq!(cache.collection(&Collection::new("", "pods")).len(), 1);
    }

    #[tokio::test]
    async fn a_last_state_is_seen_before_its_object_goes() {
        let (committer, cache) = committer(Memory::default());
        let (first, _) = committer.commit(write("a", Expect::Absent)).await.unwrap();
        let mut writes = write("a", Expect::At(first));
        writes.push(Write { content: None, expect: Expect::Preceding, ..writes[0].clone() });
        committer.commit(writes).await.unwrap();
        let pods = cache.collection(&Collection::new("", "pods"));
        let kinds: Vec<_> = pods.since(first).unwrap().iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [crate::cache::ChangeKind::Modified, crate::cache::ChangeKind::Deleted]);
    }

    #[tokio::test]
    async fn a_transaction_is_all_or_nothing() {
        let (committer, cache) = committer(Memory::default());
        committer.commit(write("a", Expect::Absent)).await.unwrap();
        let mut writes = write("b", Expect::Absent);
        writes.extend(write("a", Expect::Absent));
        assert!(matches!(committer.commit(writes).await, Err(CommitError::Conflict { .. })));
        assert_eq!(cache.collection(&Collection::new("", "pods")).len(), 1);
    }
}
