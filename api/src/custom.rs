//! Kinds that CustomResourceDefinitions define: their rows of the table of kinds, and what only such kinds have.
//!
//! A definition becomes rows when its names are accepted and it is established ([`status`]); a row's schema is compiled
//! once, into a type like those of the table ([`crate::schema::structural`]) and the rules of its values ([`rules`]).

mod check;
mod formats;
mod path;
mod publish;
pub mod rules;
pub mod status;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use self::path::Path;
use self::rules::Rules;
use crate::kind::{Gvk, Kind, Part, Presence, Scope, Storage, Subresource, Text};
use crate::kinds::CUSTOM;
use crate::schema::{Schema, of_kind, structural};
use crate::selector::Selectable;
use crate::time::human;
use crate::value::{items, plain, text};

pub use self::check::{at, create, update};
pub use self::publish::{Version, list, object};

/// A format that texts are held against.
pub fn is_format(name: &str) -> bool {
    formats::named(name).is_some()
}

/// The collection in which definitions are.
pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition that is deleted waits for its objects.
pub fn begin_deletion(definition: &mut Value, now: Timestamp) {
    let metadata = crate::write::section(definition, "metadata");
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|own| *own == CLEANUP)
    {
        list.push(json!(CLEANUP));
    }
    status::Condition::pending().put(definition, now);
}

/// What a row has beyond those of the table.
#[derive(Debug)]
pub struct Custom {
    /// The name of the definition.
    pub definition: String,
    columns: Vec<Column>,
    selectable: Vec<String>,
    pub scale: Option<Scale>,
    rules: Rules,
    /// As it was written, for documents.
    schema: String,
    pub deprecated: Option<String>,
    pub stage: Stage,
}

/// How far a definition's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Serving,
    /// Its objects are being deleted, and no new ones come.
    Terminating,
}

#[derive(Debug)]
struct Column {
    definition: Value,
    kind: String,
    /// `None` where it cannot be read: nothing is there then.
    path: Option<Path>,
}

/// Where an object has its replicas: names of members from the top.
#[derive(Debug)]
pub struct Scale {
    pub replicas: Vec<String>,
    pub status: Vec<String>,
    pub selector: Option<Vec<String>>,
}

impl Scale {
    fn read(scale: &Value) -> Option<Scale> {
        let steps = |path: &Value| path.as_str().map(steps);
        Some(Scale {
            replicas: steps(&scale["specReplicasPath"])?,
            status: steps(&scale["statusReplicasPath"])?,
            selector: steps(&scale["labelSelectorPath"]).filter(|steps| steps.iter().any(|step| !step.is_empty())),
        })
    }
}

/// `.spec.a.b` as its names.
fn steps(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

/// What becomes of a kind when its definition changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that rows say.
    None,
    /// What may be done with its objects.
    Stage,
    /// How its objects look.
    Form,
}

impl Change {
    pub fn between(one: &Value, other: &Value) -> Change {
        let is = |definition: &Value, condition| status::holds(definition, condition);
        let same_form = one["spec"] == other["spec"]
            && one["status"]["acceptedNames"] == other["status"]["acceptedNames"]
            && is(one, "Established") == is(other, "Established");
        match same_form {
            false => Change::Form,
            true if is(one, "Terminating") == is(other, "Terminating") => Change::None,
            true => Change::Stage,
        }
    }
}

/// The rows of a definition; none before it is established.
pub fn kinds(definition: &Value) -> Vec<Kind> {
    if !status::holds(definition, "Established") {
        return Vec::new();
    }
    let spec = &definition["spec"];
    let versions = || items(&spec["versions"]);
    let Some(stored) = versions().find(|version| version["storage"] == true) else { return Vec::new() };
    // Nobody is there to convert objects for a webhook: they are shown as they are stored.
    let converts = spec["conversion"]["strategy"] != "Webhook";
    versions()
        .filter(|version| version["storage"] == true || (version["served"] == true && converts))
        .map(|version| row(definition, version, text(&stored["name"])))
        .collect()
}

fn owned(value: &Value) -> Text {
    text(value).to_owned().into()
}

fn row(definition: &Value, version: &Value, stored: &str) -> Kind {
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let (group, name) = (owned(&spec["group"]), owned(&version["name"]));
    let list = |field: &str| items(&names[field]).map(owned).collect();
    let schema = &version["schema"]["openAPIV3Schema"];
    let custom = Custom::read(definition, version);
    let verbs = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    let ty = Arc::new(structural::object(&published_name(&group, &name, text(&names["kind"])), schema));
    Kind {
        kind: owned(&names["kind"]),
        list_kind: owned(&names["listKind"]),
        plural: owned(&names["plural"]),
        singular: owned(&names["singular"]),
        short_names: list("shortNames"),
        categories: list("categories"),
        scope: if spec["scope"] == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        verbs: verbs.map(Text::from).into(),
        subresources: subresources(version, &group, &name, &names["kind"], &ty),
        schema: Schema::Made(ty),
        storage: Storage { group: group.clone(), plural: owned(&names["plural"]), version: stored.to_owned().into() },
        behaviour: &CUSTOM,
        presence: if version["served"] == true { Presence::Served } else { Presence::Stored },
        custom: Some(Arc::new(custom)),
        group,
        version: name,
    }
}

