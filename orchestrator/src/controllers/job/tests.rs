use std::time::Duration;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// A Job as the server stores it, with more of its spec and its status.
fn job(spec: Value, status: Value) -> Job {
    let mut object = json!({
        "metadata": {"name": "work", "namespace": "ns", "uid": "u", "resourceVersion": "7"},
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
            "podReplacementPolicy": "TerminatingOrFailed", "selector": {"matchLabels": {"job": "work"}},
            "template": {"metadata": {"labels": {"job": "work"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}},
        "status": {"startTime": "2026-01-01T00:59:00Z", "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}},
    });
    for (part, more) in [("spec", spec), ("status", status)] {
        for (field, value) in more.as_object().unwrap() {
            object[part][field] = value.clone();
        }
    }
    serde_json::from_value(object).unwrap()
}

/// How a pod of the Job differs from one that runs.
#[derive(Default)]
struct Looks {
    phase: &'static str,
    index: Option<i64>,
    /// Failed before it.
    failures: Option<i64>,
    exit_code: i64,
    ago: i64,
    deleting: bool,
    freed: bool,
}

fn pod(name: &str, looks: Looks) -> Arc<Pod> {
    let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "work", "uid": "u", "controller": true}]);
    let mut annotations = json!({});
    if let Some(index) = looks.index {
        annotations[make::INDEX] = json!(index.to_string());
    }
    if let Some(failures) = looks.failures {
        annotations["batch.kubernetes.io/job-index-failure-count"] = json!(failures.to_string());
    }
    let at = |ago: i64| (now() - jiff::SignedDuration::from_secs(ago)).to_string();
    let ended = matches!(looks.phase, "Failed" | "Succeeded");
    let state = match ended {
        true => json!({"terminated": {"exitCode": looks.exit_code, "finishedAt": at(looks.ago)}}),
        false => json!({"running": {}}),
    };
    Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1", "labels": {"job": "work"},
            "annotations": annotations, "ownerReferences": owner, "creationTimestamp": at(300),
            "deletionTimestamp": looks.deleting.then(|| at(looks.ago)),
            "finalizers": if looks.freed { json!([]) } else { json!([JOB_TRACKING]) }},
        "spec": {"nodeName": "n"},
        "status": {"phase": looks.phase, "containerStatuses": [{"name": "c", "state": state}]},
    })).unwrap())
}

fn running(name: &str) -> Arc<Pod> {
    pod(name, Looks { phase: "Running", ..Looks::default() })
}

fn succeeded(name: &str) -> Arc<Pod> {
    pod(name, Looks { phase: "Succeeded", ..Looks::default() })
}

fn failed(name: &str, ago: i64) -> Arc<Pod> {
    pod(name, Looks { phase: "Failed", exit_code: 1, ago, ..Looks::default() })
}

fn at(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    plan(job, pods, &[], now())
}

/// As the plan's status says.
fn condition(plan: &Plan, type_: &str) -> Option<String> {
    let flat = plan.iter().flat_map(|action| match action {
        Action::InTurn(actions) => actions.as_slice(),
        other => std::slice::from_ref(other),
    });
    let patch = flat.filter_map(|action| match action {
        Action::Patch { subresource: "status", patch, .. } => Some(patch),
        _ => None,
    });
    let all: Vec<Value> =
        patch.flat_map(|patch| patch["status"]["conditions"].as_array().cloned().unwrap_or_default()).collect();
    let found = all.into_iter().find(|condition| condition["type"] == type_ && condition["status"] == "True")?;
    Some(format!("{}: {}", found["reason"].as_str()?, found["message"].as_str()?))
}

