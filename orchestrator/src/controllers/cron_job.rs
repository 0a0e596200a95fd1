//! CronJob: a Job at each time of a schedule, of which the last ones are kept. A Job is known by the time that its name and its
//! annotation say, so whoever comes back after a crash makes none twice.

use std::sync::Arc;
use std::time::Duration;

use api::schedule::{self, Schedule};
use client::events::{EventType, Reference};
use client::{Caches, Kept, Key, Propagation};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::given::{Account, Given};
use super::job::{JOBS, Job};
use super::ownership;
use super::runtime::{Act, Action, Controller, Failure, Plan, Queue};
use view::{ActiveJob, CRON_JOBS, CronJob, CronJobStatus};

mod view;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// After the time at which it looks again, so that the time has come.
const LATER: Duration = Duration::from_millis(100);
/// More missed times than this are told.
const MANY_MISSED: i64 = 100;

pub struct CronJobs;

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob-controller";
    const ACCOUNT: Account = Account::Service("cronjob-controller");
    const READS: &'static [Kept] = &[Kept::of::<CronJob>(), Kept::of::<Job>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        let own = queue.clone();
        caches.of::<CronJob>().on_change(move |old, new| {
            if let Some(cron) = new.or(old) {
                own.add(Key::of(&cron.metadata.meta));
            }
        });
        let queue = queue.clone();
        caches.of::<Job>().on_change(move |old, new| {
            for job in [old, new].into_iter().flatten() {
                if let Some(owner) = job.metadata.owned.controller().filter(|owner| owner.kind == "CronJob") {
                    queue.add(Key::new(&job.metadata.meta.namespace, &owner.name));
                }
            }
        });
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(cron) = caches.of::<CronJob>().get(&key.namespace, &key.name) else { return Plan::new() };
        let jobs = caches.of::<Job>().indexed(&format!("owner/{}", cron.metadata.meta.uid));
        plan(&cron, &jobs, Timestamp::now())
    }

    fn failed(&self, key: &Key, caches: &Caches, failure: &Failure) -> Plan {
        let cron = caches.of::<CronJob>().get(&key.namespace, &key.name).filter(|_| failure.act == Act::Create);
        let say = |cron: Arc<CronJob>| {
            event(&cron, EventType::Warning, "FailedCreate", format!("Error creating job: {}", failure.status))
        };
        cron.map(say).into_iter().collect()
    }
}

fn event(cron: &CronJob, type_: EventType, reason: &'static str, message: String) -> Action {
    let about = Reference::new("batch/v1", "CronJob", &cron.metadata.meta);
    Action::Event { about, type_, reason, message }
}

fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let (mut next, mut plan) = follow(cron, jobs);
    plan.extend(forget(cron, jobs));
    let mut last = Plan::new();
    if cron.metadata.meta.deletion_timestamp.is_none() && !cron.spec.suspend {
        last = start(cron, jobs, &mut next, now, &mut plan);
    }
    let write = (next != cron.status).then(|| Action::Patch {
        resource: CRON_JOBS,
        key: Key::of(&cron.metadata.meta),
        subresource: "status",
        version: None,
        patch: next.patch(),
    });
    match (last.is_empty(), write) {
        (true, write) => plan.extend(write),
        (false, write) => plan.push(Action::InTurn(last.into_iter().chain(write).collect())),
    }
    plan
}

