//! Deletion: preconditions, grace, finalizers, what remains to be done by others.

use std::sync::Arc;

use api::kind::Kind;
use api::kinds::{Dependents, Ending, Shows};
use api::status::{FieldError, Status};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    Context, Engine, List, ListOptions, Revision, Target, collection, commit_failed, deleting, has_finalizers,
    revision_of,
};
use crate::authz::Attributes;
use crate::object::Object;
use crate::store::{CommitError, Expect, Write};

const ATTEMPTS: usize = 16;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub dry_run: bool,
    /// Also what cannot be read, whatever it holds.
    pub unreadable: bool,
}

impl DeleteOptions {
    /// From a decoded `DeleteOptions`, checked as upstream does.
    pub fn from_value(options: &Value) -> Result<Self, Status> {
        let policy = options["propagationPolicy"].as_str();
        let orphan = options["orphanDependents"].as_bool();
        let mut errors = Vec::new();
        if policy.is_some() && orphan.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy.unwrap_or_default(), why));
        }
        let propagation = match (policy, orphan) {
            (None, None) => None,
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                errors.push(FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        let dry_run = options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        errors.extend(
            dry_run
                .clone()
                .filter(|all| *all != "All")
                .map(|other| FieldError::not_supported("dryRun", other, &["All"])),
        );
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors));
        }
        let precondition = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            grace_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: precondition("uid"),
            version: precondition("resourceVersion"),
            dry_run: dry_run.count() > 0,
            unreadable: options["ignoreStoreReadErrorWithClusterBreakingPotential"] == true,
        })
    }
}

/// What a deletion leaves to show.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone: the uid it had, and when.
    Gone { uid: String, revision: Revision },
    /// It is gone; kinds that upstream shows once more.
    GoneShown(Value),
    /// It goes when its finalizers or its node are done.
    Going(Value),
}

impl Deleted {
    /// The revision of this object's change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Gone { revision, .. } => *revision,
            Self::GoneShown(value) | Self::Going(value) => revision_of(value),
        }
    }
}

/// What to do with one object.
enum Step {
    /// With the state that is shown, where upstream marks what it removes.
    Remove(Option<Value>),
    Mark(Value),
    Nothing,
}

impl Engine {
    pub async fn delete(&self, context: &Context, target: &Target, options: &DeleteOptions) -> Result<Deleted, Status> {
        if let Some(found) = self.set_aside(target).filter(|_| options.unreadable) {
            return self.delete_unreadable(context, target, options, found).await;
        }
        self.look(&collection(&target.kind), &target.key()).await?;
        for _ in 0..ATTEMPTS {
            let current = self.find(target)?;
            if let Some(deleted) = self.delete_once(context, target, options, &current).await? {
                return Ok(deleted);
            }
        }
        Err(Status::modified(&target.kind.group, &target.kind.plural, &target.name))
    }

    /// Removes what nobody can read: its finalizers and dependents are unknown, so it takes a permission of its own.
    async fn delete_unreadable(
        &self,
        context: &Context,
        target: &Target,
        options: &DeleteOptions,
        found: Revision,
    ) -> Result<Deleted, Status> {
        let asked = Attributes { verb: "unsafe-delete-ignore-read-errors".into(), ..Attributes::of(target) };
        self.authorizer.check(self, &context.user, &asked)?;
        let mut revision = 0;
        if !options.dry_run {
            let (collection, key) = (collection(&target.kind), target.key());
            let write = Write::remove(collection, key, found);
            revision = self.remove(vec![write]).await.map_err(|error| commit_failed(&error))?;
        }
        Ok(Deleted::Gone { uid: String::new(), revision })
    }

