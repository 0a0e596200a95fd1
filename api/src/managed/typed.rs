//! Objects seen through their schema: which paths they have, how two differ, how one merges into another.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::fieldset::FieldSet;
use crate::kind::Text;
use crate::schema::{Field, ListType, Schema, Shape, Type, Unknown};

/// What a value is to server-side apply.
#[derive(Debug, Clone, Copy)]
pub enum Atom<'a> {
    /// A scalar, or a list or map taken as a whole.
    Leaf(Option<&'a Shape>),
    Struct(&'a Type),
    Map(&'a Shape),
    /// A list whose items are known by these keys.
    Keyed(&'a Shape, &'a [Text]),
    /// A list of distinct scalars.
    Set(&'a Shape),
    /// A value without a schema: objects are maps, the rest are leaves.
    Untyped,
}

impl<'a> Atom<'a> {
    pub fn root(schema: &'a Schema) -> Atom<'a> {
        Atom::Struct(schema.ty())
    }

    fn of_field(field: &'a Field) -> Atom<'a> {
        let whole = field.atomic_map || field.list_type == Some(ListType::Atomic);
        match &field.shape {
            shape if whole => Atom::Leaf(Some(shape)),
            Shape::List(item) => match field.list_type {
                Some(ListType::Map) => Atom::Keyed(item, &field.list_keys),
                Some(ListType::Set) => Atom::Set(item),
                _ => Atom::Leaf(Some(&field.shape)),
            },
            shape => Atom::of_shape(shape),
        }
    }

    fn of_shape(shape: &'a Shape) -> Atom<'a> {
        match shape {
            Shape::Struct(_) | Shape::Made(_) => match shape.ty() {
                Some(ty) if !ty.atomic => Atom::Struct(ty),
                _ => Atom::Leaf(Some(shape)),
            },
            Shape::Described(field) => Atom::of_field(field),
            Shape::Open => Atom::Untyped,
            Shape::Map(item) => Atom::Map(item),
            _ => Atom::Leaf(Some(shape)),
        }
    }

    /// The node of a member of a struct or map.
    fn member(self, name: &str) -> Option<Atom<'a>> {
        match self {
            Atom::Struct(ty) => match ty.field(name) {
                Some(field) => Some(Atom::of_field(field)),
                None => (ty.unknown == Unknown::Kept).then_some(Atom::Untyped),
            },
            Atom::Map(item) => Some(Atom::of_shape(item)),
            Atom::Untyped => Some(Atom::Untyped),
            _ => None,
        }
    }

    /// Values of this node are taken whole.
    fn is_leaf(self, value: &Value) -> bool {
        match self {
            Atom::Leaf(_) => true,
            Atom::Untyped => !value.is_object(),
            Atom::Struct(..) | Atom::Map(_) => value.as_object().is_none_or(Map::is_empty),
            Atom::Keyed(..) | Atom::Set(_) => value.as_array().is_none_or(Vec::is_empty),
        }
    }

    fn is_list(self) -> bool {
        matches!(self, Atom::Keyed(..) | Atom::Set(_))
    }
}

/// Path elements of a value's members with their nodes and values.
fn members<'a, 'v>(node: Atom<'a>, value: &'v Value) -> Vec<(String, Atom<'a>, &'v Value)> {
    match (node, value) {
        (Atom::Keyed(item, keys), Value::Array(items)) => {
            items.iter().map(|v| (key_element(item, keys, v), Atom::of_shape(item), v)).collect()
        }
        (Atom::Set(item), Value::Array(items)) => {
            items.iter().map(|v| (format!("v:{v}"), Atom::of_shape(item), v)).collect()
        }
        (_, Value::Object(map)) => {
            map.iter().filter_map(|(name, v)| Some((format!("f:{name}"), node.member(name)?, v))).collect()
        }
        _ => Vec::new(),
    }
}

/// `k:{…}` of a list item; absent keys take their schema default.
pub fn key_element(item: &Shape, keys: &[Text], value: &Value) -> String {
    let mut out = Map::new();
    for key in keys {
        let field = item.ty().and_then(|ty| ty.field(key));
        let default = || field.and_then(|f| f.default.as_deref()).and_then(|text| serde_json::from_str(text).ok());
        if let Some(found) = value.get(&**key).filter(|v| !v.is_null()).cloned().or_else(default) {
            out.insert(key.to_string(), found);
        }
    }
    format!("k:{}", Value::Object(out))
}

/// Every path of a value, containers of several included as server-side apply counts them.
pub fn paths(schema: &Schema, object: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(Atom::root(schema), object, &mut Vec::new(), &mut set);
    set
}

fn collect(node: Atom, value: &Value, path: &mut Vec<String>, set: &mut FieldSet) {
    if node.is_leaf(value) {
        set.insert(path);
        return;
    }
    if path.last().is_some_and(|e| !e.starts_with("f:")) {
        set.insert(path);
    }
    for (element, node, value) in members(node, value) {
        path.push(element);
        collect(node, value, path, set);
        path.pop();
    }
}

/// How `new` differs from `old`.
#[derive(Debug, Default)]
pub struct Difference {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Difference {
    pub fn without(self, ignored: &FieldSet) -> Difference {
        Difference {
            added: self.added.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

pub fn compare(schema: &Schema, old: &Value, new: &Value) -> Difference {
    let mut out = Difference::default();
    walk(Atom::root(schema), Some(old), Some(new), &mut Vec::new(), &mut out);
    out
}

fn walk(node: Atom, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<String>, out: &mut Difference) {
    let leaf = old.is_none_or(|v| node.is_leaf(v)) && new.is_none_or(|v| node.is_leaf(v));
    if leaf {
        match (old, new) {
            (None, Some(_)) => out.added.insert(path),
            (Some(_), None) => out.removed.insert(path),
            (Some(a), Some(b)) if !equal(a, b) => out.modified.insert(path),
            _ => {}
        }
        return;
    }
    let before = old.map(|v| members(node, v)).unwrap_or_default();
    let after = new.map(|v| members(node, v)).unwrap_or_default();
    let (was_at, is_at) = (places(&before), places(&after));
    for (element, child, value) in &after {
        let was = was_at.get(element.as_str()).map(|&i| before[i].2);
        path.push(element.clone());
        walk(*child, was, Some(value), path, out);
        path.pop();
    }
    for (element, child, value) in before.iter().filter(|(e, ..)| !is_at.contains_key(e.as_str())) {
        path.push(element.clone());
        walk(*child, Some(value), None, path, out);
        path.pop();
    }
    match (old, new) {
        (None, Some(_)) => out.added.insert(path),
        (Some(_), None) => out.removed.insert(path),
        _ => {}
    }
}

/// Where each element stands first: lists and maps may be long, and are never searched for every member of another.
fn places<'m>(members: &'m [(String, Atom, &Value)]) -> HashMap<&'m str, usize> {
    let mut places = HashMap::with_capacity(members.len());
    for (at, (element, ..)) in members.iter().enumerate() {
        places.entry(element.as_str()).or_insert(at);
    }
    places
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

/// `live` with everything of `config` put over it; lists keep config's order, live-only items stay.
pub fn merge(schema: &Schema, live: &Value, config: &Value) -> Value {
    merge_atom(Atom::root(schema), live, config)
}

fn merge_atom(node: Atom, live: &Value, config: &Value) -> Value {
    if node.is_leaf(config) || live.is_null() {
        return match (config, live) {
            // An empty container adds nothing to one that has members.
            (Value::Object(map), Value::Object(_)) if map.is_empty() && !matches!(node, Atom::Leaf(_)) => live.clone(),
            _ => config.clone(),
        };
    }
    if node.is_list() {
        return merge_list(node, live, config);
    }
    let (Value::Object(live), Value::Object(config)) = (live, config) else { return config.clone() };
    let mut out = live.clone();
    for (name, value) in config {
        let merged = match (node.member(name), live.get(name)) {
            (Some(node), Some(before)) => merge_atom(node, before, value),
            _ => value.clone(),
        };
        out.insert(name.clone(), merged);
    }
    Value::Object(out)
}

/// Items of both lists, live-only ones where they stood; items in both go in config's order.
fn merge_list(node: Atom, live: &Value, config: &Value) -> Value {
    let (left, right) = (members(node, live), members(node, config));
    let (left_at, right_at) = (places(&left), places(&right));
    let mut shared = right.iter().map(|(e, ..)| e).filter(|e| left_at.contains_key(e.as_str())).peekable();
    let mut out = Vec::new();
    let mut taken = vec![false; right.len()];
    let (mut l, mut r) = (0, 0);
    let merged = |r: usize| {
        let (element, child, value) = &right[r];
        let known = left_at.get(element.as_str());
        known.map_or_else(|| (*value).clone(), |&l| merge_atom(*child, left[l].2, value))
    };
    while l < left.len() || r < right.len() {
        if l < left.len() {
            let element = &left[l].0;
            match right_at.get(element.as_str()).copied() {
                None => {
                    out.push(left[l].2.clone());
                    l += 1;
                    continue;
                }
                Some(at) if taken[at] => {
                    l += 1;
                    continue;
                }
                // In both lists, but another one is due first.
                Some(_)
                    if r < right.len()
                        && right[r].0 != *element
                        && shared.peek().is_some_and(|due| *due != element) =>
                {
                    l += 1;
                    continue;
                }
                Some(_) => {}
            }
        }
        if r < right.len() {
            if shared.peek().is_some_and(|due| **due == right[r].0) {
                shared.next();
            }
            l += usize::from(left.get(l).is_some_and(|(e, ..)| *e == right[r].0));
            taken[r] = true;
            out.push(merged(r));
            r += 1;
        } else {
            l += 1;
        }
    }
    Value::Array(out)
}

/// `object` without the paths of `gone` and what is below them; a list whose items are all gone goes too.
pub fn remove(schema: &Schema, object: &Value, gone: &FieldSet) -> Value {
    remove_node(Atom::root(schema), object, gone).unwrap_or_else(|| json!({}))
}

fn remove_node(node: Atom, value: &Value, gone: &FieldSet) -> Option<Value> {
    let keep = |element: &str, child: Atom, value: &Value| -> Option<Value> {
        match gone.child(element) {
            _ if gone.has(element) => None,
            Some(below) => remove_node(child, value, below),
            None => Some(value.clone()),
        }
    };
    match value {
        Value::Object(map) if !matches!(node, Atom::Leaf(_)) => {
            let mut out = Map::new();
            for (name, value) in map {
                let kept = match node.member(name) {
                    Some(child) => keep(&format!("f:{name}"), child, value),
                    None => Some(value.clone()),
                };
                out.extend(kept.map(|v| (name.clone(), v)));
            }
            Some(Value::Object(out))
        }
        Value::Array(_) if node.is_list() => {
            let items: Vec<Value> =
                members(node, value).into_iter().filter_map(|(element, child, v)| keep(&element, child, v)).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        _ => Some(value.clone()),
    }
}

/// What makes an applied object unusable: fields not in the schema, wrong types, lists with equal keys.
pub fn check(schema: &Schema, object: &Value) -> Result<(), String> {
    let mut errors = Vec::new();
    check_node(Atom::root(schema), object, &mut String::new(), &mut errors);
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n{}", many.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n"))),
    }
}

fn check_node(node: Atom, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    match (node, value) {
        (Atom::Leaf(Some(shape)), _) => check_shape(shape, value, path, errors),
        (Atom::Struct(..) | Atom::Map(_), Value::Object(map)) => {
            for (name, value) in map {
                step(path, &format!(".{name}"), |path| match node.member(name) {
                    Some(child) => check_node(child, value, path, errors),
                    None => errors.push(format!("{path}: field not declared in schema")),
                });
            }
        }
        (Atom::Struct(..) | Atom::Map(_), _) => {
            errors.push(format!("{path}: expected map, got {}", unstructured(value)))
        }
        (Atom::Keyed(..) | Atom::Set(_), Value::Array(_)) => check_list(node, value, path, errors),
        (Atom::Keyed(..) | Atom::Set(_), _) => {
            errors.push(format!("{path}: expected list, got {}", unstructured(value)))
        }
        _ => {}
    }
}

fn check_list(node: Atom, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    for (element, child, value) in members(node, value) {
        let label = super::fieldset::printed(&element);
        if !seen.insert(element) {
            errors.push(format!("{path}: duplicate entries for key {label}"));
        }
        step(path, &label, |path| check_node(child, value, path, errors));
    }
}

fn check_shape(shape: &Shape, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    let fine = match shape {
        Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration => value.is_string(),
        Shape::Bool => value.is_boolean(),
        Shape::Int32 | Shape::Int64 | Shape::Float => value.is_number(),
        Shape::Quantity | Shape::IntOrString => value.is_string() || value.is_number(),
        Shape::List(item) => {
            for (i, value) in value.as_array().into_iter().flatten().enumerate() {
                step(path, &format!("[{i}]"), |path| check_node(Atom::of_shape(item), value, path, errors));
            }
            value.is_array()
        }
        Shape::Map(item) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                step(path, &format!(".{name}"), |path| check_node(Atom::of_shape(item), value, path, errors));
            }
            value.is_object()
        }
        Shape::Struct(_) | Shape::Made(_) => {
            if let Some(ty) = shape.ty() {
                check_node(Atom::Struct(ty), value, path, errors);
            }
            return;
        }
        Shape::Described(field) => return check_node(Atom::of_field(field), value, path, errors),
        Shape::Any | Shape::Open => true,
    };
    if !fine {
        let wanted = match shape {
            Shape::Bool => "boolean",
            Shape::Int32 | Shape::Int64 | Shape::Float => "numeric",
            Shape::List(_) => "list",
            Shape::Map(_) => "map",
            _ => "string",
        };
        errors.push(format!("{path}: expected {wanted}, got {}", unstructured(value)));
    }
}

fn step(path: &mut String, element: &str, run: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(element);
    run(path);
    path.truncate(length);
}

/// As Go prints the wrapped value.
fn unstructured(value: &Value) -> String {
    let inner = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(_) => "[]interface {}{...}".into(),
        Value::Object(_) => "map[string]interface {}{...}".into(),
        other => other.to_string(),
    };
    format!("&value.valueUnstructured{{Value:{inner}}}")
}