fn made(plan: &Plan) -> Vec<String> {
    let slowly = plan.iter().flat_map(|action| match action {
        Action::Slowly(actions) => actions.clone(),
        _ => Vec::new(),
    });
    slowly
        .map(|action| match action {
            Action::Create { object, .. } => object["metadata"]["generateName"].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn plans_are_as_agreed() {
    let plain = job(json!({}), json!({"active": 1}));
    let met = json!([{"type": "SuccessCriteriaMet", "status": "True", "reason": "CompletionsReached", "message": "m",
        "lastProbeTime": "t", "lastTransitionTime": "t"}]);
    let named = json!({"uncountedTerminatedPods": {"succeeded": ["a"]}, "conditions": met});
    let freed = pod("a", Looks { phase: "Succeeded", freed: true, ..Looks::default() });
    let indexed = job(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2}), json!({}));
    let first = |phase| pod("a", Looks { phase, index: Some(0), ..Looks::default() });
    let target = json!([{"type": "FailureTarget", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}]);
    let mut orphan = Arc::unwrap_or_clone(running("o"));
    orphan.metadata.owned.owner_references.clear();
    let mut stranger = Arc::unwrap_or_clone(running("s"));
    stranger.metadata.meta.labels.clear();
    let suspended = job(json!({"suspend": true}), json!({"active": 1}));
    super::super::golden::check(
        "job",
        &[
            ("nothing is there", at(&job(json!({}), json!({"startTime": null})), &[])),
            ("its pod runs", at(&plain, &[running("a")])),
            ("its pod succeeded", at(&plain, &[succeeded("a")])),
            ("that is said", at(&job(json!({}), named.clone()), &[succeeded("a")])),
            ("and its finalizer went", at(&job(json!({}), named), std::slice::from_ref(&freed))),
            ("its pod failed just now", at(&plain, &[failed("a", 1)])),
            ("its pod failed a while ago", at(&plain, &[failed("a", 11)])),
            ("its last pod failed", at(&job(json!({"backoffLimit": 0}), json!({"active": 1})), &[failed("a", 1)])),
            (
                "failed, while others run",
                at(&job(json!({"backoffLimit": 0}), json!({"conditions": target})), &[running("b")]),
            ),
            ("two of three indexes", at(&indexed, &[])),
            ("the first of them succeeded", at(&indexed, &[first("Succeeded")])),
            ("suspended", at(&suspended, &[running("a")])),
            ("an orphan and a stranger", plan(&plain, &[Arc::new(stranger)], &[Arc::new(orphan)], now())),
        ],
    );
}

#[test]
fn a_job_without_completions_is_done_with_its_last_pod() {
    let job = job(json!({"completions": null, "parallelism": 2}), json!({}));
    let beside = [succeeded("a"), running("b")];
    assert_eq!((made(&at(&job, &beside)).len(), condition(&at(&job, &beside), "SuccessCriteriaMet")), (0, None));
    let both = at(&job, &[succeeded("a"), succeeded("b")]);
    assert!(condition(&both, "SuccessCriteriaMet").is_some());
}

#[test]
fn what_is_too_much_goes_uncounted() {
    let job = job(json!({"parallelism": 1, "completions": 5}), json!({"active": 2}));
    let pending = pod("b", Looks { phase: "Pending", ..Looks::default() });
    let plan = at(&job, &[running("a"), pending]);
    let Action::InTurn(steps) = &plan[0] else { panic!("{plan:?}") };
    let [Action::Patch { key, patch, .. }, Action::Delete { .. }, Action::Event { .. }] = &steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((&*key.name, &patch["metadata"]["finalizers"]), ("b", &Value::Null));
    // Its end is nobody's failure: the next one is not waited for.
    let gone = pod("b", Looks { phase: "Running", deleting: true, freed: true, ..Looks::default() });
    let more = self::job(json!({"parallelism": 2, "completions": 5}), json!({}));
    assert_eq!(made(&at(&more, &[running("a"), gone])).len(), 1);
}

#[test]
fn a_pod_that_goes_is_replaced_at_once_or_when_it_is_gone() {
    let going = || pod("a", Looks { phase: "Running", deleting: true, ago: 20, ..Looks::default() });
    let soon = at(&job(json!({}), json!({})), &[going()]);
    assert_eq!(made(&soon).len(), 1);
    let late = job(json!({"podReplacementPolicy": "Failed"}), json!({}));
    assert_eq!(made(&at(&late, &[going()])).len(), 0);
    assert_eq!(made(&at(&late, &[failed("a", 20)])).len(), 1);
    // Nobody runs it, so it never ends by itself.
    let mut nowhere = Arc::unwrap_or_clone(going());
    nowhere.spec.node_name.clear();
    assert!(Count::of(&late, &[Arc::new(nowhere)]).failed == 1);
}

#[test]
fn jobs_fail_for_a_reason() {
    let why = |spec: Value, pods: &[Arc<Pod>]| condition(&at(&job(spec, json!({})), pods), "FailureTarget");
    let too_often = "BackoffLimitExceeded: Job has reached the specified backoff limit";
    assert_eq!(why(json!({"backoffLimit": 1}), &[failed("a", 1)]), None);
    assert_eq!(why(json!({"backoffLimit": 1}), &[failed("a", 1), failed("b", 1)]).unwrap(), too_often);
    let late = "DeadlineExceeded: Job was active longer than specified deadline";
    assert_eq!(why(json!({"activeDeadlineSeconds": 60}), &[running("a")]).unwrap(), late);
    let again = at(&job(json!({"activeDeadlineSeconds": 70}), json!({})), &[running("a")]);
    assert!(
        again.iter().any(|action| matches!(action, Action::Again { after, .. } if *after == Duration::from_secs(10)))
    );
    let mut restarted = Arc::unwrap_or_clone(running("a"));
    restarted.status.container_statuses[0].restart_count = 1;
    let mut spec = json!({"backoffLimit": 1, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    assert_eq!(why(spec.clone(), &[Arc::new(restarted.clone())]).unwrap(), too_often);
    spec["backoffLimit"] = json!(2);
    assert_eq!(why(spec, &[Arc::new(restarted)]), None);
    let rules = |action: &str| json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [1]}}]});
    let fatal = "PodFailurePolicy: Container c for pod ns/a failed with exit code 1 matching FailJob rule at index 0";
    assert_eq!(why(json!({"podFailurePolicy": rules("FailJob")}), &[failed("a", 1)]).unwrap(), fatal);
    let ignored = json!({"backoffLimit": 0, "podFailurePolicy": rules("Ignore")});
    assert_eq!(why(ignored.clone(), &[failed("a", 1)]), None);
    let plan = at(&job(ignored, json!({})), &[failed("a", 1)]);
    assert_eq!(made(&plan).len(), 1, "what is ignored is not waited for");
    assert!(plan.iter().any(|action| matches!(action, Action::Patch { key, subresource: "", .. } if key.name == "a")));
}

