//! Who owns what, and what that calls for. Pure.
//!
//! The graph is kept as changes come in; each change names the few objects to judge anew. An owner that is not in the graph
//! may be one whose news is still under way: a judgement asks for it by name before it calls it gone.

use std::collections::{BTreeSet, HashMap, HashSet};

use api::uid::Uid;
use client::{Key, Revision};
use serde::Deserialize;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";
/// Owners that are remembered to be gone; beyond it they are asked for again. A uid never comes back.
const REMEMBERED: usize = 10_000;

/// What the collector knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Which of the followed kinds it is of.
    pub kind: usize,
    pub key: Key,
    pub version: Revision,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    pub finalizers: Vec<String>,
}

impl Fact {
    /// Deleted in the foreground: it waits for its dependents.
    fn waits(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|own| own == FOREGROUND)
    }

    fn orphans(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|own| own == ORPHAN)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    pub uid: Uid,
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub block_owner_deletion: bool,
}

/// Whether an owner is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    There,
    Gone,
    /// Nobody can tell: its kind is not known, or it cannot be an owner from where it is. What it owns stays.
    Unclear,
}

/// What is to be deleted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Background,
    Foreground,
}

/// What to do with one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All its owners are gone (or going in the foreground).
    Delete(Way),
    /// Some owners are gone: those references go.
    Forget(Vec<Uid>),
    /// It owns what waits for it to go: it stops holding its owners back.
    Unblock,
    /// These lose it as their owner, and it is then done.
    Orphan(Vec<Uid>),
    /// Its last blocking dependent is gone.
    Finish,
}

/// What comes of looking at one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Do(Vec<Verdict>),
    /// Nobody knows these owners: they are asked for first.
    Ask(Vec<Owner>),
}

/// See the module's text.
#[derive(Default)]
pub struct Graph {
    facts: HashMap<Uid, Fact>,
    /// By kind and key: uids, for news that name no uid.
    places: HashMap<(usize, Key), Uid>,
    dependents: HashMap<Uid, BTreeSet<Uid>>,
    gone: HashSet<Uid>,
}

impl Graph {
    pub fn get(&self, uid: &Uid) -> Option<&Fact> {
        self.facts.get(uid)
    }

    /// Takes an object's state in; returns whom to judge anew.
    pub fn set(&mut self, uid: &Uid, fact: Fact) -> Vec<Uid> {
        let place = (fact.kind, fact.key.clone());
        let mut touched = Vec::new();
        if let Some(before) = self.places.insert(place, uid.clone()).filter(|before| before != uid) {
            touched.extend(self.take_out(&before));
        }
        if let Some(old) = self.facts.get_mut(uid)
            && (&old.owners, old.deleting, &old.finalizers) == (&fact.owners, fact.deleting, &fact.finalizers)
        {
            old.version = fact.version;
            return touched;
        }
        for owner in &fact.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let new_owners: HashSet<Uid> = fact.owners.iter().map(|owner| owner.uid.clone()).collect();
        let waits = fact.waits();
        let old = self.facts.insert(uid.clone(), fact);
        for owner in old.iter().flat_map(|old| &old.owners).filter(|owner| !new_owners.contains(&owner.uid)) {
            self.cut(&owner.uid, uid);
            touched.push(owner.uid.clone());
        }
        // Their standing for those that they own.
        if old.is_none_or(|old| old.waits() != waits) {
            touched.extend(self.dependents_of(uid));
        }
        touched.extend(new_owners);
        touched.push(uid.clone());
        touched
    }

    /// An object is gone; returns whom to judge anew.
    pub fn remove(&mut self, kind: usize, key: &Key) -> Vec<Uid> {
        match self.places.remove(&(kind, key.clone())) {
            Some(uid) => self.take_out(&uid),
            None => Vec::new(),
        }
    }

