//! The types behind the kinds: fields with their shapes, wire tags, list and patch rules, interned from one compact table.

mod builtin;
pub mod structural;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

pub use self::builtin::{find, has_version, of_kind};

/// A name that is usually part of the built-in table and sometimes made at run time.
pub type Text = Cow<'static, str>;

/// The schema of an object; cheap to clone.
#[derive(Debug, Clone)]
pub enum Schema {
    /// A type of the built-in table.
    Type(&'static Type),
    /// A type that was made while the server ran; it goes with the last kind that has it.
    Made(Arc<Type>),
}

impl Schema {
    pub fn ty(&self) -> &Type {
        match self {
            Schema::Type(ty) => ty,
            Schema::Made(ty) => ty,
        }
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
    /// Any JSON, kept as it comes; to server-side apply one value.
    Any,
    /// Any JSON whose objects server-side apply merges member by member.
    Open,
    List(Box<Shape>),
    Map(Box<Shape>),
    /// A struct, by index into the table.
    Struct(u16),
    /// A struct that was made while the server ran.
    Made(Arc<Type>),
    /// A value below a list or map that was made so, with what is said of it: a field without a name.
    Described(Arc<Field>),
}

impl Shape {
    /// The struct behind a struct shape.
    pub fn ty(&self) -> Option<&Type> {
        match self {
            Shape::Struct(_) => self.builtin(),
            Shape::Made(ty) => Some(ty),
            Shape::Described(field) => field.shape.ty(),
            _ => None,
        }
    }

    /// The struct of the table behind a struct shape.
    pub fn builtin(&self) -> Option<&'static Type> {
        match self {
            Shape::Struct(index) => builtin::by_index(*index),
            _ => None,
        }
    }

    pub fn is_scalar(&self) -> bool {
        match self {
            Shape::List(_) | Shape::Map(_) | Shape::Struct(_) | Shape::Made(_) | Shape::Any | Shape::Open => false,
            Shape::Described(field) => field.shape.is_scalar(),
            _ => true,
        }
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
            Shape::Any | Shape::Open => "interface {}".into(),
            Shape::List(item) => format!("[]{}", item.go_name()),
            Shape::Map(item) => format!("map[string]{}", item.go_name()),
            Shape::Struct(_) => self.ty().map_or_else(String::new, Type::go_name),
            Shape::Made(_) => "map[string]interface {}".into(),
            Shape::Described(field) => field.shape.go_name(),
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

/// How a type's values are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Into a Go struct: what is of another type is refused, what is empty may be left out.
    Typed,
    /// As they come, less what the type does not have; whether they are of their types is for validation to say.
    Plain,
}

/// What becomes of members that a type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    Dropped,
    Kept,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: Text,
    pub shape: Shape,
    pub pointer: bool,
    /// Protobuf tag, 0 when the field is not on that wire.
    pub tag: u32,
    pub omit_empty: bool,
    pub required: bool,
    pub inline: bool,
    /// JSON text.
    pub default: Option<Text>,
    pub options: Vec<&'static str>,
    pub format: Option<&'static str>,
    pub list_type: Option<ListType>,
    pub list_keys: Vec<Text>,
    pub atomic_map: bool,
    pub patch_merge: bool,
    pub retain_keys: bool,
    pub merge_key: Option<&'static str>,
    /// Of plain values: null is one of them.
    pub nullable: bool,
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

#[derive(Debug, PartialEq)]
pub struct Type {
    pub name: Text,
    pub openapi: Text,
    /// A struct that server-side apply takes as one value.
    pub atomic: bool,
    pub reading: Reading,
    pub unknown: Unknown,
    /// As declared: embedded structs are fields marked `inline`.
    pub declared: Vec<Field>,
    /// With embedded structs dissolved.
    pub fields: Vec<Field>,
    by_name: HashMap<Text, u32>,
}

impl Type {
    fn with_fields(mut self, fields: Vec<Field>) -> Type {
        self.by_name = fields.iter().map(|f| f.name.clone()).zip(0u32..).collect();
        self.fields = fields;
        self
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).and_then(|&i| self.fields.get(i as usize))
    }

    pub fn by_tag(&self, tag: u32) -> Option<&Field> {
        self.declared.iter().find(|f| f.tag == tag)
    }

    /// `ContainerPort`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
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
