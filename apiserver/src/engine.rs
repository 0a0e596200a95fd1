//! The one engine behind every kind: what a request means, and the order in which a write happens.
//!
//! HTTP and in-process callers meet here. The order of a write is that of ARCHITECTURE.md: decode, convert, default
//! (the caller's side), then per attempt patch, strip, mutate, default again, validate, managedFields, compare, commit.

use std::ops::Deref;
use std::sync::{Arc, RwLock};

use api::kind::{Kind, Registry};
use api::status::Status;
use serde_json::Value;
use tokio::sync::watch;

use crate::admission::{Chain, Cluster, Operation, Options, Phase, Review, Settings};
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::definitions::Definitions;
use crate::feed::CacheFeed;
use crate::header::header;
use crate::object::{Encoded, Object, ObjectKey, Revision};
use crate::reader::{Reader, collection};
use crate::store::{CommitError, Committed, Expect, Failure, Opened, StoreError, Transaction, Write};

mod delete;
mod pod_ranges;
mod read;
mod services;
mod subresource;
mod unserved;
mod watching;
mod write;

pub use delete::{Deleted, Removal, deletion_warnings};
pub use read::{List, ListOptions, VersionMatch, check_list, check_watch};
pub use services::{BadRange, Family, ServiceNetwork, ServiceRange};
pub use watching::{Event, EventKind, Watch, WatchOptions};
pub use write::{Change, Draft, Written};

pub use crate::request::{Context, DeleteOptions, Propagation, Target, WriteOptions};

/// An object in the version asked for.
#[derive(Debug)]
pub enum Shown {
    /// Its stored text is what is to be shown.
    Stored(Arc<Object>),
    Value(Value),
}

impl Shown {
    pub fn into_value(self) -> Value {
        match self {
            Shown::Stored(object) => object.value(),
            Shown::Value(value) => value,
        }
    }

    /// The revision of this state; 0 for what was never stored.
    pub fn revision(&self) -> Revision {
        match self {
            Shown::Stored(object) => object.revision,
            Shown::Value(value) => revision_of(value),
        }
    }
}

/// See the module's text.
pub struct Engine {
    reader: Reader,
    /// Whether the store refuses writes for want of space, as the last one showed.
    full: watch::Sender<bool>,
    pub(crate) services: ServiceNetwork,
    settings: Settings,
    admission: Chain,
    pub(crate) authorizer: Authorizer,
    pub(crate) events: Arc<crate::expiry::Counters>,
}

/// Who has the engine reads as everybody else does.
impl Deref for Engine {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Engine {
    /// Loads the store into memory, and lets it go on.
    ///
    /// # Errors
    /// When the store is damaged, or when one of the server's own records cannot be read.
    pub fn open(
        mut store: Opened,
        registry: Registry,
        services: ServiceNetwork,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let cache = Arc::new(Cache::new(store.revision));
        let registry = Arc::new(RwLock::new(registry));
        let definitions = Definitions { registry: registry.clone(), cache: cache.clone() };
        let feed = CacheFeed { cache: cache.clone(), definitions };
        let damaged = |source: StoreError| StoreError::Damaged { path: store.place.clone(), source: source.into() };
        feed.load(std::mem::take(&mut store.records)).map_err(damaged)?;
        let reader = Reader::new(registry, cache, store.start(feed));
        Ok(Self {
            reader,
            full: watch::Sender::new(false),
            services,
            admission: Chain::new(&settings),
            settings,
            authorizer: Authorizer::default(),
            events: Default::default(),
        })
    }

    /// Announces that the store failed.
    pub(crate) fn failure(&self) -> watch::Receiver<Failure> {
        self.store().failure()
    }

    /// Announces when the store begins and ends to refuse writes for want of space.
    pub(crate) fn full(&self) -> watch::Receiver<bool> {
        self.full.subscribe()
    }

    /// What reads as the engine does, and cannot write.
    pub(crate) fn reader(&self) -> Reader {
        self.reader.clone()
    }

    fn cluster(&self) -> Cluster<'_> {
        Cluster { reader: &self.reader, authorizer: &self.authorizer, settings: &self.settings }
    }

    /// Admission of what is acted on or answered, and not stored itself; gives it as it is to be taken, and warnings.
    pub(crate) async fn admit(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        object: Value,
    ) -> Result<(Value, Vec<String>), Status> {
        let mut review = Review::new(Operation::Create, target, context, Options::Write(options));
        review.object = object;
        self.admitted(review).await
    }

