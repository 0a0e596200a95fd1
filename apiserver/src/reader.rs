//! What is stored, for all that decides by it: lookups in memory, and the certainty that nothing committed is missing.
//!
//! The engine writes through the same parts. Who only reads is given this, and cannot write.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::kind::{Kind, Registry};
use api::status::{Cause, Status};

use crate::cache::{Cache, CollectionCache};
use crate::object::{Collection, Object, ObjectKey, Revision};
use crate::request::Target;
use crate::store::{CommitError, Store};

/// How long a read waits for a revision that is not here yet.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module's text.
#[derive(Clone)]
pub struct Reader {
    registry: Arc<RwLock<Registry>>,
    cache: Arc<Cache>,
    store: Arc<dyn Store>,
}

impl Reader {
    pub(crate) fn new(registry: Arc<RwLock<Registry>>, cache: Arc<Cache>, store: Arc<dyn Store>) -> Self {
        Self { registry, cache, store }
    }

    pub fn registry(&self) -> Registry {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The revision that readers have reached.
    pub fn revision(&self) -> Revision {
        self.cache.revision()
    }

    /// The stored objects of a kind, for readers that look at every kind.
    pub fn all(&self, kind: &Kind, namespace: &str) -> Vec<Arc<Object>> {
        self.objects(kind).list(namespace).objects
    }

    pub(crate) fn objects(&self, kind: &Kind) -> Arc<CollectionCache> {
        self.cache.collection(&collection(kind))
    }

    /// The objects of a built-in kind by the name of their collection.
    pub(crate) fn listed(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Object>> {
        self.cache.collection(&Collection::new(group, plural)).list(namespace).objects
    }

    /// An object of a built-in kind by its collection: how admission and authorisation look things up.
    pub(crate) fn lookup(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache.collection(&Collection::new(group, plural)).get(&ObjectKey::new(namespace, name))
    }

    /// The revision of what is stored under this name and cannot be read.
    pub(crate) fn set_aside(&self, target: &Target) -> Option<Revision> {
        self.cache.set_aside_at(&collection(&target.kind), &target.key())
    }

    pub(crate) fn find(&self, target: &Target) -> Result<Arc<Object>, Status> {
        self.objects(&target.kind).get(&target.key()).ok_or_else(|| match self.set_aside(target).is_some() {
            true => unreadable(&target.key()),
            false => target.not_found(),
        })
    }

    /// Makes sure that what is not seen is not there: another server may just have written it.
    pub(crate) async fn look(&self, collection: &Collection, key: &ObjectKey) -> Result<(), Status> {
        if self.cache.collection(collection).get(key).is_some() { Ok(()) } else { self.wait_for(None).await }
    }

    /// Waits until the cache has this revision (one that never comes is the client's mistake); without one, everything that was
    /// committed before now. Who says 0 takes what is there.
    pub(crate) async fn wait_for(&self, version: Option<Revision>) -> Result<(), Status> {
        let Some(version) = version else {
            return self.store.fresh().await.map_err(|error| commit_failed(&error));
        };
        if version <= self.cache.revision() {
            return Ok(());
        }
        let mut revisions = self.cache.revisions();
        let reached = tokio::time::timeout(PATIENCE, revisions.wait_for(|now| *now >= version)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(too_large(version, self.cache.revision())),
        }
    }
}

pub(crate) fn collection(kind: &Kind) -> Collection {
    Collection::new(&kind.storage.group, &kind.storage.plural)
}

pub(crate) fn too_large(version: Revision, current: Revision) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {version}, current: {current}"), 1);
    if let Some(details) = &mut status.details {
        let reason = "ResourceVersionTooLarge".into();
        details.causes = vec![Cause { reason, message: "Too large resource version".into(), field: String::new() }];
    }
    status
}

/// A failed commit as a client sees it; conflicts are the caller's to retry or to word.
pub(crate) fn commit_failed(error: &CommitError) -> Status {
    match error {
        CommitError::Missing { collection, key } => {
            Status::not_found(&collection.group, &collection.plural, key.name())
        }
        CommitError::Conflict { key, .. } => Status::internal(format!("{key:?} changed during the write")),
        CommitError::Store(source) if source.is_refusal() => Status::insufficient_storage(source.to_string()),
        CommitError::Store(source) if source.is_outage() => Status::internal(source.to_string()),
        CommitError::Store(source) => Status::internal(format!("the store failed, and the server stops: {source}")),
        CommitError::Closed => Status::service_unavailable("the server is shutting down"),
    }
}

/// What stands in the way of everything but an unsafe deletion.
pub(crate) fn unreadable(key: &ObjectKey) -> Status {
    Status::internal(format!(
        "the stored object {key:?} cannot be read; delete it with ignoreStoreReadErrorWithClusterBreakingPotential to free its name"
    ))
}
