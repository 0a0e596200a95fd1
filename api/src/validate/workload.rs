//! What kinds that make pods share: a selector that matches their template.

use serde_json::{Value, json};

use super::meta::{not_negative, selector};
use super::{Errors, one_of, pod};
use crate::selector::Labels;
use crate::status::FieldError;

pub fn chosen(spec: &Value, noun: &str, errors: &mut Errors) {
    match &spec["selector"] {
        Value::Null => errors.push(FieldError::required("spec.selector", "")),
        given => {
            selector(given, "spec.selector", errors);
            if given.as_object().is_some_and(|m| m.is_empty()) {
                errors.push(FieldError::invalid(
                    "spec.selector",
                    json!({}),
                    format!("empty selector is invalid for {noun}"),
                ));
            }
        }
    }
}

pub fn template(spec: &Value, errors: &mut Errors) {
    let template = &spec["template"];
    let labels = &template["metadata"]["labels"];
    match Labels::from_object(&spec["selector"]) {
        Ok(selector) if selector.is_everything() => {}
        Ok(selector) => {
            if !selector.matches(|key| labels.get(key)?.as_str()) {
                let why = "`selector` does not match template `labels`";
                errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), why));
            }
        }
        Err(_) => errors.push(FieldError::invalid("spec.selector", spec["selector"].clone(), "invalid label selector")),
    }
    pod::template(template, "spec.template", errors);
    one_of("spec.template.spec.restartPolicy", &template["spec"]["restartPolicy"], &["Always"], errors);
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

pub fn percent_or_number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.strip_suffix('%')?.parse().ok(),
        other => other.as_i64(),
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
