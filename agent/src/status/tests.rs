//! The status of pods at moments of their lives.

use super::conditions::{DISRUPTED, RESIZE};
use super::*;
use crate::model::Resources;
use crate::record::{ContainerRecord, End, Finished};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn run(end: Option<i32>) -> ContainerRecord {
    let end = end.map(|exit_code| End {
        exit_code,
        reason: if exit_code == 0 { "Completed".into() } else { "Error".into() },
        message: None,
        started_at: Some(at(1)),
        finished_at: Some(at(2)),
        id: "id0".into(),
    });
    let run = Run { id: "id0".into(), image: "i".into(), started_at: Some(at(1)), end, ..Run::default() };
    ContainerRecord { runs: 1, current: Some(run), ..ContainerRecord::default() }
}

fn status_of(
    pod: Value,
    containers: &[(&str, ContainerRecord)],
    waiting: &[(&str, &'static str)],
    change: impl FnOnce(&mut Record),
) -> Value {
    status_while(None, pod, containers, waiting, change)
}

fn status_while(
    starting: Option<&str>,
    pod: Value,
    containers: &[(&str, ContainerRecord)],
    waiting: &[(&str, &'static str)],
    change: impl FnOnce(&mut Record),
) -> Value {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let mut record = Record {
        started_at: at(0),
        containers: containers.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect(),
        ..crate::record::tests::record("u")
    };
    change(&mut record);
    let waiting =
        waiting.iter().map(|(name, reason)| ((*name).to_owned(), Waiting { reason, message: None })).collect();
    let health =
        containers.iter().map(|(name, _)| ((*name).to_owned(), Health { started: true, ready: true })).collect();
    status(&Inputs {
        pod: &pod,
        record: &record,
        waiting: &waiting,
        health: &health,
        sandbox_ready: true,
        initialized: true,
        starting,
        host_ips: &["192.168.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()),
        now: at(5),
    })
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
}

fn pod() -> Value {
    json!({"metadata": {"generation": 3}, "spec": {"containers": [{"name": "a", "image": "nginx"}]},
        "status": {"qosClass": "BestEffort", "conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "example.com/gate", "status": "True"}]}})
}

#[test]
fn a_running_pod() {
    let status = status_of(pod(), &[("a", run(None))], &[], |_| {});
    assert_eq!(
        (&status["phase"], &status["podIP"], &status["qosClass"]),
        (&json!("Running"), &json!("10.0.0.2"), &json!("BestEffort"))
    );
    assert_eq!((&status["hostIP"], &status["hostIPs"][1]["ip"]), (&json!("192.168.0.1"), &json!("fd00::1")));
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "amphipod://id0");
    assert_eq!(container["state"]["running"]["startedAt"], "2023-11-14T22:13:21Z");
    let ready = condition(&status, "Ready");
    assert_eq!((&ready["status"], &ready["observedGeneration"]), (&json!("True"), &json!(3)));
    assert_eq!(ready["lastTransitionTime"], "2023-11-14T22:13:25Z");
    assert_eq!(condition(&status, "example.com/gate")["status"], "True");
}

#[test]
fn a_pod_has_addresses_of_both_families_or_those_of_its_host() {
    let ips = |status: &Value| (status["podIP"].clone(), status["podIPs"].clone());
    let both = |record: &mut Record| record.ips.push("fd00::2".parse().unwrap());
    let own = status_of(pod(), &[("a", run(None))], &[], both);
    assert_eq!(ips(&own), (json!("10.0.0.2"), json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}])));
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let host = status_of(host, &[("a", run(None))], &[], |record| record.ips.clear());
    assert_eq!(ips(&host), (json!("192.168.0.1"), json!([{"ip": "192.168.0.1"}, {"ip": "fd00::1"}])));
}

#[test]
fn a_transition_time_stays_until_the_status_changes() {
    let status = status_of(pod(), &[], &[("a", "ImagePullBackOff")], |_| {});
    assert_eq!(status["phase"], "Pending");
    assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [a]");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ImagePullBackOff");
}

#[test]
fn others_conditions_are_taken_and_own_ones_kept() {
    let seen = json!({"qosClass": "Burstable", "phase": "Pending", "conditions": [
        {"type": "Ready", "status": "False"}, {"type": "example.com/gate", "status": "False"}]});
    let written = json!({"phase": "Running", "qosClass": "BestEffort", "conditions": [
        {"type": "example.com/gate", "status": "True"}, {"type": "Ready", "status": "True"}]});
    let expected = json!({"qosClass": "Burstable", "phase": "Running", "conditions": [
        {"type": "example.com/gate", "status": "False"}, {"type": "Ready", "status": "True"}]});
    assert_eq!(merge(&seen, &written), expected);
}

#[test]
fn a_pod_that_failed_in_its_first_steps_was_never_initialised() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([{"name": "one", "image": "i"}, {"name": "two", "image": "i"}]);
    let fail = |record: &mut Record| {
        record.finished = Some(Finished::badly());
    };
    let status = status_of(pod.clone(), &[("one", run(Some(0))), ("two", run(Some(1)))], &[], fail);
    let found = condition(&status, "Initialized");
    assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("ContainersNotInitialized")));
    assert_eq!(found["message"], "containers with incomplete status: [two]");
    let begun = [("one", run(Some(0))), ("two", run(Some(0))), ("a", run(Some(1)))];
    assert_eq!(condition(&status_of(pod, &begun, &[], fail), "Initialized")["status"], "True");
}

