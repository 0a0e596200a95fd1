//! Strategic merge patch: lists merge by key where the schema says so; `$patch`, `$setElementOrder/…`,
//! `$deleteFromPrimitiveList/…` and `$retainKeys` direct it.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{Field, Schema, Shape, Type};
use crate::value::go_map;

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";
const RETAIN: &str = "$retainKeys";

/// The error is upstream's text.
pub fn apply(schema: &Schema, current: &Value, patch: &Object) -> Result<Value, String> {
    let current = current.as_object().cloned().unwrap_or_default();
    merge_map(Some(schema.ty()), current, patch).map(Value::Object)
}

/// `ty` is `None` for maps and untyped objects.
fn merge_map(ty: Option<&Type>, mut current: Object, patch: &Object) -> Result<Object, String> {
    match directive(patch)? {
        Some("replace") => {
            let mut out = patch.clone();
            out.remove(PATCH);
            return Ok(out);
        }
        Some("delete") => return Ok(Object::new()),
        _ => {}
    }
    if let Some(keep) = patch.get(RETAIN).and_then(Value::as_array) {
        let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
        current.retain(|key, _| keep.contains(key.as_str()));
    }
    for (key, value) in patch {
        if key == PATCH || key == RETAIN || key.starts_with(ORDER) || key.starts_with(DELETE) {
            continue;
        }
        if value.is_null() {
            current.remove(key);
            continue;
        }
        let field = ty.and_then(|ty| ty.field(key));
        let order = patch.get(&format!("{ORDER}{key}")).and_then(Value::as_array);
        let deleted = patch.get(&format!("{DELETE}{key}")).and_then(Value::as_array);
        let merged = merge_value(field, current.remove(key), value, order, deleted)?;
        current.insert(key.clone(), merged);
    }
    // Directives about lists that the patch does not touch otherwise.
    for (key, list) in patch.iter().filter_map(|(k, v)| Some((k.strip_prefix(DELETE)?, v.as_array()?))) {
        if !patch.contains_key(key)
            && let Some(Value::Array(items)) = current.get_mut(key)
        {
            let gone = texts(list);
            items.retain(|item| !gone.contains(&item.to_string()));
        }
    }
    for (key, order) in patch.iter().filter_map(|(k, v)| Some((k.strip_prefix(ORDER)?, v.as_array()?))) {
        let field = ty.and_then(|ty| ty.field(key));
        if !patch.contains_key(key)
            && let Some(Value::Array(items)) = current.remove(key)
        {
            let known = items.len();
            current.insert(key.into(), Value::Array(ordered(items, order, merge_key(field), known)));
        }
    }
    Ok(current)
}

fn directive(patch: &Object) -> Result<Option<&str>, String> {
    match patch.get(PATCH).map(|v| v.as_str().unwrap_or_default()) {
        None => Ok(None),
        Some(known @ ("replace" | "delete" | "merge")) => Ok(Some(known)),
        Some(other) => Err(format!("unknown patch type: {other} in map: {}", go_map(&Value::Object(patch.clone())))),
    }
}

fn merge_key(field: Option<&Field>) -> Option<&'static str> {
    field.filter(|f| f.patch_merge).and_then(|f| f.merge_key)
}

fn merge_value(
    field: Option<&Field>,
    current: Option<Value>,
    patch: &Value,
    order: Option<&Vec<Value>>,
    deleted: Option<&Vec<Value>>,
) -> Result<Value, String> {
    match (patch, current) {
        (Value::Object(patch), current) => {
            let before = match current {
                Some(Value::Object(map)) => map,
                _ => Object::new(),
            };
            let ty = field.and_then(|f| match &f.shape {
                Shape::Struct(_) => f.shape.ty(),
                _ => None,
            });
            merge_map(ty, before, patch).map(Value::Object)
        }
        (Value::Array(patch), current) if field.is_some_and(|f| f.patch_merge) => {
            let before = match current {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            };
            merge_list(field, before, patch, order, deleted).map(Value::Array)
        }
        // A list without merge strategy replaces the old one as it is.
        (other, _) => Ok(other.clone()),
    }
}

fn merge_list(
    field: Option<&Field>,
    current: Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
    deleted: Option<&Vec<Value>>,
) -> Result<Vec<Value>, String> {
    let Some(key) = merge_key(field) else { return Ok(merge_primitives(current, patch, order, deleted)) };
    let item_type = field.and_then(|f| match &f.shape {
        Shape::List(item) => item.ty(),
        _ => None,
    });
    if patch.iter().any(|p| p.get(PATCH) == Some(&Value::from("replace"))) {
        return Ok(patch.iter().filter(|p| p.get(PATCH).is_none()).cloned().collect());
    }
    // Known by where they stand, since lists may be long: an item that goes leaves its place empty.
    let id_of = |item: &Value| item.get(key).map(Value::to_string);
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, id) in current.iter().enumerate().filter_map(|(at, item)| Some((at, id_of(item)?))) {
        places.entry(id).or_default().push(at);
    }
    let before: HashSet<String> = places.keys().cloned().collect();
    let mut out: Vec<Option<Value>> = current.into_iter().map(Some).collect();
    for item in patch {
        let Value::Object(item) = item else { return Err(format!("expected map, got {}", go_map(item))) };
        let id = item.get(key).ok_or_else(|| {
            format!("map: {} does not contain declared merge key: {key}", go_map(&Value::Object(item.clone())))
        })?;
        let id = id.to_string();
        match (directive(item)?, places.get(&id).and_then(|places| places.first().copied())) {
            (Some("delete"), _) => places.remove(&id).into_iter().flatten().for_each(|at| out[at] = None),
            (_, Some(at)) => {
                let before = out[at].take().and_then(|item| item.as_object().cloned()).unwrap_or_default();
                out[at] = Some(Value::Object(merge_map(item_type, before, item)?));
            }
            (_, None) => {
                places.insert(id, vec![out.len()]);
                out.push(Some(Value::Object(merge_map(item_type, Object::new(), item)?)));
            }
        }
    }
    let out: Vec<Value> = out.into_iter().flatten().collect();
    let known = out.iter().filter(|item| id_of(item).is_some_and(|id| before.contains(&id))).count();
    let out = ordered(out, patch, Some(key), known);
    Ok(match order {
        Some(order) => ordered(out, order, Some(key), usize::MAX),
        None => out,
    })
}

