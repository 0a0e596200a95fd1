//! CronJobs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation};
use crate::default::{set, set_absent};
use crate::table::cells::{NONE, age, containers, or_none, selector};
use crate::value::{count, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("batch.v1.CronJobSpec", |m| {
        set(m, "concurrencyPolicy", "Allow");
        set_absent(m, "suspend", false);
        set_absent(m, "successfulJobsHistoryLimit", 3);
        set_absent(m, "failedJobsHistoryLimit", 1);
    })],
    generation: Generation::Spec,
    pod: Some("/spec/jobTemplate/spec/template"),
    cells: Some(cells),
    inactive: Some("no jobs are made for it"),
    ..DEFAULT
};

fn cells(job: &Value, now: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let last = match &status["lastScheduleTime"] {
        Value::Null => NONE.to_string(),
        time => age(time, now),
    };
    let (names, images) = containers(&spec["jobTemplate"]["spec"]["template"]["spec"]);
    vec![
        ("Schedule", spec["schedule"].clone()),
        ("Timezone", json!(or_none(text(&spec["timeZone"]).into()))),
        ("Suspend", json!(if spec["suspend"] == true { "True" } else { "False" })),
        ("Active", json!(count(&status["active"]))),
        ("Last Schedule", json!(last)),
        ("Containers", names),
        ("Images", images),
        ("Selector", json!(selector(&spec["jobTemplate"]["spec"]["selector"]))),
    ]
}
