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

use self::by_node::ByNode;
use self::history::History;
use self::topics::{Marks, Shared, Topic, Topics};
use crate::memory;
use crate::object::{Collection, Object, ObjectKey, Revision};

pub mod by_node;
mod history;
pub mod topics;

/// Changes that grow too old within this go at once.
const TOGETHER: Duration = Duration::from_secs(10);

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

impl Expired {
    /// # Errors
    /// When `cursor` lies before the oldest revision that still works.
    fn unless_from(oldest: Revision, cursor: Revision) -> Result<(), Self> {
        if cursor < oldest { Err(Self { oldest }) } else { Ok(()) }
    }
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    history: VecDeque<Entry>,
    topics: Topics,
    /// The last revision dropped from history: a watch may start here or later.
    floor: Revision,
    last: Revision,
}

/// What it touches stands beside a change, so that who looks for one topic passes over the others quickly.
#[derive(Debug)]
struct Entry {
    change: Arc<Change>,
    marks: Marks,
}

impl State {
    /// The changes after a revision, oldest first.
    fn after(&self, cursor: Revision) -> impl DoubleEndedIterator<Item = &Entry> {
        let from = self.history.partition_point(|entry| entry.change.revision() <= cursor);
        self.history.range(from..)
    }

    fn reaches(&self, cursor: Revision) -> Result<(), Expired> {
        Expired::unless_from(self.floor, cursor)
    }

    /// The same, if all of them are there.
    fn since(&self, cursor: Revision) -> Result<Vec<Arc<Change>>, Expired> {
        self.reaches(cursor)?;
        Ok(self.after(cursor).map(|entry| entry.change.clone()).collect())
    }
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
            state.reaches(revision)?;
            let mut then: BTreeMap<&ObjectKey, Arc<Object>> =
                range(state, namespace).map(|(k, o)| (k, o.clone())).collect();
            for Entry { change, .. } in state.after(revision).rev() {
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
        self.read(|state| state.since(cursor))
    }

    /// Begins to follow this collection from a revision on, or what touches one topic of it.
    ///
    /// # Errors
    /// When the history does not reach back so far.
    pub fn follow(self: &Arc<Self>, topic: Option<&Topic>, cursor: Revision) -> Result<Follow, Expired> {
        let (changed, topic) = match topic {
            None => {
                self.read(|state| state.reaches(cursor))?;
                (self.subscribe(), None)
            }
            Some(topic) => {
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                // From now on the topic says itself what it has lost.
                state.reaches(cursor)?;
                let shared = state.topics.join(topic);
                (shared.subscribe(), Some(shared))
            }
        };
        Ok(Follow { objects: self.clone(), changed, topic, cursor })
    }

    /// Wakes at each change of this collection.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// The revision up to which this collection is known to be complete.
    pub fn current(&self) -> Revision {
        self.read(|state| self.revision(state))
    }

    /// Takes an object that has no history; gives its size.
    fn put_loaded(&self, object: Arc<Object>) -> usize {
        let size = history::size(&object);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.last = state.last.max(object.revision);
        state.objects.insert(object.key.clone(), object);
        size
    }

    /// Drops the oldest change.
    fn forget(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(oldest) = state.history.pop_front() {
            state.floor = oldest.change.revision();
            state.topics.forget(oldest.marks, state.floor);
        }
        // A burst leaves room for its like; a quiet collection needs none.
        if state.history.is_empty() {
            state.history = VecDeque::new();
        }
    }

    /// Takes what one transaction changed here, so that nobody sees a part of it.
    fn apply(&self, revision: Revision, changes: Vec<(ObjectKey, Option<Arc<Object>>)>) -> Vec<Applied> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().filter_map(|(key, object)| state.apply(&key, revision, object)).collect()
    }
}

impl State {
    /// Takes one change; a deletion of an absent key leaves no trace.
    fn apply(&mut self, key: &ObjectKey, revision: Revision, object: Option<Arc<Object>>) -> Option<Applied> {
        let previous = self.objects.get(key).cloned();
        let (kind, object) = match (object, &previous) {
            (Some(object), None) => (ChangeKind::Added, object),
            (Some(object), Some(_)) => (ChangeKind::Modified, object),
            (None, Some(previous)) => (ChangeKind::Deleted, Arc::new(previous.at(revision))),
            (None, None) => return None,
        };
        match kind {
            ChangeKind::Deleted => self.objects.remove(key),
            _ => self.objects.insert(key.clone(), object.clone()),
        };
        let change = Arc::new(Change { kind, object, previous });
        let marks = Marks::of(&change);
        self.last = revision;
        self.history.push_back(Entry { change: change.clone(), marks });
        Some(Applied { change, touched: self.topics.touched(marks) })
    }
}

/// A change that was taken, and the topics whose watchers are to hear of it.
struct Applied {
    change: Arc<Change>,
    touched: Vec<Arc<Shared>>,
}

/// A reader's place in a collection.
#[derive(Debug)]
pub struct Follow {
    objects: Arc<CollectionCache>,
    changed: watch::Receiver<Revision>,
    topic: Option<Arc<Shared>>,
    cursor: Revision,
}

