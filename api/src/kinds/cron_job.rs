//! CronJobs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation, job};
use crate::default::{set, set_absent};
use crate::schedule::{Schedule, zones};
use crate::table::cells::{NONE, age, containers, or_none, selector};
use crate::validate::{At, Errors};
use crate::value::{count, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        spec(&At::of(object, "spec"), None, errors);
        let name = At::of(object, "metadata").at("name");
        if name.text().len() > NAME_BYTES {
            name.invalid(format!("must be no more than {NAME_BYTES} characters"), errors);
        }
    }),
    validate_update: Some(|new, old, errors| spec(&At::of(new, "spec"), Some(&old["spec"]), errors)),
    defaults: &[("batch.v1.CronJobSpec", |m| {
        set(m, "concurrencyPolicy", "Allow");
        set_absent(m, "suspend", false);
        set_absent(m, "successfulJobsHistoryLimit", 3);
        set_absent(m, "failedJobsHistoryLimit", 1);
    })],
    generation: Generation::Spec,
    pod: Some("/spec/jobTemplate/spec/template"),
    cells: Some(cells),
    warnings: Some(|object| {
        let job = At::of(object, "spec").at("jobTemplate").at("spec");
        job::name_warnings(object).into_iter().chain(job::spec_warnings(&job)).collect()
    }),
    ..DEFAULT
};

/// Jobs are named after their CronJob and eleven characters more.
const NAME_BYTES: usize = 52;

fn spec(spec: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    let (when, zone) = (spec.at("schedule"), spec.at("timeZone"));
    match when.text() {
        "" => when.required("", errors),
        _ => schedule(&when, &zone, old, errors),
    }
    spec.at("startingDeadlineSeconds").not_negative(errors);
    if old.is_none_or(|old| old["timeZone"] != *zone.value) && zone.is_given() {
        time_zone(&zone, errors);
    }
    let policy = spec.at("concurrencyPolicy");
    match policy.text() {
        "" => policy.required("", errors),
        _ => policy.one_of(&["Allow", "Forbid", "Replace"], errors),
    }
    job_template(&spec.at("jobTemplate").at("spec"), errors);
    spec.at("successfulJobsHistoryLimit").not_negative(errors);
    spec.at("failedJobsHistoryLimit").not_negative(errors);
}

/// The server makes the selectors of its Jobs.
fn job_template(spec: &At<'_>, errors: &mut Errors) {
    job::spec(spec, errors);
    if spec.at("selector").is_given() {
        spec.at("selector").invalid("`selector` will be auto-generated", errors);
    }
    if spec.at("manualSelector").is_true() {
        spec.at("manualSelector").not_supported(&["nil", "false"], errors);
    }
}

fn schedule(when: &At<'_>, zone: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    if let Err(why) = Schedule::parse(when.text()) {
        when.invalid(why, errors);
    }
    if !when.text().contains("TZ") {
        return;
    }
    match old.is_some_and(|old| text(&old["schedule"]).contains("TZ")) {
        true if zone.is_given() => when.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule", errors),
        true => {}
        false => when.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead", errors),
    }
}

fn time_zone(zone: &At<'_>, errors: &mut Errors) {
    let name = zone.text();
    if name.is_empty() {
        return zone.invalid("timeZone must be nil or non-empty string", errors);
    }
    let part = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b))
    };
    let unknown = format!("unknown time zone {name}");
    if !name.split('/').all(part) {
        return zone.invalid(unknown, errors);
    }
    if name.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        zone.invalid(why, errors);
    }
    if name != "Local" && !zones().contains(name) {
        zone.invalid(unknown, errors);
    }
}

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
