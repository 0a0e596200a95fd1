//! What the row of a defined kind has beyond those of the table: columns, rules, replicas, how far its life has come.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::path::{NoPath, Path, Search};
use super::rules::Rules;
use super::status;
use crate::selector::Selectable;
use crate::time::human;
use crate::value::{items, plain, text};

/// What a row has beyond those of the table.
#[derive(Debug)]
pub struct Custom {
    /// The name of the definition.
    pub definition: String,
    columns: Vec<Column>,
    selectable: Vec<String>,
    pub scale: Option<Scale>,
    pub(super) rules: Rules,
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

impl Custom {
    pub(super) fn read(definition: &Value, version: &Value) -> Custom {
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
        let mut search = Search::default();
        self.columns.iter().map(|column| column.cell(object, &mut search, now)).collect()
    }

    /// Columns in which nothing is ever shown, and why.
    pub fn blank_columns(&self) -> impl Iterator<Item = (&str, NoPath)> {
        self.columns.iter().filter_map(|column| Some((text(&column.definition["name"]), *column.path.as_ref().err()?)))
    }

    /// The schema as a tree, for documents.
    pub(super) fn schema(&self) -> Value {
        serde_json::from_str(&self.schema).expect("it was printed from a tree")
    }
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

#[derive(Debug)]
struct Column {
    definition: Value,
    kind: String,
    /// Nothing is shown where it cannot be read.
    path: Result<Path, NoPath>,
}

/// In a column whose path leads through more of an object than is looked at.
const EXHAUSTED: &str = "<too much to search>";

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

    fn cell(&self, object: &Value, search: &mut Search, now: Timestamp) -> Value {
        let Ok(path) = &self.path else { return Value::Null };
        let Ok(found) = path.first(object, search) else { return json!(EXHAUSTED) };
        let Some(value) = found.filter(|value| !value.is_null()) else { return Value::Null };
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
    let rank = crate::names::version_rank;
    let better = items(&spec["versions"])
        .filter(|other| other["served"] == true && other["deprecated"] != true)
        .map(|other| text(&other["name"]))
        .filter(|other| rank(other) > rank(name))
        .max_by_key(|other| rank(other));
    better.map_or(said.clone(), |better| format!("{said}; use {group}/{better} {kind}"))
}