impl Follow {
    /// Up to where this reader has everything that it follows.
    pub fn cursor(&self) -> Revision {
        self.cursor
    }

    /// Nothing comes any more: whoever looks has to begin anew.
    pub fn is_replaced(&self) -> bool {
        self.objects.replaced.load(Ordering::Acquire)
    }

    /// What came since the last call, oldest first.
    ///
    /// # Errors
    /// When the history has let go of some of it, or nothing comes any more.
    pub fn next(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        self.changed.mark_unchanged();
        // Looked at first: what came before the end is still told.
        let last = self.is_replaced();
        let cursor = self.cursor;
        let (reached, changes) = self.objects.read(|state| {
            let changes: Vec<_> = match &self.topic {
                None => state.since(cursor)?,
                Some(topic) => {
                    topic.reaches(cursor)?;
                    let touching = state.after(cursor).filter(|entry| entry.marks.touch(topic.mark));
                    touching.map(|entry| entry.change.clone()).collect()
                }
            };
            Ok((self.objects.revision(state), changes))
        })?;
        if last && changes.is_empty() {
            return Err(Expired { oldest: self.objects.current() });
        }
        self.cursor = cursor.max(reached);
        Ok(changes)
    }

    /// Waits until there may be something; `false` when nothing will come any more.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Some(topic) = &self.topic {
            let mut state = self.objects.state.write().unwrap_or_else(PoisonError::into_inner);
            state.topics.leave(topic);
        }
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

fn is_pods(collection: &Collection) -> bool {
    collection.group.is_empty() && *collection.plural == *"pods"
}

/// What became of one key; `None` when it went.
#[derive(Debug)]
pub struct Published {
    pub collection: Collection,
    pub key: ObjectKey,
    pub object: Option<Arc<Object>>,
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
    by_node: ByNode,
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
            by_node: ByNode::default(),
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
        let (now, then): (usize, usize) =
            (objects.values().map(|o| history::size(o)).sum(), before.iter().map(|o| history::size(o)).sum());
        {
            let mut history = self.history();
            history.objects = history.objects + now - then;
        }
        let state = State { objects, floor: revision, last: revision, ..State::default() };
        let new =
            Arc::new(CollectionCache { state: RwLock::new(state), ..CollectionCache::new(self.global.clone(), 0) });
        self.collections.write().unwrap_or_else(PoisonError::into_inner).insert(collection.clone(), new);
        old.replaced.store(true, Ordering::Release);
        old.changed.send_replace(revision);
        old.read(|state| state.topics.all().for_each(|topic| topic.wake(revision)));
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
        let object = Arc::new(object);
        if is_pods(collection) {
            self.by_node.comes(&object);
        }
        let size = self.collection(collection).put_loaded(object);
        self.history().objects += size;
    }

    /// What is on each node.
    pub fn by_node(&self) -> &ByNode {
        &self.by_node
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of history, and how many it may take now.
    pub fn history_bytes(&self) -> (usize, usize) {
        self.history().bytes()
    }

    /// Lets history go by age, until told to stop: a cluster that was busy and is quiet gives its memory back.
    pub async fn forget(&self, stop: CancellationToken) {
        let mut revisions = self.revisions();
        let mut kept = 0;
        loop {
            let (oldest, bytes) = {
                let mut history = self.history();
                history.trim();
                (history.oldest(), history.bytes().0)
            };
            kept = kept.max(bytes);
            if memory::is_worth_it(kept, bytes) {
                kept = bytes;
                memory::give_back();
            }
            // Not one by one: what ages within some seconds goes together.
            let wait = async {
                match oldest {
                    Some(at) => tokio::time::sleep_until((at + history::AGE).max(Instant::now()) + TOGETHER).await,
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
        let mut by_collection: Vec<(Arc<CollectionCache>, Vec<_>)> = Vec::with_capacity(changes.len());
        let mut pods = None;
        for Published { collection, key, object } in changes {
            self.release(&collection, &key);
            let cache = self.collection(&collection);
            if is_pods(&collection) {
                object.iter().for_each(|pod| self.by_node.comes(pod));
                pods = Some(cache.clone());
            }
            match by_collection.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &cache)) {
                Some((_, changes)) => changes.push((key, object)),
                None => by_collection.push((cache, vec![(key, object)])),
            }
        }
        let (mut touched, mut topics) = (Vec::with_capacity(by_collection.len()), Vec::new());
        for (cache, changes) in by_collection {
            let applied = cache.apply(revision, changes);
            if pods.as_ref().is_some_and(|pods| Arc::ptr_eq(pods, &cache)) {
                applied.iter().for_each(|applied| self.by_node.changed(&applied.change));
            }
            let mut history = self.history();
            for Applied { change, touched } in applied {
                history.note(&cache, &change);
                topics.extend(touched);
            }
            history.trim();
            drop(history);
            touched.push(cache);
        }
        self.global.store(revision, Ordering::Release);
        // Whoever wakes finds all of it.
        for cache in touched {
            cache.changed.send_replace(revision);
        }
        for topic in topics {
            topic.wake(revision);
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
mod tests;