#[test]
fn each_index_fails_for_itself() {
    let spec = |most: Value| {
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimit": 1000,
        "backoffLimitPerIndex": 1, "maxFailedIndexes": most})
    };
    let failed = |name: &str, index: i64, failures: i64, ago: i64| {
        let (index, failures) = (Some(index), Some(failures));
        pod(name, Looks { phase: "Failed", index, failures, ago, exit_code: 1, ..Looks::default() })
    };
    let runs = |name: &str, index: i64| pod(name, Looks { phase: "Running", index: Some(index), ..Looks::default() });
    let limited = job(spec(Value::Null), json!({}));
    // Its first failure is waited for, and stays until the pod after it has its number.
    let first = at(&limited, &[failed("a", 0, 0, 1), runs("b", 1), runs("c", 2)]);
    assert_eq!(made(&first).len(), 0);
    assert!(first.iter().any(|action| matches!(action, Action::Again { after, .. } if after.as_secs() == 9)));
    assert!(!first.iter().any(|action| matches!(action, Action::Patch { subresource: "", .. })), "{first:?}");
    let pods = [failed("a", 0, 0, 11), runs("b", 1), runs("c", 2)];
    assert_eq!(made(&at(&limited, &pods)), ["work-0-"]);
    let count = Count::of(&limited, &pods);
    assert_eq!(count.tried(0).unwrap().0, Failures { counted: 1, ignored: 0 });
    // A Job that ends waits for no other try.
    let target = json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "m"}]);
    let late = at(
        &job(
            spec(Value::Null),
            json!({"conditions": target, "failedIndexes": "",
        "uncountedTerminatedPods": {"failed": ["a"]}}),
        ),
        &[failed("a", 0, 0, 1)],
    );
    assert!(late.iter().any(|action| matches!(action, Action::Patch { key, .. } if key.name == "a")), "{late:?}");
    // Its second is one too many.
    let second = [failed("a", 0, 1, 1), runs("b", 1), runs("c", 2)];
    assert_eq!(Count::of(&limited, &second).failed_indexes.unwrap().to_string(), "0");
    assert_eq!(condition(&at(&limited, &second), "FailureTarget"), None);
    let none = at(&job(spec(json!(0)), json!({})), &second);
    let why = "MaxFailedIndexesExceeded: Job has exceeded the specified maximal number of failed indexes";
    assert_eq!(condition(&none, "FailureTarget").unwrap(), why);
    let done = |name: &str, index: i64| pod(name, Looks { phase: "Succeeded", index: Some(index), ..Looks::default() });
    let all = at(&limited, &[failed("a", 0, 1, 1), done("b", 1), done("c", 2)]);
    assert_eq!(condition(&all, "FailureTarget").unwrap(), "FailedIndexes: Job has failed indexes");
}

