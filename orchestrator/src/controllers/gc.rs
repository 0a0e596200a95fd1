//! What goes when its owners went: dependents of deleted objects, and the `orphan` and `foregroundDeletion` finalizers.
//!
//! It must look at every kind, also those added while the server runs, so it reads headers of the stored bytes instead of
//! one decoded view per kind. It acts as a client like any other, under the account whose role Kubernetes gives it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::status::Status;
use apiserver::client::Client;
use apiserver::engine::{DeleteOptions, Propagation, Target};
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Failed passes come back after this.
const RETRY: Duration = Duration::from_secs(1);
/// Passes over all kinds before the collector waits for the writers to pause.
const PASSES: usize = 8;
/// Kinds that come and go by the second: what they own is found out when it is asked for.
const NOT_FOLLOWED: [&str; 2] = ["events", "leases"];

/// Deletes what its owners left behind, and honours the `orphan` and `foregroundDeletion` finalizers.
pub struct GarbageCollector {
    client: Client,
}

/// What the collector knows of an object.
#[derive(Debug, Clone)]
struct Fact {
    kind: Arc<Kind>,
    namespace: String,
    name: String,
    version: String,
    owners: Vec<Owner>,
    deleting: bool,
    finalizers: Vec<String>,
}

impl Fact {
    /// Deleted in the foreground: it waits for its dependents.
    fn waits(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|own| own == FOREGROUND)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    uid: String,
    group: String,
    version: String,
    kind: String,
    name: String,
    blocks: bool,
}

/// Whether an owner is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    There,
    Gone,
    /// Nobody can tell: its kind is not known, or it cannot be an owner from where it is. What it owns stays.
    Unclear,
}

/// What to do with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// All its owners are gone (or going in the foreground).
    Delete(String, Propagation),
    /// Some owners are gone: those references go.
    Forget(String, Vec<String>),
    /// It owns what waits for it to go: it stops holding its owners back.
    Unblock(String),
    /// It orphans its dependents and is then done.
    Orphan(String, Vec<String>),
    /// Its last blocking dependent is gone.
    Finish(String),
}

/// What came of a pass over all verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Done,
    /// Something changed meanwhile: look again.
    Stale,
    Failed,
}

