//! Kinds that are defined while the server runs: the rows that CustomResourceDefinitions make, and the lives of definitions.
//!
//! Rows follow from what is stored, in the order in which it was committed ([`Definitions`] is part of the feed): servers
//! that share a store have the same rows at the same revision. What a definition's status says, and that its objects go
//! before it does, is kept by a task that sleeps until a definition changes; several servers may do it at once.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::custom::status::{self, Condition};
use api::custom::{self, CLEANUP, Change};
use api::kind::{Kind, Part, Registry};
use api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::engine::{Context, DeleteOptions, Draft, Engine, ListOptions, Target, WriteOptions, deleting};
use crate::feed::{header, shown};
use crate::identity::{MASTERS, User};
use crate::object::{Collection, Encoded, Object, ObjectKey, Revision};

/// As upstream's controllers of definitions are named.
const MANAGER: &str = "kube-apiserver";
/// Before a definition's objects are looked at again where something stood in the way.
const RETRY: Duration = Duration::from_secs(5);

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

/// Keeps the status of definitions, and ends those that are deleted, until told to stop.
pub async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let Some(kind) = engine.registry().find(custom::GROUP, "v1", custom::PLURAL) else { return };
    let mut changes = engine.objects(&kind).subscribe();
    let (mut ending, mut names) = (JoinSet::new(), HashSet::new());
    loop {
        changes.borrow_and_update();
        let mut again = false;
        let all: Vec<Value> = engine.all(&kind, "").iter().map(|object| object.value()).collect();
        for definition in &all {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            let target = Target { part: Some(Part::Status), ..Target::new(kind.clone(), "", name) };
            let outcome = match is_ending(definition) {
                true if names.insert(name.to_owned()) => {
                    let (engine, name) = (engine.clone(), name.to_owned());
                    ending.spawn(async move {
                        end(&engine, &target).await;
                        name
                    });
                    Ok(())
                }
                true => Ok(()),
                false => settle(&engine, &target, &all).await,
            };
            if let Err(status) = outcome {
                tracing::warn!(name, %status, "the status of a definition is not up to date");
                again |= status.code != 404;
            }
        }
        let news = async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                Some(ended) = ending.join_next() => {
                    // One that panicked is over too, and is begun again.
                    match ended {
                        Ok(name) => drop(names.remove(&name)),
                        Err(_) => names.clear(),
                    }
                    true
                }
                () = tokio::time::sleep(RETRY), if again => true,
            }
        };
        match stop.run_until_cancelled(news).await {
            Some(true) => {}
            _ => return,
        }
    }
}

fn is_ending(definition: &Value) -> bool {
    let finalizers = definition["metadata"]["finalizers"].as_array();
    deleting(definition) && finalizers.is_some_and(|list| list.iter().any(|own| own == CLEANUP))
}

fn context() -> Context {
    Context { user: User::new("system:apiserver", &[MASTERS]), now: Timestamp::now() }
}

async fn write(engine: &Engine, target: &Target, change: impl Fn(&Value) -> Value + Send + Sync) -> Result<(), Status> {
    let options = WriteOptions { manager: MANAGER.into(), dry_run: false };
    let change = |current: Option<&Value>| Ok(Draft::Own(change(current.ok_or_else(|| target.not_found())?)));
    engine.update(&context(), target, &options, &change).await.map(drop)
}

/// Gives a definition the status that it should have beside the others.
async fn settle(engine: &Engine, target: &Target, all: &[Value]) -> Result<(), Status> {
    let others: Vec<&Value> = all.iter().filter(|other| other["metadata"]["name"] != *target.name).collect();
    let wanted = all.iter().find(|one| one["metadata"]["name"] == *target.name);
    if wanted.is_none_or(|definition| status::settled(definition, &others, Timestamp::now()) == *definition) {
        return Ok(());
    }
    write(engine, target, |current| status::settled(current, &others, Timestamp::now())).await
}

/// Deletes the objects of a definition, and lets it go when they are gone.
async fn end(engine: &Engine, target: &Target) {
    loop {
        match empty(engine, target).await {
            Ok(()) => return,
            Err(status) if status.code == 404 => return,
            Err(status) => {
                tracing::warn!(name = target.name, %status, "cannot delete the objects of a definition yet");
                let said = write(engine, target, |current| {
                    let mut next = current.clone();
                    Condition::not_deleted(&status.message).put(&mut next, Timestamp::now());
                    next
                });
                if let Err(status) = said.await {
                    tracing::debug!(%status, "and its status does not say so");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn empty(engine: &Engine, target: &Target) -> Result<(), Status> {
    write(engine, target, |current| {
        let mut next = current.clone();
        Condition::terminating().put(&mut next, Timestamp::now());
        next
    })
    .await?;
    let defined = engine.registry().iter().find(|kind| kind.is_defined_by(&target.name)).cloned();
    if let Some(kind) = defined {
        let everything = Target::new(kind, "", "");
        loop {
            let objects = engine.objects(&everything.kind);
            let mut changes = objects.subscribe();
            engine
                .delete_collection(&context(), &everything, &ListOptions::default(), &DeleteOptions::default())
                .await?;
            if objects.len() == 0 {
                break;
            }
            // Some wait for their finalizers.
            if changes.changed().await.is_err() {
                break;
            }
        }
    }
    write(engine, target, |current| {
        let mut next = current.clone();
        Condition::deleted(current).put(&mut next, Timestamp::now());
        let left = next["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        next["metadata"]["finalizers"] = left.into_iter().filter(|own| own != CLEANUP).collect();
        if next["metadata"]["finalizers"] == json!([]) {
            next["metadata"].as_object_mut().map(|metadata| metadata.remove("finalizers"));
        }
        next
    })
    .await
}
