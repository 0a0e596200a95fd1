//! What goes when its owners went: dependents of deleted objects, and the `orphan` and `foregroundDeletion` finalizers.
//!
//! It must look at every kind, also those added while the server runs, so it keeps a [`graph`] of ownership instead of one
//! decoded view per kind. Each change has its neighbours judged, by workers that take what changed first; nobody waits for
//! the writers to pause. It acts as a client like any other, under the account whose role Kubernetes gives it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::status::Status;
use api::uid::Uid;
use client::follow::{self, Scope, Step};
use client::queue::{Outcome, Queue};
use client::{Client, DeleteOptions, Item, Propagation, Resource, Selector, ServedKind};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use graph::{FOREGROUND, Fact, Graph, Judgement, ORPHAN, Owner, Standing, Verdict, Way};

mod graph;

/// Objects acted on at once; the store commits them in groups.
const WORKERS: usize = 16;
/// Before a question for the served kinds that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// What comes and goes by the second and owns nothing; upstream leaves it out too.
const NOT_FOLLOWED: (&[&str], &str) = (&["", "events.k8s.io"], "events");
/// What adds kinds and takes them away.
const DEFINITIONS: &str = "customresourcedefinitions";

/// Collects for ever.
pub async fn run(client: Client) {
    let collector = Arc::new(Collector::new(client));
    let mut tasks = JoinSet::new();
    for _ in 0..WORKERS {
        tasks.spawn(collector.clone().work());
    }
    collector.follow_kinds(&mut tasks).await;
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    /// Every kind served now, for owners in any version.
    kinds: Mutex<Vec<ServedKind>>,
    queue: Queue<Uid>,
    /// Definitions of kinds changed.
    redefined: Notify,
    /// By the graph's number of a kind.
    resources: Mutex<Vec<Resource>>,
    /// Kinds whose first state is not complete; `None` until the kinds are known.
    filling: watch::Sender<Option<BTreeSet<usize>>>,
}

/// What is followed: in which version, the graph's number of the kind, and the task.
type Followed = BTreeMap<Resource, (usize, AbortHandle)>;

/// What became of objects that nobody can read any more.
#[derive(Clone, Copy)]
enum Fate {
    /// Their kind's definition is gone, and it goes after them.
    Undefined,
    /// They are stored, and not shown (in this version).
    Hidden,
}

/// Kinds to follow now: one version of each that is not followed in a version that is still served.
fn new(served: &[ServedKind], followed: &Followed) -> Vec<Resource> {
    let same = |one: &Resource, other: &Resource| (&one.group, &one.plural) == (&other.group, &other.plural);
    let goes_on = |resource: &Resource| followed.keys().any(|known| same(known, resource) && is_served(served, known));
    let comes_and_goes = |resource: &Resource| {
        let (groups, plural) = NOT_FOLLOWED;
        resource.plural == plural && groups.contains(&&*resource.group)
    };
    let wanted = served.iter().filter(|kind| kind.preferred).map(|kind| &kind.resource);
    wanted.filter(|resource| !comes_and_goes(resource) && !goes_on(resource)).cloned().collect()
}

fn is_served(served: &[ServedKind], resource: &Resource) -> bool {
    served.iter().any(|kind| kind.resource == *resource)
}

