//! Kinds that are defined while the server runs: the rows that CustomResourceDefinitions make.
//!
//! Rows follow from what is stored, in the order in which it was committed ([`Definitions`] is part of the feed): servers
//! that share a store have the same rows at the same revision.

pub(crate) mod lives;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use api::custom::{self, Change};
use api::kind::{Kind, Registry};
use serde_json::Value;

use crate::cache::Cache;
use crate::header::{header, shown};
use crate::object::{Collection, Encoded, Object, ObjectKey, Revision};

/// Whether definitions are kept here.
pub(crate) fn are_in(collection: &Collection) -> bool {
    *collection.group == *custom::GROUP && *collection.plural == *custom::PLURAL
}

/// The rows that definitions make.
pub(crate) struct Definitions {
    pub registry: Arc<RwLock<Registry>>,
    pub cache: Arc<Cache>,
}

impl Definitions {
    pub fn registry(&self) -> Registry {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a definition as it was stored when the server started.
    pub fn load(&self, name: &str, definition: &Value) {
        self.replace(name, custom::kinds(definition));
    }

    fn replace(&self, name: &str, rows: Vec<Kind>) {
        for row in &rows {
            for (column, why) in row.custom.iter().flat_map(|custom| custom.blank_columns()) {
                tracing::warn!(definition = name, version = &*row.version, column, %why, "nothing is shown in a column");
            }
        }
        let mut registry = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        *registry = registry.with(name, rows);
    }

    /// Takes a definition as it was committed now (`None`: it went), before anybody sees it. A kind that looks different is
    /// read anew, and its watches end.
    pub fn commit(&self, revision: Revision, key: &ObjectKey, object: Option<&Object>) {
        let collection = Collection::new(custom::GROUP, custom::PLURAL);
        let before = self.cache.collection(&collection).get(key).map(|object| object.value()).unwrap_or_default();
        let now = object.map(Object::value).unwrap_or_default();
        let change = Change::between(&before, &now);
        if change == Change::None {
            return;
        }
        let old = self.registry();
        self.replace(key.name(), custom::kinds(&now));
        if change == Change::Stage {
            return;
        }
        let new = self.registry();
        let defined = |registry: &Registry| -> Vec<Collection> {
            registry
                .iter()
                .filter(|kind| kind.is_defined_by(key.name()))
                .map(|kind| crate::reader::collection(kind))
                .collect()
        };
        let touched: HashSet<Collection> = defined(&old).into_iter().chain(defined(&new)).collect();
        for collection in touched {
            let kind = new.stored_in(&collection.group, &collection.plural);
            self.cache.renew(&collection, revision, |object| match &kind {
                Some(kind) => Arc::new(self::renew(kind, object)),
                None => object.clone(),
            });
        }
    }

    /// An object that was written while its kind was being defined anew, as the kind is now.
    pub fn current(&self, collection: &Collection, object: Arc<Object>) -> Arc<Object> {
        let registry = self.registry();
        let kind = registry.stored_in(&collection.group, &collection.plural).filter(|kind| kind.custom.is_some());
        match kind.filter(|kind| !has_fields_of(&object, kind)) {
            Some(kind) => Arc::new(renew(&kind, &object)),
            None => object,
        }
    }
}

fn has_fields_of(object: &Object, kind: &Kind) -> bool {
    let fields = object.header.fields.iter().map(|(label, _)| &**label);
    fields.eq(api::selector::selectable(kind).map(|field| field.stored))
}

/// The same object as its kind is now: less what it has no more, with what is filled in now.
fn renew(kind: &Kind, object: &Object) -> Object {
    let value = shown(kind, object.value());
    let json = Encoded::new(&value).with_version(object.revision);
    Object { key: object.key.clone(), revision: object.revision, header: header(kind, &value), json }
}
