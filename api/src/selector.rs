//! Label and field selectors.

use serde_json::Value;

use crate::kind::Kind;

/// A label selector.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {}

impl Labels {
    /// From the query form, `a=b,c in (d,e),!f`. The error is upstream's text.
    pub fn parse(text: &str) -> Result<Labels, String> {
        let _ = text;
        Ok(Labels {})
    }

    /// From a `LabelSelector` object; an empty one matches everything.
    pub fn from_object(selector: &Value) -> Result<Labels, String> {
        let _ = selector;
        Ok(Labels {})
    }

    pub fn is_everything(&self) -> bool {
        true
    }

    /// `labels` gives the value of a key.
    pub fn matches<'a>(&self, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        let _ = labels;
        true
    }

    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| object.pointer("/metadata/labels")?.get(key)?.as_str())
    }
}

/// A field selector, checked against what the kind supports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields {}

impl Fields {
    /// The error is upstream's text.
    pub fn parse(kind: &Kind, text: &str) -> Result<Fields, String> {
        let _ = (kind, text);
        Ok(Fields {})
    }

    pub fn is_everything(&self) -> bool {
        true
    }

    /// `metadata.name=x` asked for, if it is (a watch or list of one object).
    pub fn exact_name(&self) -> Option<&str> {
        None
    }

    /// `field` gives the value of a field ("" when absent), for readers that keep the selectable fields beside the bytes.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Cow<'a, str>) -> bool {
        let _ = field;
        true
    }

    pub fn matches_object(&self, kind: &Kind, object: &Value) -> bool {
        self.matches(|path| Cow::Owned(field_value(kind, object, path)))
    }
}

use std::borrow::Cow;

/// Names of the fields that this kind's objects can be selected by.
pub fn selectable(kind: &Kind) -> &'static [&'static str] {
    let _ = kind;
    &["metadata.name", "metadata.namespace"]
}

/// The value of a selectable field, "" when absent.
pub fn field_value(kind: &Kind, object: &Value, path: &str) -> String {
    let _ = (kind, object, path);
    String::new()
}
