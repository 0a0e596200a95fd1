//! A field that a kind's objects can be chosen by: where it is, and what it is called.

use serde_json::Value;

/// A field that objects of a kind are selected by.
#[derive(Debug, Clone, Copy)]
pub struct Selectable<'k> {
    /// As it is asked for.
    pub label: &'k str,
    /// The label in the version in which objects of this kind are kept.
    pub stored: &'k str,
    /// Where it is.
    pub path: &'k str,
    /// What it is where it is absent.
    pub absent: &'k str,
    /// How it is found where it is more than a field.
    pub read: Option<fn(&Value) -> String>,
}

/// A field under its own path.
pub const fn field(path: &str) -> Selectable<'_> {
    Selectable { label: path, stored: path, path, absent: "", read: None }
}

impl<'k> Selectable<'k> {
    pub const fn or(self, absent: &'k str) -> Self {
        Self { absent, ..self }
    }

    pub const fn at(self, path: &'k str) -> Self {
        Self { path, ..self }
    }

    pub const fn stored(self, stored: &'k str) -> Self {
        Self { stored, ..self }
    }

    /// "" where it is absent.
    pub fn value(&self, object: &Value) -> String {
        if let Some(read) = self.read {
            return read(object);
        }
        match self.path.split('.').fold(object, |value, step| &value[step]) {
            Value::String(text) => text.clone(),
            Value::Bool(on) => on.to_string(),
            Value::Number(n) => n.to_string(),
            _ => self.absent.into(),
        }
    }
}

/// Every object's.
pub static COMMON: [Selectable<'static>; 2] = [field("metadata.name"), field("metadata.namespace")];
