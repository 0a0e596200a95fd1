//! The types of Kubernetes itself, interned from one compact table.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Field, ListType, Reading, Shape, Type, Unknown};

struct Table {
    types: Vec<Type>,
    by_name: HashMap<&'static str, u16>,
    /// `group/version/Kind` → type.
    kinds: HashMap<&'static str, u16>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(data!("types.txt"), data!("kinds.txt")));

/// A type by its name in the table.
pub fn find(name: &str) -> Option<&'static Type> {
    TABLE.by_name.get(name).and_then(|&i| TABLE.types.get(usize::from(i)))
}

/// The type registered for a group, version and kind.
pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    let group = if group.is_empty() { "core" } else { group };
    let index = TABLE.kinds.get(format!("{group}/{version}/{kind}").as_str()).or_else(|| {
        let legacy = format!("{version}/{kind}");
        TABLE.kinds.get(legacy.as_str()).filter(|_| group == "core")
    });
    index.and_then(|&i| TABLE.types.get(usize::from(i)))
}

/// Some kind of that group and version is registered.
pub fn has_version(group: &str, version: &str) -> bool {
    let group = if group.is_empty() { "core" } else { group };
    let prefix = format!("{group}/{version}/");
    TABLE.kinds.keys().any(|k| k.starts_with(&prefix)) || (group == "core" && version == "v1")
}

pub(super) fn by_index(index: u16) -> Option<&'static Type> {
    TABLE.types.get(usize::from(index))
}

/// A type of the table as a shape.
pub(super) fn shape_of(name: &str) -> Shape {
    TABLE.by_name.get(name).map_or(Shape::Any, |&index| Shape::Struct(index))
}

impl Table {
    /// Lines: a type, then its fields indented by a space (see `data/README.md`).
    fn read(types: &'static str, kinds: &'static str) -> Table {
        let names = types.lines().filter(|l| !l.starts_with(' ')).filter_map(|l| l.split(' ').next());
        let by_name: HashMap<&'static str, u16> = names.zip(0u16..).collect();
        let mut table = Table { types: Vec::with_capacity(by_name.len()), by_name, kinds: HashMap::new() };
        for line in types.lines() {
            match line.strip_prefix(' ') {
                Some(field) => {
                    let field = table.field(field);
                    if let Some(ty) = table.types.last_mut() {
                        ty.declared.push(field);
                    }
                }
                None => table.types.push(Type::named(line)),
            }
        }
        for index in 0..table.types.len() {
            let fields = table.dissolved(index);
            table.types[index].by_name = fields.iter().map(|f| f.name.clone()).zip(0u32..).collect();
            table.types[index].fields = fields;
        }
        table.kinds = kinds
            .lines()
            .filter_map(|l| l.split_once(' '))
            .filter_map(|(kind, ty)| Some((kind, *table.by_name.get(ty)?)))
            .collect();
        table
    }

    fn field(&self, line: &'static str) -> Field {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let text = words.next().unwrap_or_default();
        let tag = words.next().unwrap_or_default().trim_end_matches('v');
        let (pointer, text) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let mut field = Field {
            name: if name == "-" { "" } else { name }.into(),
            shape: self.shape(text),
            pointer,
            tag: tag.parse().unwrap_or(0),
            omit_empty: false,
            required: false,
            inline: false,
            default: None,
            options: Vec::new(),
            format: None,
            list_type: None,
            list_keys: Vec::new(),
            atomic_map: false,
            patch_merge: false,
            retain_keys: false,
            merge_key: None,
            nullable: false,
        };
        words.for_each(|word| field.set(word));
        field
    }

