//! Jobs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Deletion, Dependents, Generation};
use crate::default::{Object, set_absent};
use crate::selector::field;
use crate::table::cells::{has_condition, template as columns};
use crate::time::human;
use crate::value::{number, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("batch.v1.JobSpec", default)],
    generation: Generation::Spec,
    delete: Deletion {
        dependents: Dependents::Orphaned,
        warning: Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        ),
        ..Deletion::DEFAULT
    },
    selectable: &[field("status.successful").at("status.succeeded").or("0")],
    unknown_field: Some(|path| format!("field label {path:?} not supported for Job")),
    pod: Some("/spec/template"),
    cells: Some(cells),
    inactive: Some("no pods are made for it"),
    ..DEFAULT
};

fn default(map: &mut Object) {
    let absent = |map: &Object, name: &str| map.get(name).is_none_or(Value::is_null);
    if absent(map, "completions") && absent(map, "parallelism") {
        map.insert("completions".into(), json!(1));
    }
    set_absent(map, "parallelism", 1);
    let limit = if absent(map, "backoffLimitPerIndex") { 6 } else { i32::MAX };
    set_absent(map, "backoffLimit", limit);
    set_absent(map, "completionMode", "NonIndexed");
    set_absent(map, "suspend", false);
    set_absent(map, "manualSelector", false);
    let replacement = if absent(map, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    set_absent(map, "podReplacementPolicy", replacement);
}

fn cells(job: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let done = number(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), number(&spec["parallelism"])) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    };
    let second = |v: &Value| text(v).parse::<Timestamp>().ok().map(Timestamp::as_second);
    let duration = second(&status["startTime"])
        .map(|start| human(second(&status["completionTime"]).unwrap_or_else(|| now.as_second()) - start));
    let state = ["Complete", "Failed", "Suspended", "FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|c| has_condition(status, c));
    let state = match state {
        Some("FailureTarget") => "Running",
        Some("SuccessCriteriaMet") => "SuccessCriteriaMet",
        Some(state) => state,
        None if !job["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        None => "Running",
    };
    let mut out = vec![
        ("Status", json!(state)),
        ("Completions", json!(completions)),
        ("Duration", json!(duration.unwrap_or_default())),
    ];
    out.extend(columns(job));
    out
}
