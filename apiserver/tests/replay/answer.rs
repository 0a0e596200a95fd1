//! Answers: how a body is read, reduced to its shape, and compared with the recorded one.

use regex::Regex;
use serde_json::{Value, json};

/// Characters of a value that a difference shows.
const SHOWN: usize = 300;

/// A body as JSON; a watch as the list of its events, less the bookmarks that come with time alone.
pub fn read(body: &[u8], content_type: &str) -> Value {
    let text = String::from_utf8_lossy(body);
    if !content_type.contains("json") {
        return if body.starts_with(b"k8s\0") { json!("<protobuf>") } else { json!(text) };
    }
    let event = Regex::new(r#"^\{"type":"[A-Z]+","object""#).unwrap();
    if !event.is_match(&text) {
        return if body.is_empty() { json!("") } else { serde_json::from_slice(body).unwrap_or_else(|_| json!(text)) };
    }
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let kept = |event: &Value| event["type"] != "BOOKMARK" || event.to_string().contains("initial-events-end");
    events.filter(kept).collect()
}

/// The types of scalars in place of their values.
pub fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::String(_) => json!("<str>"),
        Value::Bool(_) => json!("<bool>"),
        Value::Null => json!("<NoneType>"),
        Value::Number(number) if number.is_f64() => json!("<float>"),
        Value::Number(_) => json!("<int>"),
    }
}

/// Lines `step path: want …, got …`; none when all is equal.
pub fn compare(want: &[Value], got: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, (want, got)) in want.iter().zip(got).enumerate() {
        let mut found = Vec::new();
        diff(Some(want), Some(got), "", &mut found);
        let step = want["step"].as_str().unwrap_or_default();
        lines.extend(found.into_iter().map(|line| format!("{} {step} {line}", index + 1)));
    }
    if want.len() != got.len() {
        lines.push(format!("want {} steps, got {}", want.len(), got.len()));
    }
    lines
}

fn diff(want: Option<&Value>, got: Option<&Value>, path: &str, lines: &mut Vec<String>) {
    match (want, got) {
        (Some(Value::Object(want)), Some(Value::Object(got))) => {
            let more = got.keys().filter(|key| !want.contains_key(*key));
            for key in want.keys().chain(more) {
                let dot = if path.is_empty() { "" } else { "." };
                diff(want.get(key), got.get(key), &format!("{path}{dot}{key}"), lines);
            }
        }
        (Some(Value::Array(want)), Some(Value::Array(got))) if want.len() == got.len() => {
            for (index, (want, got)) in want.iter().zip(got).enumerate() {
                diff(Some(want), Some(got), &format!("{path}[{index}]"), lines);
            }
        }
        (want, got) if want == got => {}
        (want, got) => lines.push(format!("{path}: want {}, got {}", short(want), short(got))),
    }
}

fn short(value: Option<&Value>) -> String {
    let text = value.map_or("<absent>".into(), Value::to_string);
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

#[test]
fn differences_name_their_place() {
    let want = [json!({"step": "GET /x", "body": {"a": [1, 2], "b": null}})];
    let got = [json!({"step": "GET /x", "body": {"a": [1, 3], "c": "n"}})];
    assert_eq!(
        compare(&want, &got),
        [
            "1 GET /x body.a[1]: want 2, got 3",
            "1 GET /x body.b: want null, got <absent>",
            "1 GET /x body.c: want <absent>, got \"n\""
        ]
    );
    assert!(compare(&want, &want).is_empty());
}

#[test]
fn watches_are_lists_of_events() {
    let lines = b"{\"type\":\"ADDED\",\"object\":{}}\n{\"type\":\"BOOKMARK\",\"object\":{}}\n";
    assert_eq!(read(lines, "application/json"), json!([{"type": "ADDED", "object": {}}]));
    assert_eq!(read(b"k8s\0x", "application/vnd.kubernetes.protobuf"), "<protobuf>");
}