    /// Admission of a connection into a pod, a service or a node, by its options; gives warnings.
    pub(crate) async fn admit_connection(
        &self,
        context: &Context,
        target: &Target,
        options: impl FnOnce() -> Value + Send,
    ) -> Result<Vec<String>, Status> {
        let mut review = Review::new(Operation::Connect, target, context, Options::None);
        if !self.admission.concerns(&review) {
            return Ok(Vec::new());
        }
        review.object = options();
        self.admitted(review).await.map(|(_, warnings)| warnings)
    }

    async fn admitted(&self, mut review: Review<'_>) -> Result<(Value, Vec<String>), Status> {
        for phase in [Phase::Mutate, Phase::Validate] {
            self.admission.run(phase, self.cluster(), &mut review).await?;
        }
        let warnings = review.take_warnings();
        Ok((review.object, warnings))
    }

    /// Announces every revision.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.cache().revisions()
    }

    /// The row in whose version objects of this kind are stored.
    pub(crate) fn storage(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.is_storage() { kind.clone() } else { self.registry().storage_of(kind).unwrap_or_else(|| kind.clone()) }
    }

    /// A stored object as the requested kind shows it.
    pub fn show(&self, kind: &Arc<Kind>, object: &Object) -> Value {
        let value = object.value();
        if kind.is_storage() { value } else { api::convert::convert(&self.storage(kind), kind, value) }
    }

    /// The same for an answer, which may not need it as a tree.
    pub(crate) fn shown(&self, kind: &Arc<Kind>, object: Arc<Object>) -> Shown {
        if kind.is_storage() { Shown::Stored(object) } else { Shown::Value(self.show(kind, &object)) }
    }

    pub(crate) fn write(&self, kind: &Kind, expect: Expect, object: &Value) -> Write {
        let metadata = &object["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default();
        let key = ObjectKey::new(text("namespace"), text("name"));
        let collection = collection(kind);
        let lifetime = crate::expiry::lifetime(&collection);
        Write { lifetime, ..Write::put(collection, key, expect, Encoded::new(object), header(kind, object)) }
    }

    /// Commits what begins with a put; gives that object.
    pub(crate) async fn commit(&self, transaction: impl Into<Transaction>) -> Result<Arc<Object>, CommitError> {
        let mut committed = self.transact(transaction.into()).await?;
        Ok(committed
            .objects
            .swap_remove(0)
            .expect("the first write of every transaction is a put: deletions go through `remove`"))
    }

    /// Removes; gives the revision at which that happened.
    pub(crate) async fn remove(&self, transaction: impl Into<Transaction>) -> Result<Revision, CommitError> {
        Ok(self.transact(transaction.into()).await?.revision)
    }

    async fn transact(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        let outcome = self.store().transact(transaction).await;
        let full = match &outcome {
            Ok(_) => false,
            Err(CommitError::Store(error)) if error.is_refusal() => true,
            // Says nothing about space.
            Err(_) => return outcome,
        };
        self.full.send_if_modified(|known| std::mem::replace(known, full) != full);
        outcome
    }
}

