//! Reading JSON trees: the few questions that rules of kinds ask, absent values included.

use serde_json::Value;

/// The text, "" where there is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The number, 0 where there is none.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

pub fn items(value: &Value) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator + Clone {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

pub fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Members of an object or a list.
pub fn count(value: &Value) -> usize {
    value.as_object().map(|m| m.len()).or_else(|| value.as_array().map(Vec::len)).unwrap_or(0)
}

/// As it is printed: text without quotes.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// As Go prints untyped JSON with `%v`.
pub fn go_map(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_map(v))).collect();
            format!("map[{}]", parts.join(" "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(go_map).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}