    fn shape(&self, text: &str) -> Shape {
        if let Some(item) = text.strip_prefix("[]") {
            return Shape::List(Box::new(self.shape(item)));
        }
        if let Some(item) = text.strip_prefix("{}") {
            return Shape::Map(Box::new(self.shape(item)));
        }
        match text.trim_start_matches('*') {
            "string" => Shape::String,
            "bytes" => Shape::Bytes,
            "bool" => Shape::Bool,
            "int32" => Shape::Int32,
            "int64" => Shape::Int64,
            "float64" => Shape::Float,
            "apis.meta.v1.Time" => Shape::Time,
            "apis.meta.v1.MicroTime" => Shape::MicroTime,
            "apis.meta.v1.Duration" => Shape::Duration,
            "api.resource.Quantity" => Shape::Quantity,
            "util.intstr.IntOrString" => Shape::IntOrString,
            "runtime.RawExtension"
            | "apis.meta.v1.FieldsV1"
            | "apiextensions.v1.JSON"
            | "apiextensions.v1.JSONSchemaPropsOrArray"
            | "apiextensions.v1.JSONSchemaPropsOrBool"
            | "apiextensions.v1.JSONSchemaPropsOrStringArray" => Shape::Any,
            name => self.by_name.get(name).map_or(Shape::Any, |&index| Shape::Struct(index)),
        }
    }

    fn dissolved(&self, index: usize) -> Vec<Field> {
        let mut out = Vec::new();
        for field in self.types.get(index).map_or(&[][..], |t| &t.declared) {
            match (&field.shape, field.inline) {
                (Shape::Struct(inner), true) => out.extend(self.dissolved(usize::from(*inner))),
                _ if field.name.is_empty() => {}
                _ => out.push(field.clone()),
            }
        }
        out
    }
}

impl Type {
    fn named(line: &'static str) -> Type {
        let mut words = line.split(' ');
        Type {
            name: words.next().unwrap_or_default().into(),
            openapi: words.next().unwrap_or_default().into(),
            atomic: words.next() == Some("map=atomic"),
            reading: Reading::Typed,
            unknown: Unknown::Dropped,
            declared: Vec::new(),
            fields: Vec::new(),
            by_name: HashMap::new(),
        }
    }
}

impl Field {
    fn set(&mut self, word: &'static str) {
        let Some((key, value)) = word.split_once('=') else {
            match word {
                "o" => self.omit_empty = true,
                "r" => self.required = true,
                "i" => self.inline = true,
                _ => {}
            }
            return;
        };
        match key {
            "d" => self.default = Some(value.into()),
            "e" => self.options = value.split('|').collect(),
            "f" => self.format = Some(value),
            "l" => self.list_type = list_type(value),
            "k" => self.list_keys = value.split('|').map(Into::into).collect(),
            "m" => self.atomic_map = value == "atomic",
            "p" => {
                self.patch_merge = value.contains("merge");
                self.retain_keys = value.contains("retainKeys");
            }
            "K" => self.merge_key = Some(value),
            _ => {}
        }
    }
}

fn list_type(text: &str) -> Option<ListType> {
    match text {
        "atomic" => Some(ListType::Atomic),
        "set" => Some(ListType::Set),
        "map" => Some(ListType::Map),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_with_their_rules() {
        let spec = find("core.v1.PodSpec").unwrap();
        let volumes = spec.field("volumes").unwrap();
        assert_eq!(volumes.list_type, Some(ListType::Map));
        assert_eq!(volumes.list_keys, ["name"]);
        assert!(volumes.patch_merge && volumes.retain_keys);
        assert_eq!(volumes.shape.go_name(), "[]v1.Volume");
        let port = find("core.v1.ServicePort").unwrap().field("protocol").unwrap();
        assert_eq!((port.default.as_deref(), port.options.len(), port.tag), (Some("\"TCP\""), 3, 2));
    }

    #[test]
    fn embedded_structs_are_dissolved() {
        let volume = find("core.v1.Volume").unwrap();
        assert!(volume.field("emptyDir").is_some());
        assert_eq!(volume.by_tag(2).map(|f| f.inline), Some(true));
        assert!(find("core.v1.Pod").unwrap().field("apiVersion").is_some());
    }

    #[test]
    fn kinds_lead_to_types() {
        assert_eq!(of_kind("", "v1", "Pod").unwrap().name, "core.v1.Pod");
        assert_eq!(of_kind("apps", "v1", "Deployment").unwrap().internal_name(), "apps.Deployment");
        assert_eq!(of_kind("", "v1", "DeleteOptions").unwrap().short_name(), "DeleteOptions");
        assert!(of_kind("", "v2", "Pod").is_none());
    }
}
