//! The table of kinds: every resource the server knows is one row here, and everything else is driven by it.

mod part;

use std::sync::{Arc, LazyLock};

use crate::custom::{Custom, Stage};
use crate::kinds::{self, Behaviour};
use crate::names::version_rank;
use crate::schema::{self, Schema};
use crate::scope::Scope;

pub use self::part::Part;
pub use crate::schema::Text;

/// Group, version and kind; the core group is "".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gvk {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
}

impl Gvk {
    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

/// `v1`, or `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// What `/part` of an object takes and gives.
#[derive(Debug, Clone)]
pub struct Subresource {
    pub part: Part,
    pub gvk: Gvk,
    pub verbs: Vec<Text>,
    pub schema: Schema,
}

/// Where and in which version a kind's objects are stored. Kinds with an equal `group` and `plural` share their objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Storage {
    pub group: Text,
    pub plural: Text,
    pub version: Text,
}

/// Whether clients see a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Served,
    /// Only how objects are stored, which are shown in other versions.
    Stored,
}

/// One row.
#[derive(Debug, Clone)]
pub struct Kind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub scope: Scope,
    pub verbs: Vec<Text>,
    pub subresources: Vec<Subresource>,
    pub schema: Schema,
    pub storage: Storage,
    pub behaviour: &'static Behaviour,
    pub presence: Presence,
    /// Of kinds that a CustomResourceDefinition defines.
    pub custom: Option<Arc<Custom>>,
}

impl Kind {
    pub fn gvk(&self) -> Gvk {
        Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The verbs that discovery shows: a kind that is being undefined takes nothing new.
    pub fn offered(&self) -> Vec<&str> {
        let ending = self.custom.as_ref().is_some_and(|custom| custom.stage == Stage::Terminating);
        let verbs = self.verbs.iter().map(|verb| &**verb);
        verbs.filter(|verb| !ending || !matches!(*verb, "create" | "patch" | "update")).collect()
    }

    /// Objects of this kind are kept; reviews and the like are only answered.
    pub fn stored(&self) -> bool {
        self.has_verb("list")
    }

    pub fn subresource(&self, part: Part) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.part == part)
    }

    /// Told to whoever asks for one, answered or refused.
    pub fn deprecated(&self) -> Option<&str> {
        self.behaviour.deprecated.or_else(|| self.custom.as_ref()?.deprecated.as_deref())
    }

    /// True for the row whose version is the stored one.
    pub fn is_storage(&self) -> bool {
        self.group == self.storage.group && self.version == self.storage.version
    }

    /// Whether this row is made by the definition of this name.
    pub fn is_defined_by(&self, definition: &str) -> bool {
        self.custom.as_ref().is_some_and(|custom| custom.definition == definition)
    }
}

/// All rows; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Those that are served.
    rows: Arc<[Arc<Kind>]>,
    /// Those that only say how objects are stored.
    stored: Arc<[Arc<Kind>]>,
    generation: u64,
}

impl Registry {
    /// The kinds of Kubernetes itself.
    pub fn builtin() -> Self {
        static ROWS: LazyLock<Arc<[Arc<Kind>]>> = LazyLock::new(|| {
            let mut rows: Vec<Arc<Kind>> = data!("resources.txt").lines().filter_map(row).map(Arc::new).collect();
            rows.sort_by_key(|k| priority(k));
            rows.into()
        });
        Registry { rows: ROWS.clone(), stored: Arc::default(), generation: 0 }
    }

    /// This registry with these rows for a definition, in place of those that it had. What Kubernetes itself has is not
    /// defined anew: its objects are elsewhere.
    pub fn with(&self, definition: &str, rows: Vec<Kind>) -> Self {
        let others = |kind: &&Arc<Kind>| !kind.is_defined_by(definition);
        let builtin = |new: &Kind| {
            let same =
                |old: &&Arc<Kind>| old.custom.is_none() && (&old.group, &old.plural) == (&new.group, &new.plural);
            self.rows.iter().any(|old| same(&old))
        };
        let new = rows.into_iter().filter(|row| !builtin(row)).map(Arc::new);
        let (served, stored): (Vec<_>, Vec<_>) = new.partition(|row| row.presence == Presence::Served);
        let mut all: Vec<Arc<Kind>> = self.rows.iter().filter(others).cloned().chain(served).collect();
        all.sort_by_key(|k| priority(k));
        let stored: Vec<Arc<Kind>> = self.stored.iter().filter(others).cloned().chain(stored).collect();
        Registry { rows: all.into(), stored: stored.into(), generation: self.generation + 1 }
    }

