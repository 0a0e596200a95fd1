//! Secrets: bytes under keys, of a type that says which.

use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation};
use crate::default::{Object, nested, set};
use crate::names;
use crate::selector::field;
use crate::status::FieldError;
use crate::validate::{Errors, MAX_BYTES, decoded, frozen, invalid, meta};
use crate::value::{count, entries, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(secret),
    validate_update: Some(|new, old, errors| {
        frozen(new, old, &["data"], errors);
        meta::immutable(&new["type"], &old["type"], "type", errors);
        secret(new, errors);
    }),
    defaults: &[("core.v1.Secret", |m| {
        set(m, "type", "Opaque");
        fold_string_data(m);
    })],
    generation: Generation::Client,
    selectable: &[field("type")],
    cells: Some(|o, _| vec![("Type", o["type"].clone()), ("Data", json!(count(&o["data"])))]),
    warnings: Some(warnings),
    ..DEFAULT
};

fn secret(object: &Value, errors: &mut Errors) {
    let data = &object["data"];
    let mut size = 0;
    for (key, value) in entries(data) {
        invalid(&format!("data[{key}]"), &json!(key), names::config_key(key), errors);
        size += decoded(value).len();
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("data", MAX_BYTES));
    }
    let required = |key: &str, errors: &mut Errors| {
        if data.get(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(&object["type"]) {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(&object["metadata"]["annotations"][key]).is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{key}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            required("username", errors);
            required("password", errors);
        }
        "kubernetes.io/ssh-auth" if decoded(&data["ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => {
            required("tls.crt", errors);
            required("tls.key", errors);
        }
        _ => {}
    }
}

/// The file must be a JSON object; what it holds is never shown.
fn docker(data: &Value, key: &str, errors: &mut Errors) {
    let path = format!("data[{key}]");
    let Some(value) = data.get(key) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let why = match crate::decode::json::parse(&decoded(value)) {
        Ok(node) if matches!(node.go_kind(), "object" | "null") => return,
        Ok(node) => {
            format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", node.go_kind())
        }
        Err(why) => why,
    };
    errors.push(FieldError::invalid(path, "<secret contents redacted>", why));
}

/// `stringData` is write-only: it lands in `data`.
fn fold_string_data(secret: &mut Object) {
    use base64::Engine;
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    nested(secret, "data", |data| {
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(bytes)));
        }
    });
}

fn warnings(object: &Value) -> Vec<String> {
    if text(&object["type"]) != "kubernetes.io/tls" {
        return Vec::new();
    }
    let decoded = decoded(&object["data"]["tls.crt"]);
    let has_pem = String::from_utf8_lossy(&decoded).contains("-----BEGIN CERTIFICATE-----");
    if has_pem { Vec::new() } else { vec!["tls: failed to find any PEM data in certificate input".into()] }
}
