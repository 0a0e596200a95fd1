//! One decoded view per kind, shared by every controller, fed by a watch, with indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use api::view::Meta;
use apiserver::client::{Client, Resource};
use apiserver::engine::{Event, EventKind, WatchOptions};
use apiserver::{Object, ObjectKey, Revision};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// What of a kind is kept decoded.
pub trait View: DeserializeOwned + Send + Sync + 'static {
    const RESOURCE: Resource;
    /// The index entries under which the object is found, `name/value`.
    fn indexes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A namespace and a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(meta: &Meta) -> Self {
        Self::new(&meta.namespace, &meta.name)
    }
}

struct State<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    index: HashMap<String, BTreeSet<ObjectKey>>,
}

type Handler<T> = Box<dyn Fn(Option<&T>, Option<&T>) + Send + Sync>;

/// The current objects of one kind.
pub struct Informer<T> {
    state: RwLock<State<T>>,
    handlers: RwLock<Vec<Handler<T>>>,
    /// The revision up to which changes were taken in; 0 until the first state is complete.
    seen: watch::Sender<Revision>,
}

impl<T: View> Default for Informer<T> {
    fn default() -> Self {
        let state = State { objects: BTreeMap::new(), index: HashMap::new() };
        Self { state: RwLock::new(state), handlers: RwLock::default(), seen: watch::channel(0).0 }
    }
}

impl<T: View> Informer<T> {
    fn read<R>(&self, look: impl FnOnce(&State<T>) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `handle` with the state before and after each change, first with each object that is here already. One that
    /// changes just then may be told twice.
    pub fn on_change(&self, handle: impl Fn(Option<&T>, Option<&T>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        self.all().iter().for_each(|object| handle(None, Some(object)));
        handlers.push(Box::new(handle));
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.read(|state| state.objects.get(&ObjectKey::new(namespace, name)).cloned())
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// The objects of one namespace, in the order of their names.
    pub fn namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.read(|state| {
            let from = state.objects.range(ObjectKey::new(namespace, "")..);
            from.take_while(|(key, _)| key.namespace() == namespace).map(|(_, object)| object.clone()).collect()
        })
    }

    /// The objects under an index entry.
    pub fn indexed(&self, entry: &str) -> Vec<Arc<T>> {
        self.read(|state| {
            let keys = state.index.get(entry).into_iter().flatten();
            keys.filter_map(|key| state.objects.get(key).cloned()).collect()
        })
    }

    /// The revision up to which changes were taken in.
    pub fn seen(&self) -> Revision {
        *self.seen.borrow()
    }

    /// Wakes when changes were taken in.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.seen.subscribe()
    }

    /// Waits until the first state is here and every change up to `revision` was taken in.
    pub async fn caught_up(&self, revision: Revision) {
        // The sender lives in self: it cannot close while we wait.
        let _ = self.seen.subscribe().wait_for(|seen| *seen > 0 && *seen >= revision).await;
    }

    /// Takes one object's new state in (`None`: it is gone) and tells the handlers.
    pub fn apply(&self, key: &ObjectKey, new: Option<Arc<T>>) {
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let old = match &new {
                Some(new) => state.objects.insert(key.clone(), new.clone()),
                None => state.objects.remove(key),
            };
            if let Some(old) = &old {
                for entry in old.indexes() {
                    if let Some(keys) = state.index.get_mut(&entry) {
                        keys.remove(key);
                        if keys.is_empty() {
                            state.index.remove(&entry);
                        }
                    }
                }
            }
            for entry in new.iter().flat_map(|new| new.indexes()) {
                state.index.entry(entry).or_default().insert(key.clone());
            }
            old
        };
        for handle in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handle(old.as_deref(), new.as_deref());
        }
    }

    /// Watches for ever; starts over from the whole state when it fell behind.
    pub async fn run(self: Arc<Self>, client: Client) {
        loop {
            let options = WatchOptions { initial_events: true, ..WatchOptions::default() };
            match client.watch(T::RESOURCE, "", options) {
                Ok(watch) => self.follow(watch).await,
                Err(error) => {
                    tracing::error!(resource = T::RESOURCE.plural, %error, "watch refused");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn follow(&self, mut watch: apiserver::engine::Watch) {
        let mut fresh = Some(BTreeSet::new());
        while let Ok(events) = watch.next().await {
            for event in &events {
                self.event(event, &mut fresh);
            }
            if fresh.is_none()
                && let Some(last) = events.last()
            {
                self.seen.send_replace(last.revision);
            }
        }
    }

    fn event(&self, event: &Event, fresh: &mut Option<BTreeSet<ObjectKey>>) {
        match (&event.object, event.kind) {
            (Some(object), EventKind::Deleted) => self.apply(&object.key, None),
            (Some(object), _) => {
                if let Some(fresh) = fresh {
                    fresh.insert(object.key.clone());
                }
                self.apply(&object.key, decode(object));
            }
            (None, EventKind::InitialEnd) => {
                // What a second start did not show again went away unseen.
                let fresh = fresh.take().unwrap_or_default();
                let gone = self.read(|state| {
                    state.objects.keys().filter(|key| !fresh.contains(*key)).cloned().collect::<Vec<_>>()
                });
                gone.iter().for_each(|key| self.apply(key, None));
            }
            (None, _) => {}
        }
    }
}

/// Views skip what they do not know, so a stored object decodes; one that does not is reported and left out.
fn decode<T: View>(object: &Object) -> Option<Arc<T>> {
    match api::view::decode::<T>(&object.json) {
        Ok(view) => Some(Arc::new(view)),
        Err(error) => {
            tracing::error!(resource = T::RESOURCE.plural, key = object.key.as_str(), %error, "stored object does not decode");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::views::Pod;
    use serde_json::json;

    fn pod(name: &str, node: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node}}))
                .unwrap(),
        )
    }

    #[test]
    fn an_index_follows_its_objects() {
        let pods = Informer::<Pod>::default();
        let key = ObjectKey::new("ns", "a");
        pods.apply(&key, Some(pod("a", "n1")));
        assert_eq!(pods.indexed("node/n1").len(), 1);
        pods.apply(&key, Some(pod("a", "n2")));
        assert!(pods.indexed("node/n1").is_empty() && pods.indexed("node/n2").len() == 1);
        pods.apply(&key, None);
        assert!(pods.indexed("node/n2").is_empty() && pods.all().is_empty());
    }

    #[test]
    fn handlers_see_before_and_after() {
        let pods = Informer::<Pod>::default();
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let record = seen.clone();
        pods.on_change(move |old, new| record.lock().unwrap().push((old.is_some(), new.is_some())));
        let key = ObjectKey::new("ns", "a");
        pods.apply(&key, Some(pod("a", "")));
        pods.apply(&key, Some(pod("a", "n")));
        pods.apply(&key, None);
        assert_eq!(*seen.lock().unwrap(), [(false, true), (true, true), (true, false)]);
    }

    #[test]
    fn who_comes_late_is_told_what_is_there() {
        let pods = Informer::<Pod>::default();
        pods.apply(&ObjectKey::new("ns", "a"), Some(pod("a", "")));
        let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = seen.clone();
        pods.on_change(move |old, new| {
            assert!(old.is_none() && new.is_some() && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0)
        });
        assert_eq!(seen.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
