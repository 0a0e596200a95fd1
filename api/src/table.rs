//! What `kubectl get` shows: columns and cells per kind, and objects reduced to their metadata.

pub(crate) mod cells;

use std::collections::HashMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// Columns of the kinds that have their own, by `group/version/plural`: name, type, format and priority (1 = wide).
static COLUMNS: LazyLock<HashMap<&'static str, Vec<Value>>> = LazyLock::new(|| {
    data!("columns.txt").lines().filter_map(|line| line.split_once('|')).map(|(k, v)| (k, parse(v))).collect()
});

fn parse(columns: &'static str) -> Vec<Value> {
    columns
        .split('|')
        .map(|column| {
            let mut parts = column.split(',');
            let (name, type_) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let (type_, format) = type_.split_once(':').unwrap_or((type_, ""));
            let priority: i64 = parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
            definition(name, type_, format, priority)
        })
        .collect()
}

fn definition(name: &str, type_: &str, format: &str, priority: i64) -> Value {
    let description = if name == "Name" { "Name must be unique within a namespace." } else { "" };
    json!({"name": name, "type": type_, "format": format, "description": description, "priority": priority})
}

/// What a custom kind says of its objects' names.
const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

fn own_columns(kind: &Kind) -> Option<&'static Vec<Value>> {
    let group = if kind.group.is_empty() { "core" } else { &kind.group };
    COLUMNS.get(format!("{group}/{}/{}", kind.version, kind.plural).as_str())
}

/// `columnDefinitions`. Kinds without columns of their own show name and creation time.
pub fn columns(kind: &Kind) -> Value {
    match (own_columns(kind), &kind.custom) {
        (Some(columns), _) => json!(columns),
        (None, Some(custom)) => {
            let name = json!({"name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0});
            std::iter::once(&name).chain(custom.columns()).cloned().collect()
        }
        (None, None) => json!([definition("Name", "string", "name", 0), definition("Created At", "date", "", 0)]),
    }
}

/// The cells of one object, as many as there are columns.
pub fn cells(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    if let Some(custom) = &kind.custom {
        return std::iter::once(name).chain(custom.cells(object, now)).collect();
    }
    let columns = columns(kind);
    let names: Vec<&str> = columns.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    if names.last() == Some(&"Created At") {
        return vec![name, object["metadata"]["creationTimestamp"].clone()];
    }
    let special = special(kind, object, now);
    let age = json!(cells::age(&object["metadata"]["creationTimestamp"], now));
    names
        .iter()
        .map(|column| match *column {
            column if special.contains_key(column) => special[column].clone(),
            "Name" => name.clone(),
            "Age" => age.clone(),
            _ => json!("<unknown>"),
        })
        .collect()
}

/// Cells that are more than name and age, by column.
fn special(kind: &Kind, object: &Value, now: Timestamp) -> HashMap<&'static str, Value> {
    kind.behaviour.cells.map(|cells| cells(object, now).into_iter().collect()).unwrap_or_default()
}

/// One `rows` entry; `included` is what the request's includeObject asks for ([`partial`] by default, `None` for None).
pub fn row(kind: &Kind, object: &Value, included: Option<Value>, now: Timestamp) -> Value {
    let mut out = Map::new();
    out.insert("cells".into(), json!(cells(kind, object, now)));
    let conditions = kind.behaviour.row_conditions.map(|conditions| conditions(object)).unwrap_or_default();
    if !conditions.is_empty() {
        out.insert("conditions".into(), json!(conditions));
    }
    out.insert("object".into(), included.unwrap_or(Value::Null));
    Value::Object(out)
}

/// A Table of these rows; `list_meta` is a list's metadata (resourceVersion, continue, remainingItemCount).
pub fn table(kind: &Kind, list_meta: Value, rows: Vec<Value>) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": columns(kind), "rows": rows})
}

/// The Table of one Scale, whatever it is of.
pub fn scale(scale: &Value, included: Option<Value>, now: Timestamp) -> Value {
    let columns = [("Name", "string"), ("Desired", "integer"), ("Available", "integer"), ("Age", "string")];
    let count = |section: &str| scale[section]["replicas"].as_i64().unwrap_or(0);
    let metadata = &scale["metadata"];
    let age = cells::age(&metadata["creationTimestamp"], now);
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "columnDefinitions": columns.map(|(name, type_)| definition(name, type_, "", 0)),
        "rows": [{"cells": [metadata["name"], count("spec"), count("status"), age], "object": included}]})
}

/// The object as a `meta.k8s.io/v1` PartialObjectMetadata.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Registry;

    fn shown(plural: &str, group: &str, object: Value) -> Vec<Value> {
        let kind = Registry::builtin().find(group, "v1", plural).unwrap();
        cells(&kind, &object, "2020-01-01T01:00:00Z".parse().unwrap())
    }

    #[test]
    fn every_column_of_every_kind_of_the_first_list_is_filled() {
        let registry = Registry::builtin();
        for (group, plural) in [
            ("", "pods"),
            ("", "services"),
            ("", "nodes"),
            ("", "namespaces"),
            ("", "configmaps"),
            ("", "secrets"),
            ("", "serviceaccounts"),
            ("", "endpoints"),
            ("", "events"),
            ("", "podtemplates"),
            ("apps", "deployments"),
            ("apps", "replicasets"),
            ("apps", "controllerrevisions"),
            ("discovery.k8s.io", "endpointslices"),
            ("coordination.k8s.io", "leases"),
            ("rbac.authorization.k8s.io", "rolebindings"),
            ("networking.k8s.io", "ipaddresses"),
        ] {
            let kind = registry.find(group, "v1", plural).unwrap();
            let object = json!({"metadata": {"name": "x", "creationTimestamp": "2020-01-01T00:00:00Z"}});
            let special = special(&kind, &object, Timestamp::UNIX_EPOCH);
            for column in columns(&kind).as_array().unwrap() {
                let name = column["name"].as_str().unwrap();
                assert!(matches!(name, "Name" | "Age" | "Created At") || special.contains_key(name), "{plural} {name}");
            }
        }
    }

    #[test]
    fn pods_show_what_is_wrong_with_them() {
        let pod = |status: Value| {
            shown(
                "pods",
                "",
                json!({"metadata": {"name": "p", "creationTimestamp": "2020-01-01T00:00:00Z"},
                "spec": {"containers": [{"name": "c"}]}, "status": status}),
            )
        };
        let waiting = pod(json!({"phase": "Pending", "containerStatuses": [
            {"name": "c", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}));
        assert_eq!(waiting[1..5], [json!("0/1"), json!("ImagePullBackOff"), json!("0"), json!("60m")]);
        let restarted =
            pod(json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 3,
            "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2020-01-01T00:58:00Z"}}}]}));
        assert_eq!(restarted[3], "3 (2m ago)");
    }

    #[test]
    fn services_show_their_ports() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9",
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let cells = shown("services", "", service);
        assert_eq!(cells[1..5], [json!("NodePort"), json!("10.96.0.9"), json!("<none>"), json!("80:30080/TCP,53/UDP")]);
    }
}
