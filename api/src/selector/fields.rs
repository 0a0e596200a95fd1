//! Field selectors: the few fields of a kind that its objects can be chosen by.

use std::borrow::Cow;

use serde_json::Value;

use crate::budget::{Budget, Exceeded};
use crate::kind::Kind;

/// A field selector, checked against what the kind supports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields {
    /// Path, value, and whether they must be equal.
    terms: Vec<(String, String, bool)>,
}

impl Fields {
    /// The error is upstream's text.
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
            if !selectable(kind).contains(&path.as_str()) {
                return Err(unsupported(kind, &path));
            }
            terms.push((stored_field(kind, path), value, equal));
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

/// The name of a field in the version in which objects of this kind are kept.
fn stored_field(kind: &Kind, path: String) -> String {
    if (&*kind.group, &*kind.plural) != ("events.k8s.io", "events") {
        return path;
    }
    match path.strip_prefix("regarding.") {
        Some(field) => format!("involvedObject.{field}"),
        None if path == "reportingController" => "reportingComponent".into(),
        None => path,
    }
}

/// The same in the version that is asked for.
fn shown_field<'a>(kind: &Kind, path: &'a str) -> Cow<'a, str> {
    if (&*kind.group, &*kind.plural) != ("events.k8s.io", "events") {
        return path.into();
    }
    match path.strip_prefix("involvedObject.") {
        Some(field) => format!("regarding.{field}").into(),
        None if path == "reportingComponent" => "reportingController".into(),
        None => path.into(),
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

const POD: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
    "metadata.name",
    "metadata.namespace",
];
const NEW_EVENT: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
    "metadata.name",
    "metadata.namespace",
];

/// Names of the fields that this kind's objects can be selected by.
pub fn selectable(kind: &Kind) -> &'static [&'static str] {
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => POD,
        ("", "events") => EVENT,
        ("events.k8s.io", "events") => NEW_EVENT,
        ("", "nodes") => &["metadata.name", "metadata.namespace", "spec.unschedulable"],
        ("", "namespaces") => &["metadata.name", "metadata.namespace", "status.phase"],
        ("", "secrets") => &["metadata.name", "metadata.namespace", "type"],
        ("", "services") => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => {
            &["metadata.name", "metadata.namespace", "status.replicas"]
        }
        ("batch", "jobs") => &["metadata.name", "metadata.namespace", "status.successful"],
        ("certificates.k8s.io", _) => &["metadata.name", "metadata.namespace", "spec.signerName"],
        _ => &["metadata.name", "metadata.namespace"],
    }
}

/// Kinds with fields of their own refuse others in their own words.
fn unsupported(kind: &Kind, path: &str) -> String {
    match (&*kind.group, &*kind.plural) {
        ("apps", "replicasets") => format!("field label not supported for appsv1.ReplicaSet: {path}"),
        ("batch", "jobs") => format!("field label {path:?} not supported for Job"),
        ("certificates.k8s.io", _) => format!("field label not supported: {path}"),
        _ if selectable(kind).len() > 2 => format!("field label not supported: {path}"),
        _ => format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
    }
}

/// The value of a selectable field, "" when absent.
pub fn field_value(kind: &Kind, object: &Value, path: &str) -> String {
    let path = &*shown_field(kind, path);
    let flag = matches!(path, "spec.unschedulable" | "spec.hostNetwork");
    let path = match (&*kind.plural, path) {
        ("events", "source") => return event_source(object),
        ("jobs", "status.successful") => "status.succeeded",
        (_, path) => path,
    };
    let mut value = object;
    for step in path.split('.') {
        value = &value[step];
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(on) => on.to_string(),
        Value::Number(n) => n.to_string(),
        _ if flag => "false".into(),
        _ if path.ends_with("replicas") || path.ends_with("succeeded") => "0".into(),
        _ => String::new(),
    }
}

fn event_source(object: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    match text(&object["source"]["component"]).as_str() {
        "" => text(&object["reportingComponent"]),
        component => component.into(),
    }
}
