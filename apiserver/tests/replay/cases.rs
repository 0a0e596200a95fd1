//! The case language: text to steps, and the bodies that steps name.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
}

/// One request: `METHOD PATH [options] body`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    pub method: String,
    pub path: String,
    /// In their order; a word without `=` has an empty value.
    pub options: Vec<(String, String)>,
    pub body: String,
}

impl Step {
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What the tape calls it.
    pub fn title(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Reads a file of cases; panics at a line that is none of case, step, continuation, comment.
pub fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("case ") {
            cases.push(Case { name: name.trim().to_owned(), steps: Vec::new() });
            continue;
        }
        let steps = cases.last_mut().map(|case| &mut case.steps);
        match (line.strip_prefix("  "), steps) {
            (Some(more), Some(steps)) if !steps.is_empty() => {
                let body = &mut steps.last_mut().expect("not empty: asked just above").body;
                body.push('\n');
                body.push_str(more);
            }
            _ if line.is_empty() || line.starts_with('#') => {}
            (None, Some(steps)) => steps.push(step(line)),
            _ => panic!("not a case, step, continuation or comment: {line}"),
        }
    }
    cases
}

fn step(line: &str) -> Step {
    let (method, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no step: {line}"));
    let (path, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let (options, body) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((options, body)) => (options, body.strip_prefix(' ').unwrap_or(body)),
        None => ("", rest),
    };
    let options = options.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")));
    Step {
        method: method.to_owned(),
        path: path.to_owned(),
        options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        body: body.to_owned(),
    }
}

/// A body as bytes: `@base {sets}`, `b64:…`, `|` and raw lines, or the text itself. Binary ones take no variables.
pub fn body(text: &str, bases: &Value, fill: impl Fn(&str) -> String) -> Vec<u8> {
    if let Some(binary) = text.strip_prefix("b64:") {
        return BASE64_STANDARD.decode(binary.trim()).expect("a b64 body is base64");
    }
    let text = match (text.strip_prefix('@'), text.strip_prefix("|\n")) {
        (Some(named), _) => based(named, bases),
        (None, Some(raw)) => format!("{raw}\n"),
        (None, None) => text.to_owned(),
    };
    fill(&text).into_bytes()
}

fn based(text: &str, bases: &Value) -> String {
    let (name, sets) = text.split_once(' ').unwrap_or((text, "{}"));
    let mut object = bases[name].clone();
    let sets: Value = serde_json::from_str(sets).unwrap_or_else(|error| panic!("{text}: {error}"));
    for (path, value) in sets.as_object().into_iter().flatten() {
        set(&mut object, path, value.clone());
    }
    object.to_string()
}

/// Sets a dotted path; an index equal to the length appends; null removes.
pub fn set(object: &mut Value, path: &str, value: Value) {
    let (parents, last) = path.rsplit_once('.').map_or(("", path), |(parents, last)| (parents, last));
    let mut place = object;
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        place = match place {
            Value::Array(items) => match part.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                Some(item) => item,
                None => return,
            },
            Value::Object(map) => map.entry(part).or_insert_with(|| Value::Object(Default::default())),
            _ => return,
        };
    }
    match place {
        Value::Array(items) => {
            let index: usize = last.parse().unwrap_or(usize::MAX);
            match (value.is_null(), index < items.len()) {
                (true, true) => drop(items.remove(index)),
                (false, true) => items[index] = value,
                (false, false) if index == items.len() => items.push(value),
                _ => {}
            }
        }
        Value::Object(map) if value.is_null() => drop(map.remove(last)),
        Value::Object(map) => drop(map.insert(last.to_owned(), value)),
        _ => {}
    }
}

/// What lies at a dotted path.
pub fn get<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |place, part| match part.parse::<usize>() {
        Ok(index) => place.get(index),
        Err(_) => place.get(part),
    })
}

#[test]
fn cases_are_read() {
    let cases = parse("# c\ncase a\nPOST ~/pods [as=bob merge] @pod\nGET /x |\n  one\n  two\n\ncase b\n");
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[0].steps[0].option("as"), Some("bob"));
    assert_eq!(cases[0].steps[0].option("merge"), Some(""));
    assert_eq!(body(&cases[0].steps[1].body, &Value::Null, str::to_owned), b"one\ntwo\n");
}

#[test]
fn bases_take_changes() {
    let bases = serde_json::json!({"o": {"a": {"b": [1]}, "c": 1}});
    let made = body(r#"@o {"a.b.1":2,"a.d.e":"${v}","c":null}"#, &bases, |text| text.replace("${v}", "x"));
    let made: Value = serde_json::from_slice(&made).unwrap();
    assert_eq!(made, serde_json::json!({"a": {"b": [1, 2], "d": {"e": "x"}}}));
    assert_eq!(get(&made, "a.b.1"), Some(&Value::from(2)));
}
