//! The watch cache: the current state of every collection and a bounded history of its changes, all in memory.
//!
//! Fed by the store alone, in revision order. A list is a snapshot at a revision; a watch reads the history with a
//! cursor of its own, so a slow watcher costs nothing and learns by [`Expired`] that it fell behind.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::object::{Collection, Object, ObjectKey, Revision};

/// Changes younger than this are kept, as long as [`budget`] allows.
const HISTORY_AGE: Duration = Duration::from_secs(300);
/// The least that all collections' history together may take, bytes as [`size`] counts them.
const HISTORY_BYTES: usize = 32 << 20;
/// What the history may take of what the objects take: a large cluster has more to tell.
const HISTORY_SHARE: usize = 10;
/// Changes that grow too old within this go at once.
const TOGETHER: Duration = Duration::from_secs(10);
/// What an object takes beside its text.
const BESIDE: usize = 512;

/// Bound of all collections' history, beside objects of so many bytes.
fn budget(objects: usize) -> usize {
    HISTORY_BYTES.max(objects / HISTORY_SHARE)
}

/// Bytes that an object keeps in memory.
fn size(object: &Object) -> usize {
    object.json.len() + BESIDE
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One change of one object, in history.
#[derive(Debug)]
pub struct Change {
    pub kind: ChangeKind,
    /// The object after the change; for a deletion its last state at the deletion's revision.
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
}

impl Change {
    pub fn revision(&self) -> Revision {
        self.object.revision
    }
}

/// The asked-for revision is older than the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// The oldest revision that still works.
    pub oldest: Revision,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    history: VecDeque<Arc<Change>>,
    /// The last revision dropped from history: a watch may start here or later.
    floor: Revision,
    last: Revision,
}

/// One collection.
#[derive(Debug)]
pub struct CollectionCache {
    state: RwLock<State>,
    /// Announces the last revision that changed this collection.
    changed: watch::Sender<Revision>,
    global: Arc<AtomicU64>,
    /// Another stands in its place: its kind was defined anew.
    replaced: AtomicBool,
}

/// A consistent view: every change up to `revision` and none after.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub revision: Revision,
    pub objects: Vec<Arc<Object>>,
}

impl CollectionCache {
    fn new(global: Arc<AtomicU64>, floor: Revision) -> Self {
        let state = State { floor, ..State::default() };
        Self { state: RwLock::new(state), changed: watch::channel(0).0, global, replaced: AtomicBool::new(false) }
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The revision a reader holding the lock sees: nothing of this collection up to it is missing.
    fn revision(&self, state: &State) -> Revision {
        state.last.max(self.global.load(Ordering::Acquire))
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.read(|state| state.objects.get(key).cloned())
    }

    pub fn len(&self) -> usize {
        self.read(|state| state.objects.len())
    }

    /// The objects of a namespace (all when empty), in key order.
    pub fn list(&self, namespace: &str) -> Snapshot {
        self.read(|state| Snapshot {
            revision: self.revision(state),
            objects: range(state, namespace).map(|(_, object)| object.clone()).collect(),
        })
    }

    /// The objects as they were at `revision`, rebuilt from now by undoing the later changes.
    pub fn list_at(&self, namespace: &str, revision: Revision) -> Result<Snapshot, Expired> {
        self.read(|state| {
            if revision < state.floor {
                return Err(Expired { oldest: state.floor });
            }
            let mut then: BTreeMap<&ObjectKey, Arc<Object>> =
                range(state, namespace).map(|(k, o)| (k, o.clone())).collect();
            for change in state.history.iter().rev().take_while(|change| change.revision() > revision) {
                let key = &change.object.key;
                if !namespace.is_empty() && key.namespace() != namespace {
                    continue;
                }
                match &change.previous {
                    Some(previous) => then.insert(key, previous.clone()),
                    None => then.remove(key),
                };
            }
            Ok(Snapshot { revision, objects: then.into_values().collect() })
        })
    }

    /// The changes after `cursor`, oldest first.
    pub fn since(&self, cursor: Revision) -> Result<Vec<Arc<Change>>, Expired> {
        self.read(|state| {
            if cursor < state.floor {
                return Err(Expired { oldest: state.floor });
            }
            let from = state.history.partition_point(|change| change.revision() <= cursor);
            Ok(state.history.range(from..).cloned().collect())
        })
    }

    /// Wakes at each change of this collection.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// Nothing comes any more: whoever looks has to begin anew.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// The revision up to which this collection is known to be complete.
    pub fn current(&self) -> Revision {
        self.read(|state| self.revision(state))
    }

    /// Takes an object that has no history; gives its size.
    fn put_loaded(&self, object: Arc<Object>) -> usize {
        let size = size(&object);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.last = state.last.max(object.revision);
        state.objects.insert(object.key.clone(), object);
        size
    }

    /// Drops the oldest change.
    fn forget(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(oldest) = state.history.pop_front() {
            state.floor = oldest.revision();
        }
        // A burst leaves room for its like; a quiet collection needs none.
        if state.history.is_empty() {
            state.history = VecDeque::new();
        }
    }

    /// Takes one committed change; a deletion of an absent key leaves no trace.
    fn apply(&self, key: &ObjectKey, revision: Revision, object: Option<Arc<Object>>) -> Option<Arc<Change>> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let previous = state.objects.get(key).cloned();
        let (kind, object) = match (object, &previous) {
            (Some(object), None) => (ChangeKind::Added, object),
            (Some(object), Some(_)) => (ChangeKind::Modified, object),
            (None, Some(previous)) => (ChangeKind::Deleted, Arc::new(previous.at(revision))),
            (None, None) => return None,
        };
        match kind {
            ChangeKind::Deleted => state.objects.remove(key),
            _ => state.objects.insert(key.clone(), object.clone()),
        };
        let change = Arc::new(Change { kind, object, previous });
        state.last = revision;
        state.history.push_back(change.clone());
        Some(change)
    }
}

