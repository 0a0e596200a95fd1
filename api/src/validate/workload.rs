//! What kinds that make pods share: a selector that matches their template.

use serde_json::{Value, json};

use super::meta::selector;
use super::{At, Errors, one_of, pod};
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

/// Whether the selector can be read; one that chooses something has to choose the template.
pub fn fits(spec: &At<'_>, unreadable: &str, errors: &mut Errors) -> bool {
    let labels = spec.at("template").at("metadata").at("labels");
    match Labels::from_object(spec.at("selector").value) {
        Ok(selector) => {
            if !selector.is_everything() && !selector.matches(|key| labels.value.get(key)?.as_str()) {
                labels.invalid_as(labels.value.clone(), "`selector` does not match template `labels`", errors);
            }
            true
        }
        Err(_) => {
            spec.at("selector").invalid(unreadable, errors);
            false
        }
    }
}

/// What a status counts.
pub struct Counts {
    /// None of them is negative.
    pub fields: &'static [&'static str],
    /// Counted among the replicas.
    pub parts: &'static [&'static str],
    /// The complaint where more are available than ready; "" where nothing is counted so.
    pub ready: &'static str,
}

/// Counts that fit each other, and a count of collisions that only grows.
pub fn counts(counts: &Counts, status: &At<'_>, old: &At<'_>, errors: &mut Errors) {
    for field in counts.fields {
        status.at(field).not_negative(errors);
    }
    let count = |field: &str| status.at(field).number().unwrap_or(0);
    for part in counts.parts.iter().filter(|part| count(part) > count("replicas")) {
        status.at(part).invalid_as(count(part), "cannot be greater than status.replicas", errors);
    }
    if !counts.ready.is_empty() && count("availableReplicas") > count("readyReplicas") {
        status.at("availableReplicas").invalid_as(count("availableReplicas"), counts.ready, errors);
    }
    let collisions = status.at("collisionCount");
    if old.at("collisionCount").number().is_some_and(|before| collisions.number().is_none_or(|now| now < before)) {
        collisions.invalid_as(collisions.number().unwrap_or(0), "cannot be decremented", errors);
    }
}
