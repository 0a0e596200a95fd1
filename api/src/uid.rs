//! What tells an object from its namesakes, in a type of its own: it travels among names, and none of those is one.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object's `metadata.uid`: opaque, mostly a UUID, empty where there is none. Clones share their text. No text is one
/// by itself; whoever holds a UID as text says so ([`Uid::new`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(Arc<str>);

impl Uid {
    /// From where a UID stands as text: another's reference, the name of a folder.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// An object's own.
    pub fn of(object: &Value) -> Self {
        Self::new(object["metadata"]["uid"].as_str().unwrap_or_default())
    }

    /// For paths and texts.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A file may bear it as its name, and then lies where its folder is. API servers choose such UIDs; an object that
    /// came another way, and what is said of owners, may have any text there.
    pub fn is_file_name(&self) -> bool {
        Path::new(self.as_str()).file_name() == Some(OsStr::new(self.as_str()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For objects that are looked at as JSON.
impl PartialEq<Uid> for Value {
    fn eq(&self, uid: &Uid) -> bool {
        self.as_str() == Some(uid.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_written_as_the_text_it_is() {
        let uid = Uid::of(&json!({"metadata": {"uid": "u-1"}}));
        assert_eq!((json!({"uid": uid}), uid.to_string()), (json!({"uid": "u-1"}), "u-1".to_owned()));
        assert_eq!(serde_json::from_value::<Uid>(json!("u-1")).unwrap(), uid);
        assert!(json!("u-1") == uid && json!("u-2") != uid && Uid::of(&json!({})).is_empty());
    }

    #[test]
    fn a_path_ends_with_it_or_it_is_no_file_name() {
        assert!(
            ["u", "7f0e0e6c-0000-4000-8000-000000000000", "..u", "u."]
                .iter()
                .all(|text| Uid::new(*text).is_file_name())
        );
        for text in ["", ".", "..", "/", "/etc", "../x", "x/..", "x/", "x/.", "./x", "x/y"] {
            assert!(!Uid::new(text).is_file_name(), "{text:?}");
        }
    }
}
