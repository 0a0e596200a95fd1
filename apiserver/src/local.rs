//! The API without HTTP: what a [`Client`](client::Client) of the same process speaks to.
//!
//! The same path as a request from outside (authorisation, admission, validation), under a user of its own. Objects go out
//! as the cache's own bytes.

use std::sync::Arc;

use api::decode::{self, FieldValidation};
use api::kind::Kind;
use api::patch;
use api::selector::{Fields, Labels};
use api::status::Status;
use async_trait::async_trait;
use client::{
    Change, DeleteOptions, Deleted, Event, EventStream, Item, Key, List, Propagation, Resource, Revision, Selector,
    ServedKind, Target, Transport,
};
use jiff::Timestamp;
use serde_json::Value;

use crate::authz::Attributes;
use crate::engine::{self, Context, Draft, Engine, EventKind, ListOptions, WatchOptions, WriteOptions};
use crate::identity::User;
use crate::object::Object;
use crate::reviews;
use crate::shared::Shared;

/// One identity's way in.
pub(crate) struct Local {
    shared: Arc<Shared>,
    user: User,
    manager: String,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>, user: User, manager: &str) -> Self {
        Self { shared, user, manager: manager.to_owned() }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    fn target(&self, asked: Target<'_>) -> Result<engine::Target, Status> {
        let Resource { group, version, plural } = asked.resource;
        let kind = self.engine().registry().find(group, version, plural);
        engine::Target::new(kind.ok_or_else(Status::no_route)?, asked.namespace, asked.name).below(asked.subresource)
    }

    /// Whether a request of ours is one we may make.
    fn check(&self, verb: &str, target: &engine::Target) -> Result<(), Status> {
        let asked = Attributes { verb: verb.to_owned(), ..Attributes::of(target) };
        // A namespace is an object and the place it is.
        let place = if *target.kind.plural == *"namespaces" { &target.name } else { &target.namespace };
        let asked = Attributes { namespace: place.clone(), ..asked };
        self.engine().authorizer.check(self.engine(), &self.user, &asked)
    }

    /// The target of a request of ours, if we may make it.
    fn allowed(&self, verb: &str, asked: Target<'_>) -> Result<engine::Target, Status> {
        let target = self.target(asked)?;
        self.check(verb, &target)?;
        Ok(target)
    }

    /// The collection that a list or watch of ours looks at, if we may see what it selects.
    fn selected(&self, verb: &str, asked: Target<'_>, selector: &Selector) -> Result<Selected, Status> {
        let target = self.target(asked)?;
        let fields = Fields::parse(&target.kind, &selector.fields).map_err(Status::bad_request)?;
        let labels = Labels::parse(&selector.labels).map_err(Status::bad_request)?;
        let node_name = fields.exact("spec.nodeName").map(str::to_owned);
        // As for a request from outside: who selects one object asks for it by name.
        let name = fields.exact_name().unwrap_or_default().to_owned();
        let asked = Attributes { verb: verb.to_owned(), name, node_name, ..Attributes::of(&target) };
        self.engine().authorizer.check(self.engine(), &self.user, &asked)?;
        Ok(Selected { target, labels, fields })
    }

    fn context(&self) -> Context {
        Context { user: self.user.clone(), now: Timestamp::now() }
    }

    fn options(&self) -> WriteOptions {
        WriteOptions { manager: self.manager.clone(), dry_run: false }
    }

    /// Changes the object, or a slice of it, by what `change` makes of its present state.
    async fn change(
        &self,
        target: &engine::Target,
        strictness: FieldValidation,
        change: &Change<'_>,
    ) -> Result<Value, Status> {
        let through = |current: Option<&Value>| {
            let next = change(current.ok_or_else(|| target.not_found())?)?;
            canonical(&target.kind, &next, strictness).map(Draft::Update)
        };
        let written = self.engine().update(&self.context(), target, &self.options(), &through).await?;
        Ok(written.object.into_value())
    }
}

struct Selected {
    target: engine::Target,
    labels: Labels,
    fields: Fields,
}

/// An object of ours in canonical form.
fn canonical(kind: &Kind, object: &Value, strictness: FieldValidation) -> Result<Value, Status> {
    let decoded = decode::value(&kind.gvk(), &kind.schema, object, Vec::new(), strictness);
    decoded.map(|decoded| decoded.value).map_err(|failure| Status::bad_request(failure.text))
}

fn item(engine: &Engine, kind: &Arc<Kind>, object: &Object) -> Item {
    let json = match kind.is_storage() {
        true => object.json.clone(),
        false => engine.show(kind, object).to_string().into(),
    };
    Item { key: Key::new(object.key.namespace(), object.key.name()), revision: object.revision, json }
}

struct Watching {
    engine: Arc<Engine>,
    kind: Arc<Kind>,
    watch: engine::Watch,
}