#[test]
fn indexes_have_one_pod_each() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4});
    let runs = |name: &str, index: i64| pod(name, Looks { phase: "Running", index: Some(index), ..Looks::default() });
    let done = pod("d", Looks { phase: "Succeeded", index: Some(0), ..Looks::default() });
    let plan = at(&job(spec.clone(), json!({})), &[done.clone(), runs("a", 1)]);
    assert_eq!(made(&plan), ["work-2-", "work-3-"]);
    let Action::Slowly(actions) = &plan[0] else { panic!() };
    let Action::Create { object, .. } = &actions[0] else { panic!() };
    assert_eq!(
        (&object["spec"]["hostname"], &object["metadata"]["annotations"][make::INDEX]),
        (&json!("work-2"), &json!("2"))
    );
    let env = &object["spec"]["containers"][0]["env"][0];
    assert_eq!(
        env["valueFrom"]["fieldRef"]["fieldPath"],
        "metadata.labels['batch.kubernetes.io/job-completion-index']"
    );
    let twice = job(spec, json!({}));
    let pods = [done, runs("a", 1), runs("b", 1), runs("c", 9)];
    let count = Count::of(&twice, &pods);
    let gone: Vec<_> = surplus(&twice, &count, 3).iter().map(|pod| pod.metadata.meta.name.clone()).collect();
    assert!(gone.len() == 2 && gone.contains(&"c".to_owned()), "{gone:?}");
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let policy = json!({"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]});
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 4, "successPolicy": policy});
    let done = pod("a", Looks { phase: "Succeeded", index: Some(2), ..Looks::default() });
    let plan = at(&job(spec, json!({})), &[done, running("b")]);
    assert_eq!(condition(&plan, "SuccessCriteriaMet").unwrap(), "SuccessPolicy: Matched rules at index 0");
    assert!(made(&plan).is_empty());
}

#[test]
fn a_job_that_goes_on_starts_anew() {
    let suspended =
        json!([{"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}]);
    let plan = at(&job(json!({}), json!({"conditions": suspended})), &[]);
    let Some(Action::InTurn(steps)) = plan.last() else { panic!("{plan:?}") };
    let [Action::Patch { patch, .. }, Action::Event { reason: "Resumed", .. }] = &steps[..] else {
        panic!("{steps:?}")
    };
    let status = &patch["status"];
    assert_eq!(
        (&status["startTime"], &status["conditions"][0]["reason"]),
        (&json!("2026-01-01T01:00:00Z"), &json!("JobResumed"))
    );
    assert_eq!(made(&plan).len(), 1);
}

#[test]
fn many_ended_pods_are_named_in_several_statuses() {
    let many = job(json!({"completions": 700, "parallelism": 700}), json!({}));
    let pods: Vec<_> = (0..700).map(|n| succeeded(&format!("p{n}"))).collect();
    let count = Count::of(&many, &pods);
    assert_eq!((count.succeeded, count.numbers().uncounted_terminated_pods.unwrap().len()), (700, 500));
}
