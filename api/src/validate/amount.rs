//! Amounts of a workload's pods: a count, or a percentage of all.

use serde_json::Value;

use crate::status::FieldError;

use super::Errors;
use super::meta::not_negative;

pub fn percent_or_number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.strip_suffix('%')?.parse().ok(),
        other => other.as_i64(),
    }
}

/// The number of an amount, a percentage's too.
pub fn amount_of(value: &Value) -> i64 {
    percent_or_number(value).unwrap_or(0)
}

/// Not more than 100 %.
pub fn at_most_all(value: &Value, path: &str, errors: &mut Errors) {
    if value.is_string() && percent_or_number(value).is_some_and(|n| n > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// A count or percentage.
pub fn amount(value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::String(text)
            if percent_or_number(value).is_none() || !text.bytes().next().is_some_and(|b| b.is_ascii_digit()) =>
        {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path, value.clone(), why));
        }
        Value::String(_) => {}
        other => not_negative(other, path, errors),
    }
}