    /// Changes with every change of the rows: what documents are kept by.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The row in whose version the objects of a collection are stored.
    pub fn stored_in(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        // What tells most rows apart comes first: each write looks here.
        let is = |kind: &&Arc<Kind>| kind.plural == plural && kind.group == group && kind.is_storage();
        self.rows.iter().chain(self.stored.iter()).find(is).cloned()
    }

    /// The row in whose version the objects of a definition are stored, served or not.
    pub fn defined_by(&self, definition: &str) -> Option<Arc<Kind>> {
        let is = |kind: &&Arc<Kind>| kind.is_defined_by(definition) && kind.is_storage();
        self.rows.iter().chain(self.stored.iter()).find(is).cloned()
    }

    /// Kinds that have objects and no version to see them in.
    pub fn unserved(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.stored.iter().filter(|kind| !self.rows.iter().any(|row| row.storage == kind.storage))
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.rows.iter().find(|k| k.group == group && k.version == version && k.plural == plural).cloned()
    }

    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.rows.iter().find(|k| k.group == group && k.version == version && k.kind == kind).cloned()
    }

    /// The row of the version in which this kind's objects are stored.
    pub fn storage_of(&self, kind: &Kind) -> Option<Arc<Kind>> {
        self.stored_in(&kind.storage.group, &kind.storage.plural)
    }

    /// In discovery's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows.iter()
    }

    /// Groups with their versions, both in the order in which discovery lists them; the core group ("") comes first.
    pub fn groups(&self) -> Vec<(Text, Vec<Text>)> {
        let mut groups: Vec<(Text, Vec<Text>)> = Vec::new();
        for kind in self.rows.iter() {
            match groups.iter_mut().find(|(group, _)| *group == kind.group) {
                Some((_, versions)) if !versions.contains(&kind.version) => versions.push(kind.version.clone()),
                Some(_) => {}
                None => groups.push((kind.group.clone(), vec![kind.version.clone()])),
            }
        }
        groups
    }
}

/// Groups in upstream's order; others follow by name.
const GROUPS: [&str; 21] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// Sort key of a row: group, version (v2 before v1, stable before beta before alpha), resource.
fn priority(kind: &Kind) -> (usize, Text, std::cmp::Reverse<(u8, u32, u32)>, Text) {
    let group = GROUPS.iter().position(|g| *g == kind.group).unwrap_or(GROUPS.len());
    (group, kind.group.clone(), std::cmp::Reverse(version_rank(&kind.version)), kind.plural.clone())
}

/// Kinds whose objects are stored under another group or version.
const STORED_ELSEWHERE: [(&str, &str, &str, &str, &str); 2] = [
    ("events.k8s.io", "v1", "events", "", "v1"),
    ("autoscaling", "v1", "horizontalpodautoscalers", "autoscaling", "v2"),
];

const VERBS: [(char, &str); 8] = [
    ('C', "create"),
    ('D', "delete"),
    ('X', "deletecollection"),
    ('G', "get"),
    ('L', "list"),
    ('P', "patch"),
    ('U', "update"),
    ('W', "watch"),
];

fn verbs(letters: &str) -> Vec<Text> {
    letters.chars().filter_map(|c| VERBS.iter().find(|(l, _)| *l == c)).map(|(_, verb)| Text::from(*verb)).collect()
}

/// A line of `data/resources.txt`.
fn row(line: &'static str) -> Option<Kind> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let (group, version, plural, kind) = (next()?, next()?, next()?, next()?);
    let (singular, scope, letters) = (next()?, next()?, next()?);
    let group = if group == "core" { "" } else { group };
    let (storage_group, storage_version) = STORED_ELSEWHERE
        .iter()
        .find(|(g, v, p, ..)| (*g, *v, *p) == (group, version, plural))
        .map_or((group, version), |(.., g, v)| (*g, *v));
    let mut row = Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: singular.into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope: if scope == "N" { Scope::Namespaced } else { Scope::Cluster },
        verbs: verbs(letters),
        subresources: Vec::new(),
        schema: Schema::Type(schema::of_kind(group, version, kind)?),
        storage: Storage { group: storage_group.into(), plural: plural.into(), version: storage_version.into() },
        behaviour: kinds::of(group, plural),
        presence: Presence::Served,
        custom: None,
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "short" => row.short_names = value.split(',').map(Text::from).collect(),
            "cat" => row.categories = value.split(',').map(Text::from).collect(),
            "sub" => row.subresources.extend(subresource(group, version, value)),
            _ => {}
        }
    }
    Some(row)
}

