//! OpenAPI documents (v3 per group and version, v2 for all), generated from the table.

mod descriptions;
mod gnostic;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::descriptions::Descriptions;
use crate::custom::{self, Custom};
use crate::kind::{Gvk, Kind, Registry, api_version};
use crate::schema::{Field, ListType, Schema, Shape, Type};

/// Where schemas are referred to, and how bodies and parameters look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// `api/v1` or `apis/apps/v1`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: path of each document with its hash.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let descriptions = Descriptions::read();
    for (group, versions) in registry.groups() {
        for version in versions {
            let path = path_of(&group, &version);
            if let Some(document) = described_v3(registry, &group, &version, &descriptions) {
                let url = format!("/openapi/v3/{path}?hash={}", hash(&document));
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
    }
    json!({"paths": paths})
}

/// What an ETag or index entry carries.
pub fn hash(document: &[u8]) -> String {
    Sha256::digest(document).iter().map(|b| format!("{b:02X}")).collect()
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`, …; `None` when there is no such group version.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Vec<u8>> {
    described_v3(registry, group, version, &Descriptions::read())
}

fn described_v3(registry: &Registry, group: &str, version: &str, descriptions: &Descriptions) -> Option<Vec<u8>> {
    let mut document = Document::new(Dialect::V3, descriptions);
    for kind in registry.iter().filter(|k| k.group == group && k.version == version) {
        document.kind(kind);
    }
    if document.paths.is_empty() {
        return None;
    }
    let (paths, schemas) = document.finish(registry);
    let out = json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas,
        "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}}}});
    Some(out.to_string().into_bytes())
}

/// `/openapi/v2` as JSON.
pub fn v2(registry: &Registry) -> Vec<u8> {
    v2_document(registry).to_string().into_bytes()
}

/// `/openapi/v2` as client-go asks for it.
pub fn v2_protobuf(registry: &Registry) -> Vec<u8> {
    gnostic::encode(&v2_document(registry))
}

fn v2_document(registry: &Registry) -> Value {
    let descriptions = Descriptions::read();
    let mut document = Document::new(Dialect::V2, &descriptions);
    registry.iter().for_each(|kind| document.kind(kind));
    let (paths, definitions) = document.finish(registry);
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions,
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header"}}})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.34.3"})
}

struct Document<'a> {
    dialect: Dialect,
    descriptions: &'a Descriptions,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    /// Types referred to and not yet written.
    wanted: BTreeSet<&'static str>,
    types: Vec<&'static Type>,
    /// In the type being written, any value is any JSON; elsewhere it is an object of an open type.
    json: bool,
}

/// Types that the schemas of custom kinds refer to.
const METADATA: [&str; 2] = ["apis.meta.v1.ObjectMeta", "apis.meta.v1.ListMeta"];

impl<'a> Document<'a> {
    fn new(dialect: Dialect, descriptions: &'a Descriptions) -> Self {
        Document {
            dialect,
            descriptions,
            paths: Map::new(),
            schemas: Map::new(),
            wanted: BTreeSet::new(),
            types: Vec::new(),
            json: false,
        }
    }

    fn want(&mut self, ty: &'static Type) -> Value {
        if self.wanted.insert(&ty.openapi) {
            self.types.push(ty);
        }
        self.dialect.reference(&ty.openapi)
    }

    fn kind(&mut self, kind: &Kind) {
        let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
        let base = format!("/{}{scope}/{}", path_of(&kind.group, &kind.version), kind.plural);
        let gvk = kind.gvk();
        if let Some(custom) = &kind.custom {
            self.custom(kind, custom);
        }
        let body = self.body(&kind.schema);
        let list = self.list_type(kind, &body);
        let place = if kind.namespaced() { &["namespace"][..] } else { &[] };
        let one = [&["name"], place].concat();
        let (mut collection, mut item) = (parameters(place), parameters(&one));
        for (verb, method, action) in
            [("create", "post", "post"), ("list", "get", "list"), ("deletecollection", "delete", "deletecollection")]
        {
            if kind.has_verb(verb) {
                let answer = if verb == "list" { &list } else { &body };
                collection[method] = self.operation(kind, &gvk, action, &body, answer, "");
            }
        }
        for (verb, method) in [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")] {
            if kind.has_verb(verb) {
                item[method] = self.operation(kind, &gvk, method, &body, &body, "");
            }
        }
        if ["get", "update", "patch", "delete"].iter().any(|verb| kind.has_verb(verb)) {
            self.paths.insert(format!("{base}/{{name}}"), item);
        }
        self.paths.insert(base.clone(), collection);
        for sub in &kind.subresources {
            let body = self.body(&sub.schema);
            let mut item = parameters(&one);
            for (verb, method) in [("get", "get"), ("update", "put"), ("patch", "patch"), ("create", "post")] {
                if sub.verbs.iter().any(|v| v == verb) {
                    item[method] = self.operation(kind, &sub.gvk, method, &body, &body, sub.part.name());
                }
            }
            self.paths.insert(format!("{base}/{{name}}/{}", sub.part.name()), item);
        }
    }

    /// What a request or answer holds.
    fn body(&mut self, schema: &Schema) -> Value {
        match schema {
            Schema::Type(ty) => self.want(ty),
            // Written with its kind.
            Schema::Made(ty) => self.dialect.reference(&ty.openapi),
        }
    }

    /// The schemas of a kind that somebody defined.
    fn custom(&mut self, kind: &Kind, custom: &Custom) {
        METADATA.iter().filter_map(|name| crate::schema::find(name)).for_each(|ty| drop(self.want(ty)));
        let version = match self.dialect {
            Dialect::V2 => custom::Version::V2,
            Dialect::V3 => custom::Version::V3,
        };
        let name = kind.schema.ty().openapi.to_string();
        self.schemas.insert(format!("{name}List"), custom::list(kind, version, &name));
        self.schemas.insert(name, custom::object(kind, custom, version));
    }

    fn list_type(&mut self, kind: &Kind, item: &Value) -> Value {
        match crate::schema::of_kind(&kind.group, &kind.version, &kind.list_kind) {
            Some(ty) => self.want(ty),
            None if kind.custom.is_some() => self.dialect.reference(&format!("{}List", kind.schema.ty().openapi)),
            None => json!({"type": "object", "properties": {"items": {"type": "array", "items": item}}}),
        }
    }

    fn operation(&mut self, kind: &Kind, gvk: &Gvk, action: &str, body: &Value, answer: &Value, sub: &str) -> Value {
        let id = format!("{action}{}{}{}{}{sub}", kind.group.replace('.', ""), kind.version, kind.kind, kind.plural);
        let mut out = json!({
            "operationId": id,
            "x-kubernetes-action": if action == "put" { "put" } else { action },
            "x-kubernetes-group-version-kind": {"group": gvk.group, "version": gvk.version, "kind": gvk.kind},
        });
        let patch = ["json-patch+json", "merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"];
        let types: Vec<String> = match action {
            "patch" => {
                let patch = patch.iter().filter(|t| kind.custom.is_none() || !t.starts_with("strategic"));
                patch.map(|t| format!("application/{t}")).collect()
            }
            _ => vec!["application/json".into()],
        };
        let takes_body = matches!(action, "post" | "put" | "patch");
        let body = if action == "patch" { json!({"type": "object"}) } else { body.clone() };
        let queries = match action {
            "post" | "put" => &["dryRun", "fieldManager", "fieldValidation"][..],
            "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
            "delete" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
            "list" => &["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"],
            _ => &[],
        };
        let mut parameters: Vec<Value> = queries.iter().map(|name| self.query(name)).collect();
        match self.dialect {
            Dialect::V2 => {
                out["consumes"] = json!(if action == "patch" { types } else { vec!["*/*".into()] });
                out["produces"] =
                    json!(["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]);
                if takes_body {
                    parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": body}));
                }
                out["responses"] = json!({"200": {"description": "OK", "schema": answer}});
            }
            Dialect::V3 => {
                if takes_body {
                    let content: Map<String, Value> = types.into_iter().map(|t| (t, json!({"schema": body}))).collect();
                    out["requestBody"] = json!({"required": true, "content": content});
                }
                out["responses"] =
                    json!({"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}});
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = json!(parameters);
        }
        out
    }

    fn query(&self, name: &str) -> Value {
        let kind = match name {
            "force" | "watch" => "boolean",
            "limit" | "gracePeriodSeconds" => "integer",
            _ => "string",
        };
        match self.dialect {
            Dialect::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
            Dialect::V3 => json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}}),
        }
    }

    /// Writes every type that is reachable.
    fn finish(mut self, registry: &Registry) -> (Map<String, Value>, Map<String, Value>) {
        while let Some(ty) = self.types.pop() {
            let schema = self.schema(ty, registry);
            self.schemas.insert(ty.openapi.to_string(), schema);
        }
        for path in self.paths.values_mut() {
            if let (Dialect::V2, Some(list)) = (self.dialect, path["parameters"].as_array_mut()) {
                list.iter_mut().for_each(flatten_parameter);
            }
        }
        (self.paths, self.schemas)
    }

    fn schema(&mut self, ty: &'static Type, registry: &Registry) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        self.json = ty.short_name() == "JSONSchemaProps";
        for field in &ty.fields {
            let mut property = self.property(field);
            if let Some(text) = self.descriptions.of_field(&ty.openapi, &field.name) {
                property["description"] = json!(text);
            }
            properties.insert(field.name.to_string(), property);
            if field.required {
                required.push(&*field.name);
            }
        }
        let mut out = json!({"type": "object"});
        if let Some(text) = self.descriptions.of_type(&ty.openapi) {
            out["description"] = json!(text);
        }
        if !properties.is_empty() {
            out["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if ty.atomic {
            out["x-kubernetes-map-type"] = json!("atomic");
        }
        let named: Vec<Value> = gvks(ty, registry);
        if !named.is_empty() {
            out["x-kubernetes-group-version-kind"] = json!(named);
        }
        out
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut out = self.shape(&field.shape);
        if self.dialect == Dialect::V3 && out.get("$ref").is_some() {
            out = json!({"allOf": [out], "default": {}});
            if field.pointer {
                out.as_object_mut().map(|m| m.remove("default"));
            }
        }
        let mut put = |name: &str, value: Value| out[name] = value;
        if let Some(default) = field.default.as_deref().and_then(|d| serde_json::from_str(d).ok()) {
            put("default", default);
        }
        if !field.options.is_empty() {
            put("enum", json!(field.options));
        }
        match field.list_type {
            Some(ListType::Atomic) => put("x-kubernetes-list-type", json!("atomic")),
            Some(ListType::Set) => put("x-kubernetes-list-type", json!("set")),
            Some(ListType::Map) => {
                put("x-kubernetes-list-type", json!("map"));
                put("x-kubernetes-list-map-keys", json!(field.list_keys));
            }
            None => {}
        }
        if field.atomic_map {
            put("x-kubernetes-map-type", json!("atomic"));
        }
        if field.patch_merge || field.retain_keys {
            let strategy = match (field.patch_merge, field.retain_keys) {
                (true, true) => "merge,retainKeys",
                (true, false) => "merge",
                _ => "retainKeys",
            };
            put("x-kubernetes-patch-strategy", json!(strategy));
        }
        if let Some(key) = field.merge_key {
            put("x-kubernetes-patch-merge-key", json!(key));
        }
        out
    }

    fn shape(&mut self, shape: &Shape) -> Value {
        let int_or_string = match self.dialect {
            Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
            Dialect::V3 => json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        };
        match shape {
            Shape::String | Shape::Duration => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Float => json!({"type": "number", "format": "double"}),
            Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
            Shape::Quantity if self.dialect == Dialect::V2 => json!({"type": "string"}),
            Shape::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Shape::IntOrString => int_or_string,
            Shape::Any | Shape::Open if self.json => json!({}),
            Shape::Any | Shape::Open | Shape::Made(_) | Shape::Described(_) => json!({"type": "object"}),
            Shape::List(item) => json!({"type": "array", "items": self.shape(item)}),
            Shape::Map(item) => json!({"type": "object", "additionalProperties": self.shape(item)}),
            Shape::Struct(_) => match shape.builtin() {
                Some(ty) => self.want(ty),
                None => json!({"type": "object"}),
            },
        }
    }
}

/// In v2 a parameter's type stands beside its name.
fn flatten_parameter(parameter: &mut Value) {
    if let Some(Value::Object(schema)) = parameter.as_object_mut().and_then(|p| p.remove("schema"))
        && let Some(map) = parameter.as_object_mut()
    {
        map.extend(schema);
    }
}

/// The parts of a path that are named by the request.
fn parameters(names: &[&str]) -> Value {
    let path = |name: &&str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    json!({"parameters": names.iter().map(path).collect::<Vec<_>>()})
}

/// The kinds that a type is registered as.
fn gvks(ty: &Type, registry: &Registry) -> Vec<Value> {
    let name = ty.short_name();
    let versions = registry.groups();
    let all = versions.iter().flat_map(|(group, versions)| versions.iter().map(move |v| (group.clone(), v.clone())));
    let is_options = ty.field("kind").is_some();
    all.filter(|_| is_options)
        .filter(|(group, version)| {
            crate::schema::of_kind(group, version, name).is_some_and(|found| std::ptr::eq(found, ty))
        })
        .map(|(group, version)| json!({"group": group, "version": version, "kind": name}))
        .collect()
}

/// The `apiVersion` whose document holds a kind.
pub fn document_of(kind: &Kind) -> String {
    api_version(&kind.group, &kind.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(group: &str) -> Value {
        serde_json::from_slice(&v3(&Registry::builtin(), group, "v1").unwrap()).unwrap()
    }

    #[test]
    fn patches_say_what_kubectl_looks_for() {
        let apps = document("apps");
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let names: Vec<&Value> = patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
        assert!(names.contains(&&json!("fieldValidation")) && names.contains(&&json!("dryRun")));
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    }

    #[test]
    fn every_reference_has_its_schema() {
        for (text, prefix) in [
            (String::from_utf8(v3(&Registry::builtin(), "apps", "v1").unwrap()).unwrap(), "#/components/schemas/"),
            (String::from_utf8(v2(&Registry::builtin())).unwrap(), "#/definitions/"),
        ] {
            let document: Value = serde_json::from_str(&text).unwrap();
            let schemas = document.pointer("/components/schemas").or(document.get("definitions")).unwrap();
            for part in text.split(prefix).skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schemas.get(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn a_default_in_a_schema_may_be_any_json() {
        let schemas = &document("apiextensions.k8s.io")["components"]["schemas"];
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let type_of = |ty: &str, field: &str| schemas[ty]["properties"][field].get("type").cloned();
        assert_eq!(type_of(name, "default"), None);
        let managed = "io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry";
        assert_eq!(type_of(managed, "fieldsV1"), Some(json!("object")));
    }

    #[test]
    fn schemas_carry_merge_rules() {
        let schemas = &document("")["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    }
}
