//! What goes when something else went: dependents of deleted owners, the contents of deleted namespaces.
//!
//! Both must look at every kind, also those added while the server runs, so they read headers of the stored bytes
//! instead of one decoded view per kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::status::Status;
use apiserver::client::Client;
use apiserver::engine::{Context, DeleteOptions, Draft, Engine, Propagation, Target, WriteOptions};
use apiserver::identity::User;
use jiff::Timestamp;
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Failed passes come back after this.
const RETRY: Duration = Duration::from_secs(1);
/// Passes over all kinds before the collector waits for the writers to pause.
const PASSES: usize = 8;

/// Deletes what its owners left behind, and honours the `orphan` and `foregroundDeletion` finalizers.
pub struct GarbageCollector {
    engine: Arc<Engine>,
    context: Context,
}

/// What the collector knows of an object.
#[derive(Debug, Clone)]
struct Fact {
    kind: Arc<Kind>,
    namespace: String,
    name: String,
    owners: Vec<Owner>,
    deleting: bool,
    finalizers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    uid: String,
    blocks: bool,
}

/// What to do with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// All its owners are gone (or going in the foreground).
    Delete(String, Propagation),
    /// Some owners are gone: those references go.
    Forget(String, Vec<String>),
    /// It orphans its dependents and is then done.
    Orphan(String, Vec<String>),
    /// Its last blocking dependent is gone.
    Finish(String),
}

fn system(name: &str) -> Context {
    Context { user: User::service_account("kube-system", name), now: Timestamp::now() }
}

impl GarbageCollector {
    pub fn new(client: &Client) -> Self {
        Self { engine: client.engine().clone(), context: system("generic-garbage-collector") }
    }

    /// Looks again after each change of anything, until told to stop by being dropped.
    pub async fn run(self) {
        let mut facts: BTreeMap<String, Fact> = BTreeMap::new();
        let mut cursors = BTreeMap::new();
        let mut revisions = self.engine.revisions();
        // Facts changed since the last pass that carried out everything.
        let mut due = false;
        loop {
            revisions.mark_unchanged();
            // A dependent is seen with its owner only when a whole pass brings nothing new: owners are older.
            let settled = (0..PASSES).any(|_| {
                let fresh = self.refresh(&mut facts, &mut cursors);
                due |= fresh;
                !fresh
            });
            if due && settled {
                due = false;
                for verdict in verdicts(&facts) {
                    if let Err(error) = self.carry_out(&verdict, &facts).await
                        && error.code != 404
                    {
                        tracing::debug!(%error, ?verdict, "garbage collection will retry");
                        due = true;
                    }
                }
            }
            if due {
                tokio::time::sleep(RETRY).await;
            } else if revisions.changed().await.is_err() {
                return;
            }
        }
    }

    /// Brings the facts up to date from each collection's history; true when ownership may have changed.
    fn refresh(&self, facts: &mut BTreeMap<String, Fact>, cursors: &mut BTreeMap<String, u64>) -> bool {
        let mut touched = false;
        let registry = self.engine.registry();
        for kind in registry.iter().filter(|kind| kind.stored() && kind.is_storage()) {
            let place = format!("{}/{}", kind.group, kind.plural);
            // Leases and Events come and go by the second and own nothing.
            if matches!(&*kind.plural, "events" | "leases") {
                continue;
            }
            let known = cursors.get(&place).copied();
            let (cursor, changes) = self.engine.changes(kind, known);
            cursors.insert(place, cursor);
            for (uid, object) in changes {
                touched = true;
                match object {
                    Some(value) => drop(facts.insert(uid, fact(kind, &value))),
                    None => drop(facts.remove(&uid)),
                }
            }
        }
        touched
    }

    async fn carry_out(&self, verdict: &Verdict, facts: &BTreeMap<String, Fact>) -> Result<(), Status> {
        match verdict {
            Verdict::Delete(uid, propagation) => {
                let options = DeleteOptions {
                    uid: Some(uid.clone()),
                    propagation: Some(*propagation),
                    ..DeleteOptions::default()
                };
                self.engine.delete(&self.context, &target(&facts[uid]), &options).await.map(drop)
            }
            Verdict::Forget(uid, gone) => self.forget(&facts[uid], gone).await,
            Verdict::Orphan(uid, dependents) => {
                for dependent in dependents {
                    self.forget(&facts[dependent], std::slice::from_ref(uid)).await?;
                }
                self.unfinalize(&facts[uid], ORPHAN).await
            }
            Verdict::Finish(uid) => self.unfinalize(&facts[uid], FOREGROUND).await,
        }
    }

    async fn forget(&self, fact: &Fact, gone: &[String]) -> Result<(), Status> {
        self.edit(fact, |metadata| {
            if let Some(owners) = metadata["ownerReferences"].as_array_mut() {
                owners.retain(|owner| !gone.iter().any(|uid| owner["uid"] == **uid));
            }
        })
        .await
    }