fn range<'a>(state: &'a State, namespace: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Object>)> {
    let from = ObjectKey::new(namespace, "");
    let lower = if namespace.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
    let namespace = namespace.to_owned();
    state
        .objects
        .range((lower, Bound::Unbounded))
        .take_while(move |(key, _)| namespace.is_empty() || key.namespace() == namespace)
}

/// What became of one key; `None` when it went.
#[derive(Debug)]
pub struct Published {
    pub collection: Collection,
    pub key: ObjectKey,
    pub object: Option<Arc<Object>>,
}

/// One change somewhere: when, of what size, in which collection.
#[derive(Debug)]
struct Kept {
    at: Instant,
    size: usize,
    collection: Arc<CollectionCache>,
}

/// The changes that all collections keep, oldest first: changes come in one order, so the first of these is the first of
/// its collection too.
#[derive(Debug, Default)]
struct History {
    kept: VecDeque<Kept>,
    /// Of the changes that are kept.
    bytes: usize,
    /// Of the objects that are there.
    objects: usize,
}

impl History {
    fn note(&mut self, collection: &Arc<CollectionCache>, change: &Change) {
        let size = size(&change.object);
        self.kept.push_back(Kept { at: Instant::now(), size, collection: collection.clone() });
        self.bytes += size;
        self.objects -= change.previous.as_deref().map_or(0, self::size);
        if change.kind != ChangeKind::Deleted {
            self.objects += size;
        }
    }

    /// Forgets what is too old, and the oldest while there is too much.
    fn trim(&mut self) {
        while let Some(oldest) = self.kept.front() {
            if oldest.at.elapsed() <= HISTORY_AGE && self.bytes <= budget(self.objects) {
                break;
            }
            oldest.collection.forget();
            self.bytes -= oldest.size;
            self.kept.pop_front();
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }
}

/// All collections, and the revision that all of them have reached.
#[derive(Debug)]
pub struct Cache {
    collections: RwLock<HashMap<Collection, Arc<CollectionCache>>>,
    global: Arc<AtomicU64>,
    /// Announces every revision, for readers that wait for one.
    revision: watch::Sender<Revision>,
    /// The revision at start: no history before it.
    floor: Revision,
    history: Mutex<History>,
    /// Stored objects that this release cannot read: shown to nobody, kept as they are, and their names are taken.
    quarantine: RwLock<HashMap<(Collection, ObjectKey), Revision>>,
}

impl Cache {
    pub fn new(floor: Revision) -> Self {
        let global = Arc::new(AtomicU64::new(floor));
        Self {
            collections: RwLock::default(),
            global,
            revision: watch::channel(floor).0,
            floor,
            history: Mutex::default(),
            quarantine: RwLock::default(),
        }
    }

    /// The cache of one collection, made when first asked for.
    pub fn collection(&self, collection: &Collection) -> Arc<CollectionCache> {
        let known = self.collections.read().unwrap_or_else(PoisonError::into_inner).get(collection).cloned();
        known.unwrap_or_else(|| {
            let mut all = self.collections.write().unwrap_or_else(PoisonError::into_inner);
            let made = || Arc::new(CollectionCache::new(self.global.clone(), self.floor));
            all.entry(collection.clone()).or_insert_with(made).clone()
        })
    }

