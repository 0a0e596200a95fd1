//! Deleted namespaces: emptied, pods first, and let go when nothing is left. What is in the way is said in the
//! namespace's conditions.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::conditions::{self, Condition};
use api::status::Status;
use client::queue::{Outcome, Queue};
use client::{
    Caches, Client, DeleteOptions, EventStream, Item, Kept, Propagation, Resource, Revision, Selector, ServedKind,
};
use futures::StreamExt;
use futures::future::select_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::views::{NAMESPACES, Namespace, PODS};

/// The finalizer of a namespace that is this controller's to take away.
const KUBERNETES: &str = "kubernetes";
/// Namespaces emptied at once, and deletions under way in each; the store commits them in groups.
const PASSES: usize = 8;
const CONCURRENT: usize = 32;

pub const READS: &[Kept] = &[Kept::of::<Namespace>()];

/// Empties deleted namespaces, then lets them go; for ever.
pub async fn run(client: Client, caches: Arc<Caches>) {
    let queue = Queue::default();
    let added = queue.clone();
    caches.of::<Namespace>().on_change(move |_, new| {
        if let Some(namespace) = new.filter(|namespace| is_terminating(namespace)) {
            added.add(namespace.metadata.meta.name.clone());
        }
    });
    let emptier = Arc::new(Emptier { client, passes: Semaphore::new(PASSES) });
    // A namespace that waits for others' finalizers holds up no other one.
    let mut tasks = JoinSet::new();
    loop {
        let name = tokio::select! {
            name = queue.take() => name,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "emptying a namespace failed");
                }
                continue;
            }
        };
        let (emptier, queue) = (emptier.clone(), queue.clone());
        tasks.spawn(async move {
            let outcome = emptier.empty(&name).await;
            queue.done(&name, outcome);
            queue.settled(&name);
        });
    }
}

fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.meta.deletion_timestamp.is_some()
        && namespace.spec.finalizers.iter().any(|own| own == KUBERNETES)
}

struct Emptier {
    client: Client,
    passes: Semaphore,
}

/// What a pass over a namespace left.
#[derive(Debug, Default)]
struct Left {
    /// Objects by `plural.group`.
    objects: BTreeMap<String, usize>,
    /// Objects by the finalizer that holds them.
    finalizers: BTreeMap<String, usize>,
    errors: Vec<Status>,
    /// Where something is left, and up to when that is known.
    places: Vec<(Resource, Revision)>,
}

impl Left {
    fn nothing(&self) -> bool {
        self.objects.is_empty() && self.errors.is_empty()
    }
}

/// What of any object decides whether it goes.
#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
    #[serde(default)]
    finalizers: Vec<String>,
}

impl Emptier {
    /// Passes over a namespace until it is let go, looking again when something of what is left changes.
    async fn empty(&self, name: &str) -> Outcome {
        loop {
            let passed = {
                // Never closed.
                let _pass = self.passes.acquire().await;
                self.pass(name).await
            };
            let left = match passed {
                Ok(left) => left,
                // Gone; or somebody else wrote it, and that comes back as a change.
                Err(error) if matches!(error.code, 404 | 409) => return Outcome::Done,
                Err(error) => {
                    tracing::warn!(namespace = name, %error, "cannot empty a namespace yet");
                    return Outcome::Failed;
                }
            };
            if left.nothing() {
                return Outcome::Done;
            }
            if let Err(error) = self.changed(name, &left.places).await {
                tracing::debug!(namespace = name, %error, "what is left is not watched");
                return Outcome::Failed;
            }
        }
    }

    /// Deletes what is there, tells what is left, and lets the namespace go when nothing is.
    async fn pass(&self, name: &str) -> Result<Left, Status> {
        let kinds = self.client.kinds().await?;
        let mut left = self.delete_content(name, &kinds).await;
        self.tell(name, &left).await?;
        match left.errors.pop() {
            Some(error) => Err(error),
            None if left.nothing() => self.finish(name).await.map(|()| left),
            None => Ok(left),
        }
    }

    /// Waits for a change of what is left.
    async fn changed(&self, name: &str, places: &[(Resource, Revision)]) -> Result<(), Status> {
        let mut watches: Vec<Box<dyn EventStream>> = Vec::new();
        for (resource, revision) in places {
            watches.push(self.client.watch_after(resource, name, &Selector::default(), *revision).await?);
        }
        let next = watches.iter_mut().map(|watch| watch.next());
        // What fell behind missed a change: that is one too.
        let (_, _, _) = select_all(next).await;
        Ok(())
    }

    /// Pods go first: what they use stays until they are gone.
    async fn delete_content(&self, name: &str, kinds: &[ServedKind]) -> Left {
        let kinds = kinds.iter().filter(|kind| kind.namespaced && kind.preferred).map(|kind| &kind.resource);
        let (pods, others): (Vec<_>, Vec<_>) = kinds.partition(|resource| **resource == PODS);
        let mut left = Left::default();
        for stage in [pods, others] {
            for resource in stage {
                if let Err(error) = self.delete_all(resource, name, &mut left).await {
                    left.errors.push(error);
                }
            }
            if !left.nothing() {
                break;
            }
        }
        left
    }

