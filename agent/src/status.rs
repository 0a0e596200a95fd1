//! `status` as the kubelet writes it: a pure function of the pod, its record and what is known about waits and probes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::model::{Container, Pod, PodSpec, RestartPolicy, VolumeMount};
use crate::oci::user::User;
use crate::record::{Cause, ContainerRecord, End, Progress, Record, Run};

/// Why a container isn't running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: &'static str,
    pub message: Option<String>,
}

/// What probes found about a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub started: bool,
    pub ready: bool,
}

#[derive(Debug)]
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub record: &'a Record,
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub health: &'a BTreeMap<String, Health>,
    pub sandbox_ready: bool,
    pub initialized: bool,
    /// The container whose postStart hook runs: until it is through, the API calls it waiting.
    pub starting: Option<&'a str>,
    pub host_ip: IpAddr,
    pub now: Timestamp,
}

/// The new status. Fields and conditions that others own are kept from the pod's present one.
pub fn status(inputs: &Inputs<'_>) -> Value {
    let (spec, old) = (&inputs.pod.spec, &inputs.pod.status);
    let phase = phase(inputs);
    let terminal = matches!(phase, "Succeeded" | "Failed");
    let mut out: Map<String, Value> = old.as_object().cloned().unwrap_or_default();
    for field in ["reason", "message"] {
        out.remove(field);
    }
    if let Some(finished) = &inputs.record.finished {
        for (field, value) in [("reason", &finished.reason), ("message", &finished.message)] {
            out.extend(value.as_ref().map(|value| (field.to_owned(), json!(value))));
        }
    }
    out.insert("phase".into(), json!(phase));
    out.insert("startTime".into(), json!(seconds(inputs.record.started_at)));
    out.insert("hostIP".into(), json!(inputs.host_ip));
    out.insert("hostIPs".into(), json!([{"ip": inputs.host_ip}]));
    let ip = if spec.host_network { Some(inputs.host_ip) } else { inputs.record.ip };
    if let Some(ip) = ip.filter(|_| inputs.sandbox_ready) {
        out.insert("podIP".into(), json!(ip));
        out.insert("podIPs".into(), json!([{"ip": ip}]));
    }
    if cause(inputs) == Some(Cause::Rejected) {
        return Value::Object(out); // nothing of it was ever here
    }
    let of = |list: &[Container], role| -> Vec<Value> {
        list.iter().map(|container| container_status(inputs, container, role)).collect()
    };
    let (mut statuses, mut init) = (of(&spec.containers, Role::Main), of(&spec.init_containers, Role::Init));
    if inputs.record.finished.is_some() {
        close(&mut statuses, &mut init);
    }
    out.insert("conditions".into(), conditions(inputs, &statuses, terminal));
    out.insert("containerStatuses".into(), Value::Array(statuses));
    if !init.is_empty() {
        out.insert("initContainerStatuses".into(), Value::Array(init));
    }
    if !spec.ephemeral_containers.is_empty() {
        out.insert("ephemeralContainerStatuses".into(), Value::Array(of(&spec.ephemeral_containers, Role::Ephemeral)));
    }
    if let Some(generation) = inputs.pod.metadata.generation {
        out.insert("observedGeneration".into(), json!(generation));
    }
    Value::Object(out)
}

fn cause(inputs: &Inputs<'_>) -> Option<Cause> {
    inputs.record.finished.as_ref().map(|finished| finished.cause)
}

/// Nothing of a pod that is over waits: what did not end in sight ended unseen. Containers of a pod that was never
/// initialised did not begin, and no more of its init containers than were reached.
fn close(statuses: &mut [Value], init: &mut [Value]) {
    let reached = |status: &Value| status["state"].get("waiting").is_none() || status["lastState"] != json!({});
    let begun = init.iter().rposition(reached).map_or(1, |last| last + 1).min(init.len());
    let done = init.last().is_none_or(|last| last["state"]["terminated"]["exitCode"] == 0);
    let main = if done || statuses.iter().any(reached) { statuses } else { &mut [] };
    let all = main.iter_mut().chain(&mut init[..begun]);
    for status in all.filter(|status| status["state"].get("terminated").is_none()) {
        status["state"] = json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
            "message": "The container could not be located when the pod was terminated",
            "startedAt": null, "finishedAt": null}});
    }
}

