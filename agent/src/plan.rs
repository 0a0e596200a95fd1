//! What to do next with a pod's containers: a pure function of the pod, its record and the time.

use jiff::{SignedDuration, Timestamp};

use crate::model::{Container, PodSpec, RestartPolicy};
use crate::record::{BackOff, ContainerRecord, Finished, Record};

const FIRST_BACK_OFF: u32 = 10;
const MAX_BACK_OFF: u32 = 300;
/// A container that ran this long starts over with its back-off.
const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Containers to start now, in order.
    pub start: Vec<String>,
    /// Containers that wait for their back-off, and until when.
    pub waiting: Vec<(String, Timestamp)>,
    /// All init containers are through (sidecars running).
    pub initialized: bool,
    /// The pod will never run a container again.
    pub finished: Option<Finished>,
}

impl Plan {
    /// When to look again if nothing happens.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.waiting.iter().map(|(_, until)| *until).min()
    }
}

/// `started` tells whether a sidecar's startup probe (if any) has passed.
pub fn plan(spec: &PodSpec, record: &Record, now: Timestamp, started: &dyn Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    if let Some(finished) = &record.finished {
        plan.finished = Some(finished.clone());
        return plan;
    }
    let none = ContainerRecord::default();
    let of = |container: &Container| record.containers.get(&container.name).unwrap_or(&none);
    let mut main = Plan::default();
    for container in &spec.containers {
        plan_container(container, of(container), spec.restart_policy, now, &mut main);
    }
    let ends: Option<Vec<i32>> = spec.containers.iter().map(|c| of(c).end().map(|end| end.exit_code)).collect();
    if main.start.is_empty()
        && main.waiting.is_empty()
        && let Some(codes) = ends
    {
        // Sidecars serve the main containers and end with them.
        let finished = if codes.iter().all(|code| *code == 0) { Finished::well() } else { Finished::badly() };
        return Plan { finished: Some(finished), initialized: true, ..Plan::default() };
    }
    // They are for looking at a pod that is in trouble: nothing of it is waited for.
    plan.start.extend(spec.ephemeral_containers.iter().filter(|c| of(c).current.is_none()).map(|c| c.name.clone()));
    if !plan_init(spec, record, &of, now, started, &mut plan) {
        return plan;
    }
    plan.initialized = true;
    plan.start.extend(main.start);
    plan.waiting.extend(main.waiting);
    plan
}

/// Init containers one after the other. True when the main containers may run.
fn plan_init<'a>(
    spec: &'a PodSpec,
    record: &Record,
    of: &dyn Fn(&'a Container) -> &'a ContainerRecord,
    now: Timestamp,
    started: &dyn Fn(&str) -> bool,
    plan: &mut Plan,
) -> bool {
    // What init containers did to a sandbox is gone with it: in a new one they run again.
    let here =
        |container: &'a Container| of(container).current.as_ref().is_some_and(|run| run.was_in(record.sandboxes));
    // Once a main container has run, the plain init containers are history; sidecars still are kept running.
    let past = spec.containers.iter().any(here);
    for container in &spec.init_containers {
        let own = of(container);
        if container.is_sidecar() {
            plan_container(container, own, RestartPolicy::Always, now, plan);
            let up = own.running() && started(&container.name);
            if !past && !up {
                return false;
            }
            continue;
        }
        let succeeded = own.end().is_some_and(|end| end.exit_code == 0);
        if past || (succeeded && here(container)) {
            continue;
        }
        let failed = own.end().is_some() && !succeeded;
        if failed && spec.restart_policy == RestartPolicy::Never {
            plan.finished = Some(Finished::badly());
            plan.start.clear();
            return false;
        }
        // One that succeeded elsewhere runs again too.
        let policy = if succeeded { RestartPolicy::Always } else { RestartPolicy::OnFailure };
        plan_container(container, own, policy, now, plan);
        return false;
    }
    true
}

fn plan_container(
    container: &Container,
    record: &ContainerRecord,
    policy: RestartPolicy,
    now: Timestamp,
    plan: &mut Plan,
) {
    match &record.current {
        None => match retry_at(record, now) {
            Some(until) => plan.waiting.push((container.name.clone(), until)),
            None => plan.start.push(container.name.clone()),
        },
        Some(run) => {
            let Some(end) = &run.end else { return };
            if run.outdated {
                plan.start.push(container.name.clone());
                return;
            }
            if !restarts(policy, end.exit_code) {
                return;
            }
            match retry_at(record, now) {
                Some(until) => plan.waiting.push((container.name.clone(), until)),
                None => plan.start.push(container.name.clone()),
            }
        }
    }
}

