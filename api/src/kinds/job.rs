//! Jobs.

mod failure;
mod status;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Deletion, Dependents, Generation, Part};
use crate::default::{Object, nested, set, set_absent};
use crate::names;
use crate::selector::{Labels, field};
use crate::table::cells::{has_condition, template as columns};
use crate::time::human;
use crate::validate::{At, Errors, pod};
use crate::value::{number, text};
use crate::write::section;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(create),
    validate_update: Some(update),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            status::check(new, old, errors);
        }
    }),
    defaults: &[
        ("batch.v1.Job", default),
        ("batch.v1.PodFailurePolicyOnPodConditionsPattern", |m| set(m, "status", "True")),
    ],
    generation: Generation::Spec,
    create: Some(generate_selector),
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
    warnings: Some(|job| name_warnings(job).into_iter().chain(spec_warnings(&At::of(job, "spec"))).collect()),
    ..DEFAULT
};

const OLD_NAME: &str = "job-name";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_UID: &str = "controller-uid";
const UID: &str = "batch.kubernetes.io/controller-uid";

/// Pods of a Job are told by its uid, unless its author chooses them.
fn generate_selector(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let (name, uid) = (job["metadata"]["name"].clone(), job["metadata"]["uid"].clone());
    let template = &mut job["spec"]["template"];
    section(template, "metadata");
    let labels = section(&mut template["metadata"], "labels");
    for (key, value) in [(OLD_NAME, &name), (NAME, &name), (OLD_UID, &uid), (UID, &uid)] {
        labels.entry(key).or_insert_with(|| value.clone());
    }
    section(&mut job["spec"], "selector");
    section(&mut job["spec"]["selector"], "matchLabels").entry(UID).or_insert(uid);
}

fn create(job: &Value, errors: &mut Errors) {
    generated(job, errors);
    let spec = At::of(job, "spec");
    selected(&spec, errors);
    let completions = spec.at("completions").number().filter(|n| *n > 0);
    if let (true, Some(n)) = (is_indexed(&spec), completions) {
        let host = format!("{}-{}", text(&job["metadata"]["name"]), n - 1);
        if !names::dns_label(&host).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            At::of(job, "metadata").at("name").invalid(why, errors);
        }
    }
}

/// What the server makes of a selector that the author leaves to it.
fn generated(job: &Value, errors: &mut Errors) {
    let spec = At::of(job, "spec");
    if spec.at("manualSelector").is_true() || !spec.at("selector").is_given() {
        return;
    }
    let metadata = spec.at("template").at("metadata");
    let (name, uid) = (text(&job["metadata"]["name"]), text(&job["metadata"]["uid"]));
    let expected = [(OLD_UID, uid), (OLD_NAME, name), (UID, uid), (NAME, name)];
    for (key, value) in expected {
        let labels = metadata.at("labels");
        match labels.value.get(key).and_then(Value::as_str) {
            None => {
                let at = At::new(labels.value, format!("{}[{key}]", labels.path()));
                at.required(&format!("must be '{value}'"), errors);
            }
            Some(other) if other != value => {
                let at = At::new(labels.value, format!("{}[{key}]", labels.path()));
                at.invalid_as(labels.value.clone(), format!("must be '{value}'"), errors);
            }
            Some(_) => {}
        }
    }
    let matches = |selector: &Labels| selector.matches(|key| expected.iter().find(|(k, _)| *k == key).map(|(_, v)| *v));
    if Labels::from_object(spec.at("selector").value).is_ok_and(|selector| !matches(&selector)) {
        spec.at("selector").invalid("`selector` not auto-generated", errors);
    }
}

/// A Job's spec with its selector.
fn selected(job: &At<'_>, errors: &mut Errors) {
    spec(job, errors);
    let selector = job.at("selector");
    match selector.is_given() {
        true => selector.selector(errors),
        false => selector.required("", errors),
    }
    let labels = job.at("template").at("metadata").at("labels");
    let chosen = |selector: Labels| selector.matches(|key| labels.value.get(key)?.as_str());
    if Labels::from_object(selector.value).is_ok_and(|selector| !chosen(selector)) {
        labels.invalid_as(labels.value.clone(), "`selector` does not match template `labels`", errors);
    }
}