    /// Deletes the objects of one kind, and counts those that stay.
    async fn delete_all(&self, resource: &Resource, name: &str, left: &mut Left) -> Result<(), Status> {
        let all = Selector::default();
        let found = self.client.list(resource, name, &all).await?;
        if found.items.is_empty() {
            return Ok(());
        }
        let standing = |item: &Item| {
            let object = api::view::decode::<Object>(&item.json);
            object.is_ok_and(|object| object.metadata.deletion_timestamp.is_none())
        };
        let standing: Vec<String> = found.items.into_iter().filter(standing).map(|item| item.key.name).collect();
        let options = &DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let deletions =
            standing.into_iter().map(|one| async move { self.client.delete(resource, name, &one, options).await });
        let outcomes: Vec<_> = futures::stream::iter(deletions).buffer_unordered(CONCURRENT).collect().await;
        left.errors.extend(outcomes.into_iter().filter_map(Result::err).filter(|error| error.code != 404));
        let rest = self.client.list(resource, name, &all).await?;
        if rest.items.is_empty() {
            return Ok(());
        }
        left.places.push((resource.clone(), rest.revision));
        left.objects.insert(format!("{}.{}", resource.plural, resource.group), rest.items.len());
        for item in &rest.items {
            let finalizers = api::view::decode::<Object>(&item.json).map(|object| object.metadata.finalizers);
            for finalizer in finalizers.unwrap_or_default() {
                *left.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn tell(&self, name: &str, left: &Left) -> Result<(), Status> {
        let now = api::time::rfc3339(jiff::Timestamp::now());
        let write = |current: &Value| {
            let mut next = current.clone();
            next["status"]["conditions"] = json!(conditions(&current["status"]["conditions"], left, &now));
            Ok(next)
        };
        self.client.update(&NAMESPACES, "", name, "status", write).await.map(drop)
    }

    /// Takes our finalizer away, and so the namespace where it was the last.
    async fn finish(&self, name: &str) -> Result<(), Status> {
        let finish = |current: &Value| {
            let mut next = current.clone();
            if let Some(finalizers) = next["spec"]["finalizers"].as_array_mut() {
                finalizers.retain(|own| own != KUBERNETES);
            }
            Ok(next)
        };
        self.client.update(&NAMESPACES, "", name, "finalize", finish).await.map(drop)
    }
}

/// The conditions of a namespace that is being emptied, in upstream's words; foreign ones stay.
fn conditions(stored: &Value, left: &Left, now: &str) -> Vec<Value> {
    let own = states(left).map(|(type_, bad, reason, message)| Condition::new(type_, bad).because(reason, message));
    conditions::merge(stored, &[], &own, conditions::PLAIN, now)
}

type State = (&'static str, bool, &'static str, String);

/// Each condition: whether it is bad, why, and in which words.
fn states(left: &Left) -> [State; 5] {
    let ok = |type_, reason, message: &str| (type_, false, reason, message.to_owned());
    let counted = |counts: &BTreeMap<String, usize>, words: &str| {
        counts
            .iter()
            .map(|(name, count)| format!("{name} {words} {count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let content_failure = match left.errors.as_slice() {
        [] => ok(
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        errors => {
            let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            texts.sort();
            let text = texts.join(", ");
            let message = format!("Failed to delete all resource types, {} remaining: {text}", errors.len());
            ("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", message)
        }
    };
    let content = match counted(&left.objects, "has") {
        none if none.is_empty() => {
            ok("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed")
        }
        some => {
            let message = format!("Some resources are remaining: {some}");
            ("NamespaceContentRemaining", true, "SomeResourcesRemain", message)
        }
    };
    let finalizers = match counted(&left.finalizers, "in") {
        none if none.is_empty() => {
            ok("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished")
        }
        some => {
            let message = format!("Some content in the namespace has finalizers remaining: {some}");
            ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
        }
    };
    [
        ok("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
        ok(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        content_failure,
        content,
        finalizers,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(conditions: &[Value], type_: &str) -> (String, String) {
        let found = conditions.iter().find(|condition| condition["type"] == type_).unwrap();
        (found["status"].as_str().unwrap().into(), found["message"].as_str().unwrap().into())
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let left = Left {
            objects: [("configmaps.".into(), 1), ("deployments.apps".into(), 2)].into(),
            finalizers: [("example.com/keep".into(), 3)].into(),
            errors: vec![Status::bad_request("no"), Status::bad_request("a no")],
            places: Vec::new(),
        };
        let all = conditions(&json!([{"type": "Foreign", "status": "True"}]), &left, "now");
        assert_eq!(all.len(), 6);
        assert_eq!(
            says(&all, "NamespaceContentRemaining").1,
            "Some resources are remaining: configmaps. has 1 resource instances, deployments.apps has 2 resource instances"
        );
        assert_eq!(
            says(&all, "NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: example.com/keep in 3 resource instances"
        );
        assert_eq!(
            says(&all, "NamespaceDeletionContentFailure").1,
            "Failed to delete all resource types, 2 remaining: a no, no"
        );
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let busy = Left { objects: [("pods.".into(), 1)].into(), ..Left::default() };
        let first = conditions(&Value::Null, &busy, "first");
        let then = conditions(&json!(first), &Left::default(), "then");
        assert!(first.iter().all(|condition| condition["lastTransitionTime"] == "first"));
        let moved: Vec<_> = then.iter().filter(|condition| condition["lastTransitionTime"] == "then").collect();
        assert_eq!(moved.len(), 1);
        assert_eq!(
            says(&then, "NamespaceContentRemaining"),
            ("False".into(), "All content successfully removed".into())
        );
    }
}
