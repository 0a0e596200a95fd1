//! The views that a process keeps, one of each kind, found by their type.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::client::Client;
use crate::informer::{Informer, View};
use crate::object::Resource;
use crate::transport::Wrote;

/// A kind whose view is kept: what a table of readers lists.
#[derive(Clone, Copy)]
pub struct Kept {
    id: fn() -> TypeId,
    make: fn() -> Slot,
}

impl Kept {
    pub const fn of<T: View>() -> Self {
        Self { id: TypeId::of::<T>, make: Slot::new::<T> }
    }
}

/// An informer without its type: what is done alike with all of them.
#[async_trait::async_trait]
trait Kind: Send + Sync {
    fn resource(&self) -> Resource;
    async fn run(self: Arc<Self>, client: Client);
    async fn caught_up(&self);
    async fn shows(&self, wrote: &Wrote);
}

#[async_trait::async_trait]
impl<T: View> Kind for Informer<T> {
    fn resource(&self) -> Resource {
        T::RESOURCE
    }

    async fn run(self: Arc<Self>, client: Client) {
        Informer::run(self, client).await;
    }

    async fn caught_up(&self) {
        Informer::caught_up(self, 0).await;
    }

    async fn shows(&self, wrote: &Wrote) {
        Informer::shows(self, wrote).await;
    }
}

struct Slot {
    typed: Arc<dyn Any + Send + Sync>,
    kind: Arc<dyn Kind>,
}

impl Slot {
    fn new<T: View>() -> Self {
        let informer = Arc::new(Informer::<T>::default());
        Self { typed: informer.clone(), kind: informer }
    }
}

/// See the module's text.
pub struct Caches {
    slots: HashMap<TypeId, Slot>,
}

impl Caches {
    /// Each kind once, however often it is listed.
    pub fn new(kept: impl IntoIterator<Item = Kept>) -> Self {
        let mut slots = HashMap::new();
        for kept in kept {
            slots.entry((kept.id)()).or_insert_with(kept.make);
        }
        Self { slots }
    }

    /// The view of one kind.
    ///
    /// # Panics
    /// When it is not kept: its reader's row does not list it.
    pub fn of<T: View>(&self) -> Arc<Informer<T>> {
        let slot = self.slots.get(&TypeId::of::<T>());
        let informer = slot.and_then(|slot| slot.typed.clone().downcast().ok());
        informer.unwrap_or_else(|| panic!("no view of {} is kept", T::RESOURCE.plural))
    }

    /// Starts the watches.
    pub fn start(&self, client: &Client, tasks: &mut JoinSet<()>) {
        for slot in self.slots.values() {
            tasks.spawn(slot.kind.clone().run(client.clone()));
        }
    }

    /// Waits until every first state is complete.
    pub async fn synced(&self) {
        for slot in self.slots.values() {
            slot.kind.caught_up().await;
        }
    }

    /// Waits until the view of that resource, if one is kept, shows a write of ours.
    pub async fn show(&self, resource: &Resource, wrote: &Wrote) {
        for slot in self.slots.values().filter(|slot| slot.kind.resource() == *resource) {
            slot.kind.shows(wrote).await;
        }
    }
}
