//! What cells of several kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::selector::Labels;
use crate::time::human;
use crate::value::{items, plain, text};

pub const NONE: &str = "<none>";

/// How long ago, or `<unknown>`.
pub fn age(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(time) => human(now.as_second() - time.as_second()),
        None => "<unknown>".into(),
    }
}

pub fn joined(list: &Value) -> String {
    items(list).map(plain).collect::<Vec<_>>().join(",")
}

pub fn or_none(shown: String) -> String {
    if shown.is_empty() { NONE.into() } else { shown }
}

pub fn selector(selector: &Value) -> String {
    Labels::from_object(selector).map_or_else(|error| error, |s| or_none(s.to_string()))
}

/// Names and images of a pod spec's containers.
pub fn containers(spec: &Value) -> (Value, Value) {
    let list = |name: &str| items(&spec["containers"]).map(|c| text(&c[name])).collect::<Vec<_>>().join(",");
    (json!(list("name")), json!(list("image")))
}

/// The wide columns of workloads.
pub fn template(object: &Value) -> Vec<(&'static str, Value)> {
    let (names, images) = containers(&object["spec"]["template"]["spec"]);
    let chosen = &object["spec"]["selector"];
    let chosen = match text(&object["kind"]) {
        "ReplicationController" => or_none(Labels::from_map(chosen).to_string()),
        _ => selector(chosen),
    };
    vec![("Containers", names), ("Images", images), ("Selector", json!(chosen))]
}

pub fn has_condition(status: &Value, name: &str) -> bool {
    items(&status["conditions"]).any(|c| c["type"] == name && c["status"] == "True")
}

pub fn at_most_three(list: &[String]) -> String {
    match list.len() {
        0..=3 => list.join(","),
        n => format!("{} + {} more...", list[..3].join(","), n - 3),
    }
}

pub fn access_modes(modes: &Value) -> String {
    let order =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let given: Vec<&str> = items(modes).map(text).collect();
    let shown: Vec<&str> = order.iter().filter(|(name, _)| given.contains(name)).map(|(_, short)| *short).collect();
    shown.join(",")
}
