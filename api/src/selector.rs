//! Label and field selectors.

use std::borrow::Cow;

use serde_json::Value;

use crate::budget::{Budget, Exceeded};
use crate::kind::Kind;
use crate::names;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    Absent,
    Greater,
    Less,
}

#[derive(Debug, Clone, PartialEq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
    /// `=`, `==` and `!=` print as they were written.
    sign: Option<&'static str>,
}

/// A label selector.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Labels {
    /// From the query form, `a=b,c in (d,e),!f`. The error is upstream's text.
    pub fn parse(text: &str) -> Result<Labels, String> {
        let tokens = tokens(text);
        // Each is held against every object of a list.
        if tokens.len() > Budget::CLIENT.requirements {
            return Err(Exceeded::Requirements(Budget::CLIENT.requirements).into());
        }
        let mut requirements = Parser { tokens, at: 0 }.run()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// From a `LabelSelector` object; an empty one matches everything, an absent one (null) nothing.
    pub fn from_object(selector: &Value) -> Result<Labels, String> {
        if selector.is_null() {
            return Ok(Labels { requirements: Vec::new(), nothing: true });
        }
        let mut requirements = Labels::from_map(&selector["matchLabels"]).requirements;
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
            let operator = match text(&expression["operator"]).as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Absent,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let mut values: Vec<String> = expression["values"].as_array().into_iter().flatten().map(text).collect();
            values.sort();
            requirements.push(Requirement { key: text(&expression["key"]), operator, values, sign: None });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// From a plain map of labels (a Service's or ReplicationController's selector).
    pub fn from_map(labels: &Value) -> Labels {
        let one = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or_default().into()],
            sign: Some("="),
        };
        Labels { requirements: labels.as_object().into_iter().flatten().map(one).collect(), nothing: false }
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// `labels` gives the value of a key.
    pub fn matches<'a>(&self, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels(&r.key)))
    }

    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || number(self.values.first()?);
        match (self.operator, value) {
            (Operator::In, Some(value)) => self.values.iter().any(|v| v == value),
            (Operator::NotIn, Some(value)) => !self.values.iter().any(|v| v == value),
            (Operator::NotIn | Operator::Absent, None) | (Operator::Exists, Some(_)) => true,
            (Operator::Greater, Some(value)) => number(value).zip(bound()).is_some_and(|(v, b)| v > b),
            (Operator::Less, Some(value)) => number(value).zip(bound()).is_some_and(|(v, b)| v < b),
            _ => false,
        }
    }
}

/// The query form, in order of keys.
impl std::fmt::Display for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.requirements.iter().map(Requirement::text).collect();
        f.write_str(&parts.join(","))
    }
}

impl Requirement {
    fn text(&self) -> String {
        let Requirement { key, values, .. } = self;
        let one = values.first().map_or("", String::as_str);
        match (self.operator, self.sign) {
            (Operator::Exists, _) => key.clone(),
            (Operator::Absent, _) => format!("!{key}"),
            (Operator::Greater, _) => format!("{key}>{one}"),
            (Operator::Less, _) => format!("{key}<{one}"),
            (_, Some(sign)) => format!("{key}{sign}{one}"),
            (Operator::In, None) => format!("{key} in ({})", values.join(",")),
            (Operator::NotIn, None) => format!("{key} notin ({})", values.join(",")),
        }
    }
}