    /// Puts a collection of the same objects, as `renew` makes them, in the place of this one. Its history begins at `revision`, and
    /// readers of the old one's are told.
    pub fn renew(&self, collection: &Collection, revision: Revision, renew: impl Fn(&Arc<Object>) -> Arc<Object>) {
        let old = self.collection(collection);
        let before = old.list("").objects;
        let objects: BTreeMap<_, _> = before.iter().map(|object| (object.key.clone(), renew(object))).collect();
        let bytes = |objects: &mut dyn Iterator<Item = &Arc<Object>>| objects.map(|object| size(object)).sum::<usize>();
        {
            let mut history = self.history();
            history.objects += bytes(&mut objects.values());
            history.objects -= bytes(&mut before.iter());
        }
        let state = State { objects, floor: revision, last: revision, ..State::default() };
        let new =
            Arc::new(CollectionCache { state: RwLock::new(state), ..CollectionCache::new(self.global.clone(), 0) });
        self.collections.write().unwrap_or_else(PoisonError::into_inner).insert(collection.clone(), new);
        old.replaced.store(true, Ordering::Release);
        old.changed.send_replace(revision);
    }

    /// Every collection that was ever asked for or loaded.
    pub fn collections(&self) -> Vec<(Collection, Arc<CollectionCache>)> {
        let all = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, cache)| (name.clone(), cache.clone())).collect()
    }

    pub fn revision(&self) -> Revision {
        self.global.load(Ordering::Acquire)
    }

    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    pub fn put_loaded(&self, collection: &Collection, object: Object) {
        let size = self.collection(collection).put_loaded(Arc::new(object));
        self.history().objects += size;
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of history, and how many it may take now.
    pub fn history_bytes(&self) -> (usize, usize) {
        let history = self.history();
        (history.bytes, budget(history.objects))
    }

    /// Lets history go by age, until told to stop: a cluster that was busy and is quiet gives its memory back.
    pub async fn forget(&self, stop: CancellationToken) {
        let mut revisions = self.revisions();
        loop {
            let oldest = {
                let mut history = self.history();
                history.trim();
                history.kept.front().map(|kept| kept.at)
            };
            // Not one by one: what ages within some seconds goes together.
            let wait = async {
                match oldest {
                    Some(at) => tokio::time::sleep_until((at + HISTORY_AGE).max(Instant::now()) + TOGETHER).await,
                    None => drop(revisions.changed().await),
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    pub fn set_aside(&self, collection: Collection, key: ObjectKey, revision: Revision) {
        self.quarantine.write().unwrap_or_else(PoisonError::into_inner).insert((collection, key), revision);
    }

    /// The revision of the unreadable object that has this name.
    pub fn set_aside_at(&self, collection: &Collection, key: &ObjectKey) -> Option<Revision> {
        let set = self.quarantine.read().unwrap_or_else(PoisonError::into_inner);
        if set.is_empty() { None } else { set.get(&(collection.clone(), key.clone())).copied() }
    }

    /// How many objects are stored and cannot be read.
    pub fn unreadable(&self) -> usize {
        self.quarantine.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn release(&self, collection: &Collection, key: &ObjectKey) {
        if self.set_aside_at(collection, key).is_some() {
            let mut set = self.quarantine.write().unwrap_or_else(PoisonError::into_inner);
            set.remove(&(collection.clone(), key.clone()));
        }
    }

    /// Publishes one committed transaction; called in revision order.
    pub fn publish(&self, revision: Revision, changes: Vec<Published>) {
        let mut touched = Vec::with_capacity(changes.len());
        for Published { collection, key, object } in changes {
            let cache = self.collection(&collection);
            self.release(&collection, &key);
            if let Some(change) = cache.apply(&key, revision, object) {
                let mut history = self.history();
                history.note(&cache, &change);
                history.trim();
            }
            touched.push(cache);
        }
        self.global.store(revision, Ordering::Release);
        // Whoever wakes finds all of it.
        for cache in touched {
            cache.changed.send_replace(revision);
        }
        self.revision.send_replace(revision);
    }

    /// Nothing of ours happened up to this revision.
    pub fn reached(&self, revision: Revision) {
        if revision > self.revision() {
            self.global.store(revision, Ordering::Release);
            self.revision.send_replace(revision);
        }
    }

    /// Publishes one change.
    #[cfg(test)]
    fn apply(&self, collection: &Collection, key: &ObjectKey, revision: Revision, object: Option<Arc<Object>>) {
        self.publish(revision, vec![Published { collection: collection.clone(), key: key.clone(), object }]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Encoded, Header};
    use serde_json::json;

    fn object(name: &str, revision: Revision) -> Arc<Object> {
        let json = Encoded::new(&json!({"metadata": {"name": name}})).with_version(revision);
        Arc::new(Object { key: ObjectKey::new("ns", name), revision, header: Header::default(), json })
    }

    fn filled() -> (Cache, Arc<CollectionCache>) {
        let cache = Cache::new(10);
        let pods = Collection::new("", "pods");
        for (revision, name) in [(11, "a"), (12, "b"), (13, "a")] {
            cache.apply(&pods, &ObjectKey::new("ns", name), revision, Some(object(name, revision)));
        }
        cache.apply(&pods, &ObjectKey::new("ns", "b"), 14, None);
        let collection = cache.collection(&pods);
        (cache, collection)
    }

    fn versions(snapshot: &Snapshot) -> Vec<Revision> {
        snapshot.objects.iter().map(|object| object.revision).collect()
    }

    #[test]
    fn a_list_is_the_state_at_its_revision() {
        let (_, pods) = filled();
        assert_eq!((pods.list("").revision, versions(&pods.list("ns"))), (14, vec![13]));
        assert_eq!(versions(&pods.list_at("", 12).unwrap()), [11, 12]);
        assert_eq!(versions(&pods.list_at("ns", 13).unwrap()), [13, 12]);
        assert!(pods.list("other").objects.is_empty());
    }

    #[test]
    fn a_watch_continues_exactly_after_its_revision() {
        let (_, pods) = filled();
        let kinds: Vec<_> = pods.since(11).unwrap().iter().map(|c| (c.kind, c.revision())).collect();
        assert_eq!(kinds, [(ChangeKind::Added, 12), (ChangeKind::Modified, 13), (ChangeKind::Deleted, 14)]);
        assert_eq!(pods.since(9).unwrap_err(), Expired { oldest: 10 });
    }

    #[test]
    fn other_collections_move_the_common_revision() {
        let (cache, pods) = filled();
        cache.apply(&Collection::new("", "nodes"), &ObjectKey::new("", "n"), 15, Some(object("n", 15)));
        assert_eq!(pods.list("").revision, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn old_changes_leave_history_but_not_the_state() {
        let (cache, pods) = filled();
        tokio::time::advance(HISTORY_AGE * 2).await;
        cache.apply(&Collection::new("", "pods"), &ObjectKey::new("ns", "c"), 16, Some(object("c", 16)));
        assert_eq!(pods.since(13).unwrap_err(), Expired { oldest: 14 });
        assert_eq!(versions(&pods.list("")), [13, 16]);
    }

    #[tokio::test(start_paused = true)]
    async fn history_goes_by_age_without_another_write() {
        let (cache, pods) = filled();
        assert!(cache.history_bytes().0 > 0);
        let (cache, stop) = (Arc::new(cache), CancellationToken::new());
        let forgetting = tokio::spawn({
            let (cache, stop) = (cache.clone(), stop.clone());
            async move { cache.forget(stop).await }
        });
        tokio::time::sleep(HISTORY_AGE - Duration::from_secs(1)).await;
        assert!(pods.since(13).is_ok());
        tokio::time::sleep(TOGETHER * 2).await;
        assert_eq!((pods.since(13).unwrap_err(), cache.history_bytes().0), (Expired { oldest: 14 }, 0));
        stop.cancel();
        forgetting.await.unwrap();
    }

    #[test]
    fn all_collections_share_one_budget() {
        let cache = Cache::new(0);
        let large = |revision| {
            let text = json!({"metadata": {"name": "a"}, "data": "x".repeat(1 << 20)});
            let json = Encoded::new(&text).with_version(revision);
            Arc::new(Object { key: ObjectKey::new("ns", "a"), revision, header: Header::default(), json })
        };
        let (pods, secrets) = (Collection::new("", "pods"), Collection::new("", "secrets"));
        for revision in 1..=40 {
            let place = if revision % 2 == 0 { &pods } else { &secrets };
            cache.apply(place, &ObjectKey::new("ns", "a"), revision, Some(large(revision)));
        }
        assert!(cache.history_bytes().0 <= HISTORY_BYTES);
        let oldest = |collection| cache.collection(collection).since(0).unwrap_err().oldest;
        assert_eq!((oldest(&pods), oldest(&secrets)), (8, 9), "the oldest go first, whose ever they are");
    }

    #[test]
    fn many_objects_have_more_history() {
        let cache = Cache::new(0);
        let pods = Collection::new("", "pods");
        let large = |name: &str, revision| {
            let json = Encoded::new(&json!({"data": "x".repeat(4 << 20)})).with_version(revision);
            Arc::new(Object { key: ObjectKey::new("ns", name), revision, header: Header::default(), json })
        };
        let one = size(&large("a", 1));
        for revision in 1..=100 {
            let name = revision.to_string();
            cache.apply(&pods, &ObjectKey::new("ns", &name), revision, Some(large(&name, revision)));
        }
        let (kept, most) = cache.history_bytes();
        assert!((10 * one..11 * one).contains(&most) && kept <= most && kept > most - one, "{kept} {most}");
        for revision in 101..=200 {
            cache.apply(&pods, &ObjectKey::new("ns", &(revision - 100).to_string()), revision, None);
        }
        assert_eq!(cache.history_bytes().1, HISTORY_BYTES);
    }
}
