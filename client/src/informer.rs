//! One decoded view of a kind, kept by a watch, with indexes. What it guarantees:
//!
//! 1. Nothing waits for a view that is half there: until its first state is complete it has seen nothing.
//! 2. What goes away while nobody watches goes from the view too, and is told, when the watch begins anew.
//! 3. It has *seen* a revision only when everything up to it is in the view and was told; what was seen never becomes less.
//! 4. A handler is told every change with the state before it, first everything that is there already.
//! 5. A watch that is refused is asked for again later and later; one that fell behind, at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use api::uid::Uid;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::client::Client;
use crate::follow::{self, Scope, Step};
use crate::object::{Item, Key, Resource, Revision};
use crate::transport::Wrote;

/// What of a kind is kept decoded.
pub trait View: DeserializeOwned + Send + Sync + 'static {
    const RESOURCE: Resource;

    fn uid(&self) -> &Uid;

    /// The index entries under which the object is found, `name/value`.
    fn indexes(&self) -> Vec<String> {
        Vec::new()
    }
}

struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    index: HashMap<String, BTreeSet<Key>>,
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
        self.read(|state| state.objects.get(&Key::new(namespace, name)).cloned())
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// The objects of one namespace, in the order of their names.
    pub fn namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.read(|state| {
            let from = state.objects.range(Key::new(namespace, "")..);
            from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
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
        self.until(|seen| seen >= revision).await;
    }

    /// Waits until the view shows a write of ours.
    pub async fn shows(&self, wrote: &Wrote) {
        match wrote {
            Wrote::At(revision) => self.caught_up(*revision).await,
            Wrote::Gone { key, uid } => {
                let gone = |_| self.read(|state| state.objects.get(key).is_none_or(|found| found.uid() != uid));
                self.until(gone).await;
            }
        }
    }

    async fn until(&self, holds: impl Fn(Revision) -> bool) {
        // The sender lives in self: it cannot close while we wait.
        let _ = self.seen.subscribe().wait_for(|seen| *seen > 0 && holds(*seen)).await;
    }

    /// Takes one object's new state in (`None`: it is gone) and tells the handlers.
    pub fn apply(&self, key: &Key, new: Option<Arc<T>>) {
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let old = match &new {
                Some(new) => state.objects.insert(key.clone(), new.clone()),
                None => state.objects.remove(key),
            };
            state.reindex(key, old.as_deref(), new.as_deref());
            old
        };
        if old.is_none() && new.is_none() {
            return;
        }
        for handle in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handle(old.as_deref(), new.as_deref());
        }
    }

    /// Watches for ever; starts over from the whole state when it fell behind.
    pub async fn run(self: Arc<Self>, client: Client) {
        follow::run(client, T::RESOURCE, Scope::default(), |step| self.step(step)).await;
    }

    fn step(&self, step: Step) {
        match step {
            Step::Set(item) => self.apply(&item.key, decode(&item)),
            Step::Remove(key) => self.apply(&key, None),
            Step::Retain(keys) => {
                let gone: Vec<Key> =
                    self.read(|state| state.objects.keys().filter(|key| !keys.contains(*key)).cloned().collect());
                gone.iter().for_each(|key| self.apply(key, None));
            }
            Step::Seen(revision) => drop(self.seen.send_if_modified(|seen| {
                let more = revision > *seen;
                *seen = revision.max(*seen);
                more
            })),
        }
    }
}

impl<T: View> State<T> {
    fn reindex(&mut self, key: &Key, old: Option<&T>, new: Option<&T>) {
        let entries = |object: Option<&T>| object.map(View::indexes).unwrap_or_default();
        let (old, new) = (entries(old), entries(new));
        if old == new {
            return;
        }
        for entry in old {
            if let Some(keys) = self.index.get_mut(&entry) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(&entry);
                }
            }
        }
        for entry in new {
            self.index.entry(entry).or_default().insert(key.clone());
        }
    }
}

/// Views skip what they do not know, so a stored object decodes; one that does not is reported and left out.
fn decode<T: View>(item: &Item) -> Option<Arc<T>> {
    match api::view::decode::<T>(&item.json) {
        Ok(view) => Some(Arc::new(view)),
        Err(error) => {
            let resource = T::RESOURCE;
            tracing::error!(resource = &*resource.plural, key = %item.key, %error, "stored object does not decode");
            None
        }
    }
}

#[cfg(test)]
mod tests;
