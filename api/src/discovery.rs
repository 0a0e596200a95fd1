//! Discovery documents made from the table.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kind::{Gvk, Kind, Registry, Subresource, Text, api_version};

/// The two forms of aggregated discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// The content type to answer with.
    pub fn content_type(self) -> &'static str {
        match self {
            Aggregated::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Aggregated::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Aggregated::V2 => "apidiscovery.k8s.io/v2",
            Aggregated::V2Beta1 => "apidiscovery.k8s.io/v2beta1",
        }
    }
}

/// `/api` in its aggregated form.
pub fn aggregated_core(registry: &Registry, form: Aggregated) -> Value {
    aggregated(registry, form, |group| group.is_empty())
}

/// `/apis` in its aggregated form.
pub fn aggregated_groups(registry: &Registry, form: Aggregated) -> Value {
    aggregated(registry, form, |group| !group.is_empty())
}

fn aggregated(registry: &Registry, form: Aggregated, wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = registry
        .groups()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of_version(registry, &group, version).map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": form.api_version(), "metadata": {}, "items": items})
}

fn of_version<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
    registry.iter().filter(move |k| k.group == group && k.version == version).map(AsRef::as_ref)
}

fn gvk_value(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": gvk_value(&kind.gvk()),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.offered(),
    });
    put_list(&mut out, "shortNames", &kind.short_names);
    put_list(&mut out, "categories", &kind.categories);
    if !kind.subresources.is_empty() {
        let list = kind.subresources.iter();
        out["subresources"] = list
            .map(|s| json!({"subresource": s.part.name(), "responseKind": gvk_value(&s.gvk), "verbs": s.verbs}))
            .collect();
    }
    out
}

fn put_list(out: &mut Value, name: &str, list: &[Text]) {
    if !list.is_empty() {
        out[name] = json!(list);
    }
}

/// `/api`: APIVersions.
pub fn api_versions(registry: &Registry, server_address: &str) -> Value {
    let versions = registry.groups().into_iter().find(|(g, _)| g.is_empty()).map(|(_, v)| v).unwrap_or_default();
    json!({"kind": "APIVersions", "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `/apis`: APIGroupList.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry
        .groups()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| Value::Object(group_entry(group, versions)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_entry(group: &str, versions: &[Text]) -> Map<String, Value> {
    let list: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": api_version(group, v), "version": v})).collect();
    let mut out = Map::new();
    out.insert("name".into(), json!(group));
    out.extend(list.first().map(|first| ("preferredVersion".to_string(), first.clone())));
    out.insert("versions".into(), Value::Array(list));
    out
}

/// `/apis/<group>`: APIGroup.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    let groups = registry.groups();
    let (name, versions) = groups.iter().find(|(name, _)| name == group && !name.is_empty())?;
    let mut out = group_entry(name, versions);
    out.insert("kind".into(), json!("APIGroup"));
    out.insert("apiVersion".into(), json!("v1"));
    Some(Value::Object(out))
}

/// `/api/v1`, `/apis/<group>/<version>`: APIResourceList.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in of_version(registry, group, version) {
        list.push(resource(kind));
        list.extend(kind.subresources.iter().map(|s| subresource(kind, s)));
    }
    let group_version = api_version(group, version);
    let mut out = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": list});
    if !group.is_empty() {
        out["apiVersion"] = json!("v1");
    }
    (!list.is_empty()).then_some(out)
}

fn resource(kind: &Kind) -> Value {
    let mut out = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced(),
        "kind": kind.kind, "verbs": kind.offered()});
    put_list(&mut out, "shortNames", &kind.short_names);
    put_list(&mut out, "categories", &kind.categories);
    if kind.stored() && kind.has_verb("create") {
        out["storageVersionHash"] = json!(storage_version_hash(kind));
    }
    out
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut out = json!({"name": format!("{}/{}", kind.plural, sub.part.name()), "singularName": "",
        "namespaced": kind.namespaced(), "kind": sub.gvk.kind, "verbs": sub.verbs});
    if sub.gvk.group != kind.group || sub.gvk.version != kind.version {
        out["group"] = json!(sub.gvk.group);
        out["version"] = json!(sub.gvk.version);
    }
    out
}

