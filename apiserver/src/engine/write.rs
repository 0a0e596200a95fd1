//! Create, and every way to change: PUT, patches, server-side apply, status, scale.

use std::sync::Arc;

use api::custom::Stage;
use api::kind::{Kind, Part};
use api::kinds::{Asker, Ending, Put, Version};
use api::managed::{self, Writer};
use api::status::{FieldError, Status};
use api::uid::Uid;
use api::write::Birth;
use serde_json::Value;

use super::{Engine, Shown, deleting, has_finalizers};
use crate::admission::{Operation, Options, Phase, Review};
use crate::authz::Attributes;
use crate::identity::User;
use crate::object::{Collection, Object, ObjectKey, new_uid, suffix};
use crate::reader::{collection, commit_failed, unreadable};
use crate::request::{Context, Target, WriteOptions};
use crate::store::{CommitError, Durability, Expect, Transaction, Write};

/// Attempts of one change whose object keeps changing under it.
const ATTEMPTS: usize = 16;
/// Attempts to find a generated name that is free.
const NAMES: usize = 8;

/// The outcome of a write, in the requested version.
#[derive(Debug)]
pub struct Written {
    pub object: Shown,
    pub created: bool,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// Whether the fields of an object still have to be given to the manager that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Sent,
    Applied,
}

/// The next state as the caller wants it.
#[derive(Debug)]
pub enum Draft {
    /// A PUT: a uid in it must be the object's.
    Replace(Value),
    /// A patch, or a change from inside.
    Update(Value),
    /// A server-side apply, already merged with the live object.
    Apply(Value),
    /// The server's own change: nobody manages it, and it counts no generation.
    Own(Value),
}

/// A change to attempt: gives the next state for the current one (`None`: there is no object).
pub type Change<'a> = dyn Fn(Option<&Value>) -> Result<Draft, Status> + Send + Sync + 'a;

