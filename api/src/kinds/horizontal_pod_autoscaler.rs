//! HorizontalPodAutoscalers of both versions.

mod check;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Part};
use crate::default::{Object, nested, set_absent};
use crate::validate::At;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| check::spec(&At::of(object, "spec"), check::Before::Nothing, errors)),
    validate_update: Some(|new, old, errors| {
        check::spec(&At::of(new, "spec"), check::Before::Stored(&old["spec"]), errors);
    }),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            let status = At::of(new, "status");
            status.at("currentReplicas").not_negative(errors);
            status.at("desiredReplicas").not_negative(errors);
        }
    }),
    defaults: &[
        ("autoscaling.v1.HorizontalPodAutoscaler", |m| nested(m, "spec", |spec| set_absent(spec, "minReplicas", 1))),
        ("autoscaling.v2.HorizontalPodAutoscaler", |m| nested(m, "spec", default)),
    ],
    cells: Some(|o, _| autoscaler(o)),
    inactive: Some("nothing is scaled"),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

/// Per cent of what a pod requests, where nothing is said.
const CPU: i64 = 80;

fn default(spec: &mut Object) {
    set_absent(spec, "minReplicas", 1);
    let measured = spec.get("metrics").and_then(Value::as_array).is_some_and(|metrics| !metrics.is_empty());
    if !measured {
        let target = json!({"type": "Utilization", "averageUtilization": CPU});
        spec.insert("metrics".into(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        nested(behavior, "scaleUp", |up| {
            set_absent(up, "stabilizationWindowSeconds", 0);
            set_absent(up, "policies", json!([pods, percent]));
            set_absent(up, "selectPolicy", "Max");
        });
        nested(behavior, "scaleDown", |down| {
            set_absent(down, "policies", json!([percent]));
            set_absent(down, "selectPolicy", "Max");
        });
    }
}

/// At most this many metrics are spelled out.
const SHOWN: usize = 2;

const UNKNOWN: &str = "<unknown>";

/// Cells of an autoscaler of either version.
fn autoscaler(o: &Value) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let target = &spec["scaleTargetRef"];
    let least = spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
    vec![
        ("Reference", json!(format!("{}/{}", text(&target["kind"]), text(&target["name"])))),
        ("Targets", json!(targets(spec, status))),
        ("MinPods", json!(least)),
        ("MaxPods", json!(spec["maxReplicas"].as_i64().unwrap_or(0).to_string())),
        ("Replicas", json!(status["currentReplicas"].as_i64().unwrap_or(0).to_string())),
    ]
}

fn percent(value: &Value) -> String {
    value.as_i64().map_or_else(|| UNKNOWN.to_owned(), |n| format!("{n}%"))
}

fn targets(spec: &Value, status: &Value) -> String {
    let wanted = &spec["targetCPUUtilizationPercentage"];
    if wanted.is_i64() {
        return format!("cpu: {}/{}", percent(&status["currentCPUUtilizationPercentage"]), percent(wanted));
    }
    let metrics = spec["metrics"].as_array().map_or(&[][..], Vec::as_slice);
    let shown = metrics.iter().take(SHOWN).enumerate();
    let list: Vec<String> = shown.map(|(i, m)| metric(m, &status["currentMetrics"][i])).collect();
    match metrics.len().saturating_sub(SHOWN) {
        _ if list.is_empty() => "<none>".to_owned(),
        0 => list.join(", "),
        more => format!("{} + {more} more...", list.join(", ")),
    }
}

/// One metric; its source is the member that its type names.
fn metric(metric: &Value, current: &Value) -> String {
    let member = match metric["type"].as_str() {
        Some("Resource") => "resource",
        Some("ContainerResource") => "containerResource",
        Some("Pods") => "pods",
        Some("Object") => "object",
        Some("External") => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let (source, now) = (&metric[member], &current[member]["current"]);
    let target = &source["target"];
    let prefix = source["name"].as_str().map(|name| format!("{name}: ")).unwrap_or_default();
    if target["averageUtilization"].is_i64() {
        return format!("{prefix}{}/{}", percent(&now["averageUtilization"]), percent(&target["averageUtilization"]));
    }
    let (key, note) = match target["averageValue"].as_str() {
        Some(_) if matches!(member, "object" | "external") => ("averageValue", " (avg)"),
        Some(_) => ("averageValue", ""),
        None => ("value", ""),
    };
    let value = |v: &Value| v[key].as_str().unwrap_or(UNKNOWN).to_owned();
    format!("{prefix}{}/{}{note}", value(now), value(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_shown_before_anything_is_measured() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}});
        let spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 3,
            "metrics": [cpu]});
        let cells: Vec<Value> = autoscaler(&json!({"spec": spec})).into_iter().map(|(_, cell)| cell).collect();
        assert_eq!(cells, [json!("Deployment/web"), json!("cpu: <unknown>/80%"), json!("1"), json!("3"), json!("0")]);
    }
}