#[test]
fn a_crash_loop_shows_the_last_end() {
    let status = status_of(pod(), &[("a", run(Some(1)))], &[("a", "CrashLoopBackOff")], |_| {});
    let container = &status["containerStatuses"][0];
    assert_eq!(status["phase"], "Running");
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
}

#[test]
fn a_rejected_pod_has_no_containers_to_tell_of() {
    let finished = Finished::failed("SysctlForbidden", "no".into(), Cause::Rejected);
    let status = status_of(pod(), &[], &[], |record| {
        (record.finished, record.sandboxes) = (Some(finished), 0);
    });
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("SysctlForbidden")));
    assert!(status.get("containerStatuses").is_none());
}

#[test]
fn a_pod_that_ended_before_it_had_a_sandbox_tells_of_its_containers() {
    let late = Finished::failed("DeadlineExceeded", "late".into(), Cause::Itself);
    let end = |record: &mut Record| (record.finished, record.sandboxes) = (Some(late.clone()), 0);
    let unknown = json!("ContainerStatusUnknown");
    let status = status_of(pod(), &[], &[], end);
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], unknown);
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    let mut stuck = pod();
    stuck["spec"]["initContainers"] = json!([{"name": "one", "image": "i"}, {"name": "two", "image": "i"}]);
    let status = status_of(stuck, &[], &[], end);
    let reason = |list: &str, index: usize, state: &str| status[list][index]["state"][state]["reason"].clone();
    assert_eq!(reason("initContainerStatuses", 0, "terminated"), unknown);
    assert_eq!(reason("initContainerStatuses", 1, "waiting"), "PodInitializing");
    assert_eq!(reason("containerStatuses", 0, "waiting"), "PodInitializing");
}

#[test]
fn a_pod_that_went_for_the_nodes_sake_says_so() {
    let evicted = |cause| {
        let finished = Finished::failed("Evicted", "full".into(), cause);
        status_of(pod(), &[("a", run(Some(137)))], &[], |record| record.finished = Some(finished))
    };
    let short = evicted(Cause::Pressure);
    let found = condition(&short, DISRUPTED);
    assert_eq!((&found["reason"], &found["message"]), (&json!("TerminationByKubelet"), &json!("full")));
    assert_eq!((&short["phase"], &short["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert!(!evicted(Cause::Itself).to_string().contains(DISRUPTED));
}

#[test]
fn one_that_could_not_start_is_no_less_over_than_one_that_ran() {
    let mut two = pod();
    two["spec"]["containers"] = json!([{"name": "a"}, {"name": "b"}]);
    let mut unfit = run(Some(128));
    unfit.current.as_mut().unwrap().started_at = None;
    let status = status_of(two, &[("a", unfit), ("b", run(None))], &[], |_| {});
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 128);
}

#[test]
fn a_container_waits_until_its_first_hook_is_through() {
    let status = status_while(Some("a"), pod(), &[("a", run(None))], &[], |_| {});
    assert_eq!(status["phase"], "Pending");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "ContainerCreating");
    assert_eq!((&container["ready"], &container["started"]), (&json!(false), &json!(false)));
}

#[test]
fn ephemeral_containers_are_told_apart_and_count_for_nothing() {
    let mut with = pod();
    with["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox"}]);
    let status = status_of(with, &[("a", run(None)), ("debug", run(Some(1)))], &[], |_| {});
    assert_eq!((&status["phase"], &condition(&status, "Ready")["status"]), (&json!("Running"), &json!("True")));
    let debug = &status["ephemeralContainerStatuses"][0];
    assert_eq!((&debug["name"], &debug["ready"]), (&json!("debug"), &json!(false)));
    assert_eq!(debug["state"]["terminated"]["exitCode"], 1);
    assert!(debug.get("started").is_none());
}

#[test]
fn messages_of_many_containers_share_the_room() {
    let mut many = pod();
    many["spec"]["containers"] = (0..4).map(|n| json!({"name": n.to_string()})).collect();
    let mut ended = run(Some(1));
    let message = "\u{e9}".repeat(2048);
    ended.current.as_mut().unwrap().end.as_mut().unwrap().message = Some(message);
    let status = status_of(many, &[("0", ended)], &[], |_| {});
    let message = status["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap();
    assert_eq!(message.len(), 3072);
}

#[test]
fn a_resize_is_said_to_be_out_of_reach() {
    let mut running = run(None);
    running.current.as_mut().unwrap().resources = Some(Resources::default());
    assert!(!status_of(pod(), &[("a", running.clone())], &[], |_| {}).to_string().contains(RESIZE));
    let mut resized = pod();
    resized["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    let status = status_of(resized.clone(), &[("a", running)], &[], |_| {});
    assert_eq!(condition(&status, RESIZE)["reason"], "Infeasible");
    let event = resize_refused(&serde_json::from_value(resized).unwrap());
    assert_eq!(
        event,
        "Pod resize Infeasible: {\"containers\":[{\"name\":\"a\",\"resources\":{\"limits\":{\"cpu\":\"1\"}}}],\
         \"generation\":3,\"error\":\"this node does not change the resources of containers that run\"}"
    );
}

#[test]
fn a_pod_that_is_through() {
    let finished = Finished::well();
    let status = status_of(pod(), &[("a", run(Some(0)))], &[], |record| record.finished = Some(finished));
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(condition(&status, "Ready")["reason"], "PodCompleted");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
}