fn phase(inputs: &Inputs<'_>) -> &'static str {
    if let Some(finished) = &inputs.record.finished {
        return if finished.succeeded { "Succeeded" } else { "Failed" };
    }
    let spec = &inputs.pod.spec;
    let started = |container: &Container| {
        inputs.record.containers.get(&container.name).is_some_and(|record| {
            let begun = |run: &Run| run.end.is_some() || (run.started_at.is_some() && !inputs.starts(container));
            record.last.is_some() || record.current.as_ref().is_some_and(begun)
        })
    };
    let all_ended =
        spec.containers.iter().all(|c| inputs.record.containers.get(&c.name).is_some_and(|r| r.end().is_some()));
    if inputs.record.stopping.is_some() && all_ended && spec.restart_policy != RestartPolicy::Always {
        let codes = spec.containers.iter().filter_map(|c| inputs.record.containers.get(&c.name)?.end());
        return if codes.into_iter().all(|end| end.exit_code == 0) { "Succeeded" } else { "Failed" };
    }
    if inputs.initialized && spec.containers.iter().all(started) { "Running" } else { "Pending" }
}

impl Inputs<'_> {
    fn starts(&self, container: &Container) -> bool {
        self.starting == Some(container.name.as_str())
    }
}

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Init,
    Main,
    Ephemeral,
}

fn container_status(inputs: &Inputs<'_>, container: &Container, role: Role) -> Value {
    let none = ContainerRecord::default();
    let record = inputs.record.containers.get(&container.name).unwrap_or(&none);
    let running = record.running() && !inputs.starts(container);
    let health = inputs.health.get(&container.name).copied();
    let plain_init = role == Role::Init && !container.is_sidecar();
    let ready = match role {
        Role::Ephemeral => false,
        _ if plain_init => record.end().is_some_and(|end| end.exit_code == 0),
        _ => running && health.is_some_and(|health| health.ready),
    };
    let mut status = json!({
        "name": container.name,
        "state": state(inputs, container, record),
        "lastState": {},
        "ready": ready,
        "restartCount": record.restarts(),
        "image": container.image,
        "imageID": "",
    });
    if role != Role::Ephemeral {
        status["started"] = json!(running && (plain_init || health.is_some_and(|health| health.started)));
    }
    if let Some(run) = &record.current {
        status["image"] = json!(run.image);
        status["imageID"] = json!(run.image_id);
        status["containerID"] = json!(format!("amphipod://{}", run.id));
        if let Some(User { uid, gid, groups }) = &run.user {
            status["user"] = json!({"linux": {"uid": uid, "gid": gid, "supplementalGroups": groups}});
        }
    }
    if !container.volume_mounts.is_empty() {
        status["volumeMounts"] = container.volume_mounts.iter().map(volume_mount).collect();
    }
    let limit = message_bytes(inputs);
    if waits(inputs, container, record) {
        // What ended last is history once the state says "waiting".
        if let Some(end) = record.end().or(record.last.as_ref()) {
            status["lastState"] = json!({"terminated": terminated(end, limit)});
        }
    } else if let Some(end) = &record.last {
        status["lastState"] = json!({"terminated": terminated(end, limit)});
    }
    status
}

fn volume_mount(mount: &VolumeMount) -> Value {
    let mut out = json!({"name": mount.name, "mountPath": mount.mount_path});
    if mount.read_only {
        let recursive = mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled");
        out["readOnly"] = json!(true);
        out["recursiveReadOnly"] = json!(if recursive { "Enabled" } else { "Disabled" });
    }
    out
}

/// How much of each termination message there is room for: 12 KiB for all of the pod's.
fn message_bytes(inputs: &Inputs<'_>) -> usize {
    let spec = &inputs.pod.spec;
    let count = spec.containers.len() + spec.init_containers.len() + spec.ephemeral_containers.len();
    (12 << 10) / count.max(1)
}

/// An ended container shows as waiting while it waits for its next run.
fn waits(inputs: &Inputs<'_>, container: &Container, record: &ContainerRecord) -> bool {
    !record.running() && (record.current.is_none() || inputs.waiting.contains_key(&container.name))
}

fn state(inputs: &Inputs<'_>, container: &Container, record: &ContainerRecord) -> Value {
    if let Some(Progress::Running(started_at)) = record.current.as_ref().map(Run::progress)
        && !inputs.starts(container)
    {
        return json!({"running": {"startedAt": seconds(started_at)}});
    }
    if let (Some(end), false) = (record.end(), inputs.waiting.contains_key(&container.name)) {
        return json!({"terminated": terminated(end, message_bytes(inputs))});
    }
    let default = if inputs.pod.spec.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    match inputs.waiting.get(&container.name) {
        Some(Waiting { reason, message: Some(message) }) => json!({"waiting": {"reason": reason, "message": message}}),
        Some(Waiting { reason, message: None }) => json!({"waiting": {"reason": reason}}),
        None => json!({"waiting": {"reason": default}}),
    }
}

