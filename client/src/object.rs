//! What goes back and forth: names of collections and objects, and objects as bytes.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// A position in the one ordered stream of changes; `0` is before everything.
pub type Revision = u64;

/// Names a collection: group (empty: core), version, plural.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub plural: Cow<'static, str>,
}

impl Resource {
    /// A `v1` resource of the core group.
    pub const fn core(plural: &'static str) -> Self {
        Self::new("", plural)
    }

    /// A `v1` resource of a group.
    pub const fn new(group: &'static str, plural: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), version: Cow::Borrowed("v1"), plural: Cow::Borrowed(plural) }
    }

    /// Under names that came at run time.
    pub fn named(group: &str, version: &str, plural: &str) -> Self {
        let owned = |name: &str| Cow::Owned(name.to_owned());
        Self { group: owned(group), version: owned(version), plural: owned(plural) }
    }
}

/// A namespace (empty for what is cluster-scoped) and a name. Orders by namespace first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(meta: &api::view::Meta) -> Self {
        Self::new(&meta.namespace, &meta.name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One version of one object. In process its text is the cache's own, shared.
#[derive(Debug, Clone)]
pub struct Item {
    pub key: Key,
    pub revision: Revision,
    pub json: Bytes,
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct HeadMeta {
    namespace: String,
    name: String,
    resource_version: String,
}

impl Item {
    /// Finds name and revision in an object's text.
    ///
    /// # Errors
    /// When it is no object, or its revision no number.
    pub fn from_json(json: Bytes) -> Result<Self, serde_json::Error> {
        let head: Head = serde_json::from_slice(&json)?;
        let revision = head.metadata.resource_version.parse().map_err(serde::de::Error::custom)?;
        Ok(Self { key: Key { namespace: head.metadata.namespace, name: head.metadata.name }, revision, json })
    }

    /// The object as a tree. What a server sent was parsed once already, so it parses.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }
}

/// A collection at a revision.
#[derive(Debug, Clone, Default)]
pub struct List {
    pub revision: Revision,
    pub items: Vec<Item>,
}

/// What a watch tells.
#[derive(Debug, Clone)]
pub enum Event {
    /// It is there, or as it is now.
    Applied(Item),
    /// It is gone (or no longer selected): its last state, at the revision of its end.
    Deleted(Item),
    /// The state the watch began with is complete, as of this revision.
    Synced(Revision),
    /// Nothing up to this revision was missed.
    Bookmark(Revision),
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Self::Applied(item) | Self::Deleted(item) => item.revision,
            Self::Synced(revision) | Self::Bookmark(revision) => *revision,
        }
    }
}

/// A kind whose objects can be listed, watched and deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedKind {
    pub resource: Resource,
    pub kind: String,
    pub namespaced: bool,
    /// Of a kind's several versions and groups, the one in which to read all its objects once.
    pub preferred: bool,
}

/// What an object says of its revision; 0 when it says nothing.
pub(crate) fn revision_of(object: &Value) -> Revision {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_knows_its_place_from_its_text() {
        let json = Bytes::from_static(
            br#"{"kind":"Pod","metadata":{"resourceVersion":"7","name":"a","namespace":"ns"},"spec":{}}"#,
        );
        let item = Item::from_json(json).unwrap();
        assert_eq!((item.key, item.revision), (Key::new("ns", "a"), 7));
        assert!(Item::from_json(Bytes::from_static(br#"{"metadata":{"name":"a"}}"#)).is_err());
    }

    #[test]
    fn keys_order_by_namespace_then_name() {
        assert!(Key::new("a", "z") < Key::new("b", "a") && Key::new("a", "") < Key::new("a", "a"));
        assert_eq!((Key::new("", "n").to_string(), Key::new("a", "b").to_string()), ("n".into(), "a/b".into()));
    }
}