/// Words and signs of the query form.
fn tokens(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
        } else if "=!<>".contains(c) {
            let mut sign = String::new();
            while let Some(&c) = chars.peek().filter(|c| "=!<>".contains(**c)) {
                if !matches!((sign.as_str(), c), ("", _) | ("=" | "!", '=')) {
                    break;
                }
                sign.push(c);
                chars.next();
            }
            out.push(sign);
        } else if "(),".contains(c) {
            out.push(c.to_string());
            chars.next();
        } else {
            let mut word = String::new();
            while let Some(&c) = chars.peek().filter(|c| !c.is_whitespace() && !"=!<>(),".contains(**c)) {
                word.push(c);
                chars.next();
            }
            out.push(word);
        }
    }
    out
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_string();
        self.at += 1;
        token
    }

    fn run(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        if self.peek().is_empty() {
            return Ok(out);
        }
        loop {
            match self.peek() {
                "," => return Err("found ',', expected: identifier after ','".into()),
                "" => return Err("found '', expected: identifier after ','".into()),
                _ => {}
            }
            out.push(self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
            match self.next().as_str() {
                "" => return Ok(out),
                "," => {
                    if matches!(self.peek(), "" | ",") {
                        return Err(format!("found '{}', expected: identifier after ','", self.peek()));
                    }
                }
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == "!";
        if absent {
            self.at += 1;
        }
        let key = self.next();
        if key.is_empty() || is_sign(&key) {
            return Err(format!("found '{key}', expected: identifier"));
        }
        check_key(&key)?;
        let existence = |operator| Ok(Requirement { key: key.clone(), operator, values: Vec::new(), sign: None });
        if absent {
            return existence(Operator::Absent);
        }
        if matches!(self.peek(), "" | ",") {
            return existence(Operator::Exists);
        }
        let sign = self.next();
        let (operator, sign) = match sign.as_str() {
            "in" => (Operator::In, None),
            "notin" => (Operator::NotIn, None),
            "=" => (Operator::In, Some("=")),
            "==" => (Operator::In, Some("==")),
            "!=" => (Operator::NotIn, Some("!=")),
            ">" | "gt" => (Operator::Greater, None),
            "<" | "lt" => (Operator::Less, None),
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match sign {
            None if matches!(operator, Operator::In | Operator::NotIn) => self.values()?,
            _ => vec![self.exact_value()?],
        };
        for value in &values {
            check_value(&key, value, operator)?;
        }
        Ok(Requirement { key, operator, values, sign })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("found '{open}' expected: '('"));
        }
        let mut out = Vec::new();
        loop {
            match self.next().as_str() {
                ")" => {
                    if out.is_empty() {
                        out.push(String::new());
                    }
                    out.sort();
                    out.dedup();
                    return Ok(out);
                }
                "," => {
                    // No word before the first comma is an empty value too.
                    if out.is_empty() || matches!(self.peek(), "," | ")") {
                        out.push(String::new());
                    }
                }
                "" => return Err("found '', expected: ',', ')' or identifier".into()),
                word if is_sign(word) => return Err(format!("found '{word}', expected: ',', ')' or identifier")),
                word => out.push(word.into()),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            sign if is_sign(sign) => Err(format!("found '{sign}', expected: identifier")),
            _ => Ok(self.next()),
        }
    }
}

fn is_sign(token: &str) -> bool {
    matches!(token, "=" | "==" | "!=" | "!" | "<" | ">" | "(" | ")" | ",")
}

fn check_key(key: &str) -> Result<(), String> {
    match names::qualified_name(key).as_slice() {
        [] => Ok(()),
        errors => Err(format!("key: Invalid value: {key:?}: {}", errors.join("; "))),
    }
}

fn check_value(key: &str, value: &str, operator: Operator) -> Result<(), String> {
    if matches!(operator, Operator::Greater | Operator::Less) && value.parse::<i64>().is_err() {
        return Err(format!(
            "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
        ));
    }
    match names::label_value(value).as_slice() {
        [] => Ok(()),
        errors => Err(format!("values[0][{key}]: Invalid value: {value:?}: {}", errors.join("; "))),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;
    use proptest::prelude::*;
    use serde_json::json;

    fn chosen(selector: &str, labels: &Value) -> bool {
        Labels::parse(selector).unwrap().matches_object(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn label_selectors_choose() {
        let labels = json!({"app": "x", "tier": "1"});
        for selector in [
            "",
            "app=x",
            "app==x",
            "app in (x,y)",
            "app notin (z)",
            "!none",
            "app",
            "tier>0",
            "tier<2",
            "app!=y",
            "none!=y",
        ] {
            assert!(chosen(selector, &labels), "{selector}");
        }
        for selector in ["app=y", "app in (y)", "app notin (x)", "!app", "none", "tier>1", "app="] {
            assert!(!chosen(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn label_selector_errors() {
        for (given, want) in [
            ("app in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("!!", "unable to parse requirement: found '!', expected: identifier"),
            ("a,", "found '', expected: identifier after ','"),
        ] {
            assert_eq!(Labels::parse(given).unwrap_err(), want);
        }
    }

    #[test]
    fn objects_become_selectors() {
        let selector = json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["z", "y"]}]});
        assert_eq!(Labels::from_object(&selector).unwrap().to_string(), "a notin (y,z),b=1");
        assert!(Labels::from_object(&json!({})).unwrap().is_everything());
        assert!(!Labels::from_object(&Value::Null).unwrap().matches(|_| None));
    }

    #[test]
    fn field_selectors() {
        let registry = Registry::builtin();
        let pods = registry.find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}});
        assert!(Fields::parse(&pods, "spec.nodeName!=,metadata.name=a").unwrap().matches_object(&pods, &pod));
        assert_eq!(Fields::parse(&pods, "spec.hostname=x").unwrap_err(), "field label not supported: spec.hostname");
        assert_eq!(
            Fields::parse(&pods, "metadata.name").unwrap_err(),
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
        assert_eq!(Fields::parse(&pods, "metadata.name=a\\,b").unwrap().exact_name(), Some("a,b"));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(keys in proptest::collection::btree_map("[a-c]", "[x-z]{1,2}", 0..3), op in 0..3) {
            let parts: Vec<String> = keys.iter().map(|(k, v)| match op {
                0 => format!("{k}={v}"),
                1 => format!("{k} in ({v})"),
                _ => format!("!{k}"),
            }).collect();
            let parsed = Labels::parse(&parts.join(",")).unwrap();
            prop_assert_eq!(Labels::parse(&parsed.to_string()).unwrap(), parsed);
        }

        #[test]
        fn any_text_is_refused_or_read(text in "[a-z=!,() <>.]{0,20}") {
            let _ = Labels::parse(&text);
        }
    }
}