fn terminated(end: &End, message_bytes: usize) -> Value {
    let mut out = json!({
        "exitCode": end.exit_code,
        "reason": end.reason,
        "startedAt": end.started_at.map(seconds),
        "finishedAt": end.finished_at.map(seconds),
        "containerID": format!("amphipod://{}", end.id),
    });
    if let Some(message) = &end.message {
        out["message"] = json!(message[..message.floor_char_boundary(message_bytes)]);
    }
    out
}

/// What others wrote into a pod's status, with this node's own part as `written`.
pub fn merge(seen: &Value, written: &Value) -> Value {
    let mut out = seen.as_object().cloned().unwrap_or_default();
    for (field, value) in written.as_object().into_iter().flatten() {
        if OWN_FIELDS.contains(&field.as_str()) {
            out.insert(field.clone(), value.clone());
        }
    }
    let list = |status: &Value, own: bool| -> Vec<Value> {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let is_own = |condition: &Value| condition["type"].as_str().is_some_and(|kind| OWN_CONDITIONS.contains(&kind));
        conditions.into_iter().filter(|condition| is_own(condition) == own).collect()
    };
    out.insert("conditions".into(), Value::Array([list(seen, false), list(written, true)].concat()));
    Value::Object(out)
}

const OWN_FIELDS: [&str; 10] = [
    "phase",
    "startTime",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "observedGeneration",
];
/// Conditions that are the agent's alone: one that it does not write is gone.
pub const OWN_CONDITIONS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", RESIZE];
const RESIZE: &str = "PodResizePending";
/// Of whoever ends a pod for reasons that are not its own; the node is one of them.
const DISRUPTED: &str = "DisruptionTarget";
/// What the condition says.
const NO_RESIZE: &str = "this node does not change the resources of containers that run";

