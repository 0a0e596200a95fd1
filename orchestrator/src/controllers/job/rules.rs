//! What a Job's policies make of pods that failed and of indexes that succeeded.

use super::super::views::{ContainerStatus, Pod};
use super::indexes::Indexes;
use super::view::{ExitCodes, FailurePolicy, FailureRule, Job, SuccessPolicy, SuccessRule};

/// What becomes of a pod's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It counts towards the limits.
    Count,
    Ignore,
    FailIndex,
    /// With the message of the condition that says so.
    FailJob(String),
}

/// By the first rule that fits; without one a failure counts.
pub fn outcome(job: &Job, pod: &Pod) -> Outcome {
    let found = job.spec.pod_failure_policy.as_ref().and_then(|policy| fitting(policy, pod));
    let Some((place, rule, what)) = found else { return Outcome::Count };
    match &*rule.action {
        "Ignore" => Outcome::Ignore,
        "FailIndex" if job.spec.backoff_limit_per_index.is_some() => Outcome::FailIndex,
        "FailJob" => Outcome::FailJob(format!("{what} matching {} rule at index {place}", rule.action)),
        _ => Outcome::Count,
    }
}

/// The first rule that fits: its place, and what it found.
fn fitting<'p>(policy: &'p FailurePolicy, pod: &Pod) -> Option<(usize, &'p FailureRule, String)> {
    let meta = &pod.metadata.meta;
    policy.rules.iter().enumerate().find_map(|(place, rule)| {
        let found = match &rule.on_exit_codes {
            Some(codes) => {
                let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
                let (name, code) = all.filter_map(|status| failed_as(status, codes)).next()?;
                format!("Container {name} for pod {}/{} failed with exit code {code}", meta.namespace, meta.name)
            }
            None => {
                let fits = |pattern: &&super::view::ConditionPattern| {
                    pod.condition(&pattern.type_).is_some_and(|found| found.status == pattern.status)
                };
                let pattern = rule.on_pod_conditions.iter().find(fits)?;
                format!("Pod {}/{} has condition {}", meta.namespace, meta.name, pattern.type_)
            }
        };
        Some((place, rule, found))
    })
}

/// The name and the exit code of a container that failed in one of these ways.
fn failed_as<'s>(status: &'s ContainerStatus, codes: &ExitCodes) -> Option<(&'s str, i64)> {
    let code = status.state.terminated.as_ref()?.exit_code;
    let meant = codes.container_name.as_ref().is_none_or(|name| *name == status.name);
    let listed = codes.values.contains(&code);
    let fits = if codes.operator == "In" { listed } else { !listed };
    (meant && code != 0 && fits).then_some((&*status.name, code))
}

/// The place of the first rule by which these indexes are enough.
pub fn succeeded(policy: &SuccessPolicy, done: &Indexes, completions: i64) -> Option<usize> {
    let holds = |rule: &SuccessRule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(wanted), count) => {
            let wanted = Indexes::parse(wanted, completions);
            done.count_common(&wanted) >= count.unwrap_or_else(|| wanted.count())
        }
        (None, Some(count)) => done.count() >= count,
        (None, None) => false,
    };
    policy.rules.iter().position(holds)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(rules: Value) -> Job {
        serde_json::from_value(json!({"spec": {"backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": rules}}}))
            .unwrap()
    }

    fn pod(code: i64, condition: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p"}, "status": {
            "conditions": [{"type": condition, "status": "True"}],
            "containerStatuses": [{"name": "ok", "state": {"terminated": {"exitCode": 0}}}],
            "initContainerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code}}}],
        }}))
        .unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let codes = |operator: &str, values: &[i64]| json!({"operator": operator, "values": values});
        let job = job(json!([
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Count", "onExitCodes": {"containerName": "other", "operator": "In", "values": [3]}},
            {"action": "FailJob", "onExitCodes": codes("In", &[3, 4])},
            {"action": "FailIndex", "onExitCodes": codes("NotIn", &[0, 5])},
        ]));
        assert_eq!(outcome(&job, &pod(3, "DisruptionTarget")), Outcome::Ignore);
        let why = "Container c for pod ns/p failed with exit code 3 matching FailJob rule at index 2";
        assert_eq!(outcome(&job, &pod(3, "Ready")), Outcome::FailJob(why.into()));
        assert_eq!(outcome(&job, &pod(6, "Ready")), Outcome::FailIndex);
        assert_eq!(outcome(&job, &pod(5, "Ready")), Outcome::Count);
        assert_eq!(outcome(&job, &pod(0, "Ready")), Outcome::Count, "a container that succeeded failed in no way");
        let away = self::job(json!([{"action": "FailJob", "onPodConditions": [{"type": "Gone", "status": "True"}]}]));
        let why = "Pod ns/p has condition Gone matching FailJob rule at index 0";
        assert_eq!(outcome(&away, &pod(1, "Gone")), Outcome::FailJob(why.into()));
    }

    #[test]
    fn enough_indexes_are_a_success() {
        let policy = |rules: Value| serde_json::from_value::<SuccessPolicy>(json!({"rules": rules})).unwrap();
        let done = Indexes::parse("0,2-4", 10);
        let place = |rules: Value| succeeded(&policy(rules), &done, 10);
        assert_eq!(place(json!([{"succeededIndexes": "0-2"}, {"succeededIndexes": "2-4"}])), Some(1));
        assert_eq!(place(json!([{"succeededIndexes": "0-2", "succeededCount": 2}])), Some(0));
        assert_eq!(place(json!([{"succeededIndexes": "0-2", "succeededCount": 3}])), None);
        assert_eq!(place(json!([{"succeededCount": 5}, {"succeededCount": 4}])), Some(1));
    }
}