/// `name:Kind:verbs` or `name:group/version/Kind:verbs`.
fn subresource(group: &'static str, version: &'static str, text: &'static str) -> Option<Subresource> {
    let mut parts = text.split(':');
    let (name, kind, letters) = (parts.next()?, parts.next()?, parts.next()?);
    let mut path = kind.rsplit('/');
    let kind = path.next()?;
    let version = path.next().unwrap_or(version);
    let group = path.next().unwrap_or(group);
    Some(Subresource {
        part: Part::parse(name)?,
        gvk: Gvk { group: group.into(), version: version.into(), kind: kind.into() },
        verbs: verbs(letters),
        schema: Schema::Type(schema::of_kind(group, version, kind)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_line_becomes_a_row() {
        assert_eq!(Registry::builtin().iter().count(), data!("resources.txt").lines().count());
        for line in data!("resources.txt").lines() {
            let kind = row(line).unwrap();
            assert_eq!(kind.subresources.len(), line.matches(" sub=").count(), "{line}");
        }
    }

    #[test]
    fn a_row_knows_its_subresources() {
        let registry = Registry::builtin();
        let deployments = registry.find("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.short_names, ["deploy"]);
        let scale = deployments.subresource(Part::Scale).unwrap();
        assert_eq!(scale.gvk.api_version(), "autoscaling/v1");
        assert_eq!(registry.find_kind("", "v1", "Pod").unwrap().plural, "pods");
    }

    #[test]
    fn two_groups_share_events() {
        let registry = Registry::builtin();
        let new = registry.find("events.k8s.io", "v1", "events").unwrap();
        assert!(!new.is_storage());
        assert_eq!(registry.storage_of(&new).unwrap().api_version(), "v1");
    }

    /// What a version of a defined kind is there for.
    #[derive(PartialEq)]
    enum Use {
        Stored,
        Served,
        Both,
    }

    #[test]
    fn rows_are_added_and_replaced_at_run_time() {
        let registry = Registry::builtin();
        let version = |name: &str, of: Use| json!({"name": name, "served": of != Use::Stored, "storage": of != Use::Served, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let rows = |versions: Value| {
            let definition = json!({"metadata": {"name": "gadgets.tape.dev"}, "spec": {"group": "tape.dev", "versions": versions},
                "status": {"acceptedNames": {"plural": "gadgets", "kind": "Gadget"}, "conditions": [{"type": "Established", "status": "True"}]}});
            crate::custom::kinds(&definition)
        };
        let (old, new) = (version("v1beta1", Use::Served), version("v1", Use::Both));
        let more = registry.with("gadgets.tape.dev", rows(json!([old, new])));
        let groups = more.groups();
        let (group, versions) = groups.last().unwrap();
        assert_eq!((&**group, &versions[..]), ("tape.dev", &["v1".into(), "v1beta1".into()][..]));
        assert_eq!(groups[0].0, "");
        assert_eq!(more.groups().iter().find(|(g, _)| g == "autoscaling").unwrap().1, ["v2", "v1"]);
        let hidden = more.with("gadgets.tape.dev", rows(json!([old, version("v1", Use::Stored)])));
        let shown = hidden.find("tape.dev", "v1beta1", "gadgets").unwrap();
        assert!(hidden.find("tape.dev", "v1", "gadgets").is_none());
        assert_eq!(hidden.storage_of(&shown).unwrap().version, "v1");
        assert_eq!(hidden.unserved().count(), 0);
        let unseen = more.with("gadgets.tape.dev", rows(json!([version("v1", Use::Stored)])));
        assert_eq!(unseen.unserved().map(|kind| &*kind.version).collect::<Vec<_>>(), ["v1"]);
        assert_eq!(unseen.defined_by("gadgets.tape.dev").unwrap().version, "v1");
        let none = hidden.with("gadgets.tape.dev", Vec::new());
        assert_eq!((none.iter().count(), none.generation()), (registry.iter().count(), 3));
    }
}
