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
        map = event(map, &to.group);
    }
    let mut object = Value::Object(map);
    if from.kind == "HorizontalPodAutoscaler" {
        if to.version == "v1" { autoscaler_to_v1(&mut object) } else { autoscaler_from_v1(&mut object) }
    }
    crate::decode::canonical(&to.gvk(), &to.schema, &object)
}

/// Where v1 of an autoscaler keeps what it has no fields for.
const KEPT: [(&str, &str); 2] =
    [("metrics", "autoscaling.alpha.kubernetes.io/metrics"), ("behavior", "autoscaling.alpha.kubernetes.io/behavior")];

fn is_cpu_share(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

/// The first CPU share becomes v1's one field; other metrics and the behaviour become annotations.
fn autoscaler_to_v1(object: &mut Value) {
    let Some(spec) = object["spec"].as_object_mut() else { return };
    let mut metrics = spec.get("metrics").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(at) = metrics.iter().position(is_cpu_share) {
        let share = metrics.remove(at)["resource"]["target"]["averageUtilization"].take();
        spec.insert("targetCPUUtilizationPercentage".into(), share);
    }
    let rest = (!metrics.is_empty()).then(|| json!(metrics));
    let kept = [rest, spec.remove("behavior")];
    spec.remove("metrics");
    for ((_, annotation), value) in KEPT.iter().zip(kept) {
        if let Some(value) = value {
            object["metadata"]["annotations"][*annotation] = json!(value.to_string());
        }
    }
}

fn autoscaler_from_v1(object: &mut Value) {
    let annotations = object["metadata"]["annotations"].as_object_mut();
    let mut kept = annotations.map_or([None, None], |all| KEPT.map(|(_, annotation)| all.remove(annotation)));
    if object["metadata"]["annotations"].as_object().is_some_and(Map::is_empty)
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
    let [metrics, behavior] = &mut kept;
    let parse = |text: &mut Option<Value>| serde_json::from_str::<Value>(text.take()?.as_str()?).ok();
    let mut metrics = parse(metrics).and_then(|value| value.as_array().cloned()).unwrap_or_default();
    let Some(spec) = object["spec"].as_object_mut() else { return };
    if let Some(share) = spec.remove("targetCPUUtilizationPercentage").filter(|share| !share.is_null()) {
        let target = json!({"type": "Utilization", "averageUtilization": share});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        spec.insert("metrics".into(), json!(metrics));
    }
    if let Some(behavior) = parse(behavior) {
        spec.insert("behavior".into(), behavior);
    }
}

/// With the names that its fields have in a group.
fn event(mut map: Map<String, Value>, group: &str) -> Map<String, Value> {
    for (core, new) in EVENT {
        let (from, to) = if group.is_empty() { (new, core) } else { (core, new) };
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
    fn an_autoscaler_loses_nothing_on_its_way_through_v1() {
        let registry = Registry::builtin();
        let v1 = registry.find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let v2 = registry.find("autoscaling", "v2", "horizontalpodautoscalers").unwrap();
        let metric = |name: &str, share: i64| {
            let target = json!({"type": "Utilization", "averageUtilization": share});
            json!({"type": "Resource", "resource": {"name": name, "target": target}})
        };
        let sent = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "h"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "w"}, "maxReplicas": 3,
                "metrics": [metric("cpu", 80), metric("memory", 50)]}});
        let stored = crate::decode::canonical(&v2.gvk(), &v2.schema, &sent);
        let old = convert(&v2, &v1, stored.clone());
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(convert(&v1, &v2, old), stored);
    }

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