fn subresources(
    version: &Value,
    group: &Text,
    name: &Text,
    kind: &Value,
    ty: &Arc<crate::schema::Type>,
) -> Vec<Subresource> {
    let verbs = || ["get", "patch", "update"].map(Text::from).to_vec();
    let parts = &version["subresources"];
    let mut out = Vec::new();
    if parts["status"].is_object() {
        out.push(Subresource {
            part: Part::Status,
            gvk: Gvk { group: group.clone(), version: name.clone(), kind: owned(kind) },
            verbs: verbs(),
            schema: Schema::Made(ty.clone()),
        });
    }
    if let (true, Some(scale)) = (parts["scale"].is_object(), of_kind("autoscaling", "v1", "Scale")) {
        out.push(Subresource {
            part: Part::Scale,
            gvk: Gvk { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into() },
            verbs: verbs(),
            schema: Schema::Type(scale),
        });
    }
    out
}

/// `com.example.stable.v1.CronTab`: what documents call the type.
fn published_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

impl Custom {
    fn read(definition: &Value, version: &Value) -> Custom {
        let schema = &version["schema"]["openAPIV3Schema"];
        let selectable = items(&version["selectableFields"]).map(|field| text(&field["jsonPath"]));
        Custom {
            definition: text(&definition["metadata"]["name"]).to_owned(),
            columns: columns(version),
            selectable: selectable.map(|path| path.trim_start_matches('.').to_owned()).collect(),
            scale: Scale::read(&version["subresources"]["scale"]),
            rules: Rules::compile(schema),
            schema: schema.to_string(),
            deprecated: (version["deprecated"] == true).then(|| deprecation(&definition["spec"], version)),
            stage: match status::holds(definition, "Terminating") {
                true => Stage::Terminating,
                false => Stage::Serving,
            },
        }
    }

    /// Fields that its objects are selected by.
    pub fn selectable(&self) -> impl Iterator<Item = Selectable<'_>> {
        self.selectable.iter().map(|path| crate::selector::field(path))
    }

    /// `columnDefinitions`, the name apart.
    pub fn columns(&self) -> impl Iterator<Item = &Value> {
        self.columns.iter().map(|column| &column.definition)
    }

    /// The cells of those columns.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.columns.iter().map(|column| column.cell(object, now)).collect()
    }

    /// The schema as a tree, for documents.
    fn schema(&self) -> Value {
        serde_json::from_str(&self.schema).expect("it was printed from a tree")
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description":
        "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"});
    let own = items(&version["additionalPrinterColumns"]);
    let all: Vec<&Value> = if own.len() == 0 { vec![&age] } else { own.collect() };
    all.into_iter().map(Column::read).collect()
}

impl Column {
    fn read(column: &Value) -> Column {
        let path = text(&column["jsonPath"]);
        let description = match text(&column["description"]) {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            given => given.to_owned(),
        };
        let definition = json!({
            "name": column["name"], "type": column["type"], "format": text(&column["format"]),
            "description": description, "priority": column["priority"].as_i64().unwrap_or(0),
        });
        Column { definition, kind: text(&column["type"]).to_owned(), path: Path::parse(path) }
    }

    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.as_ref().and_then(|path| path.first(object)).filter(|value| !value.is_null())
        else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "string" => json!(plain(value)),
            #[expect(clippy::cast_possible_truncation, reason = "as upstream shows a number in a column of integers")]
            "integer" => value.as_i64().or_else(|| value.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from),
            "number" => value.as_f64().map_or(Value::Null, Value::from),
            "boolean" if value.is_boolean() => value.clone(),
            "date" => match value.as_str().map(crate::time::parse) {
                Some(Ok(time)) => json!(human(now.as_second() - time.as_second())),
                Some(Err(_)) => json!("<invalid>"),
                None => Value::Null,
            },
            _ => Value::Null,
        }
    }
}

/// Upstream's words for a version that gives none of its own.
fn deprecation(spec: &Value, version: &Value) -> String {
    if let Some(own) = version["deprecationWarning"].as_str() {
        return own.to_owned();
    }
    let (group, kind, name) = (text(&spec["group"]), text(&spec["names"]["kind"]), text(&version["name"]));
    let said = format!("{group}/{name} {kind} is deprecated");
    let rank = crate::kind::version_rank;
    let better = items(&spec["versions"])
        .filter(|other| other["served"] == true && other["deprecated"] != true)
        .map(|other| text(&other["name"]))
        .filter(|other| rank(other) > rank(name))
        .max_by_key(|other| rank(other));
    better.map_or(said.clone(), |better| format!("{said}; use {group}/{better} {kind}"))
}

#[cfg(test)]
mod tests;
