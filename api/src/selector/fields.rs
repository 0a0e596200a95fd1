//! Field selectors: the few fields of a kind that its objects can be chosen by.

use std::borrow::Cow;

use serde_json::Value;

use super::selectable::{COMMON, Selectable};
use crate::budget::{Budget, Exceeded};
use crate::kind::Kind;

/// A field selector, checked against what the kind supports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields {
    /// Path, value, and whether they must be equal.
    terms: Vec<(String, String, bool)>,
}

impl Fields {
    /// From the query form, `a=b,c!=d`.
    ///
    /// # Errors
    /// Upstream's text: what cannot be understood, or a field by which this kind cannot be selected; or
    /// [`Exceeded::Requirements`].
    pub fn parse(kind: &Kind, text: &str) -> Result<Fields, String> {
        let mut terms = Vec::new();
        let parts = split_terms(text);
        if parts.len() > Budget::CLIENT.requirements {
            return Err(Exceeded::Requirements(Budget::CLIENT.requirements).into());
        }
        for part in parts {
            let (path, value, equal) =
                split_term(&part).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            let value = unescape(&value)?;
            let field = selectable(kind).find(|field| field.label == path);
            let field = field.ok_or_else(|| unsupported(kind, &path))?;
            terms.push((field.stored.to_owned(), value, equal));
        }
        Ok(Fields { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// `metadata.name=x` asked for, if it is (a watch or list of one object).
    pub fn exact_name(&self) -> Option<&str> {
        self.exact("metadata.name")
    }

    /// The one value that a field must have.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(path, _, equal)| path == field && *equal).map(|(_, value, _)| value.as_str())
    }

    /// `field` gives the value of a field ("" when absent), for readers that keep the selectable fields beside the bytes.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.terms.iter().all(|(path, value, equal)| (field(path) == *value) == *equal)
    }

    pub fn matches_object(&self, kind: &Kind, object: &Value) -> bool {
        self.matches(|path| Cow::Owned(field_value(kind, object, path)))
    }
}

/// At commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    out.retain(|part| !part.is_empty());
    out
}

fn split_term(part: &str) -> Option<(String, String, bool)> {
    let at = part.find(['=', '!'])?;
    let (path, rest) = part.split_at(at);
    let (rest, equal) = if let Some(rest) = rest.strip_prefix("!=") {
        (rest, false)
    } else {
        (rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?, true)
    };
    Some((path.into(), rest.into(), equal))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    return Err(format!("invalid field selector: invalid escape sequence: \\{}", other.unwrap_or(' ')));
                }
            },
            '=' | ',' => return Err(format!("invalid field selector: unescaped {c:?} in {value:?}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// The fields that this kind's objects can be selected by.
pub fn selectable(kind: &Kind) -> impl Iterator<Item = Selectable<'_>> {
    let own = kind.custom.iter().flat_map(|custom| custom.selectable());
    COMMON.iter().chain(kind.behaviour.selectable).copied().chain(own)
}

/// Kinds with fields of their own refuse others in their own words.
fn unsupported(kind: &Kind, path: &str) -> String {
    match kind.behaviour.unknown_field {
        Some(words) => words(path),
        None if selectable(kind).count() == COMMON.len() => {
            format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        None => format!("field label not supported: {path}"),
    }
}

/// The value of a selectable field by its stored label, "" when absent.
pub fn field_value(kind: &Kind, object: &Value, stored: &str) -> String {
    selectable(kind).find(|field| field.stored == stored).map_or_else(String::new, |field| field.value(object))
}