/// The status as the Jobs have it, and what is told of changes.
fn follow(cron: &CronJob, jobs: &[Arc<Job>]) -> (CronJobStatus, Plan) {
    let (mut next, mut told) = (cron.status.clone(), Plan::new());
    for job in jobs {
        let (name, uid) = (&job.metadata.meta.name, &job.metadata.meta.uid);
        let listed = next.active.iter().any(|active| active.uid == *uid);
        let scheduled = scheduled_for(cron, job);
        raise(&mut next.last_schedule_time, scheduled);
        match (job.is_finished(), scheduled) {
            (true, _) if listed => {
                next.active.retain(|active| active.uid != *uid);
                let how = if job.status.has("Complete") { "Complete" } else { "Failed" };
                let message = format!("Saw completed job: {name}, condition: {how}");
                told.push(event(cron, EventType::Normal, "SawCompletedJob", message));
            }
            (false, Some(_)) if !listed && !job.is_deleting() => next.active.push(active(job)),
            (false, None) if !listed => {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                told.push(event(cron, EventType::Warning, "UnexpectedJob", message));
            }
            _ => {}
        }
        if job.status.has("Complete") {
            raise(&mut next.last_successful_time, job.status.completion_time.as_ref().and_then(|at| at.parse().ok()));
        }
    }
    let (there, missing): (Vec<_>, Vec<_>) =
        next.active.into_iter().partition(|active| jobs.iter().any(|job| job.metadata.meta.uid == active.uid));
    next.active = there;
    told.extend(missing.iter().map(|active| {
        event(cron, EventType::Normal, "MissingJob", format!("Active job went missing: {}", active.name))
    }));
    (next, told)
}

fn active(job: &Job) -> ActiveJob {
    let meta = &job.metadata.meta;
    ActiveJob {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        resource_version: meta.resource_version.clone(),
        uid: meta.uid.clone(),
    }
}

/// The later of two times.
fn raise(time: &mut Option<String>, other: Option<Timestamp>) {
    let known = time.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    if let Some(other) = other.filter(|other| known.is_none_or(|known| known < *other)) {
        *time = Some(api::time::rfc3339(other));
    }
}

/// Named by minutes: a schedule has none closer to each other.
fn name_of(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.metadata.meta.name, time.as_second() / 60)
}

/// The time of a Job that was made here; of others none.
fn scheduled_for(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let time: Timestamp = job.metadata.meta.annotations.get(SCHEDULED)?.parse().ok()?;
    (name_of(cron, time) == job.metadata.meta.name).then_some(time)
}

/// Finished Jobs beyond those that are kept, the oldest first.
fn forget(cron: &CronJob, jobs: &[Arc<Job>]) -> Plan {
    let limits =
        [("Complete", cron.spec.successful_jobs_history_limit), ("Failed", cron.spec.failed_jobs_history_limit)];
    let beyond = limits.into_iter().flat_map(|(condition, limit)| {
        let mut all: Vec<_> = jobs.iter().filter(|job| job.status.has(condition) && !job.is_deleting()).collect();
        all.sort_by_key(|job| (job.status.start_time.clone(), job.metadata.meta.name.clone()));
        let more = limit.map_or(0, |limit| all.len().saturating_sub(limit));
        all.into_iter().take(more)
    });
    beyond.flat_map(|job| remove(cron, &job.metadata.meta.name, &job.metadata.meta.uid)).collect()
}

fn remove(cron: &CronJob, name: &str, uid: &api::uid::Uid) -> [Action; 2] {
    let key = Key::new(&cron.metadata.meta.namespace, name);
    let propagation = Some(Propagation::Background);
    [
        Action::Delete { resource: JOBS, key, uid: Some(uid.clone()), propagation },
        event(cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}")),
    ]
}

/// What makes the next Job, one step after the other, if its time has come; into `plan` goes what does not depend on it.
fn start(cron: &CronJob, jobs: &[Arc<Job>], next: &mut CronJobStatus, now: Timestamp, plan: &mut Plan) -> Plan {
    let warn = |reason: &'static str, message: String| event(cron, EventType::Warning, reason, message);
    let Some(zone) = schedule::zone(&cron.spec.time_zone) else {
        let name = &cron.spec.time_zone;
        plan.push(warn("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}")));
        return Plan::new();
    };
    let schedule = match Schedule::parse(&cron.spec.schedule) {
        Ok(schedule) => schedule,
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", cron.spec.schedule);
            plan.push(warn("UnparseableSchedule", message));
            return Plan::new();
        }
    };
    let times = Times::of(cron, next, &schedule, &zone, now);
    let Some(after) = times.next else {
        let message = format!("invalid schedule: {} : it never comes", cron.spec.schedule);
        plan.push(warn("InvalidSchedule", message));
        return Plan::new();
    };
    let wait = Duration::try_from(after.duration_since(now)).unwrap_or_default() + LATER;
    plan.push(Action::Again { key: Key::of(&cron.metadata.meta), after: wait });
    let Some(due) = times.due else { return Plan::new() };
    if times.missed > MANY_MISSED {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew".into();
        plan.push(warn("TooManyMissedTimes", message));
    }
    let name = name_of(cron, due);
    if jobs.iter().any(|job| job.metadata.meta.name == name) {
        return Plan::new();
    }
    let mut last = Plan::new();
    match &*cron.spec.concurrency_policy {
        "Forbid" if !next.active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid".into();
            plan.push(event(cron, EventType::Normal, "JobAlreadyActive", message));
            return Plan::new();
        }
        "Replace" => {
            last.extend(std::mem::take(&mut next.active).iter().flat_map(|old| remove(cron, &old.name, &old.uid)))
        }
        _ => {}
    }
    last.push(create(cron, &name, due, &zone));
    last.push(event(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}")));
    raise(&mut next.last_schedule_time, Some(due));
    last
}

