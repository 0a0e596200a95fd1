//! Deleted namespaces: emptied, pods first, and let go when nothing is left. What is in the way is said in the
//! namespace's conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::status::Status;
use apiserver::client::Client;
use apiserver::engine::{DeleteOptions, Propagation, Target};
use futures::StreamExt;
use serde_json::{Value, json};

use super::views::NAMESPACES;

/// The finalizer of a namespace that is this controller's to take away.
const KUBERNETES: &str = "kubernetes";
/// Failed passes come back after this.
const RETRY: Duration = Duration::from_secs(1);
/// Deletions under way at once; the store commits them in groups.
const CONCURRENT: usize = 32;

/// Empties deleted namespaces, then lets them go.
pub struct Namespaces {
    client: Client,
}

/// What a pass over a namespace left.
#[derive(Debug, Default)]
struct Left {
    /// Objects by `plural.group`.
    objects: BTreeMap<String, usize>,
    /// Objects by the finalizer that holds them.
    finalizers: BTreeMap<String, usize>,
    errors: Vec<Status>,
}

impl Left {
    fn nothing(&self) -> bool {
        self.objects.is_empty() && self.errors.is_empty()
    }
}

impl Namespaces {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    pub async fn run(self) {
        let mut revisions = self.client.engine().revisions();
        loop {
            revisions.mark_unchanged();
            let mut failed = false;
            for name in self.terminating() {
                match self.pass(&name).await {
                    Ok(()) => {}
                    // Gone, or somebody else wrote it: the next look sees that.
                    Err(error) if matches!(error.code, 404 | 409) => {}
                    Err(error) => {
                        tracing::warn!(namespace = name, %error, "cannot empty a namespace yet");
                        failed = true;
                    }
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
            } else if revisions.changed().await.is_err() {
                return;
            }
        }
    }

    fn terminating(&self) -> BTreeSet<String> {
        let Some(kind) = self.client.engine().registry().find("", "v1", "namespaces") else { return BTreeSet::new() };
        let deleting = |value: &Value| {
            value["status"]["phase"] == "Terminating"
                && value["spec"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == KUBERNETES))
        };
        let all = self.client.engine().all(&kind, "");
        all.iter()
            .filter(|object| object.json.windows(13).any(|w| w == b"\"Terminating\""))
            .map(|object| object.value())
            .filter(deleting)
            .filter_map(|value| value["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// Deletes what is there, tells what is left, and lets the namespace go when nothing is.
    async fn pass(&self, name: &str) -> Result<(), Status> {
        let left = self.empty(name).await;
        self.tell(name, &left).await?;
        match left.errors.into_iter().next() {
            Some(error) => Err(error),
            None if left.objects.is_empty() => self.finish(name).await,
            None => Ok(()),
        }
    }

    /// Pods go first: what they use stays until they are gone.
    async fn empty(&self, name: &str) -> Left {
        let registry = self.client.engine().registry();
        let kinds = registry.iter().filter(|kind| kind.stored() && kind.namespaced() && kind.is_storage());
        let (pods, others): (Vec<_>, Vec<_>) =
            kinds.cloned().partition(|kind| kind.group.is_empty() && kind.plural == "pods");
        let mut left = Left::default();
        for stage in [pods, others] {
            for kind in &stage {
                self.empty_of(kind, name, &mut left).await;
            }
            if !left.nothing() {
                break;
            }
        }
        left
    }

    /// Deletes the objects of one kind, and counts those that stay.
    async fn empty_of(&self, kind: &Arc<Kind>, name: &str, left: &mut Left) {
        let mut targets = Vec::new();
        for object in self.client.engine().all(kind, name) {
            if !is_deleting(&object.value()) {
                targets.push(Target::new(kind.clone(), name, object.key.name()));
            }
        }
        let options = &DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        let deletions = targets.into_iter().map(|target| async move { self.client.delete_at(&target, options).await });
        let outcomes: Vec<_> = futures::stream::iter(deletions).buffer_unordered(CONCURRENT).collect().await;
        left.errors.extend(outcomes.into_iter().filter_map(Result::err).filter(|error| error.code != 404));
        for object in self.client.engine().all(kind, name) {
            *left.objects.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += 1;
            let value = object.value();
            for finalizer in value["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
            {
                *left.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
    }

    async fn tell(&self, name: &str, left: &Left) -> Result<(), Status> {
        let now = api::time::rfc3339(jiff::Timestamp::now());
        let write = |current: &Value| {
            let mut next = current.clone();
            next["status"]["conditions"] = json!(conditions(&current["status"]["conditions"], left, &now));
            Ok(next)
        };
        self.client.update(NAMESPACES, "", name, "status", write).await.map(drop)
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
        self.client.update(NAMESPACES, "", name, "finalize", finish).await.map(drop)
    }
}

fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The conditions of a namespace that is being emptied, in upstream's words; foreign ones stay. A condition that says what
/// it said keeps its time.
fn conditions(stored: &Value, left: &Left, now: &str) -> Vec<Value> {
    let stored = stored.as_array().map(Vec::as_slice).unwrap_or_default();
    let own = states(left).map(|(type_, bad, reason, message)| {
        let status = if bad { "True" } else { "False" };
        let old = stored.iter().find(|old| old["type"] == type_ && old["status"] == status);
        let since = old.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({"type": type_, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
    });
    let foreign = stored.iter().filter(|old| !own.iter().any(|own| own["type"] == old["type"]));
    foreign.cloned().chain(own.clone()).collect()
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
            let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let text = if errors.len() == 1 { all } else { format!("[{all}]") };
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
            errors: vec![Status::internal("no")],
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
        assert!(
            says(&all, "NamespaceDeletionContentFailure")
                .1
                .starts_with("Failed to delete all resource types, 1 remaining:")
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
