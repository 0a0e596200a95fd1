//! What decides that a Job is over, and what its status says of it.

use std::time::Duration;

use api::conditions::{self, Condition, State};
use client::events::EventType;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::super::runtime::Action;
use super::count::Count;
use super::make::about;
use super::rules;
use super::view::{FAILURE, Job, JobStatus, SUCCESS};

const SUSPENDED: &str = "Suspended";
/// Why Jobs fail, for their events.
const REASONS: [&str; 6] = [
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
    "FailedJob",
];

/// The condition that ends the Job, stored already or found now.
pub fn verdict(job: &Job, count: &Count<'_>, now: Timestamp) -> Option<Condition> {
    let stored = [SUCCESS, FAILURE].iter().find_map(|type_| job.status.condition(type_));
    if let Some(stored) = stored {
        return Some(Condition::said_by(stored));
    }
    if let Some(place) = by_policy(job, count) {
        return Some(success("SuccessPolicy", format!("Matched rules at index {place}")));
    }
    failure(job, count, now).or_else(|| {
        is_complete(job, count)
            .then(|| success("CompletionsReached", "Reached expected number of succeeded pods".to_owned()))
    })
}

fn success(reason: &str, message: String) -> Condition {
    Condition::new(SUCCESS, true).because(reason, message)
}

fn by_policy(job: &Job, count: &Count<'_>) -> Option<usize> {
    let policy = job.spec.success_policy.as_ref().filter(|_| job.is_indexed())?;
    rules::succeeded(policy, &count.done, job.spec.completions.unwrap_or(0))
}

fn is_complete(job: &Job, count: &Count<'_>) -> bool {
    let enough = job.spec.completions.unwrap_or(1);
    count.active.is_empty() && count.succeeded >= enough && !job.is_deleting()
}

fn failure(job: &Job, count: &Count<'_>, now: Timestamp) -> Option<Condition> {
    let failed = |reason: &str, message: String| Some(Condition::new(FAILURE, true).because(reason, message));
    if let Some(message) = count.fatal() {
        return failed("PodFailurePolicy", message);
    }
    if count.failed > job.spec.backoff_limit || has_restarted_too_often(job, count) {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit".into());
    }
    if until_deadline(job, now).is_some_and(|left| left.is_zero()) {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline".into());
    }
    let indexes = count.failed_indexes.as_ref()?;
    if job.spec.max_failed_indexes.is_some_and(|most| indexes.count() > most) {
        let why = "Job has exceeded the specified maximal number of failed indexes";
        return failed("MaxFailedIndexesExceeded", why.into());
    }
    let all = indexes.count() + count.done.count() >= job.spec.completions.unwrap_or(0);
    (all && indexes.count() > 0 && count.active.is_empty())
        .then(|| failed("FailedIndexes", "Job has failed indexes".into()))?
}

fn has_restarted_too_often(job: &Job, count: &Count<'_>) -> bool {
    let limit = job.spec.backoff_limit.max(1);
    job.spec.template["spec"]["restartPolicy"] == "OnFailure" && count.restarts() >= limit
}

/// How long a running Job may go on; none where nobody says.
pub fn until_deadline(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.active_deadline_seconds.filter(|_| !job.spec.suspend)?;
    let start: Timestamp = job.status.start_time.as_ref()?.parse().ok()?;
    let end = start.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

/// The next status, and what is told once it is written.
pub fn status(job: &Job, count: &Count<'_>, verdict: Option<&Condition>, now: Timestamp) -> (JobStatus, Vec<Action>) {
    let time = api::time::rfc3339(now);
    let mut next = count.numbers();
    let (mut said, mut told) = (Vec::new(), Vec::new());
    if next.start_time.is_none() && !job.spec.suspend {
        next.start_time = Some(time.clone());
    }
    match verdict {
        Some(verdict) => {
            said.push(verdict.clone());
            let stored = job.status.has(&verdict.type_);
            if stored && count.is_over() && next.uncounted_terminated_pods.as_ref().is_some_and(|left| left.len() == 0)
            {
                let (last, event) = finish(job, verdict);
                if last.type_ == "Complete" {
                    next.completion_time = Some(time.clone());
                }
                said.push(last);
                told.push(event);
            }
        }
        None if job.is_deleting() => {}
        None => suspension(job, &mut next, &time, &mut said, &mut told),
    }
    next.conditions = conditions::merge(&json!(next.conditions), &[], &said, conditions::OF_JOBS, &time);
    (next, told)
}

/// The last condition, by the verdict's reason, and its event.
fn finish(job: &Job, verdict: &Condition) -> (Condition, Action) {
    let stored = job.status.condition(&verdict.type_);
    let text = |field: &str| stored.and_then(|stored| stored[field].as_str()).unwrap_or_default().to_owned();
    let (type_, event, reason, message) = match verdict.type_ == SUCCESS {
        true => ("Complete", EventType::Normal, "Completed", "Job completed".to_owned()),
        false => {
            let reason = REASONS.iter().find(|known| **known == text("reason")).copied();
            ("Failed", EventType::Warning, reason.unwrap_or("FailedJob"), text("message"))
        }
    };
    let mut last = verdict.clone();
    last.type_ = type_.to_owned();
    (last, Action::Event { about: about(job), type_: event, reason, message })
}

fn suspension(job: &Job, next: &mut JobStatus, time: &str, said: &mut Vec<Condition>, told: &mut Vec<Action>) {
    let was = job.status.has(SUSPENDED);
    if was == job.spec.suspend {
        return;
    }
    let (state, reason, message, event) = match job.spec.suspend {
        true => (State::True, "JobSuspended", "Job suspended", "Suspended"),
        false => (State::False, "JobResumed", "Job resumed", "Resumed"),
    };
    if !job.spec.suspend {
        next.start_time = Some(time.to_owned());
    }
    said.push(Condition::new(SUSPENDED, state).because(reason, message));
    told.push(Action::Event { about: about(job), type_: EventType::Normal, reason: event, message: message.into() });
}