/// What a schedule says about now.
struct Times {
    /// The last one that had no Job yet.
    due: Option<Timestamp>,
    /// The first one after now.
    next: Option<Timestamp>,
    /// Roughly how many came and went since.
    missed: i64,
}

impl Times {
    fn of(cron: &CronJob, status: &CronJobStatus, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Self {
        let time = |text: &String| text.parse::<Timestamp>().ok();
        let made = time(&cron.metadata.owned.creation_timestamp).unwrap_or(now);
        let last = status.last_schedule_time.as_ref().and_then(time).unwrap_or(made);
        let deadline = cron
            .spec
            .starting_deadline_seconds
            .and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
        // What is too late to start is not looked for.
        let earliest = deadline.map_or(last, |deadline| deadline.max(last));
        let due = schedule.last(earliest, now, zone);
        let first = schedule.next(earliest, zone);
        let missed = first.and_then(|first| {
            let gap = schedule.next(first, zone)?.duration_since(first).as_secs().max(1);
            Some(now.duration_since(first).as_secs() / gap + 1)
        });
        let next = schedule.next(due.unwrap_or(earliest), zone);
        Self { due, next, missed: missed.unwrap_or(0) }
    }
}

fn create(cron: &CronJob, name: &str, time: Timestamp, zone: &TimeZone) -> Action {
    let (meta, template) = (&cron.metadata.meta, &cron.spec.job_template);
    let mut annotations = template["metadata"]["annotations"].clone();
    annotations[SCHEDULED] =
        json!(time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"));
    let mut metadata = json!({
        "name": name,
        "namespace": meta.namespace,
        "annotations": annotations,
        "ownerReferences": [ownership::owner("batch/v1", "CronJob", meta)],
    });
    if let Value::Object(labels) = &template["metadata"]["labels"] {
        metadata["labels"] = json!(labels);
    }
    let object = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]});
    Action::Create { resource: JOBS, namespace: meta.namespace.clone(), object, announce: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut object = json!({
            "metadata": {"name": "tick", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:10Z"},
            "spec": {"schedule": "*/5 * * * *", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 1, "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}},
            "status": status,
        });
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().unwrap()
    }

    fn listed(time: &str) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "name": job(time, "").metadata.meta.name, "namespace": "ns",
            "resourceVersion": "1", "uid": time})
    }

    /// Of that time, with that condition.
    fn job(time: &str, condition: &str) -> Arc<Job> {
        let name = name_of(&cron(json!({}), json!({})), at(time));
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns", "uid": time, "resourceVersion": "1",
                    "annotations": {SCHEDULED: at(time).to_string()}},
                "status": {"startTime": at(time).to_string(), "completionTime": at(time).to_string(),
                    "conditions": [{"type": condition, "status": "True"}]},
            }))
            .unwrap(),
        )
    }

    fn started(plan: &Plan) -> Vec<String> {
        let flat = plan.iter().flat_map(|action| match action {
            Action::InTurn(actions) => actions.clone(),
            other => vec![other.clone()],
        });
        flat.filter_map(|action| match action {
            Action::Create { object, .. } => Some(object["metadata"]["name"].as_str()?.to_owned()),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn plans_are_as_agreed() {
        let plain = |status: Value| cron(json!({}), status);
        let scheduled = |active: Value| json!({"lastScheduleTime": "2026-01-01T00:05:00Z", "active": active});
        let runs = || scheduled(json!([listed("00:05:00")]));
        let stranger = {
            let mut job = Arc::unwrap_or_clone(job("00:05:00", ""));
            job.metadata.meta.name = "by-hand".into();
            Arc::new(job)
        };
        let ended = |time: &str| job(time, "Complete");
        let kept = json!({"successfulJobsHistoryLimit": 1});
        super::super::golden::check(
            "cronjob",
            &[
                ("its time has not come", plan(&plain(json!({})), &[], at("00:04:00"))),
                ("its time has come", plan(&plain(json!({})), &[], at("00:05:01"))),
                ("its Job is there", plan(&plain(scheduled(json!([]))), &[job("00:05:00", "")], at("00:05:01"))),
                ("its Job finished", plan(&plain(runs()), &[ended("00:05:00")], at("00:06:00"))),
                ("its Job went missing", plan(&plain(runs()), &[], at("00:06:00"))),
                ("somebody else's Job", plan(&plain(scheduled(json!([]))), &[stranger], at("00:06:00"))),
                (
                    "its Job runs, and no other may",
                    plan(&cron(json!({"concurrencyPolicy": "Forbid"}), runs()), &[job("00:05:00", "")], at("00:10:01")),
                ),
                (
                    "its Job runs, and is replaced",
                    plan(
                        &cron(json!({"concurrencyPolicy": "Replace"}), runs()),
                        &[job("00:05:00", "")],
                        at("00:10:01"),
                    ),
                ),
                (
                    "two finished, and one is kept",
                    plan(&cron(kept, scheduled(json!([]))), &[ended("00:05:00"), ended("00:00:00")], at("00:06:00")),
                ),
                ("suspended", plan(&cron(json!({"suspend": true}), json!({})), &[], at("00:05:01"))),
                ("of no zone", plan(&cron(json!({"timeZone": "Moon/Sea"}), json!({})), &[], at("00:05:01"))),
            ],
        );
    }

    #[test]
    fn missed_times_are_made_up_for_once_and_not_too_late() {
        let many = plan(&cron(json!({"schedule": "* * * * *"}), json!({})), &[], at("03:00:30"));
        assert_eq!(started(&many), [format!("tick-{}", at("03:00:00").as_second() / 60)]);
        let told = |plan: &Plan, wanted: &str| {
            plan.iter().any(|action| matches!(action, Action::Event { reason, .. } if *reason == wanted))
        };
        assert!(told(&many, "TooManyMissedTimes"));
        let limited = json!({"startingDeadlineSeconds": 20});
        let late = plan(&cron(limited.clone(), json!({})), &[], at("00:05:30"));
        assert!(started(&late).is_empty() && !told(&late, "TooManyMissedTimes"));
        assert_eq!(started(&plan(&cron(limited, json!({})), &[], at("00:05:19"))).len(), 1);
        let never = plan(&cron(json!({"schedule": "0 0 30 2 *"}), json!({})), &[], at("00:05:00"));
        assert!(told(&never, "InvalidSchedule"));
    }

    #[test]
    fn a_time_has_one_job_also_when_nothing_was_written_of_it() {
        let made = plan(&cron(json!({}), json!({})), &[job("00:05:00", "Complete")], at("00:05:30"));
        assert!(started(&made).is_empty());
        let Some(Action::Patch { patch, .. }) = made.last() else { panic!("{made:?}") };
        assert_eq!(patch["status"]["lastScheduleTime"], "2026-01-01T00:05:00Z");
    }

    #[test]
    fn the_hour_is_that_of_the_zone() {
        let spec = json!({"schedule": "30 1 * * *", "timeZone": "Europe/Berlin"});
        let made = plan(&cron(spec, json!({})), &[], at("00:30:05"));
        let Some(Action::InTurn(steps)) = made.last() else { panic!("{made:?}") };
        let Action::Create { object, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(object["metadata"]["annotations"][SCHEDULED], "2026-01-01T01:30:00+01:00");
    }
}