/// What an object says of its revision; 0 when it says nothing.
pub(crate) fn revision_of(object: &Value) -> Revision {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) fn deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{MASTERS, User};
    use crate::server::Config;
    use crate::store::redb::RedbStore;
    use crate::store::{Record, local, seal, tools};
    use jiff::Timestamp;
    use serde_json::json;

    fn put(key: &str, revision: Revision, text: &str) -> Record {
        Record { key: key.into(), revision, value: Some(seal(key, revision, text.as_bytes())) }
    }

    /// As an earlier release accepted it: deeper than anything reads.
    fn deep() -> String {
        format!(r#"{{"metadata":{{"name":"deep","x":{}{}}}}}"#, "[".repeat(200), "]".repeat(200))
    }

    fn filled(path: &std::path::Path, keys: &str) {
        let mut store = RedbStore::open(path).unwrap();
        let fine = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"fine","namespace":"n","uid":"u"}}"#;
        let records = [
            put("/amphipod/core/configmaps/n/fine", 1, fine),
            put("/amphipod/core/configmaps/n/deep", 2, &deep()),
            put("/elsewhere", 3, fine),
            put(keys, 4, r#"{"metadata":{"name":"n"}}"#),
        ];
        store.put(&records).unwrap();
    }

    fn open(path: &std::path::Path) -> Result<Engine, StoreError> {
        let config = Config::on_loopback(path.into());
        Engine::open(local::open(path).unwrap(), Registry::builtin(), config.services, config.admission)
    }

    #[tokio::test]
    async fn an_unreadable_object_is_set_aside_and_the_others_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        filled(&path, "/amphipod/core/namespaces/-/n");
        let engine = open(&path).unwrap();
        assert_eq!(engine.cache().unreadable(), 1);
        let kind = engine.registry().find("", "v1", "configmaps").unwrap();
        let target = |name: &str| Target::new(kind.clone(), "n", name);
        assert!(engine.get(&target("fine"), None).await.is_ok());
        assert_eq!(engine.get(&target("deep"), None).await.unwrap_err().code, 500);
        let context = Context { user: User::new("root", &[MASTERS]), now: Timestamp::now() };
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "deep"}});
        let (all, options) = (target(""), WriteOptions { manager: "t".into(), dry_run: false });
        let create = |object| engine.create(&context, &all, &options, object);
        let taken = create(object.clone()).await.unwrap_err();
        assert!(taken.message.contains("cannot be read"), "{taken}");
        assert_eq!(engine.delete(&context, &target("deep"), &DeleteOptions::default()).await.unwrap_err().code, 500);
        let options = DeleteOptions { unreadable: true, ..DeleteOptions::default() };
        engine.delete(&context, &target("deep"), &options).await.unwrap();
        create(object).await.unwrap();
        assert_eq!(engine.cache().unreadable(), 0);
    }

    #[tokio::test]
    async fn what_was_stored_before_a_default_is_shown_with_it_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
        let selector = json!({"matchLabels": {"a": "b"}});
        let object = |kind: &str| {
            json!({"kind": kind, "apiVersion": "apps/v1", "metadata": {"name": "web", "namespace": "n", "uid": kind},
                "spec": {"selector": selector, "template": template}})
        };
        let before = |key: &str, revision, text: String| Record {
            key: key.into(),
            revision,
            value: Some([b"\x01", text.as_bytes()].concat()),
        };
        let mut store = RedbStore::open(&path).unwrap();
        let records = [
            put("/amphipod/core/namespaces/-/n", 1, r#"{"metadata":{"name":"n"}}"#),
            before("/amphipod/apps/deployments/n/web", 2, object("Deployment").to_string()),
            before("/amphipod/apps/replicasets/n/web", 3, object("ReplicaSet").to_string()),
        ];
        store.put(&records).unwrap();
        drop(store);
        let engine = open(&path).unwrap();
        let target = |plural: &str| Target::new(engine.registry().find("apps", "v1", plural).unwrap(), "n", "web");
        let (deployments, sets) = (target("deployments"), target("replicasets"));
        let shown = engine.get(&deployments, None).await.unwrap();
        let value = engine.show(&deployments.kind, &shown);
        assert_eq!((&value["spec"]["replicas"], shown.revision), (&json!(1), 2));
        let pod = &value["spec"]["template"]["spec"];
        assert_eq!(
            (&pod["restartPolicy"], &pod["containers"][0]["imagePullPolicy"]),
            (&json!("Always"), &json!("IfNotPresent"))
        );
        // The template is the one of its set as before, so nothing rolls.
        let set = engine.get(&sets, None).await.unwrap().value();
        assert_eq!(set["spec"]["template"], value["spec"]["template"]);
        assert_eq!(engine.all(&deployments.kind, "")[0].value(), value);
        // Who changes nothing writes nothing, and a patch builds on what is shown.
        let context = Context { user: User::new("root", &[MASTERS]), now: Timestamp::now() };
        let options = WriteOptions { manager: "t".into(), dry_run: false };
        let same = |current: Option<&Value>| Ok(Draft::Own(current.cloned().unwrap()));
        let written = engine.update(&context, &deployments, &options, &same).await.unwrap();
        assert_eq!((written.object.revision(), engine.revision()), (2, 3));
    }

    #[test]
    fn a_check_reads_as_the_server_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        filled(&path, "/amphipod/core/namespaces/-/n");
        let report = tools::check(&path).unwrap();
        let named: Vec<&str> = report.unreadable.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(named, ["/amphipod/core/configmaps/n/deep", "/elsewhere"]);
        assert_eq!(report.objects["configmaps"], 1);
    }

    #[test]
    fn a_server_does_not_start_without_its_own_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        filled(&path, "/amphipod/internal/keys/-/a");
        RedbStore::open(&path).unwrap().put(&[put("/amphipod/internal/keys/-/a", 5, "[]")]).unwrap();
        assert!(matches!(open(&path), Err(StoreError::Damaged { .. })));
    }
}
