//! How upstream prints a struct in an error: its unversioned form, by the names and in the order of its Go fields.

use serde_json::Value;

use crate::schema::{self, Field, Shape, Type};
use crate::status::verbatim;

/// A value of the type of this name; without a value, `null`.
pub fn shown(ty: &str, value: &Value) -> Value {
    let mut out = String::new();
    match schema::find(ty) {
        Some(ty) if !value.is_null() => structure(ty, value, &mut out),
        _ => out.push_str(&value.to_string()),
    }
    verbatim(&out)
}

/// A list of values of the type of this name.
pub fn shown_list(ty: &str, list: &Value) -> Value {
    let mut out = String::new();
    match (schema::find(ty), list) {
        (Some(ty), Value::Array(items)) => {
            members('[', items.iter(), ']', &mut out, |item, out| structure(ty, item, out))
        }
        _ => out.push_str(&list.to_string()),
    }
    verbatim(&out)
}

fn members<T>(
    open: char,
    items: impl Iterator<Item = T>,
    close: char,
    out: &mut String,
    each: impl Fn(T, &mut String),
) {
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        each(item, out);
    }
    out.push(close);
}

/// Types of metadata have no unversioned form, and print as they are sent.
fn is_versioned(ty: &Type) -> bool {
    ty.name.starts_with("apis.meta.")
}

fn structure(ty: &Type, value: &Value, out: &mut String) {
    let mut fields: Vec<(String, String)> = Vec::new();
    collect(ty, value, &mut fields);
    members('{', fields.into_iter(), '}', out, |(name, text), out| {
        out.push_str(&Value::from(name).to_string());
        out.push(':');
        out.push_str(&text);
    });
}

fn collect(ty: &Type, value: &Value, into: &mut Vec<(String, String)>) {
    for field in &ty.declared {
        let embedded = match &field.shape {
            shape @ Shape::Struct(_) if field.inline || field.name == "metadata" => shape.ty(),
            _ => None,
        };
        if let Some(inner) = embedded {
            let of = if field.inline { value } else { &value[&*field.name] };
            collect(inner, of, into);
            continue;
        }
        let given = &value[&*field.name];
        if is_versioned(ty) {
            if !given.is_null() && !field.omits(given) {
                into.push((field.name.to_string(), given.to_string()));
            }
        } else if !matches!(&*field.name, "" | "apiVersion" | "kind") || !given.is_null() {
            into.push((go_name(&field.name), member(field, given)));
        }
    }
}

fn member(field: &Field, value: &Value) -> String {
    if value.is_null() {
        return if field.pointer { "null".into() } else { zero(&field.shape) };
    }
    let mut out = String::new();
    shape(&field.shape, value, &mut out);
    out
}

/// What Go has where nothing is given.
fn zero(shape: &Shape) -> String {
    match shape {
        Shape::String => "\"\"".into(),
        Shape::Bool => "false".into(),
        Shape::Int32 | Shape::Int64 | Shape::Float | Shape::IntOrString => "0".into(),
        Shape::Quantity => "\"0\"".into(),
        Shape::Duration => "\"0s\"".into(),
        Shape::Struct(_) => {
            let mut out = String::new();
            if let Some(ty) = shape.ty() {
                structure(ty, &Value::Null, &mut out);
            }
            out
        }
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Any | Shape::Open => "null".into(),
        Shape::List(_) | Shape::Map(_) | Shape::Made(_) | Shape::Described(_) => "null".into(),
    }
}

fn shape(of: &Shape, value: &Value, out: &mut String) {
    match (of, value) {
        (Shape::Struct(_), Value::Object(_)) => match of.ty() {
            Some(ty) => structure(ty, value, out),
            None => out.push_str(&value.to_string()),
        },
        (Shape::List(item), Value::Array(items)) => {
            members('[', items.iter(), ']', out, |value, out| shape(item, value, out));
        }
        (Shape::Map(item), Value::Object(map)) => members('{', map.iter(), '}', out, |(key, value), out| {
            out.push_str(&Value::from(key.as_str()).to_string());
            out.push(':');
            shape(item, value, out);
        }),
        _ => out.push_str(&value.to_string()),
    }
}

/// Abbreviations that Go's names write in capitals.
const CAPITALS: [(&str, &str); 17] = [
    ("api", "API"),
    ("cephfs", "CephFS"),
    ("chap", "CHAP"),
    ("cidr", "CIDR"),
    ("cluster", "Cluster"),
    ("csi", "CSI"),
    ("dns", "DNS"),
    ("fc", "FC"),
    ("fs", "FS"),
    ("http", "HTTP"),
    ("ip", "IP"),
    ("iscsi", "ISCSI"),
    ("nfs", "NFS"),
    ("rbd", "RBD"),
    ("se", "SE"),
    ("tls", "TLS"),
    ("uid", "UID"),
];

fn go_name(name: &str) -> String {
    let end = name.find(|c: char| c.is_ascii_uppercase()).unwrap_or(name.len());
    let (first, rest) = name.split_at(end);
    let plural = first.strip_suffix('s').and_then(|one| CAPITALS.iter().find(|(word, _)| *word == one));
    let head = match (CAPITALS.iter().find(|(word, _)| *word == first), plural) {
        (Some((_, capitals)), _) => (*capitals).to_string(),
        (None, Some((_, capitals))) => format!("{capitals}s"),
        (None, None) => {
            first.chars().next().map(|c| c.to_ascii_uppercase()).into_iter().chain(first.chars().skip(1)).collect()
        }
    };
    format!("{head}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn structs_print_with_the_names_and_in_the_order_of_their_fields() {
        let text = |ty: &str, value: Value| crate::status::FieldError::invalid("p", shown(ty, &value), "").body();
        assert_eq!(
            text(
                "policy.v1.PodDisruptionBudgetSpec",
                json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}})
            ),
            "Invalid value: {\"MinAvailable\":1,\"Selector\":{\"matchLabels\":{\"a\":\"b\"}},\"MaxUnavailable\":null,\"UnhealthyPodEvictionPolicy\":null}"
        );
        assert_eq!(go_name("fsType"), "FSType");
        assert_eq!(go_name("clusterIPs"), "ClusterIPs");
        assert_eq!(go_name("podIP"), "PodIP");
        assert_eq!(go_name("persistentVolumeName"), "PersistentVolumeName");
    }
}
