//! What checks say their findings with, and small questions that many of them ask.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::status::FieldError;
use crate::value::text;

pub type Errors = Vec<FieldError>;

pub type NameRule = fn(&str) -> Vec<String>;

/// What becomes of what a schema or this server does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Refused,
    /// The stored object has some already.
    Stays,
}

/// Protocols of ports, as they are listed.
pub(crate) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What a ConfigMap or Secret may hold.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

pub(crate) fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).unwrap_or_default()
}

/// `immutable: true` holds for good.
pub(crate) fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in fields.iter().filter(|f| new[**f] != old[**f]) {
        errors.push(FieldError::forbidden(*field, why));
    }
}

/// A diff of the fields of two specs.
pub(crate) fn diff(new: &Value, old: &Value) -> String {
    let mut lines = String::from("@@ spec @@");
    let names: std::collections::BTreeSet<&String> =
        [new, old].iter().filter_map(|v| v.as_object()).flat_map(|m| m.keys()).collect();
    for name in names.into_iter().filter(|n| new[n.as_str()] != old[n.as_str()]) {
        for (sign, spec) in [('-', old), ('+', new)] {
            if let Some(value) = spec.get(name) {
                lines.push_str(&format!("\n{sign} {name}: {value}"));
            }
        }
    }
    lines
}

/// Each complaint as an invalid value.
pub(crate) fn invalid(path: &str, value: &Value, complaints: Vec<String>, errors: &mut Errors) {
    errors.extend(complaints.into_iter().map(|c| FieldError::invalid(path, value.clone(), c)));
}

/// One of these, in the order in which upstream lists them.
pub(crate) fn one_of(path: &str, value: &Value, options: &[&str], errors: &mut Errors) {
    if !options.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, value.clone(), options));
    }
}

/// A duplicate shown as Go prints the struct, in the order of its fields.
pub(crate) fn duplicate_struct(path: &str, shown: &str, detail: &str) -> FieldError {
    let mut error = FieldError::duplicate(path, crate::status::verbatim(shown));
    error.detail = detail.into();
    error
}

pub(crate) fn is_cidr(text: &str) -> bool {
    let parse = || {
        let (ip, bits) = text.split_once('/')?;
        let ip: std::net::IpAddr = ip.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        Some(bits <= if ip.is_ipv4() { 32 } else { 128 })
    };
    parse().unwrap_or(false)
}