    /// What is not among these keys of a kind is gone.
    pub fn retain(&mut self, kind: usize, keys: &BTreeSet<Key>) -> Vec<Uid> {
        let unseen = self.places.keys().filter(|(of, key)| *of == kind && !keys.contains(key));
        let unseen: Vec<Key> = unseen.map(|(_, key)| key.clone()).collect();
        unseen.iter().flat_map(|key| self.remove(kind, key)).collect()
    }

    /// Nobody tells any more what becomes of the objects of a kind: they are neither there nor gone, and whoever names one
    /// of them has to ask.
    pub fn lose(&mut self, kind: usize) {
        let lost: Vec<(usize, Key)> = self.places.keys().filter(|(of, _)| *of == kind).cloned().collect();
        for uid in lost.iter().filter_map(|place| self.places.remove(place)).collect::<Vec<_>>() {
            let owners = self.facts.remove(&uid).map(|fact| fact.owners).unwrap_or_default();
            owners.iter().for_each(|owner| self.cut(&owner.uid, &uid));
        }
    }

    /// An owner that was asked for is gone for good.
    pub fn is_gone(&mut self, uid: &Uid) {
        if self.gone.len() >= REMEMBERED {
            self.gone.clear();
        }
        self.gone.insert(uid.clone());
    }

    fn take_out(&mut self, uid: &Uid) -> Vec<Uid> {
        let Some(fact) = self.facts.remove(uid) else { return Vec::new() };
        self.is_gone(uid);
        let mut touched = self.dependents_of(uid);
        for owner in &fact.owners {
            self.cut(&owner.uid, uid);
            touched.push(owner.uid.clone());
        }
        touched
    }

    fn cut(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(all) = self.dependents.get_mut(owner) {
            all.remove(dependent);
            if all.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents_of(&self, uid: &Uid) -> Vec<Uid> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn dependents<'a>(&'a self, uid: &Uid) -> impl Iterator<Item = &'a Fact> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|dependent| self.facts.get(dependent))
    }

    /// What the present state calls for; `answers` are those to an earlier [`Judgement::Ask`].
    pub fn judge(&self, uid: &Uid, answers: &HashMap<Uid, Standing>) -> Judgement {
        let Some(fact) = self.facts.get(uid) else { return Judgement::Do(Vec::new()) };
        if fact.orphans() {
            return Judgement::Do(vec![Verdict::Orphan(self.dependents_of(uid))]);
        }
        if fact.waits() {
            let blocks =
                |dependent: &Fact| dependent.owners.iter().any(|owner| owner.uid == *uid && owner.block_owner_deletion);
            let held = self.dependents(uid).any(blocks);
            return Judgement::Do(if held { Vec::new() } else { vec![Verdict::Finish] });
        }
        if fact.deleting || fact.owners.is_empty() {
            return Judgement::Do(Vec::new());
        }
        self.fate(uid, fact, answers)
    }

    /// What becomes of an object whose owners are gone or going.
    fn fate(&self, uid: &Uid, fact: &Fact, answers: &HashMap<Uid, Standing>) -> Judgement {
        let (mut gone, mut staying, mut waiting, mut unknown) = (Vec::new(), 0, 0, Vec::new());
        for owner in &fact.owners {
            match self.standing(fact, owner).or_else(|| answers.get(&owner.uid).copied()) {
                None => unknown.push(owner.clone()),
                Some(Standing::Unclear) => return Judgement::Do(Vec::new()),
                Some(Standing::Gone) => gone.push(owner.uid.clone()),
                Some(Standing::There) if self.facts.get(&owner.uid).is_some_and(Fact::waits) => waiting += 1,
                Some(Standing::There) => staying += 1,
            }
        }
        if !unknown.is_empty() {
            return Judgement::Ask(unknown);
        }
        Judgement::Do(match (gone.len(), staying, waiting) {
            (0, _, 0) | (0, 1.., _) => Vec::new(),
            (_, 0, 1..) => self.follow(uid),
            (_, 0, 0) => vec![Verdict::Delete(Way::Background)],
            _ => vec![Verdict::Forget(gone)],
        })
    }

