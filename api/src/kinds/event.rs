//! Events of both groups: one object, two names for most fields.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Put};
use crate::names;
use crate::selector::{Selectable, field};
use crate::status::FieldError;
use crate::table::cells::age;
use crate::validate::{Errors, invalid};
use crate::value::{number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(event),
    generation: Generation::Client,
    put: Put::Creates,
    selectable: &[
        field("involvedObject.kind"),
        field("involvedObject.namespace"),
        field("involvedObject.name"),
        field("involvedObject.uid"),
        field("involvedObject.apiVersion"),
        field("involvedObject.resourceVersion"),
        field("involvedObject.fieldPath"),
        field("reason"),
        field("reportingComponent"),
        Selectable { read: Some(source), ..field("source") },
        field("type"),
    ],
    cells: Some(cells),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

/// The newer group's.
pub const NEW: Behaviour = Behaviour {
    validate: Some(new_event),
    selectable: &[
        field("regarding.kind").stored("involvedObject.kind"),
        field("regarding.namespace").stored("involvedObject.namespace"),
        field("regarding.name").stored("involvedObject.name"),
        field("regarding.uid").stored("involvedObject.uid"),
        field("regarding.apiVersion").stored("involvedObject.apiVersion"),
        field("regarding.resourceVersion").stored("involvedObject.resourceVersion"),
        field("regarding.fieldPath").stored("involvedObject.fieldPath"),
        field("reason"),
        field("reportingController").stored("reportingComponent"),
        field("type"),
    ],
    none: &[Aspect::Defaults, Aspect::Warnings],
    missing: &[(Aspect::Validation, "an update of events that have an eventTime, of which only the series may change")],
    ..BEHAVIOUR
};

fn event(object: &Value, errors: &mut Errors) {
    let involved = &object["involvedObject"]["namespace"];
    let namespace = text(&object["metadata"]["namespace"]);
    let fits = text(involved) == namespace || (text(involved).is_empty() && namespace == "default");
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", text(involved), "does not match event.namespace"));
    }
}

/// The newer group is stricter about events that are its own (those with an event time).
fn new_event(object: &Value, errors: &mut Errors) {
    if object["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let controller =
        if object["reportingController"].is_null() { json!("") } else { object["reportingController"].clone() };
    if text(&controller).is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    invalid("reportingController", &controller, names::qualified_name(text(&controller)), errors);
    for name in ["reportingInstance", "action", "reason"] {
        let limit = 128;
        if text(&object[name]).is_empty() {
            errors.push(FieldError::required(name, ""));
        } else if text(&object[name]).len() > limit {
            errors.push(FieldError::invalid(name, "", format!("can have at most {limit} characters")));
        }
    }
    if !matches!(text(&object["type"]), "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {}", text(&object["type"]))));
    }
}

fn source(object: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    match text(&object["source"]["component"]).as_str() {
        "" => text(&object["reportingComponent"]),
        component => component.into(),
    }
}

fn cells(event: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let pick = |names: &[&'static str]| names.iter().map(|n| &event[*n]).find(|v| !v.is_null()).unwrap_or(&Value::Null);
    let object = pick(&["involvedObject", "regarding"]);
    let source = pick(&["source", "deprecatedSource"]);
    let created = &event["metadata"]["creationTimestamp"];
    let first = match (pick(&["firstTimestamp", "deprecatedFirstTimestamp"]), &event["eventTime"]) {
        (Value::Null, Value::Null) => created,
        (Value::Null, time) => time,
        (time, _) => time,
    };
    let series = &event["series"];
    let last = match (pick(&["lastTimestamp", "deprecatedLastTimestamp"]), &series["lastObservedTime"]) {
        (_, time) if !time.is_null() => time,
        (Value::Null, _) => first,
        (time, _) => time,
    };
    let count = match (number(&series["count"]), number(pick(&["count", "deprecatedCount"]))) {
        (0, 0) => 1,
        (0, count) => count,
        (count, _) => count,
    };
    let target = match text(&object["name"]) {
        "" => text(&object["kind"]).to_lowercase(),
        name => format!("{}/{name}", text(&object["kind"]).to_lowercase()),
    };
    vec![
        ("Last Seen", json!(age(last, now))),
        ("Type", event["type"].as_str().map_or(json!(""), |t| json!(t))),
        ("Reason", event["reason"].as_str().map_or(json!(""), |t| json!(t))),
        ("Object", json!(target)),
        ("Subobject", json!(text(&object["fieldPath"]))),
        ("Source", json!(event_source(event, source))),
        ("Message", json!(text(pick(&["message", "note"])).trim())),
        ("First Seen", json!(age(first, now))),
        ("Count", json!(count)),
    ]
}

fn event_source(event: &Value, source: &Value) -> String {
    let component = match text(&source["component"]) {
        "" => [&event["reportingComponent"], &event["reportingController"]].map(text).concat(),
        component => component.into(),
    };
    match (text(&source["host"]), text(&event["reportingInstance"])) {
        ("", "") => component,
        ("", instance) => format!("{component}, {instance}"),
        (host, _) => format!("{component}, {host}"),
    }
}
