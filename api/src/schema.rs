//! The types behind the kinds: fields with their shapes, wire tags, list and patch rules, interned from one compact table.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// The schema of an object.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// A type of the built-in table.
    Type(&'static Type),
    /// Metadata is known, everything else is kept as it comes.
    Open,
}

impl Schema {
    /// The built-in type behind it; an open object's own fields are only its metadata.
    pub fn ty(self) -> &'static Type {
        match self {
            Schema::Type(ty) => ty,
            Schema::Open => open_object(),
        }
    }

    pub fn is_open(self) -> bool {
        matches!(self, Schema::Open)
    }

    /// By the name of its Go type in the table, e.g. `core.v1.Pod`.
    pub fn named(name: &str) -> Option<Schema> {
        find(name).map(Schema::Type)
    }
}

/// A value's form, less its optional pointer.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Float,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// Any JSON, kept as it comes.
    Any,
    List(Box<Shape>),
    Map(Box<Shape>),
    /// A struct, by index into the table.
    Struct(u16),
}

impl Shape {
    /// The struct behind a struct shape.
    pub fn ty(&self) -> Option<&'static Type> {
        match self {
            Shape::Struct(index) => TABLE.types.get(usize::from(*index)),
            _ => None,
        }
    }

    pub fn is_scalar(&self) -> bool {
        !matches!(self, Shape::List(_) | Shape::Map(_) | Shape::Struct(_) | Shape::Any)
    }

    /// The name that Go's decoder prints for it.
    pub fn go_name(&self) -> String {
        match self {
            Shape::String => "string".into(),
            Shape::Bytes => "[]uint8".into(),
            Shape::Bool => "bool".into(),
            Shape::Int32 | Shape::IntOrString => "int32".into(),
            Shape::Int64 => "int64".into(),
            Shape::Float => "float64".into(),
            Shape::Time => "v1.Time".into(),
            Shape::MicroTime => "v1.MicroTime".into(),
            Shape::Duration => "v1.Duration".into(),
            Shape::Quantity => "resource.Quantity".into(),
            Shape::Any => "interface {}".into(),
            Shape::List(item) => format!("[]{}", item.go_name()),
            Shape::Map(item) => format!("map[string]{}", item.go_name()),
            Shape::Struct(_) => self.ty().map_or_else(String::new, Type::go_name),
        }
    }
}

/// How lists merge under server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

#[derive(Debug, Clone)]
pub struct Field {
    pub name: &'static str,
    pub shape: Shape,
    pub pointer: bool,
    /// Protobuf tag, 0 when the field is not on that wire.
    pub tag: u32,
    pub omit_empty: bool,
    pub required: bool,
    pub inline: bool,
    pub default: Option<&'static str>,
    pub options: Vec<&'static str>,
    pub format: Option<&'static str>,
    pub list_type: Option<ListType>,
    pub list_keys: Vec<&'static str>,
    pub atomic_map: bool,
    pub patch_merge: bool,
    pub retain_keys: bool,
    pub merge_key: Option<&'static str>,
}

impl Field {
    /// Go leaves the field out of JSON when its value is the zero value.
    pub fn omits(&self, value: &Value) -> bool {
        if !self.omit_empty {
            return false;
        }
        match value {
            Value::Null => {
                !matches!(self.shape, Shape::Time | Shape::MicroTime)
                    || self.pointer
                    || self.name == "creationTimestamp"
            }
            Value::Array(items) => items.is_empty() && !self.pointer,
            Value::Object(map) => map.is_empty() && matches!(self.shape, Shape::Map(_)),
            Value::String(text) => text.is_empty() && !self.pointer,
            Value::Bool(on) => !on && !self.pointer,
            Value::Number(n) => n.as_f64() == Some(0.0) && !self.pointer && self.shape != Shape::IntOrString,
        }
    }
}

#[derive(Debug)]
pub struct Type {
    pub name: &'static str,
    pub openapi: &'static str,
    /// A struct that server-side apply takes as one value.
    pub atomic: bool,
    /// As declared: embedded structs are fields marked `inline`.
    pub declared: Vec<Field>,
    /// With embedded structs dissolved.
    pub fields: Vec<Field>,
    by_name: HashMap<&'static str, u16>,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).and_then(|&i| self.fields.get(usize::from(i)))
    }

    pub fn by_tag(&self, tag: u32) -> Option<&Field> {
        self.declared.iter().find(|f| f.tag == tag)
    }

    /// `ContainerPort`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// `v1.ContainerPort`.
    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("{package}.{name}")
    }

    /// `core.Pod`: the unversioned type, as conversion errors print it.
    pub fn internal_name(&self) -> String {
        format!("{}.{}", self.name.split('.').next().unwrap_or_default(), self.short_name())
    }
}

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

fn open_object() -> &'static Type {
    static OPEN: LazyLock<&'static Type> =
        LazyLock::new(|| find("apis.meta.v1.PartialObjectMetadata").expect("the table ends with it"));
    &OPEN
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
            table.types[index].by_name = fields.iter().map(|f| f.name).zip(0u16..).collect();
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
            name: if name == "-" { "" } else { name },
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
            name: words.next().unwrap_or_default(),
            openapi: words.next().unwrap_or_default(),
            atomic: words.next() == Some("map=atomic"),
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
            "d" => self.default = Some(value),
            "e" => self.options = value.split('|').collect(),
            "f" => self.format = Some(value),
            "l" => self.list_type = list_type(value),
            "k" => self.list_keys = value.split('|').collect(),
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
        assert_eq!((port.default, port.options.len(), port.tag), (Some("\"TCP\""), 3, 2));
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