/// Fields in the order of upstream's types; a document says first what it is.
const ORDER: [&str; 26] = [
    "metadata",
    "groupVersion",
    "name",
    "singularName",
    "namespaced",
    "resource",
    "subresource",
    "responseKind",
    "scope",
    "singularResource",
    "group",
    "version",
    "kind",
    "apiVersion",
    "verbs",
    "shortNames",
    "categories",
    "storageVersionHash",
    "subresources",
    "versions",
    "preferredVersion",
    "serverAddressByClientCIDRs",
    "groups",
    "resources",
    "freshness",
    "items",
];

/// A document as it is sent.
pub fn text(document: &Value) -> String {
    let mut out = String::new();
    write(document, Place::Document, &mut out);
    out
}

/// Where a value stands.
#[derive(PartialEq, Eq)]
enum Place {
    Document,
    Inside,
}

fn write(value: &Value, place: Place, out: &mut String) {
    let parts = |out: &mut String, first: &mut bool| {
        if !std::mem::take(first) {
            out.push(',')
        }
    };
    let mut first = true;
    match value {
        Value::Object(map) => {
            let rank = |name: &str| match name {
                "kind" | "apiVersion" if place == Place::Document => (0, 0),
                _ => (1, ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len())),
            };
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            // Of the two that say what it is, the kind comes first.
            fields.sort_by_key(|(name, _)| (rank(name), *name == "apiVersion"));
            out.push('{');
            for (name, value) in fields {
                parts(out, &mut first);
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(value, Place::Inside, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                parts(out, &mut first);
                write(item, Place::Inside, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// A short name for the version in which objects are stored, so that clients see when it changes.
fn storage_version_hash(kind: &Kind) -> String {
    let Storage { group, version, .. } = &kind.storage;
    let digest = Sha256::digest(format!("{group}/{version}/{}", kind.kind));
    STANDARD.encode(&digest[..8])
}

use crate::kind::Storage;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_lists_show_subresources_in_their_place() {
        let list = resources(&Registry::builtin(), "apps", "v1").unwrap();
        let names: Vec<&str> =
            list["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
        assert_eq!(names[3..6], ["deployments", "deployments/scale", "deployments/status"]);
        assert_eq!(list["resources"][3]["storageVersionHash"], "8aSe+NMegvE=");
        assert_eq!(list["resources"][4]["group"], "autoscaling");
    }

    #[test]
    fn fields_come_in_upstreams_order() {
        let registry = Registry::builtin();
        let starts = |document: &Value, start: &str| {
            let text = text(document);
            assert!(text.starts_with(start), "{}", &text[..start.len() + 80]);
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), *document);
        };
        starts(
            &group_list(&registry),
            r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apiregistration.k8s.io","versions":[{"groupVersion":"apiregistration.k8s.io/v1","version":"v1"}],"preferredVersion":{"groupVersion":"#,
        );
        starts(
            &resources(&registry, "apps", "v1").unwrap(),
            r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":[{"name":"controllerrevisions","singularName":"controllerrevision","namespaced":true,"kind":"ControllerRevision","verbs":["create","#,
        );
        starts(
            &aggregated_groups(&registry, Aggregated::V2),
            r#"{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2","metadata":{},"items":[{"metadata":{"name":"apiregistration.k8s.io"},"versions":[{"version":"v1","resources":[{"resource":"apiservices","responseKind":{"group":"apiregistration.k8s.io","version":"v1","kind":"APIService"},"scope":"Cluster","singularResource":"#,
        );
    }

    #[test]
    fn drain_finds_evictions() {
        let core = resources(&Registry::builtin(), "", "v1").unwrap();
        assert!(core["resources"].as_array().unwrap().iter().any(|r| r["name"] == "pods/eviction"));
        assert_eq!(core.get("apiVersion"), None);
    }

    #[test]
    fn groups_prefer_their_newest_version() {
        let group = group(&Registry::builtin(), "autoscaling").unwrap();
        assert_eq!(group["preferredVersion"]["version"], "v2");
        assert!(super::group(&Registry::builtin(), "").is_none());
    }
}