/// Conditions of the kubelet, with those of others kept.
fn conditions(inputs: &Inputs<'_>, statuses: &[Value], terminal: bool) -> Value {
    let old = inputs.pod.status["conditions"].as_array().cloned().unwrap_or_default();
    let unready = |statuses: &[Value]| -> Vec<String> {
        let not = statuses.iter().filter(|status| status["ready"] != true);
        not.filter_map(|status| status["name"].as_str().map(str::to_owned)).collect()
    };
    let not_ready = unready(statuses);
    let containers = condition_of(!terminal && not_ready.is_empty(), terminal, inputs, "ContainersNotReady", || {
        format!("containers with unready status: [{}]", not_ready.join(" "))
    });
    let gates = missing_gates(inputs, &old);
    let ready = if containers.0 && !gates.is_empty() {
        (false, Some("ReadinessGatesNotReady"), Some(gates.join(", ")))
    } else {
        containers.clone()
    };
    let initialized = initialized(inputs);
    let own = [
        ("PodReadyToStartContainers", (inputs.sandbox_ready && !terminal, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", (true, None, None)),
    ];
    let is_own = |condition: &Value| OWN_CONDITIONS.iter().any(|kind| condition["type"] == *kind);
    let mut list: Vec<Value> = old.iter().filter(|condition| !is_own(condition)).cloned().collect();
    if resize_pending(&inputs.pod.spec, inputs.record) {
        let pending = (true, Some("Infeasible"), Some(NO_RESIZE.to_owned()));
        list.push(condition(inputs, &old, RESIZE, &pending));
    }
    list.extend(own.iter().map(|(kind, found)| condition(inputs, &old, kind, found)));
    if let Some(finished) = inputs.record.finished.as_ref().filter(|finished| finished.cause == Cause::Pressure) {
        list.retain(|condition| condition["type"] != DISRUPTED);
        let found = (true, Some("TerminationByKubelet"), finished.message.clone());
        list.push(condition(inputs, &old, DISRUPTED, &found));
    }
    Value::Array(list)
}

/// A pod that once began its containers was initialised; one that failed before never is.
fn initialized(inputs: &Inputs<'_>) -> Found {
    let record = |container: &Container| inputs.record.containers.get(&container.name);
    let begun = |container: &Container| record(container).is_some_and(|record| record.runs > 0);
    let done = |container: &Container| {
        record(container).is_some_and(|record| match container.is_sidecar() {
            true => record.runs > 0,
            false => record.end().is_some_and(|end| end.exit_code == 0),
        })
    };
    let spec = &inputs.pod.spec;
    if inputs.record.finished.as_ref().is_some_and(|finished| finished.succeeded) {
        return (true, Some("PodCompleted"), None);
    }
    let incomplete: Vec<&str> =
        spec.init_containers.iter().filter(|container| !done(container)).map(|container| &*container.name).collect();
    let ongoing = inputs.initialized && inputs.record.finished.is_none();
    if incomplete.is_empty() || ongoing || spec.containers.iter().any(begun) {
        return (true, None, None);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    (false, Some("ContainersNotInitialized"), Some(message))
}

/// Whether the pod asks for other resources than its containers were started with.
pub fn resize_pending(spec: &PodSpec, record: &Record) -> bool {
    spec.containers.iter().any(|container| {
        let run = record.containers.get(&container.name).and_then(|record| record.current.as_ref());
        let running = run.filter(|run| run.end.is_none()).and_then(|run| run.resources.as_ref());
        running.is_some_and(|resources| *resources != container.resources)
    })
}

/// What an event says of a resize that is not done, as the kubelet's do: what was asked for, and why not.
pub fn resize_refused(pod: &Pod) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Value>,
        containers: Vec<Value>,
        generation: i64,
        error: &'a str,
    }
    let of = |container: &Container| {
        let mut resources = Map::new();
        for (name, list) in [("limits", &container.resources.limits), ("requests", &container.resources.requests)] {
            resources.extend((!list.is_empty()).then(|| (name.to_owned(), json!(list))));
        }
        json!({"name": container.name, "resources": resources})
    };
    let all = |list: &[Container]| list.iter().map(of).collect();
    let (init_containers, containers) = (all(&pod.spec.init_containers), all(&pod.spec.containers));
    let generation = pod.metadata.generation.unwrap_or(0);
    let asked = Asked { init_containers, containers, generation, error: NO_RESIZE };
    // Plain values have a JSON text.
    format!("Pod resize Infeasible: {}", serde_json::to_string(&asked).unwrap_or_default())
}

type Found = (bool, Option<&'static str>, Option<String>);

fn condition_of(
    good: bool,
    terminal: bool,
    inputs: &Inputs<'_>,
    reason: &'static str,
    message: impl Fn() -> String,
) -> Found {
    match (good, terminal, &inputs.record.finished) {
        (true, ..) => (true, None, None),
        (false, true, Some(finished)) if finished.succeeded => (false, Some("PodCompleted"), None),
        (false, true, _) => (false, Some("PodFailed"), None),
        (false, false, _) => (false, Some(reason), Some(message())),
    }
}

fn missing_gates(inputs: &Inputs<'_>, old: &[Value]) -> Vec<String> {
    let gates = inputs.pod.spec.readiness_gates.iter().filter_map(|gate| gate["conditionType"].as_str());
    let good = |gate: &str| old.iter().any(|condition| condition["type"] == gate && condition["status"] == "True");
    gates
        .filter(|gate| !good(gate))
        .map(|gate| format!("corresponding condition of pod readiness gate {gate:?} does not exist."))
        .collect()
}

fn condition(inputs: &Inputs<'_>, old: &[Value], kind: &str, found: &Found) -> Value {
    let (good, reason, message) = found;
    let value = if *good { "True" } else { "False" };
    let before = old.iter().find(|condition| condition["type"] == kind);
    let since = before.filter(|before| before["status"] == value).map(|before| before["lastTransitionTime"].clone());
    let mut out = json!({
        "type": kind,
        "status": value,
        "lastProbeTime": null,
        "lastTransitionTime": since.filter(Value::is_string).unwrap_or_else(|| json!(seconds(inputs.now))),
    });
    if let Some(generation) = inputs.pod.metadata.generation {
        out["observedGeneration"] = json!(generation);
    }
    if let Some(reason) = reason {
        out["reason"] = json!(reason);
    }
    if let Some(message) = message {
        out["message"] = json!(message);
    }
    out
}

/// The API's times have whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Resources;
    use crate::record::Finished;

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
            pod: crate::boundary::PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() },
            object: std::sync::Arc::default(),
            ip: Some("10.0.0.2".parse().unwrap()),
            users: None,
            started_at: at(0),
            sandboxes: 1,
            boot: String::new(),
            containers: containers.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect(),
            finished: None,
            stopping: None,
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
            host_ip: "192.168.0.1".parse().unwrap(),
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
        let container = &status["containerStatuses"][0];
        assert_eq!(container["containerID"], "amphipod://id0");
        assert_eq!(container["state"]["running"]["startedAt"], "2023-11-14T22:13:21Z");
        let ready = condition(&status, "Ready");
        assert_eq!((&ready["status"], &ready["observedGeneration"]), (&json!("True"), &json!(3)));
        assert_eq!(ready["lastTransitionTime"], "2023-11-14T22:13:25Z");
        assert_eq!(condition(&status, "example.com/gate")["status"], "True");
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
            record.finished = Some(Finished::ended(false));
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
        let finished = Finished::ended(true);
        let status = status_of(pod(), &[("a", run(Some(0)))], &[], |record| record.finished = Some(finished));
        assert_eq!(status["phase"], "Succeeded");
        assert_eq!(condition(&status, "Ready")["reason"], "PodCompleted");
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    }
}
