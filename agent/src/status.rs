//! `status` as the kubelet writes it: a pure function of the pod, its record and what is known about waits and probes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::{Container, Pod, PodSpec, RestartPolicy};
use crate::record::{Cause, Record, Run};

mod conditions;
mod containers;
mod resize;

pub use conditions::OWN_CONDITIONS;
use conditions::conditions;
use containers::{Role, container_status};
pub use resize::{resize_pending, resize_refused};

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
    /// The node's, first the one by which it is known.
    pub host_ips: &'a [IpAddr],
    pub now: Timestamp,
}

/// The new status. Fields and conditions that others own are kept from the pod's present one.
pub fn status(inputs: &Inputs<'_>) -> Value {
    let (spec, old) = (&inputs.pod.spec, &inputs.pod.status);
    let phase = phase(inputs);
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
    out.insert("startTime".into(), json!(rfc3339(inputs.record.started_at)));
    let listed = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Value>();
    out.insert("hostIP".into(), json!(inputs.host_ips.first()));
    out.insert("hostIPs".into(), listed(inputs.host_ips));
    let ips = pod_ips(spec, inputs.record, inputs.host_ips);
    if let Some(first) = ips.first().filter(|_| inputs.sandbox_ready) {
        out.insert("podIP".into(), json!(first));
        out.insert("podIPs".into(), listed(ips));
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
    out.insert("conditions".into(), conditions(inputs, &statuses, phase));
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

/// The addresses of a pod: its own, or those of the node whose network it shares.
pub fn pod_ips<'a>(spec: &PodSpec, record: &'a Record, host_ips: &'a [IpAddr]) -> &'a [IpAddr] {
    if spec.host_network { host_ips } else { &record.ips }
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

#[cfg(test)]
mod tests;