impl Engine {
    /// Creates an object that was decoded in the target's version.
    ///
    /// # Errors
    /// 409 AlreadyExists when the name is taken; 422 for what is not valid; 400 for another namespace, or what is too
    /// deep; 403 by admission or for more rights than the user has; 404 when there is no such namespace. 507 while the
    /// store has no space, 500 when it does not answer or failed, 503 when it is shutting down or others keep taking a
    /// Service's addresses. Nothing was stored then; only of a store that did not answer nobody knows.
    pub async fn create(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        object: Value,
    ) -> Result<Written, Status> {
        let generated = object["metadata"]["name"].as_str().unwrap_or_default().is_empty();
        let attempts = if generated { NAMES } else { 1 };
        let mut last = Status::internal("no attempt was made");
        for _ in 0..attempts {
            match self.create_as(context, target, options, object.clone(), Origin::Sent).await {
                Err(status) if generated && status.reason == "AlreadyExists" => last = status,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Creates under a name that is decided, with addresses that may have to be chosen again.
    async fn create_as(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        object: Value,
        origin: Origin,
    ) -> Result<Written, Status> {
        for _ in 0..ATTEMPTS {
            if let Some(written) = self.create_once(context, target, options, object.clone(), origin).await? {
                return Ok(written);
            }
        }
        Err(Status::service_unavailable("others take the addresses that are chosen for this Service; please try again"))
    }

    /// One attempt; `None` when what was allocated to the object was taken meanwhile.
    async fn create_once(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        mut object: Value,
        origin: Origin,
    ) -> Result<Option<Written>, Status> {
        let kind = &target.kind;
        let versioned = !matches!(object["metadata"]["resourceVersion"].as_str(), None | Some(""));
        if kind.namespaced() {
            set_namespace(&mut object, &target.namespace)?;
        }
        api::default::apply(kind, &mut object);
        if origin == Origin::Sent {
            managed::update(kind, None, &mut object, writer(options, target, context));
        }
        let namespace = kind.namespaced().then_some(target.namespace.as_str());
        api::write::wipe(kind, &mut object, namespace)?;
        check_stage(target, &object)?;
        let mut review = Review::new(Operation::Create, target, context, Options::Write(options));
        review.object = object;
        self.admission.run(Phase::Mutate, self.cluster(), &mut review).await?;
        self.authorizer.check_escalation(self, &context.user, target, &review.object, None)?;
        born(kind, &mut review.object, context);
        api::write::prepare_create(kind, &mut review.object);
        api::default::apply(kind, &mut review.object);
        let mut warnings = api::validate::warnings(kind, &review.object);
        validated(kind, api::validate::create(kind, &review.object), &review.object)?;
        self.admission.run(Phase::Validate, self.cluster(), &mut review).await?;
        warnings.extend(review.take_warnings());
        let mut object = review.object;
        if versioned && origin == Origin::Sent && !options.dry_run {
            return Err(Status::unknown("resourceVersion should not be set on objects to be created"));
        }
        let named = Target { name: name_of(&object).to_owned(), ..target.clone() };
        if self.objects(kind).get(&named.key()).is_some() {
            return Err(exists(&named));
        }
        let mut allocations = self.allocate(kind, None, &mut object)?;
        object = finished_form(kind, &object)?;
        if options.dry_run {
            return Ok(Some(Written { object: Shown::Value(object), created: true, warnings }));
        }
        if self.set_aside(&named).is_some() {
            return Err(unreadable(&named.key()));
        }
        let mut writes = vec![self.stored(kind, Expect::Absent, &object)];
        writes.append(&mut allocations);
        // It may have gone since it was looked at.
        let namespace = namespace.map(|name| (Collection::new("", "namespaces"), ObjectKey::new("", name)));
        let definition = kind.custom.as_ref().map(|custom| {
            (Collection::new(api::custom::GROUP, api::custom::PLURAL), ObjectKey::new("", &custom.definition))
        });
        let requires = namespace.into_iter().chain(definition).collect();
        match self.commit(Transaction { writes, requires, durability: durability(kind, &named) }).await {
            Ok(stored) => Ok(Some(Written { object: self.shown(kind, stored), created: true, warnings })),
            Err(CommitError::Conflict { collection: of, .. }) if of == collection(kind) => Err(exists(&named)),
            // An address or port that another Service took: one that asked for it is told by the next look.
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failed(&error)),
        }
    }

    /// Changes an object; `change` may run several times.
    ///
    /// # Errors
    /// What `change` says; 404 when it is not there, and is not created so (by apply, or by a PUT of some kinds); 409
    /// Conflict for another version or uid than the present one, or when it kept changing. Else those of
    /// [`Engine::create`].
    pub async fn update(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        change: &Change<'_>,
    ) -> Result<Written, Status> {
        self.look(&collection(&target.kind), &target.key()).await?;
        for _ in 0..ATTEMPTS {
            let Some(current) = self.objects(&target.kind).get(&target.key()) else {
                return self.create_by_update(context, target, options, change).await;
            };
            if let Some(written) = self.update_once(context, target, options, change, &current).await? {
                return Ok(written);
            }
        }
        Err(Status::modified(&target.kind.group, &target.kind.plural, &target.name))
    }

    /// Who changes what is not there creates it, and has to be allowed to.
    fn check_create(&self, context: &Context, target: &Target) -> Result<(), Status> {
        let asked = Attributes { verb: "create".into(), subresource: String::new(), ..Attributes::of(target) };
        self.authorizer.check(self, &context.user, &asked)
    }

    async fn create_by_update(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        change: &Change<'_>,
    ) -> Result<Written, Status> {
        if target.part.is_some() {
            return Err(target.not_found());
        }
        match change(None)? {
            Draft::Update(object) | Draft::Replace(object) if target.kind.behaviour.put == Put::Creates => {
                check_name(target, &object)?;
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !matches!(version, "" | "0") {
                    return Err(target.not_found());
                }
                self.check_create(context, target)?;
                self.create(context, target, options, object).await
            }
            Draft::Update(object) | Draft::Replace(object) => {
                check_name(target, &object)?;
                Err(target.not_found())
            }
            Draft::Own(_) => Err(target.not_found()),
            Draft::Apply(object) => {
                let object = typed(&target.kind, &object)?;
                check_name(target, &object)?;
                if let Some(uid) = object["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(target.conflict(&why));
                }
                self.check_create(context, target)?;
                self.create_as(context, target, options, object, Origin::Applied).await
            }
        }
    }

    /// One attempt; `None` when the object changed meanwhile.
    async fn update_once(
        &self,
        context: &Context,
        target: &Target,
        options: &WriteOptions,
        change: &Change<'_>,
        current: &Arc<Object>,
    ) -> Result<Option<Written>, Status> {
        let kind = &target.kind;
        let old = self.show(kind, current);
        let mut review = Review::new(Operation::Update, target, context, Options::Write(options));
        review.old = Some(&old);
        let (sent, origin) = match change(Some(&old))? {
            Draft::Own(new) => (new, None),
            Draft::Replace(new) => {
                check_uid(target, &new, &old)?;
                (new, Some(Origin::Sent))
            }
            Draft::Update(new) => (new, Some(Origin::Sent)),
            Draft::Apply(new) => (typed(kind, &new)?, Some(Origin::Applied)),
        };
        review.object = sent;
        // What the server itself does to an object was admitted as the request that it does it for.
        if let Some(origin) = origin {
            received(&mut review, options, &old, origin)?;
            self.admit_update(Phase::Mutate, &mut review).await?;
            self.authorizer.check_escalation(self, &context.user, target, &review.object, Some(&old))?;
            api::write::prepare_update(kind, target.part, &mut review.object, &old);
        }
        api::default::apply(kind, &mut review.object);
        // Who reports how things stand is not told about what is wanted.
        let reports = matches!(target.part, Some(Part::Status | Part::Finalize));
        let mut warnings = if reports { Vec::new() } else { api::validate::warnings(kind, &review.object) };
        validated(kind, api::validate::update(kind, target.part, &review.object, &old), &review.object)?;
        if origin.is_some() {
            self.admit_update(Phase::Validate, &mut review).await?;
        }
        warnings.extend(review.take_warnings());
        let mut new = review.object;
        let mut allocations = self.allocate(kind, Some(&old), &mut new)?;
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        new = finished_form(kind, &new)?;
        if new == old || options.dry_run {
            return Ok(Some(Written { object: Shown::Value(new), created: false, warnings }));
        }
        let expect = Expect::At(current.revision);
        let outcome = if finished(kind, &new, &old) {
            if target.part == Some(Part::Finalize) {
                self.empty_unserved(&target.name).await?;
            }
            let mut writes = vec![Write { content: None, ..self.stored(kind, expect, &new) }];
            writes.extend(self.released(kind, &old));
            self.remove(writes).await.map(|_| Shown::Value(new))
        } else {
            let mut writes = vec![self.stored(kind, expect, &new)];
            writes.append(&mut allocations);
            let durability = durability(kind, target);
            self.commit(Transaction { writes, durability, ..Transaction::default() })
                .await
                .map(|stored| self.shown(kind, stored))
        };
        match outcome {
            Ok(object) => Ok(Some(Written { object, created: false, warnings })),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failed(&error)),
        }
    }

    /// Admission of an update.
    async fn admit_update(&self, phase: Phase, review: &mut Review<'_>) -> Result<(), Status> {
        let Some((old, new)) = self.scales(review) else {
            return self.admission.run(phase, self.cluster(), review).await;
        };
        let mut scale = review.about(new, &old);
        self.admission.run(phase, self.cluster(), &mut scale).await?;
        let warnings = scale.take_warnings();
        if phase == Phase::Mutate {
            api::write::apply_scale(&review.target.kind, &mut review.object, &scale.object);
        }
        warnings.into_iter().for_each(|text| review.warn(text));
        Ok(())
    }

    /// Whoever scales an object is reviewed by the Scale, old and new, not by the object; made only for those who look.
    fn scales(&self, review: &Review<'_>) -> Option<(Value, Value)> {
        let scaled = review.target.part == Some(Part::Scale) && self.admission.concerns(review);
        let old = review.old.filter(|_| scaled)?;
        let kind = &review.target.kind;
        Some((api::write::scale_of(kind, old), api::write::scale_of(kind, &review.object)))
    }

    /// The write of an object shown in `kind`'s version, in the storage version.
    pub(crate) fn stored(&self, kind: &Arc<Kind>, expect: Expect, object: &Value) -> Write {
        if kind.is_storage() {
            return self.write(kind, expect, object);
        }
        let storage = self.storage(kind);
        self.write(&storage, expect, &api::convert::convert(kind, &storage, object.clone()))
    }
}

/// A kind that is being undefined takes nothing new.
fn check_stage(target: &Target, object: &Value) -> Result<(), Status> {
    let ending = target.kind.custom.as_ref().is_some_and(|custom| custom.stage == Stage::Terminating);
    let why = "create not allowed while custom resource definition is terminating";
    let refused = || Status::forbidden(&target.kind.group, &target.kind.plural, name_of(object), why);
    if ending { Err(refused()) } else { Ok(()) }
}

/// What is said again anyway, and often, need not wait for the disk: heartbeats of nodes and Events. Other leases elect leaders.
fn durability(kind: &Kind, target: &Target) -> Durability {
    let heartbeat = kind.storage.plural == "leases" && target.namespace == "kube-node-lease";
    let event = kind.storage.group.is_empty() && kind.storage.plural == "events";
    if heartbeat || event { Durability::Soon } else { Durability::Synced }
}

/// A client's next state as it came, and whose its fields are now.
fn received(review: &mut Review<'_>, options: &WriteOptions, old: &Value, origin: Origin) -> Result<(), Status> {
    let (target, new) = (review.target, &mut review.object);
    let kind = &target.kind;
    check_identity(target, new, old)?;
    if kind.namespaced() {
        set_namespace(new, &target.namespace)?;
    }
    api::default::apply(kind, new);
    if origin == Origin::Sent {
        managed::update(kind, Some(old), new, writer(options, target, review.context));
    }
    Ok(())
}

/// What a new object gets of its own, and of whoever asked for it.
fn born(kind: &Kind, object: &mut Value, context: &Context) {
    let (uid, suffix) = (new_uid(), suffix());
    api::write::birth(object, &Birth { uid: &uid, now: context.now, suffix: &suffix });
    if let Some(asked_by) = kind.behaviour.asked_by {
        let User { name, uid, groups, extra } = &context.user;
        asked_by(object, &Asker { name, uid, groups, extra });
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn writer<'a>(options: &'a WriteOptions, target: &'a Target, context: &Context) -> Writer<'a> {
    Writer { manager: &options.manager, part: target.part, now: context.now }
}

fn exists(target: &Target) -> Status {
    Status::already_exists(&target.kind.group, &target.kind.plural, &target.name)
}

fn validated(kind: &Kind, errors: Vec<FieldError>, object: &Value) -> Result<(), Status> {
    // Upstream checks both kinds of Event as one, of the core group.
    let group = if kind.kind == "Event" { "" } else { &*kind.group };
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(group, &kind.kind, name_of(object), errors)) }
}

/// An object as it is stored. Every reader of stored objects has to be able to read it, so it may be no deeper than
/// what clients may send, ownership included.
fn finished_form(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let object = api::decode::canonical(&kind.gvk(), &kind.schema, object);
    api::budget::check_depth(&object).map_err(|limit| Status::bad_request(limit.to_string()))?;
    Ok(object)
}

/// A merged apply brought to the kind's types.
fn typed(kind: &Kind, object: &Value) -> Result<Value, Status> {
    let decoded =
        api::decode::value(&kind.gvk(), &kind.schema, object, Vec::new(), api::decode::FieldValidation::Ignore);
    decoded.map(|decoded| decoded.value).map_err(|failure| Status::bad_request(failure.text))
}

fn set_namespace(object: &mut Value, namespace: &str) -> Result<(), Status> {
    match object.get_mut("metadata").and_then(Value::as_object_mut) {
        Some(metadata) => api::write::set_namespace(metadata, namespace),
        None => Ok(()),
    }
}

fn check_name(target: &Target, object: &Value) -> Result<(), Status> {
    match name_of(object) {
        "" => Err(Status::bad_request("name must be provided")),
        name if name != target.name => {
            let why = format!("the name of the object ({name}) does not match the name on the URL ({})", target.name);
            Err(Status::bad_request(why))
        }
        _ => Ok(()),
    }
}

fn check_uid(target: &Target, new: &Value, old: &Value) -> Result<(), Status> {
    let (asked, uid) = (Uid::of(new), Uid::of(old));
    if asked.is_empty() || asked == uid {
        return Ok(());
    }
    // Clients match on this text of upstream's storage.
    let place = [&*target.kind.plural, &target.namespace, &target.name].into_iter().filter(|part| !part.is_empty());
    let key = place.collect::<Vec<_>>().join("/");
    Err(target.conflict(&format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {asked}, UID in object meta: {uid}"
    )))
}

/// Name and version of a change against the object it is for.
fn check_identity(target: &Target, new: &Value, old: &Value) -> Result<(), Status> {
    let kind = &target.kind;
    check_name(target, new)?;
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
    if kind.namespaced() && !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let version = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if matches!(version, "" | "0") {
        if kind.behaviour.version == Version::Optional || target.part.is_some() {
            return Ok(());
        }
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(Status::invalid(&kind.group, &kind.plural, &target.name, vec![error]));
    }
    if version.parse::<u64>().is_err() {
        return Err(Status::unknown(format!("strconv.ParseUint: parsing \"{version}\": invalid syntax")));
    }
    if Some(version) != old["metadata"]["resourceVersion"].as_str() {
        return Err(Status::modified(&kind.group, &kind.plural, &target.name));
    }
    Ok(())
}

/// This change was the last thing that kept a deleted object.
fn finished(kind: &Kind, new: &Value, old: &Value) -> bool {
    if !deleting(new) || has_finalizers(new) {
        return false;
    }
    if let Ending::Held(held) = kind.behaviour.delete.ending {
        return !held(new);
    }
    has_finalizers(old) && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}
