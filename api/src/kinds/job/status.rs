//! What a Job's status may say, and what it may not take back.

use std::collections::HashSet;

use serde_json::Value;

use super::failure::{count_indexes, interval};
use crate::table::cells::has_condition;
use crate::validate::{At, Errors};
use crate::value::{items, number, text};

/// What is said of one state; what did not change may stay as it was.
struct Said<'a> {
    job: &'a Value,
    old: &'a Value,
}

impl Said<'_> {
    fn is(&self, condition: &str) -> bool {
        has_condition(&self.job["status"], condition)
    }

    fn was(&self, condition: &str) -> bool {
        has_condition(&self.old["status"], condition)
    }

    fn turned(&self, condition: &str) -> bool {
        self.is(condition) != self.was(condition)
    }

    fn changed(&self, field: &str) -> bool {
        self.job["status"].get(field) != self.old["status"].get(field)
    }
}

pub fn check(new: &Value, old: &Value, errors: &mut Errors) {
    let (status, said) = (At::of(new, "status"), Said { job: new, old });
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        status.at(field).not_negative(errors);
    }
    let mut seen = HashSet::new();
    for list in ["succeeded", "failed"] {
        for uid in status.at("uncountedTerminatedPods").at(list).items() {
            match uid.text() {
                "" => uid.invalid("must not be empty", errors),
                known if !seen.insert(known) => uid.duplicate(errors),
                _ => {}
            }
        }
    }
    ended(&status, &said, errors);
    indexes(&status, &said, errors);
    agree(&status, &said, errors);
    kept(&status, &said, errors);
}

/// What holds of a Job that ended.
fn ended(status: &At<'_>, said: &Said<'_>, errors: &mut Errors) {
    let (complete, failed) = (said.is("Complete"), said.is("Failed"));
    let finished = complete || failed;
    let turned = finished != (said.was("Complete") || said.was("Failed"));
    let conditions = status.at("conditions");
    let (start, end) = (status.at("startTime"), status.at("completionTime"));
    if (said.turned("Complete") || said.turned("Failed")) && complete && failed {
        conditions.wrong("cannot set Complete=True and Failed=true conditions", errors);
    }
    if (said.turned("Complete") || said.turned("FailureTarget")) && complete && said.is("FailureTarget") {
        conditions.wrong("cannot set Complete=True and FailureTarget=true conditions", errors);
    }
    if said.turned("Complete") || said.changed("completionTime") {
        match (end.is_given(), complete) {
            (true, false) => {
                end.invalid("cannot set completionTime when there is no Complete=True condition", errors);
            }
            (false, true) => end.required("completionTime is required for Complete jobs", errors),
            _ => {}
        }
    }
    let dated = said.changed("startTime") || said.changed("completionTime");
    let second = |at: &At<'_>| at.text().parse::<jiff::Timestamp>().ok();
    if let (true, Some(from), Some(to)) = (dated, second(&start), second(&end))
        && to < from
    {
        end.invalid("must be equal to or after `startTime`", errors);
    }
    if (said.turned("Failed") || said.changed("failedIndexes")) && failed && !said.is("FailureTarget") {
        conditions.wrong("cannot set Failed=True condition without the FailureTarget=true condition", errors);
    }
    if (said.turned("Complete") || said.turned("SuccessCriteriaMet")) && complete && !said.is("SuccessCriteriaMet") {
        conditions.wrong("cannot set Complete=True condition without the SuccessCriteriaMet=true condition", errors);
    }
    if (turned || said.changed("active")) && finished && number(status.at("active").value) > 0 {
        status.at("active").invalid("active>0 is invalid for finished job", errors);
    }
    let spec = &said.job["spec"];
    let never_ran = spec["suspend"] == true && spec["completions"] == 0;
    if (turned || said.changed("startTime")) && !never_ran && finished && !start.is_given() {
        start.required("startTime is required for finished job", errors);
    }
    let uncounted = status.at("uncountedTerminatedPods");
    let some = ["succeeded", "failed"].iter().any(|list| !uncounted.at(list).is_empty());
    if (turned || said.changed("uncountedTerminatedPods")) && finished && some {
        uncounted.invalid_struct("batch.v1.UncountedTerminatedPods", "must be empty for finished job", errors);
    }
}