    /// An owner waits for this object, which goes with its own dependents before it. If one of those waits already, they
    /// may all wait for each other in a circle.
    fn follow(&self, uid: &Uid) -> Vec<Verdict> {
        let way = if self.dependents(uid).next().is_none() { Way::Background } else { Way::Foreground };
        let circle = self.dependents(uid).any(Fact::waits).then_some(Verdict::Unblock);
        circle.into_iter().chain([Verdict::Delete(way)]).collect()
    }

    /// An owner is there when its uid is, in the dependent's namespace or cluster-wide. `None`: it has to be asked for.
    fn standing(&self, fact: &Fact, owner: &Owner) -> Option<Standing> {
        match self.facts.get(&owner.uid) {
            Some(found) if found.key.namespace.is_empty() || found.key.namespace == fact.key.namespace => {
                Some(Standing::There)
            }
            Some(_) if fact.key.namespace.is_empty() => Some(Standing::Unclear),
            Some(_) => Some(Standing::Gone),
            None => self.gone.contains(&owner.uid).then_some(Standing::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::new(text)
    }

    /// Uid, owners with blocking, finalizers (none: not being deleted).
    type Given<'a> = (&'a str, &'a [(&'a str, bool)], &'a [&'a str]);

    fn fact((own, owners, finalizers): Given<'_>) -> Fact {
        let owner = |(owner, blocks): &(&str, bool)| Owner {
            uid: uid(owner),
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: (*owner).into(),
            block_owner_deletion: *blocks,
        };
        Fact {
            kind: 0,
            key: Key::new("ns", own),
            version: 1,
            owners: owners.iter().map(owner).collect(),
            deleting: !finalizers.is_empty(),
            finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn graph(objects: &[Given<'_>]) -> Graph {
        let mut graph = Graph::default();
        for object in objects {
            graph.set(&uid(object.0), fact(*object));
        }
        graph.is_gone(&uid("gone"));
        graph
    }

    fn judge(graph: &Graph, of: &str) -> Vec<Verdict> {
        match graph.judge(&uid(of), &HashMap::new()) {
            Judgement::Do(verdicts) => verdicts,
            Judgement::Ask(owners) => panic!("{owners:?}"),
        }
    }

    #[test]
    fn dependents_of_what_is_gone_go() {
        let all = graph(&[("b", &[("gone", true)], &[]), ("c", &[("gone", true), ("b", false)], &[])]);
        assert_eq!(judge(&all, "b"), [Verdict::Delete(Way::Background)]);
        assert_eq!(judge(&all, "c"), [Verdict::Forget(vec![uid("gone")])]);
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let mut all = graph(&[("a", &[], &[FOREGROUND]), ("b", &[("a", true)], &[])]);
        assert_eq!((judge(&all, "a"), judge(&all, "b")), (vec![], vec![Verdict::Delete(Way::Background)]));
        assert_eq!(all.remove(0, &Key::new("ns", "b")), [uid("a")]);
        assert_eq!(judge(&all, "a"), [Verdict::Finish]);
    }

    #[test]
    fn orphaning_takes_the_reference_and_nothing_else() {
        let all = graph(&[("a", &[], &[ORPHAN]), ("b", &[("a", true)], &[])]);
        assert_eq!((judge(&all, "a"), judge(&all, "b")), (vec![Verdict::Orphan(vec![uid("b")])], vec![]));
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let mut all = graph(&[("b", &[("a", true)], &[])]);
        all.set(&uid("a"), Fact { key: Key::new("other", "a"), ..fact(("a", &[], &[])) });
        assert_eq!(judge(&all, "b"), [Verdict::Delete(Way::Background)]);
        // What is cluster-wide cannot be owned by what is in a namespace; upstream leaves it alone.
        all.set(&uid("w"), Fact { key: Key::new("", "w"), ..fact(("w", &[("a", true)], &[])) });
        assert_eq!(judge(&all, "w"), []);
    }

    /// Owners are written before what they own, and yet their news may come after it.
    #[test]
    fn an_owner_that_nobody_knows_is_asked_for() {
        let all = graph(&[("b", &[("new", true), ("gone", true)], &[])]);
        let Judgement::Ask(asked) = all.judge(&uid("b"), &HashMap::new()) else { panic!() };
        assert_eq!(asked.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(), ["new"]);
        let answered = |standing| all.judge(&uid("b"), &HashMap::from([(uid("new"), standing)]));
        assert_eq!(answered(Standing::There), Judgement::Do(vec![Verdict::Forget(vec![uid("gone")])]));
        assert_eq!(answered(Standing::Gone), Judgement::Do(vec![Verdict::Delete(Way::Background)]));
        assert_eq!(answered(Standing::Unclear), Judgement::Do(vec![]), "nothing goes for what nobody can judge");
    }

    #[test]
    fn objects_of_a_kind_that_is_not_followed_any_more_are_not_gone() {
        let mut all = graph(&[("b", &[("thing", true)], &[])]);
        all.set(&uid("thing"), Fact { kind: 1, ..fact(("thing", &[("top", true)], &[])) });
        assert_eq!(judge(&all, "b"), []);
        all.lose(1);
        assert!(all.get(&uid("thing")).is_none() && all.dependents_of(&uid("top")).is_empty());
        let Judgement::Ask(asked) = all.judge(&uid("b"), &HashMap::new()) else { panic!() };
        assert_eq!(asked[0].uid, uid("thing"));
        // In another version it is there again.
        all.set(&uid("thing"), Fact { kind: 2, ..fact(("thing", &[], &[])) });
        assert_eq!(judge(&all, "b"), []);
    }

    #[test]
    fn a_circle_of_owners_opens() {
        // b follows a in the foreground; c, which owns a, is the next, and holds b back no longer.
        let (a, b): (Given<'_>, Given<'_>) =
            (("a", &[("c", true)], &[FOREGROUND]), ("b", &[("a", true)], &[FOREGROUND]));
        let all = graph(&[a, b, ("c", &[("b", true)], &[])]);
        assert_eq!(judge(&all, "c"), [Verdict::Unblock, Verdict::Delete(Way::Foreground)]);
        let all = graph(&[a, b, ("c", &[("b", false)], &[FOREGROUND])]);
        assert_eq!(judge(&all, "b"), [Verdict::Finish]);
    }

    /// What a change touches is a matter of its neighbours, not of how much there is.
    #[test]
    fn a_change_has_only_its_neighbours_judged() {
        let names: Vec<String> = (0..1000).map(|index| format!("o{index}")).collect();
        let mut all = Graph::default();
        for name in &names {
            all.set(&uid(name), fact((name, &[], &[])));
        }
        all.set(&uid("d"), fact(("d", &[("o1", true)], &[])));
        let same = all.set(&uid("o1"), Fact { version: 9, ..fact(("o1", &[], &[])) });
        assert_eq!((same.len(), all.get(&uid("o1")).unwrap().version), (0, 9), "a heartbeat touches nobody");
        assert_eq!(all.set(&uid("o1"), fact(("o1", &[], &[FOREGROUND]))), [uid("d"), uid("o1")]);
        assert_eq!(all.remove(0, &Key::new("ns", "o1")), [uid("d")]);
        assert_eq!(judge(&all, "d"), [Verdict::Delete(Way::Background)]);
        let namesake = all.set(&uid("other"), Fact { key: Key::new("ns", "o2"), ..fact(("other", &[], &[])) });
        assert_eq!(namesake, [uid("other")]);
        assert!(all.get(&uid("o2")).is_none(), "its place was taken");
    }
}