/// Locks; no change to what is inside is ever half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    fn new(client: Client) -> Self {
        Self {
            client,
            graph: Mutex::default(),
            kinds: Mutex::default(),
            queue: Queue::default(),
            redefined: Notify::new(),
            resources: Mutex::default(),
            filling: watch::channel(None).0,
        }
    }

    /// Follows every kind, from its definition to its end.
    async fn follow_kinds(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let mut followed = Followed::new();
        loop {
            if let Err(error) = self.refollow(&mut followed, tasks).await {
                tracing::warn!(%error, "the served kinds are not known; will be asked for again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            self.redefined.notified().await;
        }
    }

    /// Follows the kinds that are served now, and no others.
    async fn refollow(self: &Arc<Self>, followed: &mut Followed, tasks: &mut JoinSet<()>) -> Result<(), Status> {
        let served = self.client.kinds().await?;
        let new = new(&served, followed);
        let ended: Vec<Resource> = followed.keys().filter(|resource| !is_served(&served, resource)).cloned().collect();
        let mut fates = Vec::new();
        for resource in ended {
            let fate = self.fate(&resource).await?;
            fates.push((resource, fate));
        }
        *lock(&self.kinds) = served;
        let numbered: Vec<(usize, Resource)> = {
            let mut resources = lock(&self.resources);
            let first = resources.len();
            resources.extend(new.iter().cloned());
            (first..).zip(new).collect()
        };
        // Before any of them can be complete, and before what is known in another version is known no more.
        self.filling.send_modify(|filling| {
            filling.get_or_insert_default().extend(numbered.iter().map(|(kind, _)| *kind));
        });
        for (resource, fate) in fates {
            let Some((kind, task)) = followed.remove(&resource) else { continue };
            task.abort();
            self.is_filled(kind);
            let touched = match fate {
                Fate::Undefined => lock(&self.graph).retain(kind, &BTreeSet::new()),
                Fate::Hidden => {
                    lock(&self.graph).lose(kind);
                    Vec::new()
                }
            };
            touched.into_iter().for_each(|uid| self.queue.add(uid));
        }
        for (kind, resource) in numbered {
            let task = tasks.spawn(self.clone().follow(kind, resource.clone()));
            followed.insert(resource, (kind, task));
        }
        Ok(())
    }

    /// What became of the objects of a kind that is not served any more, or not in this version.
    async fn fate(&self, resource: &Resource) -> Result<Fate, Status> {
        let definition = format!("{}.{}", resource.plural, resource.group);
        match self.client.get(&Resource::new("apiextensions.k8s.io", DEFINITIONS), "", &definition).await {
            Ok(_) => Ok(Fate::Hidden),
            Err(status) if status.code == 404 => Ok(Fate::Undefined),
            Err(status) => Err(status),
        }
    }

    fn is_filled(&self, kind: usize) {
        self.filling.send_modify(|filling| {
            filling.iter_mut().for_each(|filling| {
                filling.remove(&kind);
            });
        });
    }

    fn resource(&self, kind: usize) -> Option<Resource> {
        lock(&self.resources).get(kind).cloned()
    }

    /// Follows one kind.
    async fn follow(self: Arc<Self>, kind: usize, resource: Resource) {
        let defines = resource.plural == DEFINITIONS;
        let mut filled = false;
        let client = self.client.clone();
        follow::run(client, resource, Scope::default(), |step| {
            let touched = match step {
                Step::Set(item) => match read(kind, &item) {
                    Ok((uid, fact)) => lock(&self.graph).set(&uid, fact),
                    Err(error) => {
                        tracing::error!(key = %item.key, %error, "stored object does not decode");
                        Vec::new()
                    }
                },
                Step::Remove(key) => lock(&self.graph).remove(kind, &key),
                Step::Retain(keys) => lock(&self.graph).retain(kind, &keys),
                Step::Seen(_) => {
                    if !std::mem::replace(&mut filled, true) {
                        self.is_filled(kind);
                    }
                    if defines {
                        self.redefined.notify_one();
                    }
                    return;
                }
            };
            touched.into_iter().for_each(|uid| self.queue.add(uid));
        })
        .await;
    }

    async fn work(self: Arc<Self>) {
        let mut filling = self.filling.subscribe();
        loop {
            let uid = self.queue.take().await;
            // Until everything is known, what is not known is not news. The sender lives in self.
            let _ = filling.wait_for(|filling| filling.as_ref().is_some_and(BTreeSet::is_empty)).await;
            let outcome = match self.attend(&uid).await {
                Ok(()) => Outcome::Done,
                Err(error) if error.code == 404 => Outcome::Done,
                Err(error) => {
                    tracing::debug!(%error, %uid, "garbage collection will retry");
                    Outcome::Failed
                }
            };
            self.queue.done(&uid, outcome);
            self.queue.settled(&uid);
        }
    }

    async fn attend(&self, uid: &Uid) -> Result<(), Status> {
        let mut answers = HashMap::new();
        let (fact, verdicts) = loop {
            let (fact, judgement) = {
                let graph = lock(&self.graph);
                (graph.get(uid).cloned(), graph.judge(uid, &answers))
            };
            let Some(fact) = fact else { return Ok(()) };
            match judgement {
                Judgement::Do(verdicts) => break (fact, verdicts),
                Judgement::Ask(owners) => {
                    for owner in owners {
                        let standing = self.ask(&fact, &owner).await?;
                        if standing == Standing::Gone {
                            lock(&self.graph).is_gone(&owner.uid);
                        }
                        answers.insert(owner.uid, standing);
                    }
                }
            }
        };
        for verdict in verdicts {
            self.carry_out(uid, &fact, verdict).await?;
        }
        Ok(())
    }

    /// Looks for an owner whose news did not come (yet).
    async fn ask(&self, fact: &Fact, owner: &Owner) -> Result<Standing, Status> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let is_kind = |kind: &&ServedKind| {
            kind.kind == owner.kind && kind.resource.group == group && kind.resource.version == version
        };
        let Some(kind) = lock(&self.kinds).iter().find(is_kind).cloned() else { return Ok(Standing::Unclear) };
        if kind.namespaced && fact.key.namespace.is_empty() {
            return Ok(Standing::Unclear);
        }
        let namespace = if kind.namespaced { &*fact.key.namespace } else { "" };
        match self.client.get(&kind.resource, namespace, &owner.name).await {
            Ok(found) if found["metadata"]["uid"] == owner.uid => Ok(Standing::There),
            Ok(_) => Ok(Standing::Gone),
            Err(status) if status.code == 404 => Ok(Standing::Gone),
            Err(status) => Err(status),
        }
    }

    async fn carry_out(&self, uid: &Uid, fact: &Fact, verdict: Verdict) -> Result<(), Status> {
        match verdict {
            Verdict::Delete(way) => {
                let options = deletion(uid, fact, way);
                let Some(resource) = self.resource(fact.kind) else { return Ok(()) };
                self.client.delete(&resource, &fact.key.namespace, &fact.key.name, &options).await.map(drop)
            }
            Verdict::Forget(gone) => self.forget(uid, fact, &gone).await,
            Verdict::Unblock => self.edit(uid, fact, unblock).await,
            Verdict::Orphan(known) => {
                let mut dependents: BTreeSet<Uid> = known.into_iter().collect();
                dependents.extend(self.look_for_dependents(uid, fact).await?);
                for dependent in dependents {
                    let found = lock(&self.graph).get(&dependent).cloned();
                    let Some(found) = found else { continue };
                    match self.forget(&dependent, &found, std::slice::from_ref(uid)).await {
                        Err(status) if status.code != 404 => return Err(status),
                        _ => {}
                    }
                }
                self.unfinalize(uid, fact, ORPHAN).await
            }
            Verdict::Finish => self.unfinalize(uid, fact, FOREGROUND).await,
        }
    }

    /// Asks the server for all that an object owns, as each kind's news come for themselves: what it was given just before
    /// it went may not be known yet, and would be collected with it.
    async fn look_for_dependents(&self, uid: &Uid, fact: &Fact) -> Result<Vec<Uid>, Status> {
        let everywhere = fact.key.namespace.is_empty();
        let kinds: Vec<(usize, Resource)> = {
            let (resources, kinds) = (lock(&self.resources), lock(&self.kinds));
            let may_be_owned = |resource: &Resource| {
                kinds.iter().any(|kind| kind.resource == *resource && (everywhere || kind.namespaced))
            };
            resources.iter().cloned().enumerate().filter(|(_, resource)| may_be_owned(resource)).collect()
        };
        let mut found = Vec::new();
        for (kind, resource) in kinds {
            let list = match self.client.list(&resource, &fact.key.namespace, &Selector::default()).await {
                // A kind that goes has no objects that stay.
                Err(status) if status.code == 404 => continue,
                list => list?,
            };
            let facts = list.items.iter().filter_map(|item| read(kind, item).ok());
            for (dependent, fact) in facts.filter(|(_, fact)| fact.owners.iter().any(|owner| owner.uid == *uid)) {
                let mut graph = lock(&self.graph);
                if graph.get(&dependent).is_none_or(|known| known.version < fact.version) {
                    graph.set(&dependent, fact).into_iter().for_each(|uid| self.queue.add(uid));
                }
                found.push(dependent);
            }
        }
        Ok(found)
    }

    async fn forget(&self, uid: &Uid, fact: &Fact, gone: &[Uid]) -> Result<(), Status> {
        self.edit(uid, fact, |metadata| {
            if let Some(owners) = metadata["ownerReferences"].as_array_mut() {
                owners.retain(|owner| !gone.iter().any(|uid| owner["uid"] == *uid));
            }
        })
        .await
    }

    async fn unfinalize(&self, uid: &Uid, fact: &Fact, finalizer: &str) -> Result<(), Status> {
        self.edit(uid, fact, |metadata| {
            if let Some(list) = metadata["finalizers"].as_array_mut() {
                list.retain(|own| own != finalizer);
            }
        })
        .await
    }

    /// Changes owners and finalizers of an object as it is now, and nothing else of it: its kind may have fields that no
    /// schema of ours knows.
    async fn edit(&self, uid: &Uid, fact: &Fact, edit: impl Fn(&mut Value) + Send + Sync) -> Result<(), Status> {
        let Some(resource) = self.resource(fact.kind) else { return Ok(()) };
        let (namespace, name) = (&*fact.key.namespace, &*fact.key.name);
        let mut found = self.client.get(&resource, namespace, name).await?;
        if found["metadata"]["uid"] != *uid {
            return Ok(());
        }
        let version = found["metadata"]["resourceVersion"].take();
        let before = found["metadata"].clone();
        edit(&mut found["metadata"]);
        let mut changed = json!({});
        for field in ["ownerReferences", "finalizers"] {
            let (old, new) = (&before[field], &found["metadata"][field]);
            if old != new {
                let empty = new.as_array().is_none_or(Vec::is_empty);
                changed[field] = if empty { Value::Null } else { new.clone() };
            }
        }
        if changed == json!({}) {
            return Ok(());
        }
        changed["resourceVersion"] = version;
        self.client.patch(&resource, namespace, name, "", &json!({"metadata": changed})).await.map(drop)
    }
}

