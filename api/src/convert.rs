//! Between the versions of one kind.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// Names of one field in the core and in the newer Event.
const EVENT: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

/// The object in another version; both kinds share their storage. The identity where the schemas are equal.
pub fn convert(from: &Kind, to: &Kind, object: Value) -> Value {
    if from.group == to.group && from.version == to.version {
        return object;
    }
    let mut map = match object {
        Value::Object(map) => map,
        other => return other,
    };
    map.insert("apiVersion".into(), json!(to.api_version()));
    if from.kind == "Event" {
        map = event(map, to.group.is_empty());
    }
    crate::decode::canonical(&to.gvk(), &to.schema, &Value::Object(map))
}

fn event(mut map: Map<String, Value>, to_core: bool) -> Map<String, Value> {
    for (core, new) in EVENT {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;

    #[test]
    fn events_go_there_and_back() {
        let registry = Registry::builtin();
        let core = registry.find("", "v1", "events").unwrap();
        let new = registry.find("events.k8s.io", "v1", "events").unwrap();
        let sent = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e"}, "message": "m", "count": 3,
            "involvedObject": {"kind": "Pod"}, "firstTimestamp": "2020-01-01T00:00:00Z"});
        let stored = crate::decode::canonical(&core.gvk(), &core.schema, &sent);
        let shown = convert(&core, &new, stored.clone());
        assert_eq!((&shown["note"], &shown["deprecatedCount"]), (&json!("m"), &json!(3)));
        assert_eq!(convert(&new, &core, shown), stored);
    }
}