fn is_indexed(spec: &At<'_>) -> bool {
    spec.at("completionMode").text() == "Indexed"
}

const MAX_PARALLELISM: i64 = 100_000;
const MAX_FAILED: i64 = 100_000;
const MANY: i64 = 100_000;
const LIMIT_OF_MANY: i64 = 10_000;

/// A Job's spec, in a CronJob too.
pub fn spec(spec: &At<'_>, errors: &mut Errors) {
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        spec.at(field).not_negative(errors);
    }
    let (per_index, failed) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"));
    per_index.not_negative(errors);
    failed.not_negative(errors);
    if failed.is_given() && !per_index.is_given() {
        per_index.required("when maxFailedIndexes is specified", errors);
    }
    let manager = spec.at("managedBy");
    if manager.is_given() {
        manager.domain_path(errors);
        if manager.text().len() > 63 {
            manager.too_long(63, errors);
        }
    }
    spec.at("completionMode").one_of_if_given(&["NonIndexed", "Indexed"], errors);
    match spec.at("completionMode").text() {
        "Indexed" => indexed(spec, errors),
        "" | "NonIndexed" => {
            for field in [per_index, failed].iter().filter(|field| field.is_given()) {
                field.invalid("requires indexed completion mode", errors);
            }
        }
        _ => {}
    }
    if spec.at("podFailurePolicy").is_given() {
        failure::policy(spec, errors);
    }
    let success = spec.at("successPolicy");
    if success.is_given() {
        match is_indexed(spec) {
            true => failure::success(spec, errors),
            false => success.invalid_struct("batch.v1.SuccessPolicy", "requires indexed completion mode", errors),
        }
    }
    let replacement = spec.at("podReplacementPolicy");
    match spec.at("podFailurePolicy").is_given() {
        true => replacement.one_of_if_given(&["Failed"], errors),
        false => replacement.one_of_if_given(&["Failed", "TerminatingOrFailed"], errors),
    }
    let template = spec.at("template");
    pod::template(template.value, template.path(), errors);
    restart(spec, errors);
}

fn indexed(spec: &At<'_>, errors: &mut Errors) {
    let (completions, parallelism) = (spec.at("completions"), spec.at("parallelism"));
    let (per_index, failed) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"));
    if !completions.is_given() {
        completions.required("when completion mode is Indexed", errors);
    }
    let over = |field: &At<'_>, limit: i64| field.number().is_some_and(|n| n > limit);
    if over(&parallelism, MAX_PARALLELISM) {
        let why = format!("must be less than or equal to {MAX_PARALLELISM} when completion mode is Indexed");
        parallelism.invalid(why, errors);
    }
    if completions.number().is_some_and(|n| over(&failed, n)) {
        failed.invalid("must be less than or equal to completions", errors);
    }
    if over(&failed, MAX_FAILED) {
        failed.invalid(format!("must be less than or equal to {MAX_FAILED}"), errors);
    }
    if !over(&completions, MANY) || !per_index.is_given() {
        return;
    }
    if !failed.is_given() {
        failed.required(&format!("must be specified when completions is above {MANY}"), errors);
    }
    for field in [parallelism, failed].iter().filter(|field| over(field, LIMIT_OF_MANY)) {
        let why = format!(
            "must be less than or equal to {LIMIT_OF_MANY} when completions are above {MANY} and used with backoff limit per index"
        );
        field.invalid(why, errors);
    }
}

