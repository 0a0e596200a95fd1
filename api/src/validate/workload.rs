//! Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::meta::{not_negative, selector};
use super::{Errors, one_of, pod, text};
use crate::selector::Labels;
use crate::status::FieldError;

pub fn deployment(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    not_negative(&spec["replicas"], "spec.replicas", errors);
    chosen(spec, "deployment", errors);
    template(spec, errors);
    strategy(&spec["strategy"], errors);
    not_negative(&spec["minReadySeconds"], "spec.minReadySeconds", errors);
    not_negative(&spec["revisionHistoryLimit"], "spec.revisionHistoryLimit", errors);
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        not_negative(&spec["progressDeadlineSeconds"], "spec.progressDeadlineSeconds", errors);
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

pub fn replica_set(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    not_negative(&spec["replicas"], "spec.replicas", errors);
    not_negative(&spec["minReadySeconds"], "spec.minReadySeconds", errors);
    chosen(spec, "deployment", errors);
    template(spec, errors);
}

fn chosen(spec: &Value, noun: &str, errors: &mut Errors) {
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

fn template(spec: &Value, errors: &mut Errors) {
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

fn strategy(strategy: &Value, errors: &mut Errors) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "Recreate" => {
            if !rolling.is_null() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
            }
        }
        "RollingUpdate" => {
            let path = "spec.strategy.rollingUpdate";
            let parts = ["maxUnavailable", "maxSurge"];
            for name in parts {
                amount(&rolling[name], &format!("{path}.{name}"), errors);
            }
            if parts.iter().all(|name| percent_or_number(&rolling[*name]) == Some(0)) {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    why,
                ));
            }
            if text(&rolling["maxUnavailable"]).ends_with('%')
                && percent_or_number(&rolling["maxUnavailable"]).is_some_and(|n| n > 100)
            {
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "must not be greater than 100%",
                ));
            }
        }
        other => {
            let shown = crate::status::verbatim(&format!("{{\"Type\":{other:?},\"RollingUpdate\":null}}"));
            errors.push(FieldError::not_supported("spec.strategy", shown, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn percent_or_number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.strip_suffix('%')?.parse().ok(),
        other => other.as_i64(),
    }
}

/// A count or percentage.
fn amount(value: &Value, path: &str, errors: &mut Errors) {
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
