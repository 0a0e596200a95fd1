//! What every store is held to: the same tests over each of them.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{
    Change, CommitError, Content, Durability, Expect, Feed, Opened, Store, StoreError, Transaction, Write, parse_key,
    unseal,
};
use crate::object::{Collection, Encoded, Header, ObjectKey, Revision};

/// A place where a store can be opened again and again.
#[async_trait::async_trait]
pub trait Ground: Send + Sync {
    async fn open(&self) -> Result<Opened, StoreError>;
}

/// A transaction: its revision, and the names that it put (true) and removed.
type Told = (Revision, Vec<(String, bool)>);

/// What a feed was given.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Told>>>);

impl Heard {
    pub fn all(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }

    pub fn revisions(&self) -> Vec<Revision> {
        self.all().iter().map(|(revision, _)| *revision).collect()
    }
}

impl Feed for Heard {
    fn committed(&mut self, revision: Revision, changes: Vec<Change>) {
        let names =
            changes.iter().map(|change| (change.key.name().to_owned(), !matches!(change.content, Content::Removed)));
        self.0.lock().unwrap().push((revision, names.collect()));
    }

    fn reached(&mut self, _: Revision) {}
}

pub fn put(name: &str, expect: Expect) -> Write {
    let encoded = Encoded::new(&json!({"metadata": {"name": name}}));
    Write::put(Collection::new("", "pods"), ObjectKey::new("ns", name), expect, encoded, Header::default())
}

pub fn remove(name: &str, revision: Revision) -> Write {
    Write { content: None, ..put(name, Expect::At(revision)) }
}

/// One put on its own; its revision.
pub async fn commit(store: &Arc<dyn Store>, write: Write) -> Result<Revision, CommitError> {
    store.transact(vec![write].into()).await.map(|committed| committed.revision)
}

async fn started(ground: &dyn Ground) -> (Arc<dyn Store>, Heard) {
    let heard = Heard::default();
    (ground.open().await.unwrap().start(heard.clone()), heard)
}

/// Runs all of the suite, each part on ground of its own.
pub async fn hold<G: Ground>(fresh: impl AsyncFn() -> G) {
    of_writers_at_one_revision_one_wins(&fresh().await).await;
    a_transaction_is_whole_or_nothing(&fresh().await).await;
    what_is_required_must_be_there(&fresh().await).await;
    the_feed_hears_all_in_order_and_before_the_caller(&fresh().await).await;
    a_reopened_store_goes_on_where_it_was(&fresh().await).await;
}

async fn of_writers_at_one_revision_one_wins(ground: &dyn Ground) {
    let (store, heard) = started(ground).await;
    let first = commit(&store, put("a", Expect::Absent)).await.unwrap();
    let both = futures::future::join_all((0..8).map(|_| commit(&store, put("a", Expect::At(first))))).await;
    let won: Vec<Revision> = both.iter().filter_map(|outcome| outcome.as_ref().ok().copied()).collect();
    assert_eq!(won.len(), 1);
    for lost in both.into_iter().filter_map(Result::err) {
        let CommitError::Conflict { found, .. } = lost else { panic!("{lost}") };
        assert_eq!(found, Some(won[0]), "the loser is told what is there");
    }
    assert_eq!(heard.revisions(), [first, won[0]]);
    let outcome = commit(&store, put("a", Expect::Absent)).await;
    assert!(matches!(outcome, Err(CommitError::Conflict { found: Some(_), .. })));
}

async fn a_transaction_is_whole_or_nothing(ground: &dyn Ground) {
    let (store, heard) = started(ground).await;
    let a = commit(&store, put("a", Expect::Absent)).await.unwrap();
    let writes = vec![put("b", Expect::Absent), put("a", Expect::Absent)];
    assert!(matches!(store.transact(writes.into()).await, Err(CommitError::Conflict { .. })));
    let writes = vec![put("b", Expect::Absent), put("c", Expect::Absent), remove("a", a)];
    let committed = store.transact(writes.into()).await.unwrap();
    assert!(committed.revision > a);
    let revisions: Vec<_> =
        committed.objects.iter().map(|object| object.as_ref().map(|object| object.revision)).collect();
    assert_eq!(revisions, [Some(committed.revision), Some(committed.revision), None]);
    let (revision, mut changes) = heard.all().pop().unwrap();
    changes.sort();
    let named = |name: &str, there| (name.to_owned(), there);
    assert_eq!((revision, changes), (committed.revision, vec![named("a", false), named("b", true), named("c", true)]));
    assert!(matches!(commit(&store, remove("a", a)).await, Err(CommitError::Conflict { found: None, .. })));
}

