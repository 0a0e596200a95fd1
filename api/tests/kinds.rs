//! What is said of bad objects, and what of each kind is upstream's: both printed, and held against what was printed before.
//!
//! `REFRESH=1 cargo test -p api --test kinds` writes the files anew; the difference is what a reviewer reads.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use api::decode::{FieldValidation, MediaType, untyped, value};
use api::kind::{Kind, Part, Registry};
use serde_json::{Value, json};

fn output(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/output").join(name)
}

fn golden(name: &str, now: &str) {
    let path = output(name);
    if std::env::var_os("REFRESH").is_some() {
        std::fs::write(&path, now).expect("the folder of printed tests is there");
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = before.lines().zip(now.lines()).find(|(a, b)| a != b);
    assert!(before == now, "{name} differs, first: {differs:?}; REFRESH=1 writes it anew");
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(map), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => drop(map.remove(key)),
                    value => merge(map.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (into, Value::Object(patch)) => {
            *into = json!({});
            merge(into, &Value::Object(patch.clone()));
        }
        (into, value) => *into = value.clone(),
    }
}

fn kind(path: &str) -> std::sync::Arc<Kind> {
    let parts: Vec<&str> = path.split('/').collect();
    let group = if parts[0] == "core" { "" } else { parts[0] };
    Registry::builtin().find(group, parts[1], parts[2]).unwrap_or_else(|| panic!("{path} is no kind"))
}

/// As the server makes it of what is sent.
fn sent(kind: &Kind, object: &Value) -> Value {
    let mut object = object.clone();
    object["kind"] = json!(kind.kind);
    object["apiVersion"] = json!(kind.api_version());
    let decoded = value(&kind.gvk(), &kind.schema, &object, Vec::new(), FieldValidation::Strict);
    let mut object =
        decoded.map(|decoded| decoded.value).unwrap_or_else(|failure| panic!("{}: {object}", failure.text));
    api::default::apply(kind, &mut object);
    object
}

fn created(kind: &Kind, object: &Value) -> Value {
    let mut object = sent(kind, object);
    api::write::prepare_create(kind, &mut object);
    api::default::apply(kind, &mut object);
    object
}

#[test]
fn bad_objects_are_refused_in_upstreams_words() {
    let table = untyped(MediaType::Yaml, include_bytes!("data/validation.yaml")).unwrap();
    let mut out = String::new();
    for (path, cases) in table.as_object().unwrap() {
        let kind = kind(path);
        let fine = created(&kind, &cases["fine"]);
        let wrong: Vec<String> = api::validate::create(&kind, &fine).iter().map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "the fine object of {path}: {wrong:?}");
        let list = |name: &str| cases[name].as_array().cloned().unwrap_or_default();
        let mut tell = |what: &str, patch: &Value, errors: Vec<api::status::FieldError>| {
            assert!(!errors.is_empty(), "{path} {what} {patch} is accepted");
            writeln!(out, "{path} {what} {patch}").unwrap();
            errors.iter().for_each(|error| writeln!(out, "    {error}").unwrap());
        };
        for patch in list("new") {
            let mut object = cases["fine"].clone();
            merge(&mut object, &patch);
            tell("new", &patch, api::validate::create(&kind, &created(&kind, &object)));
        }
        let now = |patch: &Value, part: Option<Part>| {
            let mut new = fine.clone();
            merge(&mut new, patch);
            let mut new = sent(&kind, &new);
            api::write::prepare_update(&kind, part, &mut new, &fine);
            api::validate::update(&kind, part, &new, &fine)
        };
        for patch in list("update") {
            tell("update", &patch, now(&patch, None));
        }
        for row in list("parts") {
            let (part, patch) = row.as_object().unwrap().iter().next().unwrap();
            tell(part, patch, now(patch, Some(Part::parse(part).unwrap())));
        }
    }
    golden("validation.txt", &out);
}

#[test]
fn every_kind_says_what_of_it_is_there() {
    let mut out = String::new();
    for kind in Registry::builtin().iter() {
        let group = if kind.group.is_empty() { "core" } else { &kind.group };
        writeln!(out, "{group}/{}/{}", kind.version, kind.plural).unwrap();
        for line in api::kinds::report(kind) {
            writeln!(out, "    {line}").unwrap();
        }
    }
    assert!(!out.contains("SILENT"), "a kind says neither that it has something nor that it is missing:\n{out}");
    assert!(!out.contains("UNKNOWN"), "a column without a cell:\n{out}");
    golden("kinds.txt", &out);
}

/// Objects that are stored are defaulted again only when the generation says that defaults changed.
#[test]
fn defaults_change_with_their_generation() {
    let table = untyped(MediaType::Yaml, include_bytes!("data/validation.yaml")).unwrap();
    let mut out = format!("generation {}\n", api::default::GENERATION);
    for (path, cases) in table.as_object().unwrap() {
        let mut object = sent(&kind(path), &cases["fine"]);
        let once = object.clone();
        api::default::apply(&kind(path), &mut object);
        assert_eq!(object, once, "defaults of {path} change what they made");
        writeln!(out, "{path} {once}").unwrap();
    }
    let before = std::fs::read_to_string(output("defaults.txt")).unwrap_or_default();
    let same = before.lines().next() == out.lines().next();
    // More objects may be held against it.
    let kept = before.lines().all(|line| out.lines().any(|now| now == line));
    assert!(!same || kept, "defaults changed: raise api::default::GENERATION, then REFRESH=1");
    golden("defaults.txt", &out);
}