/// Lists of indexes that fit the spec and each other.
fn indexes(status: &At<'_>, said: &Said<'_>, errors: &mut Errors) {
    let spec = &said.job["spec"];
    let (done, failed) = (status.at("completedIndexes"), status.at("failedIndexes"));
    let (done_changed, failed_changed) = (said.changed("completedIndexes"), said.changed("failedIndexes"));
    let completions = spec["completions"].as_i64();
    let limited = !spec["backoffLimitPerIndex"].is_null();
    let told = [(&done, done_changed), (&failed, failed_changed && limited && failed.is_given())];
    for (at, _) in told.into_iter().filter(|(_, asked)| *asked) {
        if let Some(Err(why)) = completions.map(|n| count_indexes(at.text(), n)) {
            let name = at.path().trim_start_matches("status.");
            at.invalid(format!("error parsing {name}: {why}"), errors);
        }
    }
    if done_changed && !done.text().is_empty() && spec["completionMode"] != "Indexed" {
        done.invalid("cannot set non-empty completedIndexes when non-indexed completion mode", errors);
    }
    if failed_changed && !limited && failed.is_given() {
        failed.invalid("cannot set non-null failedIndexes when backoffLimitPerIndex is null", errors);
    }
    if (done_changed || failed_changed)
        && failed.is_given()
        && let Some(index) = completions.and_then(|n| overlap(done.text(), failed.text(), n))
    {
        failed.invalid(format!("failedIndexes and completedIndexes overlap at index: {index}"), errors);
    }
}

/// The first index in both lists; fragments that cannot be read are told elsewhere.
fn overlap(done: &str, failed: &str, completions: i64) -> Option<i64> {
    let read = |list: &str| -> Vec<(i64, i64)> {
        list.split(',').filter(|part| !part.is_empty()).filter_map(|part| interval(part, completions).ok()).collect()
    };
    let (done, failed) = (read(done), read(failed));
    let (mut i, mut j) = (0, 0);
    while let (Some((a, b)), Some((x, y))) = (done.get(i), failed.get(j)) {
        if a <= y && x <= b {
            return Some(*a.max(x));
        }
        if a <= x { i += 1 } else { j += 1 }
    }
    None
}

/// Conditions and counts that fit each other.
fn agree(status: &At<'_>, said: &Said<'_>, errors: &mut Errors) {
    let finished = said.is("Complete") || said.is("Failed");
    let turned = finished != (said.was("Complete") || said.was("Failed"));
    let conditions = status.at("conditions");
    let terminating = status.at("terminating");
    if (turned || said.changed("terminating")) && finished && number(terminating.value) > 0 {
        terminating.invalid("terminating>0 is invalid for finished job", errors);
    }
    let ready = status.at("ready");
    if (said.changed("ready") || said.changed("active"))
        && ready.is_given()
        && number(ready.value) > number(status.at("active").value)
    {
        ready.invalid("cannot set more ready pods than active", errors);
    }
    let met = said.is("SuccessCriteriaMet");
    if met && said.is("Failed") {
        conditions.wrong("cannot set SuccessCriteriaMet=True and Failed=true conditions", errors);
    }
    if met && said.is("FailureTarget") {
        conditions.wrong("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errors);
    }
    if !said.job["spec"]["successPolicy"].is_null() && !met && said.is("Complete") {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        conditions.wrong(why, errors);
    }
}

/// What is not taken back.
fn kept(status: &At<'_>, said: &Said<'_>, errors: &mut Errors) {
    let conditions = status.at("conditions");
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if said.was(condition) && !said.is(condition) {
            conditions.wrong(format!("cannot disable the terminal {condition}=True condition"), errors);
        }
    }
    let spec = &said.job["spec"];
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    let before = &said.old["status"];
    let fewer = |field: &str| number(status.at(field).value) < number(&before[field]);
    if fewer("failed") {
        status.at("failed").invalid_as(number(status.at("failed").value), "cannot decrease the failed counter", errors);
    }
    if !elastic && fewer("succeeded") {
        let count = number(status.at("succeeded").value);
        status.at("succeeded").invalid_as(count, "cannot decrease the succeeded counter", errors);
    }
    let end = status.at("completionTime");
    if end.is_given() && !before["completionTime"].is_null() && said.changed("completionTime") {
        end.invalid("field is immutable", errors);
    }
    let resumes = said.was("Suspended")
        && items(&said.job["status"]["conditions"]).any(|c| c["type"] == "Suspended" && text(&c["status"]) == "False");
    let moved = said.changed("startTime") && !before["startTime"].is_null();
    if moved && !resumes && spec["suspend"] != true {
        status.at("startTime").required("startTime cannot be removed for unsuspended job", errors);
    }
    if said.was("SuccessCriteriaMet") && !said.is("SuccessCriteriaMet") {
        conditions.wrong("cannot disable the SuccessCriteriaMet=True condition", errors);
    }
    if said.was("Complete") && !said.was("SuccessCriteriaMet") && said.is("SuccessCriteriaMet") {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        conditions.wrong(why, errors);
    }
}