fn restart(spec: &At<'_>, errors: &mut Errors) {
    let policy = spec.at("template").at("spec").at("restartPolicy");
    match policy.text() {
        "" | "Always" => policy.required("valid values: \"OnFailure\", \"Never\"", errors),
        "Never" => {}
        "OnFailure" if spec.at("podFailurePolicy").is_given() => {
            policy.invalid("only \"Never\" is supported when podFailurePolicy is specified", errors);
        }
        "OnFailure" => {}
        _ => policy.not_supported(&["OnFailure", "Never"], errors),
    }
}

fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (At::of(new, "spec"), At::of(old, "spec"));
    selected(&spec, errors);
    let completions = spec.at("completions");
    if !is_indexed(&spec) {
        completions.unchanged(&before.at("completions"), errors);
    } else if completions.value != before.at("completions").value
        && completions.is_given()
        && completions.value != spec.at("parallelism").value
    {
        completions.invalid("can only be modified in tandem with spec.parallelism", errors);
    }
    spec.at("selector").unchanged(&before.at("selector"), errors);
    let mut template = before.at("template").value.clone();
    if before.at("suspend").is_true() && old["status"]["startTime"].is_null() {
        take_directives(&mut template, spec.at("template").value);
    }
    spec.at("template").unchanged_struct("core.v1.PodTemplateSpec", &At::new(&template, ""), errors);
    spec.at("completionMode").unchanged(&before.at("completionMode"), errors);
    spec.at("podFailurePolicy").unchanged_struct("batch.v1.PodFailurePolicy", &before.at("podFailurePolicy"), errors);
    spec.at("backoffLimitPerIndex").unchanged(&before.at("backoffLimitPerIndex"), errors);
    spec.at("managedBy").unchanged(&before.at("managedBy"), errors);
    spec.at("successPolicy").unchanged_struct("batch.v1.SuccessPolicy", &before.at("successPolicy"), errors);
}

/// What says where pods run may change while none ever ran.
fn take_directives(old: &mut Value, new: &Value) {
    let mut take = |part: &str, field: &str| {
        let map = section(old, part);
        match new[part].get(field) {
            Some(value) => map.insert(field.into(), value.clone()),
            None => map.remove(field),
        };
    };
    for field in ["labels", "annotations"] {
        take("metadata", field);
    }
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        take("spec", field);
    }
    let affinity = section(&mut old["spec"], "affinity");
    match new["spec"]["affinity"].get("nodeAffinity") {
        Some(node) => affinity.insert("nodeAffinity".into(), node.clone()),
        None => affinity.remove("nodeAffinity"),
    };
    let given = new["spec"].get("affinity").is_some();
    if affinity.is_empty() && !given {
        section(old, "spec").remove("affinity");
    }
    if new.get("metadata").is_none() && old["metadata"].as_object().is_some_and(serde_json::Map::is_empty) {
        old.as_object_mut().map(|map| map.remove("metadata"));
    }
}

/// Pods and hosts are named after Jobs and CronJobs.
pub fn name_warnings(object: &Value) -> Option<String> {
    let complaints = names::dns_label(text(&object["metadata"]["name"]));
    let why = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended";
    (!complaints.is_empty()).then(|| format!("{why}: [{}]", complaints.join(" ")))
}

/// A Job that would keep too much in its status.
pub fn spec_warnings(spec: &At<'_>) -> Option<String> {
    let many = |field: &str, limit: i64| spec.at(field).number().is_some_and(|n| n > limit);
    let warned = is_indexed(spec) && many("completions", MANY) && many("parallelism", LIMIT_OF_MANY);
    let why = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
    warned.then(|| format!("{}: {why}", spec.path()))
}

fn default(map: &mut Object) {
    let labels = map.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let bare = map
        .get("metadata")
        .and_then(|m| m.get("labels"))
        .is_none_or(|own| own.as_object().is_none_or(Object::is_empty));
    if let (true, Some(labels)) = (bare, labels.filter(Value::is_object)) {
        nested(map, "metadata", |metadata| {
            metadata.insert("labels".into(), labels);
        });
    }
    nested(map, "spec", default_spec);
}

fn default_spec(map: &mut Object) {
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