fn merge_primitives(
    mut current: Vec<Value>,
    patch: &[Value],
    order: Option<&Vec<Value>>,
    deleted: Option<&Vec<Value>>,
) -> Vec<Value> {
    if let Some(deleted) = deleted {
        let gone = texts(deleted);
        current.retain(|item| !gone.contains(&item.to_string()));
    }
    let known = current.len();
    let mut have = texts(&current);
    for item in patch {
        if have.insert(item.to_string()) {
            current.push(item.clone());
        }
    }
    let merged = ordered(current, patch, None, known);
    match order {
        Some(order) => ordered(merged, order, None, usize::MAX),
        None => merged,
    }
}

/// Values as texts, to be found at once.
fn texts(list: &[Value]) -> HashSet<String> {
    list.iter().map(Value::to_string).collect()
}

/// Listed items in the listed order. Server-only items are woven in: each goes before the first listed item that
/// stood behind it in the server's list, whose items are the first `known`.
fn ordered(items: Vec<Value>, order: &[Value], key: Option<&str>, known: usize) -> Vec<Value> {
    // Items without the key are one with each other, as they are with null.
    let id = |item: &Value| key.map_or(Some(item), |key| item.get(key)).map_or("null".into(), Value::to_string);
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, item) in order.iter().enumerate() {
        ranks.entry(id(item)).or_insert(rank);
    }
    let rank = |item: &Value| ranks.get(&id(item)).copied();
    let place: Vec<(usize, Value)> = items.into_iter().enumerate().collect();
    let (mut listed, others): (Vec<_>, Vec<_>) = place.into_iter().partition(|(_, v)| rank(v).is_some());
    listed.sort_by_cached_key(|(_, v)| rank(v));
    let mut out = Vec::new();
    let mut others = others.into_iter().peekable();
    for (at, item) in listed {
        while let Some((_, other)) = others.next_if(|(other_at, _)| at < known && *other_at < at) {
            out.push(other);
        }
        out.push(item);
    }
    out.extend(others.map(|(_, v)| v));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(current: Value, patch: Value) -> Result<Value, String> {
        apply(&Schema::named("core.v1.PodTemplate").unwrap(), &current, patch.as_object().unwrap())
    }

    fn template(containers: Value) -> Value {
        json!({"template": {"spec": {"containers": containers}}})
    }

    #[test]
    fn lists_merge_by_their_key() {
        let out = run(
            template(json!([{"name": "a", "image": "x"}, {"name": "b"}])),
            template(json!([{"name": "a", "image": "y"}, {"name": "b", "$patch": "delete"}, {"name": "c"}])),
        );
        assert_eq!(out.unwrap(), template(json!([{"name": "a", "image": "y"}, {"name": "c"}])));
    }

    #[test]
    fn order_directives_place_items() {
        let patch = json!({"template": {"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c"}]}}});
        let out = run(template(json!([{"name": "a"}, {"name": "server"}])), patch).unwrap();
        assert_eq!(out, template(json!([{"name": "c"}, {"name": "a"}, {"name": "server"}])));
    }

    #[test]
    fn retain_keys_drops_the_rest() {
        let volume = |v: Value| json!({"template": {"spec": {"volumes": [v]}}});
        let out = run(
            volume(json!({"name": "v", "emptyDir": {}})),
            volume(json!({"name": "v", "hostPath": {"path": "/"}, "$retainKeys": ["name", "hostPath"]})),
        );
        assert_eq!(out.unwrap(), volume(json!({"name": "v", "hostPath": {"path": "/"}})));
    }

    #[test]
    fn primitive_lists_merge_and_lose_items() {
        let out = run(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
        );
        assert_eq!(out.unwrap(), json!({"metadata": {"finalizers": ["c", "b"]}}));
    }

    #[test]
    fn errors_are_upstreams() {
        let out = run(template(json!([])), template(json!([{"image": "no-key"}])));
        assert_eq!(out.unwrap_err(), "map: map[image:no-key] does not contain declared merge key: name");
        let out = run(template(json!([])), json!({"template": {"$patch": "explode"}}));
        assert_eq!(out.unwrap_err(), "unknown patch type: explode in map: map[$patch:explode]");
    }
}
