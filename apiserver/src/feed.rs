//! From the store into the watch cache: what was committed, as objects with their headers.
//!
//! Objects that this process wrote come ready; those of others are read here. One that cannot be read is set aside by name.

use std::sync::Arc;

use api::custom::{GROUP, PLURAL};
use api::kind::{Kind, Registry};

use crate::cache::{Cache, Published};
use crate::definitions::{self, Definitions};
use crate::header::{header, shown};
use crate::object::{Collection, Encoded, INTERNAL, Object, ObjectKey, Revision, Unreadable};
use crate::store::{Change, Content, Feed, Record, StoreError, Unsealed, parse_key, unseal};

pub(crate) struct CacheFeed {
    pub cache: Arc<Cache>,
    pub definitions: Definitions,
}

impl Feed for CacheFeed {
    fn committed(&mut self, revision: Revision, changes: Vec<Change>) {
        let mut published = Vec::with_capacity(changes.len());
        for Change { collection, key, content } in changes {
            let object = match content {
                Content::Removed => None,
                Content::Object(object) => Some(self.definitions.current(&collection, object)),
                Content::Text(held) => match self.read(&collection, &key, revision, held) {
                    Ok(object) => Some(Arc::new(object)),
                    Err(why) => {
                        tracing::error!(?collection, ?key, %why, "another server wrote what cannot be read; it is set aside");
                        published.push(Published { collection: collection.clone(), key: key.clone(), object: None });
                        self.cache.set_aside(collection, key, revision);
                        continue;
                    }
                },
            };
            if definitions::are_in(&collection) {
                self.definitions.commit(revision, &key, object.as_deref());
            }
            published.push(Published { collection, key, object });
        }
        self.cache.publish(revision, published);
    }

    fn reached(&mut self, revision: Revision) {
        self.cache.reached(revision);
    }
}

impl CacheFeed {
    fn read(
        &self,
        collection: &Collection,
        key: &ObjectKey,
        revision: Revision,
        held: Unsealed,
    ) -> Result<Object, Unreadable> {
        read(&self.definitions.registry(), collection, key, revision, held)
    }

    /// Fills the cache with what a store held when it was opened. An object that is undamaged and yet unreadable is set aside:
    /// one such object must not keep the cluster from starting.
    ///
    /// # Errors
    /// When a record is damaged, or one of the server's own cannot be read.
    pub fn load(&self, records: Vec<Record>) -> Result<(), StoreError> {
        // What objects are is known before they are read.
        let is_definition =
            |record: &Record| parse_key(&record.key).is_some_and(|(collection, _)| definitions::are_in(&collection));
        let (first, rest): (Vec<_>, Vec<_>) = records.into_iter().partition(is_definition);
        self.load_all(first)?;
        for definition in self.cache.collection(&Collection::new(GROUP, PLURAL)).list("").objects {
            self.definitions.load(definition.key.name(), &definition.value());
        }
        self.load_all(rest)
    }

    fn load_all(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let registry = self.definitions.registry();
        for Record { key, revision, value } in records {
            let held = unseal(&key, revision, value.unwrap_or_default())?;
            let placed = parse_key(&key).ok_or(Unreadable::Key);
            match placed.clone().and_then(|(collection, name)| read(&registry, &collection, &name, revision, held)) {
                Ok(object) => {
                    let (collection, _) = placed.map_err(|source| StoreError::Unreadable { key, source })?;
                    self.cache.put_loaded(&collection, object);
                }
                Err(why) => self.set_aside(key, revision, why)?,
            }
        }
        Ok(())
    }

    /// The server's own records (keys, node ports) cannot be done without: a cluster with a new CA locks everybody out.
    fn set_aside(&self, key: String, revision: Revision, why: Unreadable) -> Result<(), StoreError> {
        tracing::error!(key, %why, "a stored object cannot be read; it is set aside, the others are served");
        match parse_key(&key) {
            Some((collection, _)) if &*collection.group == INTERNAL => {
                return Err(StoreError::Unreadable { key, source: why });
            }
            Some((collection, object)) => self.cache.set_aside(collection, object, revision),
            None => {}
        }
        Ok(())
    }
}

fn read(
    registry: &Registry,
    collection: &Collection,
    key: &ObjectKey,
    revision: Revision,
    held: Unsealed,
) -> Result<Object, Unreadable> {
    let (mut encoded, mut value) = Encoded::from_stored(held.text)?;
    let kind = registry.stored_in(&collection.group, &collection.plural);
    // What was stored before a default was there is shown with it; it is written when somebody changes it. Nobody counts how
    // often a definition changed.
    let outdated = |kind: &Arc<Kind>| held.defaults < api::default::GENERATION || kind.custom.is_some();
    if let Some(kind) = kind.as_ref().filter(|kind| outdated(kind)) {
        let stored = value.clone();
        value = shown(kind, value);
        if value != stored {
            encoded = Encoded::new(&value);
        }
    }
    let header = kind.map(|kind| header(&kind, &value)).unwrap_or_default();
    Ok(Object { key: key.clone(), revision, header, json: encoded.with_version(revision) })
}
