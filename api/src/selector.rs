//! Label and field selectors.

mod fields;
mod selectable;

use serde_json::Value;

pub use self::fields::{Fields, field_value, selectable};
pub use self::selectable::{COMMON, Selectable, field};

use crate::budget::{Budget, Exceeded};
use crate::names;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operator {
    In,
    NotIn,
    Exists,
    Absent,
    Greater,
    Less,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
    /// `=`, `==` and `!=` print as they were written.
    sign: Option<&'static str>,
}

/// A label selector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Labels {
    /// From the query form, `a=b,c in (d,e),!f`.
    ///
    /// # Errors
    /// Upstream's text, or [`Exceeded::Requirements`].
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
    ///
    /// # Errors
    /// An unknown operator, by name; keys and values were validated with the object.
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
            match Labels::parse(&text) {
                // What is read says the same when it is printed.
                Ok(labels) => {
                    let again = Labels::parse(&labels.to_string()).unwrap();
                    for value in [None, Some("x"), Some("")] {
                        prop_assert_eq!(labels.matches(|_| value), again.matches(|_| value));
                    }
                }
                Err(why) => prop_assert!(!why.is_empty()),
            }
        }
    }
}