    async fn unfinalize(&self, fact: &Fact, finalizer: &str) -> Result<(), Status> {
        self.edit(fact, |metadata| {
            if let Some(list) = metadata["finalizers"].as_array_mut() {
                list.retain(|own| own != finalizer);
            }
        })
        .await
    }

    async fn edit(&self, fact: &Fact, edit: impl Fn(&mut Value) + Send + Sync) -> Result<(), Status> {
        let target = target(fact);
        let options = WriteOptions { manager: "kube-controller-manager".into(), dry_run: false };
        let change = |current: Option<&Value>| {
            let mut next = current
                .cloned()
                .ok_or_else(|| Status::not_found(&target.kind.group, &target.kind.plural, &target.name))?;
            edit(&mut next["metadata"]);
            for field in ["ownerReferences", "finalizers"] {
                if next["metadata"][field].as_array().is_some_and(Vec::is_empty)
                    && let Some(metadata) = next["metadata"].as_object_mut()
                {
                    metadata.remove(field);
                }
            }
            Ok(Draft::Update(next))
        };
        self.engine.update(&self.context, &target, &options, &change).await.map(drop)
    }
}

fn target(fact: &Fact) -> Target {
    Target::new(fact.kind.clone(), &fact.namespace, &fact.name)
}

fn fact(kind: &Arc<Kind>, object: &Value) -> Fact {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    Fact {
        kind: kind.clone(),
        namespace: text("namespace"),
        name: text("name"),
        owners: owners
            .map(|owner| Owner {
                uid: owner["uid"].as_str().unwrap_or_default().into(),
                blocks: owner["blockOwnerDeletion"] == true,
            })
            .collect(),
        deleting: metadata["deletionTimestamp"].is_string(),
        finalizers: metadata["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    }
}

/// What the present state calls for. Pure.
fn verdicts(facts: &BTreeMap<String, Fact>) -> Vec<Verdict> {
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (uid, fact) in facts {
        for owner in &fact.owners {
            dependents.entry(&owner.uid).or_default().push(uid);
        }
    }
    let of = |uid: &str| dependents.get(uid).map(Vec::as_slice).unwrap_or_default();
    let foreground = |uid: &str| {
        facts.get(uid).is_some_and(|owner| owner.deleting && owner.finalizers.iter().any(|f| f == FOREGROUND))
    };
    let mut all = Vec::new();
    for (uid, fact) in facts {
        if fact.deleting && fact.finalizers.iter().any(|own| own == ORPHAN) {
            all.push(Verdict::Orphan(uid.clone(), of(uid).iter().map(|dependent| (*dependent).to_owned()).collect()));
            continue;
        }
        let blocking =
            |dependent: &&&str| facts[**dependent].owners.iter().any(|owner| owner.uid == *uid && owner.blocks);
        if foreground(uid) && of(uid).iter().filter(blocking).count() == 0 {
            all.push(Verdict::Finish(uid.clone()));
        }
        all.extend(fate(uid, fact, facts, &foreground, !of(uid).is_empty()));
    }
    all
}

/// What becomes of an object whose owners are gone or going.
fn fate(
    uid: &str,
    fact: &Fact,
    facts: &BTreeMap<String, Fact>,
    foreground: &dyn Fn(&str) -> bool,
    has_dependents: bool,
) -> Option<Verdict> {
    if fact.owners.is_empty() || fact.deleting {
        return None;
    }
    let (gone, rest): (Vec<_>, Vec<_>) = fact.owners.iter().partition(|owner| !exists(fact, owner, facts));
    let staying = rest.iter().filter(|owner| !foreground(&owner.uid)).count();
    let waiting = rest.len() - staying;
    match (gone.len(), staying, waiting) {
        (0, _, 0) => None,
        (0, 1.., _) => None,
        (_, 0, 1..) => {
            let policy = if has_dependents { Propagation::Foreground } else { Propagation::Background };
            Some(Verdict::Delete(uid.to_owned(), policy))
        }
        (_, 0, 0) => Some(Verdict::Delete(uid.to_owned(), Propagation::Background)),
        _ => Some(Verdict::Forget(uid.to_owned(), gone.iter().map(|owner| owner.uid.clone()).collect())),
    }
}

/// An owner is there when its uid is, in the dependent's namespace or cluster-wide.
fn exists(fact: &Fact, owner: &Owner, facts: &BTreeMap<String, Fact>) -> bool {
    facts.get(&owner.uid).is_some_and(|found| found.namespace.is_empty() || found.namespace == fact.namespace)
}

/// Empties deleted namespaces, then lets them go.
pub struct Namespaces {
    engine: Arc<Engine>,
}

impl Namespaces {
    pub fn new(client: &Client) -> Self {
        Self { engine: client.engine().clone() }
    }

    pub async fn run(self) {
        let mut revisions = self.engine.revisions();
        loop {
            revisions.mark_unchanged();
            let mut failed = false;
            for name in self.terminating() {
                match self.empty(&name).await {
                    Ok(()) => {}
                    Err(error) if error.code == 404 => {}
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
        let Some(kind) = self.engine.registry().find("", "v1", "namespaces") else { return BTreeSet::new() };
        let deleting = |value: &Value| {
            value["status"]["phase"] == "Terminating"
                && value["spec"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == "kubernetes"))
        };
        let all = self.engine.all(&kind, "");
        all.iter()
            .filter(|object| object.json.windows(13).any(|w| w == b"\"Terminating\""))
            .map(|object| object.value())
            .filter(deleting)
            .filter_map(|value| value["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// Deletes what is left; when nothing is, takes the `kubernetes` finalizer away.
    async fn empty(&self, name: &str) -> Result<(), Status> {
        let context = system("namespace-controller");
        let registry = self.engine.registry();
        let mut left = 0_usize;
        for kind in registry.iter().filter(|kind| kind.stored() && kind.namespaced() && kind.is_storage()) {
            for object in self.engine.all(kind, name) {
                left += 1;
                let target = Target::new(kind.clone(), name, object.key.name());
                let going = object.value()["metadata"]["deletionTimestamp"].is_string();
                if !going {
                    let options =
                        DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
                    match self.engine.delete(&context, &target, &options).await {
                        Err(error) if error.code != 404 => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        let remains = registry
            .iter()
            .filter(|kind| kind.stored() && kind.namespaced() && kind.is_storage())
            .any(|kind| !self.engine.all(kind, name).is_empty());
        tracing::debug!(namespace = name, left, remains, "emptying namespace");
        if remains {
            return Ok(());
        }
        let kind = registry.find("", "v1", "namespaces").ok_or_else(Status::no_route)?;
        let mut target = Target::new(kind, "", name);
        target.subresource = "finalize".into();
        let finish = |current: Option<&Value>| {
            let mut next = current.cloned().ok_or_else(|| Status::not_found("", "namespaces", name))?;
            let kept = next["spec"]["finalizers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|f| **f != "kubernetes")
                .cloned()
                .collect::<Vec<_>>();
            next["spec"]["finalizers"] = json!(kept);
            Ok(Draft::Update(next))
        };
        let options = WriteOptions { manager: "kube-controller-manager".into(), dry_run: false };
        self.engine.update(&context, &target, &options, &finish).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uid, owners with blocking, deleting, finalizers.
    type Given<'a> = (&'a str, &'a [(&'a str, bool)], bool, &'a [&'a str]);

    fn facts(objects: &[Given<'_>]) -> BTreeMap<String, Fact> {
        let kind = api::kind::Registry::builtin().find("", "v1", "configmaps").unwrap();
        let made = objects.iter().map(|(uid, owners, deleting, finalizers)| {
            let owners = owners.iter().map(|(uid, blocks)| Owner { uid: (*uid).into(), blocks: *blocks }).collect();
            let finalizers = finalizers.iter().map(|f| (*f).to_owned()).collect();
            let fact = Fact {
                kind: kind.clone(),
                namespace: "ns".into(),
                name: (*uid).into(),
                owners,
                deleting: *deleting,
                finalizers,
            };
            ((*uid).to_owned(), fact)
        });
        made.collect()
    }

    #[test]
    fn dependents_of_what_is_gone_go() {
        let all = facts(&[("b", &[("gone", true)], false, &[]), ("c", &[("gone", true), ("b", false)], false, &[])]);
        assert_eq!(
            verdicts(&all),
            [Verdict::Delete("b".into(), Propagation::Background), Verdict::Forget("c".into(), vec!["gone".into()])]
        );
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let all = facts(&[("a", &[], true, &[FOREGROUND]), ("b", &[("a", true)], false, &[])]);
        assert_eq!(verdicts(&all), [Verdict::Delete("b".into(), Propagation::Background)]);
        let done = facts(&[("a", &[], true, &[FOREGROUND])]);
        assert_eq!(verdicts(&done), [Verdict::Finish("a".into())]);
    }

    #[test]
    fn orphaning_takes_the_reference_and_nothing_else() {
        let all = facts(&[("a", &[], true, &[ORPHAN]), ("b", &[("a", true)], false, &[])]);
        assert_eq!(verdicts(&all), [Verdict::Orphan("a".into(), vec!["b".into()])]);
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let mut all = facts(&[("a", &[], false, &[]), ("b", &[("a", true)], false, &[])]);
        all.get_mut("a").unwrap().namespace = "other".into();
        assert_eq!(verdicts(&all), [Verdict::Delete("b".into(), Propagation::Background)]);
    }
}