#[async_trait]
impl EventStream for Watching {
    async fn next(&mut self) -> Result<Vec<Event>, Status> {
        let events = self.watch.next().await?;
        let event = |event: engine::Event| match (event.kind, event.object) {
            (EventKind::Deleted, Some(object)) => Event::Deleted(item(&self.engine, &self.kind, &object)),
            (_, Some(object)) => Event::Applied(item(&self.engine, &self.kind, &object)),
            (EventKind::InitialEnd, None) => Event::Synced(event.revision),
            (_, None) => Event::Bookmark(event.revision),
        };
        Ok(events.into_iter().map(event).collect())
    }
}

#[async_trait]
impl Transport for Local {
    async fn get(&self, target: Target<'_>) -> Result<Value, Status> {
        let target = self.allowed("get", target)?;
        let object = self.engine().get(&target, None).await?;
        Ok(self.engine().show(&target.kind, &object))
    }

    async fn list(&self, target: Target<'_>, selector: &Selector) -> Result<List, Status> {
        let Selected { target, labels, fields } = self.selected("list", target, selector)?;
        let found = self.engine().list(&target, &ListOptions { labels, fields, ..ListOptions::default() }).await?;
        let items = found.objects.iter().map(|object| item(self.engine(), &target.kind, object)).collect();
        Ok(List { revision: found.revision, items })
    }

    async fn watch(
        &self,
        target: Target<'_>,
        selector: &Selector,
        after: Option<Revision>,
    ) -> Result<Box<dyn EventStream>, Status> {
        let Selected { target, labels, fields } = self.selected("watch", target, selector)?;
        let options =
            WatchOptions { labels, fields, version: after, bookmarks: false, initial_events: after.is_none() };
        let watch = self.engine().watch(&target, options)?;
        Ok(Box::new(Watching { engine: self.engine().clone(), kind: target.kind, watch }))
    }

    async fn create(&self, asked: Target<'_>, object: Value) -> Result<Value, Status> {
        let target = self.allowed("create", asked)?;
        match asked.subresource {
            "" => {
                let object = canonical(&target.kind, &object, FieldValidation::Strict)?;
                if !target.kind.stored() {
                    let (context, options) = (self.context(), self.options());
                    let asked =
                        reviews::answer(self.engine(), &self.shared.tokens, &context, &target, &options, object);
                    return asked.await.map(|(answer, _)| answer);
                }
                let written = self.engine().create(&self.context(), &target, &self.options(), object).await?;
                Ok(written.object.into_value())
            }
            "binding" => {
                self.engine().bind(&self.context(), &target, &self.options(), object).await?;
                Ok(serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}))
            }
            "token" => {
                let (context, options) = (self.context(), self.options());
                let tokens = &self.shared.tokens;
                let asked = reviews::token_request(self.engine(), tokens, &context, &target, &options, object);
                asked.await.map(|(answer, _)| answer)
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn update(&self, target: Target<'_>, change: &Change<'_>) -> Result<Value, Status> {
        let target = self.target(target)?;
        // What follows is a read-modify-write or a patch, whichever the identity's role grants.
        self.check("update", &target).or_else(|refused| self.check("patch", &target).map_err(|_| refused))?;
        // What does not fit its kind is our mistake, and said as one.
        self.change(&target, FieldValidation::Strict, change).await
    }

    async fn patch(&self, target: Target<'_>, patch: &Value) -> Result<Value, Status> {
        let target = self.allowed("patch", target)?;
        // As every patch: what its kind does not have goes, whoever wrote it.
        self.change(&target, FieldValidation::Ignore, &|current| Ok(patch::merge(current, patch))).await
    }

    async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        let target = self.allowed("delete", target)?;
        let options = engine::DeleteOptions {
            grace_seconds: options.grace_seconds,
            propagation: options.propagation.map(propagation),
            uid: options.uid.clone(),
            version: options.version.map(|version| version.to_string()),
            ..engine::DeleteOptions::default()
        };
        Ok(match self.engine().delete(&self.context(), &target, &options).await?.deleted {
            engine::Deleted::Gone { uid, revision } => Deleted::Gone { uid, revision: Some(revision) },
            going @ (engine::Deleted::GoneShown(_) | engine::Deleted::Going(_)) => {
                Deleted::Going { revision: going.revision() }
            }
        })
    }

    async fn kinds(&self) -> Result<Vec<ServedKind>, Status> {
        let registry = self.engine().registry();
        let whole = |kind: &&Arc<Kind>| ["list", "watch", "delete"].iter().all(|verb| kind.has_verb(verb));
        let served = registry.iter().filter(whole).map(|kind| ServedKind {
            resource: Resource::named(&kind.group, &kind.version, &kind.plural),
            kind: kind.kind.to_string(),
            namespaced: kind.namespaced(),
            preferred: kind.is_storage(),
        });
        Ok(served.collect())
    }
}

fn propagation(policy: Propagation) -> engine::Propagation {
    match policy {
        Propagation::Background => engine::Propagation::Background,
        Propagation::Foreground => engine::Propagation::Foreground,
        Propagation::Orphan => engine::Propagation::Orphan,
    }
}
