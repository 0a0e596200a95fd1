//! YAML as Kubernetes reads it: YAML 1.1 scalars, the first document only, mappings turned into JSON objects.

use std::collections::{HashMap, HashSet};

use yaml_rust2::Event;
use yaml_rust2::parser::{Parser, Tag};
use yaml_rust2::scanner::{Marker, ScanError, TScalarStyle};

use super::json::Json;
use crate::budget::{Budget, Exceeded, Meter, Size};

pub struct Yaml {
    pub node: Json,
    /// Errors that only strict reading reports.
    pub strict: Vec<String>,
}

/// The first document of a body.
///
/// # Errors
/// The text of go-yaml, or the limit of [`Budget::CLIENT`] that was met.
pub fn parse(text: &str) -> Result<Yaml, String> {
    let mut builder = Builder::new(Budget::CLIENT.meter());
    let mut parser = Parser::new_from_str(text);
    // Event by event: the library's own loop calls itself for each level of nesting, without limit.
    loop {
        let (event, mark) = parser.next_token().map_err(|error| scan_error(text, &error))?;
        if matches!(event, Event::DocumentEnd | Event::StreamEnd) {
            break;
        }
        builder.take(event, mark)?;
    }
    Ok(Yaml { node: builder.root.unwrap_or(Json::Null), strict: builder.strict })
}

/// What the scanner says when it looks ahead into more open brackets than it can count (255): it has no other sign.
const SCANNER_DEPTH: &str = "recursion limit exceeded";

fn scan_error(text: &str, error: &ScanError) -> String {
    if error.info() == SCANNER_DEPTH {
        return Exceeded::Depth(Budget::CLIENT.depth).into();
    }
    // go-yaml counts scanner errors from line 1 and leaves column and index out.
    let info = match error.info().split_once(", ").filter(|(context, _)| context.starts_with("while ")) {
        Some((_, problem)) => problem,
        None => error.info(),
    };
    if let Some(line) = tabbed_line(text) {
        return format!("yaml: line {line}: found a tab character that violates indentation");
    }
    if let Some(wanted) = info.strip_prefix("expected ',' or ") {
        // What go-yaml's parser finds, unlike its scanner, it counts from line 0.
        return format!(
            "yaml: line {}: did not find expected ',' or {wanted}",
            error.marker().line().saturating_sub(1)
        );
    }
    format!("yaml: line {}: {info}", error.marker().line())
}

/// The first line that a tab indents.
fn tabbed_line(text: &str) -> Option<usize> {
    text.lines().position(|line| line.trim_start_matches(' ').starts_with('\t')).map(|at| at + 1)
}

/// A collection being read.
enum Open {
    List { items: Vec<Json>, anchor: usize },
    Object(Mapping),
}

#[derive(Default)]
struct Mapping {
    entries: Vec<(String, Json)>,
    /// Where each key stands in `entries`.
    places: HashMap<String, usize>,
    /// Keys that were written, merged ones left out.
    written: HashSet<String>,
    key: Option<String>,
    anchor: usize,
}

impl Mapping {
    fn set(&mut self, key: String, node: Json) {
        match self.places.get(&key) {
            Some(&at) => self.entries[at].1 = node,
            None => {
                self.places.insert(key.clone(), self.entries.len());
                self.entries.push((key, node));
            }
        }
    }

    /// `<<`: what is there already stays.
    fn merge(&mut self, merged: &[(String, Json)]) {
        for (key, node) in merged {
            if !self.places.contains_key(key) {
                self.set(key.clone(), node.clone());
            }
        }
    }
}

struct Builder {
    meter: Meter,
    open: Vec<Open>,
    root: Option<Json>,
    anchors: HashMap<usize, (Json, Size)>,
    strict: Vec<String>,
}

impl Builder {
    fn new(meter: Meter) -> Self {
        Self { meter, open: Vec::new(), root: None, anchors: HashMap::new(), strict: Vec::new() }
    }

