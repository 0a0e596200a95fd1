//! Deletion: preconditions, grace, finalizers, what remains to be done by others.

use std::sync::Arc;

use api::kind::Kind;
use api::kinds::{Dependents, Ending, Shows};
use api::status::Status;
use api::uid::Uid;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{Engine, List, ListOptions, deleting, has_finalizers, revision_of};
use crate::admission::{Operation, Options, Review};
use crate::authz::Attributes;
use crate::object::{Object, Revision};
use crate::reader::{collection, commit_failed};
use crate::request::{Context, DeleteOptions, Propagation, Target};
use crate::store::{CommitError, Expect, Write};

const ATTEMPTS: usize = 16;
/// Of a removal that goes on whoever writes; beyond it the collector of pods takes over.
const REMOVALS: usize = 1_000;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion leaves to show.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone: the uid it had, and when.
    Gone { uid: Uid, revision: Revision },
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

/// A deletion that was accepted.
#[derive(Debug)]
pub struct Removal {
    pub deleted: Deleted,
    /// Texts for `Warning: 299` headers.
    pub warnings: Vec<String>,
}

/// What admission is told about a deletion.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reviewed<'a> {
    /// The request: an object, or the collection that it is in.
    As(&'a Target),
    /// Nothing: it was told of what the deletion follows from.
    Already,
}

/// What to do with one object.
enum Step {
    /// With the state that is shown, where upstream marks what it removes.
    Remove(Option<Value>),
    Mark(Value),
    Nothing,
}

impl Engine {
    /// Deletes an object as its kind does: at once, or with a mark until its finalizers or its node are done.
    ///
    /// # Errors
    /// 404 when it is not there; 409 Conflict when it is not the one that the options name, or kept changing; what
    /// admission says (403, 422); 500 when the stored object cannot be read. Storing fails as in [`Engine::create`].
    pub async fn delete(&self, context: &Context, target: &Target, options: &DeleteOptions) -> Result<Removal, Status> {
        self.delete_as(context, target, options, Reviewed::As(target)).await
    }