/// Whether a container that ended so will have another run.
pub fn runs_again(spec: &PodSpec, name: &str, exit_code: i32) -> bool {
    let init = spec.init_containers.iter().find(|container| container.name == name);
    let policy = match init {
        Some(container) if container.is_sidecar() => RestartPolicy::Always,
        // One that succeeded is not needed again.
        Some(_) if spec.restart_policy == RestartPolicy::Always => RestartPolicy::OnFailure,
        None if spec.ephemeral_containers.iter().any(|container| container.name == name) => RestartPolicy::Never,
        _ => spec.restart_policy,
    };
    restarts(policy, exit_code)
}

fn restarts(policy: RestartPolicy, exit_code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// The end of the back-off, if it lies ahead. It counts from the end of the last run.
fn retry_at(record: &ContainerRecord, now: Timestamp) -> Option<Timestamp> {
    let back_off = record.back_off?;
    let since = record.end().and_then(|end| end.finished_at).unwrap_or(back_off.since);
    let until = since.checked_add(SignedDuration::from_secs(back_off.seconds.into())).ok()?;
    (until > now).then_some(until)
}

/// The back-off to remember when a container that has run before is started again at `now`.
pub fn next_back_off(record: &ContainerRecord, now: Timestamp) -> Option<BackOff> {
    if record.current.as_ref().is_some_and(|run| run.outdated) {
        return None; // it was not at fault
    }
    let ran = record.current.as_ref().and_then(|run| {
        let end = run.end.as_ref()?;
        Some(end.finished_at?.duration_since(run.started_at?))
    });
    let seconds = match record.back_off {
        Some(back_off) if ran.is_none_or(|ran| ran < RESET_AFTER) => (back_off.seconds * 2).min(MAX_BACK_OFF),
        _ => FIRST_BACK_OFF,
    };
    Some(BackOff { seconds, since: now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{End, Run};
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn record(containers: &[(&str, ContainerRecord)]) -> Record {
        Record {
            ips: Vec::new(),
            started_at: at(0),
            containers: containers.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect(),
            ..crate::record::tests::record("u")
        }
    }

    fn running() -> ContainerRecord {
        let run = Run { started_at: Some(at(0)), ..Run::default() };
        ContainerRecord { runs: 1, current: Some(run), ..ContainerRecord::default() }
    }

    fn ended(code: i32, finished: i64, back_off: Option<u32>) -> ContainerRecord {
        let end = End {
            exit_code: code,
            reason: String::new(),
            message: None,
            started_at: Some(at(0)),
            finished_at: Some(at(finished)),
            id: String::new(),
        };
        let run = Run { started_at: Some(at(0)), end: Some(end), ..Run::default() };
        let back_off = back_off.map(|seconds| BackOff { seconds, since: at(0) });
        ContainerRecord { runs: 1, current: Some(run), last: None, back_off }
    }

    fn plan_at(spec: &PodSpec, containers: &[(&str, ContainerRecord)], now: i64) -> Plan {
        plan(spec, &record(containers), at(now), &|_| true)
    }

    #[test]
    fn everything_starts_at_once_without_init() {
        let spec = spec(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(plan_at(&spec, &[], 0).start, ["a", "b"]);
        assert_eq!(plan_at(&spec, &[("a", running())], 0).start, ["b"]);
        assert!(plan_at(&spec, &[("a", running()), ("b", running())], 0).start.is_empty());
    }

    #[test]
    fn init_containers_come_one_by_one() {
        let spec = spec(json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]}));
        assert_eq!(plan_at(&spec, &[], 0).start, ["i"]);
        assert!(plan_at(&spec, &[("i", running())], 0).start.is_empty());
        assert_eq!(plan_at(&spec, &[("i", ended(0, 1, None))], 0).start, ["j"]);
        let done = plan_at(&spec, &[("i", ended(0, 1, None)), ("j", ended(0, 1, None))], 0);
        assert!(done.initialized && done.start == ["a"]);
        assert_eq!(plan_at(&spec, &[("i", ended(1, 1, None))], 2).start, ["i"], "a failed one is tried again");
    }

    #[test]
    fn a_failed_init_container_ends_a_pod_that_never_restarts() {
        let spec =
            spec(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        assert!(!plan_at(&spec, &[("i", ended(1, 1, None))], 0).finished.unwrap().succeeded);
    }

    #[test]
    fn sidecars_run_beside_the_main_containers() {
        let spec = spec(json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "a"}]}));
        assert_eq!(plan_at(&spec, &[], 0).start, ["s"]);
        assert_eq!(plan_at(&spec, &[("s", running())], 0).start, ["i"]);
        let later = [("s", ended(1, 1, None)), ("i", ended(0, 1, None)), ("a", running())];
        assert_eq!(plan_at(&spec, &later, 2).start, ["s"]);
        let over = [("s", ended(1, 1, Some(10))), ("i", ended(0, 1, None)), ("a", ended(0, 1, None))];
        let job = PodSpec { restart_policy: RestartPolicy::Never, ..spec.clone() };
        assert!(plan_at(&job, &over, 2).finished.unwrap().succeeded, "a crashing sidecar doesn't hold the pod");
        let waits = plan(&spec, &record(&[("s", running())]), at(0), &|_| false);
        assert!(waits.start.is_empty(), "its startup probe has not passed");
    }

    #[test]
    fn a_container_whose_image_changed_begins_anew_whatever_the_policy() {
        for policy in ["Always", "OnFailure", "Never"] {
            let spec = spec(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let mut stopped = ended(0, 1, Some(300));
            stopped.current.as_mut().unwrap().outdated = true;
            let plan = plan_at(&spec, &[("a", stopped.clone())], 1);
            assert_eq!((plan.start.as_slice(), plan.finished), (["a".to_owned()].as_slice(), None), "{policy}");
            assert_eq!(next_back_off(&stopped, at(1)), None);
        }
    }

    #[test]
    fn ephemeral_containers_run_once_beside_whatever_the_pod_does() {
        let spec =
            spec(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "e"}]}));
        assert_eq!(plan_at(&spec, &[], 0).start, ["e", "i"]);
        assert_eq!(plan_at(&spec, &[("e", running()), ("i", running())], 0).start, Vec::<String>::new());
        let over = [("e", ended(1, 1, None)), ("i", ended(0, 1, None)), ("a", running())];
        assert_eq!(plan_at(&spec, &over, 1).start, Vec::<String>::new(), "it does not run again");
        let through = [("e", running()), ("i", ended(0, 1, None)), ("a", ended(0, 1, None))];
        assert!(plan_at(&spec, &through, 1).finished.unwrap().succeeded, "it does not hold the pod");
    }

    #[test]
    fn who_runs_again() {
        let spec = |policy: &str| {
            spec(json!({"restartPolicy": policy, "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e"}],
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}))
        };
        let again = |policy: &str, code| ["a", "i", "s", "e"].map(|name| runs_again(&spec(policy), name, code));
        assert_eq!(again("Always", 128), [true, true, true, false]);
        assert_eq!(again("OnFailure", 128), [true, true, true, false]);
        assert_eq!(again("Never", 128), [false, false, true, false]);
        assert_eq!(again("Always", 0), [true, false, true, false]);
    }

    #[test]
    fn restart_policies() {
        for (policy, code, restarted, succeeded) in [
            ("Always", 0, true, None),
            ("OnFailure", 1, true, None),
            ("OnFailure", 0, false, Some(true)),
            ("Never", 1, false, Some(false)),
        ] {
            let spec = spec(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let plan = plan_at(&spec, &[("a", ended(code, 1, None))], 2);
            assert_eq!(plan.start == ["a"], restarted, "{policy} {code}");
            assert_eq!(plan.finished.map(|finished| finished.succeeded), succeeded, "{policy} {code}");
        }
    }

    #[test]
    fn a_pod_is_not_over_while_one_container_runs() {
        let spec = spec(json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(plan_at(&spec, &[("a", ended(1, 1, None)), ("b", running())], 2).finished, None);
    }

    #[test]
    fn back_off_counts_from_the_end_of_the_run() {
        let spec = spec(json!({"containers": [{"name": "a"}]}));
        let crashed = [("a", ended(1, 100, Some(20)))];
        let early = plan_at(&spec, &crashed, 110);
        assert_eq!((early.start.len(), early.wake_at()), (0, Some(at(120))));
        assert_eq!(plan_at(&spec, &crashed, 120).start, ["a"]);
    }

    #[test]
    fn back_off_doubles_and_starts_over_after_a_long_run() {
        let mut seconds = Vec::new();
        let mut container = ended(1, 1, None);
        for _ in 0..7 {
            let back_off = next_back_off(&container, at(1)).unwrap();
            seconds.push(back_off.seconds);
            container.back_off = Some(back_off);
        }
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(next_back_off(&ended(1, 601, Some(300)), at(601)).unwrap().seconds, 10);
    }
}