    fn take(&mut self, event: Event, mark: Marker) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.meter.node()?;
                self.finish(scalar(text, style, tag.as_ref()), anchor, mark)
            }
            Event::SequenceStart(anchor, _) => {
                self.meter.enter()?;
                self.open.push(Open::List { items: Vec::new(), anchor });
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                self.meter.enter()?;
                self.open.push(Open::Object(Mapping { anchor, ..Mapping::default() }));
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.meter.leave();
                match self.open.pop() {
                    Some(Open::List { items, anchor }) => self.finish(Json::List(items), anchor, mark),
                    Some(Open::Object(mapping)) => self.finish(Json::Object(mapping.entries), mapping.anchor, mark),
                    None => Ok(()),
                }
            }
            Event::Alias(id) => {
                // Repeated in full, so counted in full: a few nested aliases stand for billions of values.
                let (node, size) = self.anchors.get(&id).ok_or("yaml: unknown anchor referenced")?;
                self.meter.repeat(*size)?;
                self.finish(node.clone(), 0, mark)
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, node: Json, anchor: usize, mark: Marker) -> Result<(), String> {
        if anchor > 0 {
            let size = node.size();
            self.meter.repeat(size)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Object(mapping)) => match mapping.key.take() {
                None => {
                    let key = key_text(&node).ok_or("error converting YAML to JSON: unsupported map key")?;
                    if !mapping.written.insert(key.clone()) && self.strict.len() < Budget::CLIENT.findings {
                        let line = mark.line();
                        self.strict
                            .push(format!("yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"));
                    }
                    mapping.key = Some(key);
                }
                Some(key) => match (key.as_str(), node) {
                    ("<<", Json::Object(merged)) => mapping.merge(&merged),
                    (_, node) => mapping.set(key, node),
                },
            },
        }
        Ok(())
    }
}

fn key_text(node: &Json) -> Option<String> {
    match node {
        Json::String(text) | Json::Number(text) => Some(text.clone()),
        Json::Bool(on) => Some(on.to_string()),
        Json::Null => Some("null".into()),
        _ => None,
    }
}

fn scalar(text: String, style: TScalarStyle, tag: Option<&Tag>) -> Json {
    let tagged = tag.filter(|t| t.handle == "tag:yaml.org,2002:").map(|t| t.suffix.as_str());
    if style != TScalarStyle::Plain || tagged == Some("str") {
        return Json::String(text);
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Json::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => return Json::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Json::Bool(false);
        }
        _ => {}
    }
    number(&text).map_or(Json::String(text), Json::Number)
}

/// Integers in any base of YAML 1.1 and 1.2, and floats, as JSON writes them.
fn number(text: &str) -> Option<String> {
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |prefix: &str, base| digits.strip_prefix(prefix).and_then(|d| u64::from_str_radix(d, base).ok());
    let integer = radix("0x", 16)
        .or_else(|| radix("0b", 2))
        .or_else(|| radix("0o", 8))
        .or_else(|| (digits.len() > 1).then(|| radix("0", 8)).flatten())
        .or_else(|| digits.parse::<u64>().ok());
    if let Some(integer) = integer {
        return Some(format!("{}{integer}", if integer == 0 { "" } else { sign }));
    }
    let is_float = digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    let value: f64 = is_float.then(|| digits.parse().ok())??;
    let value = if sign == "-" { -value } else { value };
    serde_json::Number::from_f64(value).map(|n| {
        let text = n.to_string();
        text.strip_suffix(".0").map_or(text.clone(), String::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> serde_json::Value {
        parse(text).map(|y| y.node.to_value()).unwrap()
    }

    #[test]
    fn scalars_are_those_of_yaml_1_1() {
        let text =
            "{a: yes, b: 'yes', c: 012, d: 0o17, e: 0x50, f: ~, g: 1.5, h: 1e3, i: 1.10.0, j: -3, k: off, l: !!str 5}";
        let want = json!({"a": true, "b": "yes", "c": 10, "d": 15, "e": 80, "f": null, "g": 1.5, "h": 1000,
            "i": "1.10.0", "j": -3, "k": false, "l": "5"});
        assert_eq!(value(text), want);
    }

    #[test]
    fn anchors_merges_and_blocks() {
        let text = "a: &x {k: v}\nb: *x\nc:\n  <<: *x\n  l: w\nd: |\n  one\n  two\n---\nsecond: 1\n";
        let want = json!({"a": {"k": "v"}, "b": {"k": "v"}, "c": {"k": "v", "l": "w"}, "d": "one\ntwo\n"});
        assert_eq!(value(text), want);
    }

    #[test]
    fn duplicates_are_reported_with_their_line() {
        let yaml = parse("a: 1\nb:\n  c: 1\n  c: 2\n").unwrap();
        assert_eq!(yaml.strict, ["yaml: unmarshal errors:\n  line 4: key \"c\" already set in map"]);
    }

    #[test]
    fn errors_are_those_of_go_yaml() {
        let want = "yaml: line 2: found a tab character that violates indentation";
        assert_eq!(parse("apiVersion: v1\n\tkind: tab\n").err().unwrap(), want);
        assert_eq!(parse("[1, {").err().unwrap().split(':').next(), Some("yaml"));
    }
}