impl GarbageCollector {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Looks again after each change of anything, until told to stop by being dropped.
    pub async fn run(self) {
        let mut facts: BTreeMap<String, Fact> = BTreeMap::new();
        let mut cursors = BTreeMap::new();
        let mut revisions = self.client.engine().revisions();
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
            let pass = if due && settled { self.pass(&facts).await } else { Pass::Done };
            due = match pass {
                Pass::Done if settled => false,
                Pass::Done => due,
                Pass::Stale | Pass::Failed => true,
            };
            match pass {
                Pass::Stale => {}
                _ if due => tokio::time::sleep(RETRY).await,
                _ if revisions.changed().await.is_err() => return,
                _ => {}
            }
        }
    }

    async fn pass(&self, facts: &BTreeMap<String, Fact>) -> Pass {
        let mut pass = Pass::Done;
        for verdict in verdicts(facts, &|fact, owner| self.standing_elsewhere(fact, owner)) {
            match self.carry_out(&verdict, facts).await {
                Ok(()) => {}
                Err(error) if error.code == 404 => {}
                Err(error) if error.code == 409 && pass == Pass::Done => pass = Pass::Stale,
                Err(error) => {
                    tracing::debug!(%error, ?verdict, "garbage collection will retry");
                    pass = Pass::Failed;
                }
            }
        }
        pass
    }

    /// Brings the facts up to date from each collection's history; true when ownership may have changed.
    fn refresh(&self, facts: &mut BTreeMap<String, Fact>, cursors: &mut BTreeMap<String, u64>) -> bool {
        let mut touched = false;
        let registry = self.client.engine().registry();
        for kind in registry.iter().filter(|kind| kind.stored() && kind.is_storage()) {
            if NOT_FOLLOWED.contains(&&*kind.plural) {
                continue;
            }
            let place = format!("{}/{}", kind.group, kind.plural);
            let known = cursors.get(&place).copied();
            let (cursor, changes) = self.client.engine().changes(kind, known);
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

    /// An owner that is not among the facts.
    fn standing_elsewhere(&self, fact: &Fact, owner: &Owner) -> Standing {
        let registry = self.client.engine().registry();
        let Some(kind) = registry.find_kind(&owner.group, &owner.version, &owner.kind) else {
            return Standing::Unclear;
        };
        if kind.namespaced() && fact.namespace.is_empty() {
            return Standing::Unclear;
        }
        if !NOT_FOLLOWED.contains(&&*kind.plural) {
            return Standing::Gone;
        }
        let namespace = if kind.namespaced() { &*fact.namespace } else { "" };
        let there = self.client.engine().all(&kind, namespace).iter().any(|found| found.header.uid == owner.uid);
        if there { Standing::There } else { Standing::Gone }
    }

    async fn carry_out(&self, verdict: &Verdict, facts: &BTreeMap<String, Fact>) -> Result<(), Status> {
        match verdict {
            Verdict::Delete(uid, propagation) => {
                let fact = &facts[uid];
                let options = DeleteOptions {
                    uid: Some(uid.clone()),
                    // As it was when this was decided: an owner added since would keep it.
                    version: Some(fact.version.clone()),
                    propagation: Some(*propagation),
                    ..DeleteOptions::default()
                };
                self.client.delete_at(&target(fact), &options).await.map(drop)
            }
            Verdict::Forget(uid, gone) => self.forget(&facts[uid], gone).await,
            Verdict::Unblock(uid) => self.edit(&facts[uid], unblock).await,
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
        let change = |current: &Value| {
            let mut next = current.clone();
            edit(&mut next["metadata"]);
            for field in ["ownerReferences", "finalizers"] {
                if next["metadata"][field].as_array().is_some_and(Vec::is_empty)
                    && let Some(metadata) = next["metadata"].as_object_mut()
                {
                    metadata.remove(field);
                }
            }
            Ok(next)
        };
        self.client.update_at(&target(fact), change).await.map(drop)
    }
}

fn unblock(metadata: &mut Value) {
    for owner in metadata["ownerReferences"].as_array_mut().into_iter().flatten() {
        owner["blockOwnerDeletion"] = json!(false);
    }
}

fn target(fact: &Fact) -> Target {
    Target::new(fact.kind.clone(), &fact.namespace, &fact.name)
}

fn fact(kind: &Arc<Kind>, object: &Value) -> Fact {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let list = |field: &str| metadata[field].as_array().into_iter().flatten();
    Fact {
        kind: kind.clone(),
        namespace: text("namespace"),
        name: text("name"),
        version: text("resourceVersion"),
        owners: list("ownerReferences").map(owner).collect(),
        deleting: metadata["deletionTimestamp"].is_string(),
        finalizers: list("finalizers").filter_map(Value::as_str).map(str::to_owned).collect(),
    }
}

fn owner(reference: &Value) -> Owner {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    Owner {
        uid: text("uid").into(),
        group: group.into(),
        version: version.into(),
        kind: text("kind").into(),
        name: text("name").into(),
        blocks: reference["blockOwnerDeletion"] == true,
    }
}

type Elsewhere<'a> = &'a dyn Fn(&Fact, &Owner) -> Standing;

/// The facts, and who depends on whom.
struct World<'a> {
    facts: &'a BTreeMap<String, Fact>,
    dependents: BTreeMap<&'a str, Vec<&'a str>>,
    /// Judges owners that are not among the facts.
    elsewhere: Elsewhere<'a>,
}

/// What the present state calls for. Pure.
fn verdicts(facts: &BTreeMap<String, Fact>, elsewhere: Elsewhere<'_>) -> Vec<Verdict> {
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (uid, fact) in facts {
        for owner in &fact.owners {
            dependents.entry(&owner.uid).or_default().push(uid);
        }
    }
    let world = World { facts, dependents, elsewhere };
    let mut all = Vec::new();
    for (uid, fact) in facts {
        if fact.deleting && fact.finalizers.iter().any(|own| own == ORPHAN) {
            let dependents = world.dependents_of(uid).iter().map(|dependent| (*dependent).to_owned());
            all.push(Verdict::Orphan(uid.clone(), dependents.collect()));
            continue;
        }
        let blocking =
            |dependent: &&&str| facts[**dependent].owners.iter().any(|owner| owner.uid == *uid && owner.blocks);
        if fact.waits() && world.dependents_of(uid).iter().filter(blocking).count() == 0 {
            all.push(Verdict::Finish(uid.clone()));
        }
        all.extend(world.fate(uid, fact));
    }
    all
}

impl World<'_> {
    fn dependents_of(&self, uid: &str) -> &[&str] {
        self.dependents.get(uid).map(Vec::as_slice).unwrap_or_default()
    }

    fn waits(&self, uid: &str) -> bool {
        self.facts.get(uid).is_some_and(Fact::waits)
    }

    /// What becomes of an object whose owners are gone or going.
    fn fate(&self, uid: &str, fact: &Fact) -> Vec<Verdict> {
        if fact.owners.is_empty() || fact.deleting {
            return Vec::new();
        }
        let standings: Vec<_> = fact.owners.iter().map(|owner| (owner, self.standing(fact, owner))).collect();
        if standings.iter().any(|(_, standing)| *standing == Standing::Unclear) {
            return Vec::new();
        }
        let (gone, rest): (Vec<_>, Vec<_>) =
            standings.into_iter().partition(|(_, standing)| *standing == Standing::Gone);
        let staying = rest.iter().filter(|(owner, _)| !self.waits(&owner.uid)).count();
        let waiting = rest.len() - staying;
        match (gone.len(), staying, waiting) {
            (0, _, 0) | (0, 1.., _) => Vec::new(),
            (_, 0, 1..) => self.follow(uid),
            (_, 0, 0) => vec![Verdict::Delete(uid.to_owned(), Propagation::Background)],
            _ => vec![Verdict::Forget(uid.to_owned(), gone.iter().map(|(owner, _)| owner.uid.clone()).collect())],
        }
    }

    /// An owner waits for this object, which goes with its own dependents before it. If one of those waits already, they
    /// may all wait for each other in a circle.
    fn follow(&self, uid: &str) -> Vec<Verdict> {
        let dependents = self.dependents_of(uid);
        let policy = if dependents.is_empty() { Propagation::Background } else { Propagation::Foreground };
        let delete = Verdict::Delete(uid.to_owned(), policy);
        if dependents.iter().any(|dependent| self.waits(dependent)) {
            return vec![Verdict::Unblock(uid.to_owned()), delete];
        }
        vec![delete]
    }

    /// An owner is there when its uid is, in the dependent's namespace or cluster-wide.
    fn standing(&self, fact: &Fact, owner: &Owner) -> Standing {
        match self.facts.get(&owner.uid) {
            Some(found) if found.namespace.is_empty() || found.namespace == fact.namespace => Standing::There,
            Some(_) if fact.namespace.is_empty() => Standing::Unclear,
            Some(_) => Standing::Gone,
            None => (self.elsewhere)(fact, owner),
        }
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
            let owner_of = |uid: &str, blocks| {
                let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid});
                Owner { blocks, ..owner(&reference) }
            };
            let owners = owners.iter().map(|(uid, blocks)| owner_of(uid, *blocks)).collect();
            let finalizers = finalizers.iter().map(|f| (*f).to_owned()).collect();
            let fact = Fact {
                kind: kind.clone(),
                namespace: "ns".into(),
                name: (*uid).into(),
                version: "1".into(),
                owners,
                deleting: *deleting,
                finalizers,
            };
            ((*uid).to_owned(), fact)
        });
        made.collect()
    }

    fn verdicts(facts: &BTreeMap<String, Fact>) -> Vec<Verdict> {
        super::verdicts(facts, &|_, _| Standing::Gone)
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

    #[test]
    fn nothing_goes_for_an_owner_that_nobody_can_judge() {
        let all =
            facts(&[("a", &[("custom", true)], false, &[]), ("b", &[("gone", true), ("custom", true)], false, &[])]);
        let unclear = |_: &Fact, owner: &Owner| if owner.uid == "custom" { Standing::Unclear } else { Standing::Gone };
        assert_eq!(super::verdicts(&all, &unclear), []);
        // What is cluster-wide cannot be owned by what is in a namespace; upstream leaves it alone.
        let mut all = facts(&[("a", &[], false, &[]), ("b", &[("a", true)], false, &[])]);
        all.get_mut("b").unwrap().namespace.clear();
        assert_eq!(verdicts(&all), []);
    }

    #[test]
    fn a_circle_of_owners_opens() {
        // b follows a in the foreground; c, which owns a, is the next, and holds b back no longer.
        let all = facts(&[
            ("a", &[("c", true)], true, &[FOREGROUND]),
            ("b", &[("a", true)], true, &[FOREGROUND]),
            ("c", &[("b", true)], false, &[]),
        ]);
        let expected = [Verdict::Unblock("c".into()), Verdict::Delete("c".into(), Propagation::Foreground)];
        assert_eq!(verdicts(&all), expected);
        let all = facts(&[
            ("a", &[("c", true)], true, &[FOREGROUND]),
            ("b", &[("a", true)], true, &[FOREGROUND]),
            ("c", &[("b", false)], true, &[FOREGROUND]),
        ]);
        assert_eq!(verdicts(&all), [Verdict::Finish("b".into())]);
    }
}