    /// Deletes what a list gives, one by one, and returns that list.
    pub async fn delete_collection(
        &self,
        context: &Context,
        target: &Target,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<List, Status> {
        let found = self.list(target, list).await?;
        for object in &found.objects {
            let one = Target::new(target.kind.clone(), object.key.namespace(), object.key.name());
            match self.delete(context, &one, options).await {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        Ok(found)
    }

    async fn delete_once(
        &self,
        context: &Context,
        target: &Target,
        options: &DeleteOptions,
        current: &Arc<Object>,
    ) -> Result<Option<Deleted>, Status> {
        let kind = &target.kind;
        let old = self.show(kind, current);
        check_preconditions(target, options, current)?;
        if kind.behaviour.delete.protected.contains(&&*target.name) {
            return Err(target.forbidden("this namespace may not be deleted"));
        }
        let step = plan(kind, &old, options, context);
        if options.dry_run {
            return Ok(Some(outcome(kind, step, old)));
        }
        let committed = match &step {
            Step::Nothing => Ok(old.clone()),
            Step::Remove(shown) => {
                self.remove_shown(kind, current.revision, &old, shown.as_ref().unwrap_or(&old)).await
            }
            Step::Mark(new) => {
                let write = self.stored(kind, Expect::At(current.revision), new);
                self.commit(vec![write]).await.map(|stored| self.show(kind, &stored))
            }
        };
        match committed {
            Ok(value) => Ok(Some(outcome(kind, step, value))),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failed(&error)),
        }
    }

    /// Removes an object of this revision with what it held; gives its last state, which is `shown`. Who waits for the end of a
    /// pod by its mark sees the mark, and then the end.
    async fn remove_shown(
        &self,
        kind: &Arc<Kind>,
        mut revision: Revision,
        old: &Value,
        shown: &Value,
    ) -> Result<Value, CommitError> {
        if shown != old {
            revision = self.commit(vec![self.stored(kind, Expect::At(revision), shown)]).await?.revision;
        }
        let mut writes = vec![Write { content: None, ..self.stored(kind, Expect::At(revision), old) }];
        writes.extend(self.released(kind, old));
        let gone = self.remove(writes).await?;
        let mut last = shown.clone();
        last["metadata"]["resourceVersion"] = json!(gone.to_string());
        Ok(last)
    }
}

fn outcome(kind: &Kind, step: Step, value: Value) -> Deleted {
    match step {
        Step::Remove(_) if kind.behaviour.delete.shows == Shows::Object => Deleted::GoneShown(value),
        Step::Remove(_) => Deleted::Gone {
            uid: value["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
            revision: revision_of(&value),
        },
        Step::Mark(_) | Step::Nothing => Deleted::Going(value),
    }
}

fn check_preconditions(target: &Target, options: &DeleteOptions, current: &Object) -> Result<(), Status> {
    // Upstream names the kind here, not the resource.
    let refused = |why: String| Status::conflict(&target.kind.group, &target.kind.kind, &target.name, &why);
    let uid = &current.header.uid;
    if let Some(asked) = options.uid.as_ref().filter(|asked| *asked != uid) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(refused(why));
    }
    let version = current.revision.to_string();
    if let Some(asked) = options.version.as_ref().filter(|asked| **asked != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        );
        return Err(refused(why));
    }
    Ok(())
}

fn plan(kind: &Kind, old: &Value, options: &DeleteOptions, context: &Context) -> Step {
    let ending = kind.behaviour.delete.ending;
    let grace = match ending {
        Ending::Graceful(grace) => grace(old, options.grace_seconds),
        Ending::AtOnce | Ending::Held(_) => 0,
    };
    let mut new = old.clone();
    if let Some(begin) = kind.behaviour.delete.begin.filter(|_| !deleting(old)) {
        begin(&mut new, context.now);
    }
    let finalizers = finalizers_after(&new, options.propagation.or_else(|| default_propagation(kind)));
    if finalizers.is_empty() {
        new["metadata"].as_object_mut().map(|metadata| metadata.remove("finalizers"));
    } else {
        new["metadata"]["finalizers"] = json!(finalizers);
    }
    let held = has_finalizers(&new) || matches!(ending, Ending::Held(held) if held(old));
    if grace == 0 && !held {
        let shown = matches!(ending, Ending::Graceful(_)).then(|| {
            mark(&mut new, 0, ending, context);
            new
        });
        return Step::Remove(shown);
    }
    let known = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let asked = options.grace_seconds.is_some();
    match (deleting(old), known) {
        // A deletion under way is only ever shortened.
        (true, Some(known)) if !(grace < known && (asked || grace == 0)) => {}
        (true, None) => {}
        _ => mark(&mut new, grace, ending, context),
    }
    if new == *old { Step::Nothing } else { Step::Mark(new) }
}

fn mark(object: &mut Value, grace: i64, ending: Ending, context: &Context) {
    let first = !deleting(object);
    let gone_by = context.now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(context.now);
    object["metadata"]["deletionTimestamp"] = json!(api::time::rfc3339(gone_by));
    if matches!(ending, Ending::Held(_)) {
        object["status"]["phase"] = json!("Terminating");
        return;
    }
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|_| first) {
        object["metadata"]["generation"] = json!(generation + 1);
    }
}

fn default_propagation(kind: &Kind) -> Option<Propagation> {
    (kind.behaviour.delete.dependents == Dependents::Orphaned).then_some(Propagation::Orphan)
}

/// What to tell whoever deletes an object of this kind without saying what becomes of its dependents.
pub fn deletion_warnings(kind: &Kind, options: &DeleteOptions) -> Vec<String> {
    let why = kind.behaviour.delete.warning.filter(|_| options.propagation.is_none());
    why.map(str::to_owned).into_iter().collect()
}

/// The finalizers that a propagation policy leaves: it decides about its own two and keeps the others.
fn finalizers_after(object: &Value, policy: Option<Propagation>) -> Vec<String> {
    let own = object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let Some(policy) = policy else { return own.map(str::to_owned).collect() };
    let mut kept: Vec<String> = own.filter(|name| !matches!(*name, ORPHAN | FOREGROUND)).map(str::to_owned).collect();
    match policy {
        Propagation::Background => {}
        Propagation::Foreground => kept.push(FOREGROUND.into()),
        Propagation::Orphan => kept.push(ORPHAN.into()),
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
        assert_eq!(DeleteOptions::from_value(&both).unwrap_err().code, 422);
        let all = DeleteOptions::from_value(&json!({"dryRun": ["All"], "gracePeriodSeconds": 3})).unwrap();
        assert_eq!((all.dry_run, all.grace_seconds), (true, Some(3)));
    }

    #[test]
    fn a_policy_replaces_only_its_own_finalizers() {
        let object = json!({"metadata": {"finalizers": ["orphan", "x/y"]}});
        assert_eq!(finalizers_after(&object, None), ["orphan", "x/y"]);
        assert_eq!(finalizers_after(&object, Some(Propagation::Foreground)), ["x/y", "foregroundDeletion"]);
        assert_eq!(finalizers_after(&object, Some(Propagation::Background)), ["x/y"]);
    }
}
