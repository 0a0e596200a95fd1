//! The three patch algorithms. Server-side apply is in [`crate::managed`].

mod json;
mod strategic;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::budget::{Budget, Exceeded, check_depth};
use crate::decode::{self, Decoded, FieldValidation};
use crate::kind::Gvk;
use crate::schema::Schema;
use crate::status::{FieldError, Status};
use crate::value::go_map;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
}

impl PatchType {
    /// By media type, without parameters.
    pub fn parse(media_type: &str) -> Option<PatchType> {
        match media_type {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::StrategicMerge),
            _ => None,
        }
    }
}

/// Applies a patch body to an object and brings the outcome to canonical form, with the checks asked for.
/// `gvk` and `schema` are those of the object (or of a subresource's object such as Scale).
///
/// # Errors
/// 400 when the body is no patch of this type, or the outcome is too deep or holds too much; 413 at the limits of JSON
/// patches; 422 when the patch cannot be applied, or its outcome does not fit the kind. A strategic patch with wrong
/// directives gets 500, as upstream.
pub fn apply(
    gvk: &Gvk,
    schema: &Schema,
    patch: PatchType,
    current: &Value,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let undecodable = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let node = decode::json::parse(body).map_err(undecodable)?;
    let (patched, found, shown) = match patch {
        PatchType::Json => {
            let mut meter = Budget::CLIENT.meter();
            let operations = json::operations(&node, &meter).map_err(|refused| match refused {
                json::Unread::Text(why) => undecodable(why),
                json::Unread::Exceeded(limit) => too_much(limit),
            })?;
            let patched = json::apply(current, &operations, &mut meter).map_err(|refused| match refused {
                json::Refused::Impossible => unprocessable(),
                json::Refused::Exceeded(limit) => too_much(limit),
            })?;
            let shown = patched.to_string();
            (patched, Vec::new(), shown)
        }
        PatchType::Merge | PatchType::StrategicMerge => {
            let Value::Object(map) = node.to_value() else {
                return Err(undecodable(format!(
                    "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    node.go_kind()
                )));
            };
            let found = duplicates(&node);
            if patch == PatchType::Merge {
                let patched = merge(current, &Value::Object(map));
                let shown = patched.to_string();
                (patched, found, shown)
            } else {
                let shown = go_map(&Value::Object(map.clone()));
                let patched = strategic::apply(schema, current, &map).map_err(Status::unknown)?;
                (patched, found, shown)
            }
        }
    };
    // Two that fit may be too deep together.
    check_depth(&patched).map_err(too_much)?;
    decode::value(gvk, schema, &patched, found, validation).map_err(|failure| {
        // Upstream names neither kind nor object here, and shows the whole patched object (or strategic patch).
        let converted = failure.converter.filter(|_| patch == PatchType::StrategicMerge);
        let why = converted.unwrap_or(failure.text);
        Status::invalid("", "", "", vec![FieldError::invalid("patch", shown, why)])
    })
}

/// RFC 7386.
pub fn merge(current: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut out = current.as_object().cloned().unwrap_or_default();
    for (key, value) in patch {
        if value.is_null() {
            out.remove(key);
        } else {
            let merged = merge(out.get(key).unwrap_or(&Value::Null), value);
            out.insert(key.clone(), merged);
        }
    }
    Value::Object(out)
}

/// Merges by the type's merge keys and strategies, directives included.
///
/// # Errors
/// Upstream's text: an unknown directive, or an item that is no object in a list that is merged by key.
pub fn strategic_merge(schema: &Schema, current: &Value, patch: &Map<String, Value>) -> Result<Value, String> {
    strategic::apply(schema, current, patch)
}

/// Upstream answers 413 where its limits of JSON patches are met.
fn too_much(limit: Exceeded) -> Status {
    match limit {
        Exceeded::Operations { .. } | Exceeded::Copied { .. } | Exceeded::Shifted(_) => {
            Status::plain(413, "RequestEntityTooLarge", limit.to_string())
        }
        _ => Status::bad_request(limit.to_string()),
    }
}

fn unprocessable() -> Status {
    Status::plain(422, "Invalid", "the server rejected our request due to an error in our request")
}

/// `duplicate field "a.b"` for keys that a patch names twice.
fn duplicates(node: &decode::json::Json) -> Vec<String> {
    fn step(path: &mut String, element: &str, walk: impl FnOnce(&mut String)) {
        let length = path.len();
        path.push_str(element);
        walk(path);
        path.truncate(length);
    }
    fn walk(node: &decode::json::Json, path: &mut String, out: &mut Vec<String>) {
        match node {
            decode::json::Json::Object(entries) => {
                let mut seen = HashSet::new();
                for (key, value) in entries {
                    step(path, &format!("{}{key}", if path.is_empty() { "" } else { "." }), |path| {
                        if !seen.insert(key) && out.len() < Budget::CLIENT.findings {
                            out.push(format!("duplicate field {path:?}"));
                        }
                        walk(value, path, out);
                    });
                }
            }
            decode::json::Json::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    step(path, &format!("[{i}]"), |path| walk(item, path, out));
                }
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(node, &mut String::new(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    pub(super) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..9).prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[abc]", inner, 0..3)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn a_strategic_patch_of_the_wrong_type_is_told_as_upstream_tells_it() {
        let kind = crate::kind::Registry::builtin().find("", "v1", "pods").unwrap();
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}});
        let told = |patch: Value| {
            let body = patch.to_string();
            let (how, validation) = (PatchType::StrategicMerge, FieldValidation::Strict);
            apply(&kind.gvk(), &kind.schema, how, &pod, body.as_bytes(), validation).unwrap_err().message
        };
        assert!(told(json!({"metadata": {"labels": "invalid"}})).ends_with("cannot restore map from string"));
        assert!(told(json!({"metadata": {"finalizers": 1}})).ends_with("cannot restore slice from int64"));
        assert!(told(json!({"spec": []})).ends_with("cannot restore struct from: slice"));
        let spec = |field: &str, value: Value| told(json!({"spec": {field: value}}));
        assert!(spec("priority", json!("high")).ends_with("unrecognized type: int32"));
        assert!(spec("priority", json!(1.5)).ends_with("cannot convert float64 to int32"));
        assert!(spec("hostPID", json!("yes")).ends_with("unrecognized type: bool"));
        assert!(spec("nodeName", json!(true)).ends_with("unrecognized type: string"));
        assert!(spec("nodeName", json!(1)).ends_with("cannot convert int64 to string"));
    }

    #[test]
    fn merge_follows_rfc_7386() {
        let patched =
            merge(&json!({"a": {"b": 1, "c": 2}, "d": [1]}), &json!({"a": {"b": null, "e": {"f": null}}, "d": [2]}));
        assert_eq!(patched, json!({"a": {"c": 2, "e": {}}, "d": [2]}));
    }

    proptest! {
        #[test]
        fn merging_twice_changes_nothing_more(current in any_json(), patch in any_json()) {
            let once = merge(&current, &patch);
            prop_assert_eq!(merge(&once, &patch), once);
        }
    }
}