fn deletion(uid: &Uid, fact: &Fact, way: Way) -> DeleteOptions {
    DeleteOptions {
        uid: Some(uid.clone()),
        // As it was when this was decided: an owner added since would keep it.
        version: Some(fact.version),
        propagation: Some(match way {
            Way::Background => Propagation::Background,
            Way::Foreground => Propagation::Foreground,
        }),
        ..DeleteOptions::default()
    }
}

fn unblock(metadata: &mut Value) {
    for owner in metadata["ownerReferences"].as_array_mut().into_iter().flatten() {
        owner["blockOwnerDeletion"] = json!(false);
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: Uid,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
    #[serde(default)]
    finalizers: Vec<String>,
}

fn read(kind: usize, item: &Item) -> Result<(Uid, Fact), serde_json::Error> {
    let Object { metadata } = api::view::decode(&item.json)?;
    let fact = Fact {
        kind,
        key: item.key.clone(),
        version: item.revision,
        owners: metadata.owner_references,
        deleting: metadata.deletion_timestamp.is_some(),
        finalizers: metadata.finalizers,
    };
    Ok((metadata.uid, fact))
}

#[cfg(test)]
mod tests {
    use apiserver::identity::{MASTERS, User};
    use apiserver::nodes::NoNodes;
    use apiserver::server::{Config, Server};

    use super::*;

    const MAPS: Resource = Resource::core("configmaps");

    #[tokio::test]
    async fn what_is_not_known_yet_is_orphaned_too() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::open(&Config::on_loopback(folder.path().join("store.redb")), Arc::new(NoNodes)).await;
        let client = server.unwrap().client(User::new("tester", &[MASTERS]), "tester");
        let owner = client.create(&MAPS, "default", json!({"metadata": {"name": "owner"}})).await.unwrap();
        let uid = Uid::of(&owner);
        let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]);
        let dependent = json!({"metadata": {"name": "dependent", "ownerReferences": reference}});
        client.create(&MAPS, "default", dependent).await.unwrap();
        let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
        client.delete(&MAPS, "default", "owner", &orphan).await.unwrap();

        // A collector to which nobody has told anything but that the owner goes.
        let collector = Collector::new(client.clone());
        *lock(&collector.kinds) = client.kinds().await.unwrap();
        lock(&collector.resources).push(MAPS);
        let all = client.list(&MAPS, "default", &Selector::default()).await.unwrap();
        let owner = all.items.iter().find(|item| item.key.name == "owner").unwrap();
        let (uid, fact) = read(0, owner).unwrap();
        lock(&collector.graph).set(&uid, fact.clone());
        collector.carry_out(&uid, &fact, Verdict::Orphan(Vec::new())).await.unwrap();

        assert_eq!(client.get(&MAPS, "default", "owner").await.unwrap_err().code, 404);
        let left = client.get(&MAPS, "default", "dependent").await.unwrap();
        assert!(left["metadata"]["ownerReferences"].is_null(), "{left}");
    }

    #[test]
    fn what_is_deleted_is_what_was_judged() {
        let json = json!({"metadata": {"uid": "u", "ownerReferences": [{"uid": "o"}]}}).to_string();
        let item = Item { key: client::Key::new("a", "b"), revision: 7, json: json.into() };
        let (uid, fact) = read(0, &item).unwrap();
        let options = deletion(&uid, &fact, Way::Foreground);
        assert_eq!((options.uid, options.version), (Some(Uid::new("u")), Some(7)));
        assert_eq!(options.propagation, Some(Propagation::Foreground));
    }
}