async fn what_is_required_must_be_there(ground: &dyn Ground) {
    let (store, heard) = started(ground).await;
    let home = Write {
        collection: Collection::new("", "namespaces"),
        key: ObjectKey::new("", "ns"),
        ..put("ns", Expect::Absent)
    };
    let inside = |name: &str| Transaction {
        writes: vec![put(name, Expect::Absent)],
        requires: vec![(home.collection.clone(), home.key.clone())],
        durability: Durability::Synced,
    };
    assert!(matches!(store.transact(inside("a")).await, Err(CommitError::Missing { key, .. }) if key.name() == "ns"));
    let revision = commit(&store, home.clone()).await.unwrap();
    store.transact(inside("a")).await.unwrap();
    // At once, so that the second may be looked at before the first is known to all.
    let gone = commit(&store, Write { content: None, expect: Expect::At(revision), ..home.clone() });
    let (gone, late) = tokio::join!(gone, store.transact(inside("b")));
    assert!(gone.is_ok());
    let names: Vec<String> = heard.all().into_iter().flat_map(|(_, changes)| changes).map(|(name, _)| name).collect();
    match late {
        Err(CommitError::Missing { .. }) => assert_eq!(names, ["ns", "a", "ns"]),
        Ok(_) => assert_eq!(names, ["ns", "a", "b", "ns"], "it came first"),
        Err(other) => panic!("{other}"),
    }
}

async fn the_feed_hears_all_in_order_and_before_the_caller(ground: &dyn Ground) {
    let (store, heard) = started(ground).await;
    let writers = (0..16).map(|writer| {
        let (store, heard) = (store.clone(), heard.clone());
        tokio::spawn(async move {
            let mut expect = Expect::Absent;
            for round in 0..12 {
                let write = put(&format!("w{writer}"), expect);
                let durability = if (writer + round) % 3 == 0 { Durability::Soon } else { Durability::Synced };
                let transaction = Transaction { writes: vec![write], durability, ..Transaction::default() };
                let revision = store.transact(transaction).await.unwrap().revision;
                assert!(heard.revisions().contains(&revision), "the caller was told first");
                expect = Expect::At(revision);
            }
        })
    });
    futures::future::join_all(writers).await.into_iter().for_each(|outcome| outcome.unwrap());
    let revisions = heard.revisions();
    assert_eq!(revisions.len(), 16 * 12);
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
}

async fn a_reopened_store_goes_on_where_it_was(ground: &dyn Ground) {
    let (store, _) = started(ground).await;
    let a = commit(&store, put("a", Expect::Absent)).await.unwrap();
    let b = commit(&store, put("b", Expect::Absent)).await.unwrap();
    let last = commit(&store, remove("a", a)).await.unwrap();
    drop(store);
    let opened = ground.open().await.unwrap();
    assert!(opened.revision >= last);
    let [record] = &opened.records[..] else { panic!("{:?}", opened.records) };
    let (collection, key) = parse_key(&record.key).unwrap();
    assert_eq!((&*collection.plural, key.as_str(), record.revision), ("pods", "ns/b", b));
    let text = unseal(&record.key, b, record.value.clone().unwrap()).unwrap().text;
    assert_eq!(text, Encoded::new(&json!({"metadata": {"name": "b"}})).stored());
    let opened_at = opened.revision;
    let heard = Heard::default();
    let store = opened.start(heard.clone());
    let next = commit(&store, put("b", Expect::At(b))).await.unwrap();
    assert!(next > opened_at);
    assert_eq!(heard.revisions(), [next], "what was read is not told again");
}