    /// The same where something else may have been asked for than this object.
    pub(super) async fn delete_as(
        &self,
        context: &Context,
        target: &Target,
        options: &DeleteOptions,
        reviewed: Reviewed<'_>,
    ) -> Result<Removal, Status> {
        if let Some(found) = self.set_aside(target).filter(|_| options.unreadable) {
            let deleted = self.delete_unreadable(context, target, options, found).await?;
            return Ok(Removal { deleted, warnings: Vec::new() });
        }
        self.look(&collection(&target.kind), &target.key()).await?;
        for _ in 0..ATTEMPTS {
            let current = self.find(target)?;
            if let Some(removal) = self.delete_once(context, target, options, reviewed, &current).await? {
                return Ok(removal);
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
        Ok(Deleted::Gone { uid: Uid::default(), revision })
    }

    /// Deletes what a list gives, one by one; gives that list, and texts for `Warning: 299` headers.
    ///
    /// # Errors
    /// Those of [`Engine::list`], and the first deletion that fails other than by 404: what was deleted by then is
    /// gone.
    pub async fn delete_collection(
        &self,
        context: &Context,
        target: &Target,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<(List, Vec<String>), Status> {
        let found = self.list(target, list).await?;
        let mut warnings: Vec<String> = Vec::new();
        for object in &found.objects {
            let one = Target::new(target.kind.clone(), object.key.namespace(), object.key.name());
            match self.delete_as(context, &one, options, Reviewed::As(target)).await {
                Ok(removal) => {
                    let new = removal.warnings.into_iter().filter(|text| !warnings.contains(text));
                    warnings.extend(new.collect::<Vec<_>>());
                }
                Err(status) if status.code != 404 => return Err(status),
                Err(_) => {}
            }
        }
        Ok((found, warnings))
    }

    async fn delete_once(
        &self,
        context: &Context,
        target: &Target,
        options: &DeleteOptions,
        reviewed: Reviewed<'_>,
        current: &Arc<Object>,
    ) -> Result<Option<Removal>, Status> {
        let kind = &target.kind;
        let old = self.show(kind, current);
        check_preconditions(target, options, current)?;
        let warnings = match reviewed {
            Reviewed::As(asked) => self.admit_deletion(context, asked, options, &old).await?,
            Reviewed::Already => Vec::new(),
        };
        let step = plan(kind, &old, options, context);
        if options.dry_run {
            return Ok(Some(Removal { deleted: outcome(kind, step, old), warnings }));
        }
        let committed = match &step {
            Step::Nothing => Ok(old.clone()),
            Step::Remove(None) => self.remove_at(kind, current.revision, &old).await,
            Step::Remove(Some(marked)) => match self.remove_marked(kind, current, &old, marked).await {
                Ok(Marked::Gone(last)) => Ok(last),
                Ok(Marked::Kept(value)) => return Ok(Some(Removal { deleted: Deleted::Going(value), warnings })),
                Err(error) => Err(error),
            },
            Step::Mark(new) => {
                let write = self.stored(kind, Expect::At(current.revision), new);
                self.commit(vec![write]).await.map(|stored| self.show(kind, &stored))
            }
        };
        match committed {
            Ok(value) => Ok(Some(Removal { deleted: outcome(kind, step, value), warnings })),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(commit_failed(&error)),
        }
    }

    async fn admit_deletion(
        &self,
        context: &Context,
        asked: &Target,
        options: &DeleteOptions,
        old: &Value,
    ) -> Result<Vec<String>, Status> {
        let mut review = Review::new(Operation::Delete, asked, context, Options::Delete(options));
        review.old = Some(old);
        self.admitted(review).await.map(|(_, warnings)| warnings)
    }

    /// Removes an object as it was at this revision, with what it held; gives its last state.
    async fn remove_at(&self, kind: &Arc<Kind>, revision: Revision, last: &Value) -> Result<Value, CommitError> {
        let mut writes = vec![Write { content: None, ..self.stored(kind, Expect::At(revision), last) }];
        writes.extend(self.released(kind, last));
        let gone = self.remove(writes).await?;
        let mut last = last.clone();
        last["metadata"]["resourceVersion"] = json!(gone.to_string());
        Ok(last)
    }

    /// Removes a pod. Who waits for its end by its mark sees the mark, and then the end.
    ///
    /// Between both somebody may write it. Nobody else would take it away then, and what was asked of it held when it was
    /// marked: so it goes as it is now.
    async fn remove_marked(
        &self,
        kind: &Arc<Kind>,
        current: &Object,
        old: &Value,
        marked: &Value,
    ) -> Result<Marked, CommitError> {
        let (mut revision, mut last) = (current.revision, marked.clone());
        if marked != old {
            let stored = self.commit(vec![self.stored(kind, Expect::At(revision), marked)]).await?;
            (revision, last) = (stored.revision, self.show(kind, &stored));
        }
        for _ in 0..REMOVALS {
            match self.remove_at(kind, revision, &last).await {
                Err(CommitError::Conflict { .. }) => {}
                outcome => return outcome.map(Marked::Gone),
            }
            let now = self.objects(kind).get(&current.key).filter(|now| now.header.uid == current.header.uid);
            // Somebody else removed it.
            let Some(now) = now else { return Ok(Marked::Gone(last)) };
            (revision, last) = (now.revision, self.show(kind, &now));
            if has_finalizers(&last) {
                return Ok(Marked::Kept(last));
            }
        }
        Ok(Marked::Kept(last))
    }
}

/// What became of an object that was marked to go at once.
enum Marked {
    /// Its last state.
    Gone(Value),
    /// Something holds it that was not there before.
    Kept(Value),
}

fn outcome(kind: &Kind, step: Step, value: Value) -> Deleted {
    match step {
        Step::Remove(_) if kind.behaviour.delete.shows == Shows::Object => Deleted::GoneShown(value),
        Step::Remove(_) => Deleted::Gone { uid: Uid::of(&value), revision: revision_of(&value) },
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
    fn a_policy_replaces_only_its_own_finalizers() {
        let object = json!({"metadata": {"finalizers": ["orphan", "x/y"]}});
        assert_eq!(finalizers_after(&object, None), ["orphan", "x/y"]);
        assert_eq!(finalizers_after(&object, Some(Propagation::Foreground)), ["x/y", "foregroundDeletion"]);
        assert_eq!(finalizers_after(&object, Some(Propagation::Background)), ["x/y"]);
    }
}
