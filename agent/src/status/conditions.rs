//! The pod's conditions that are the node's to write, beside those of others.

use serde_json::{Value, json};

use api::conditions::{self, Condition};
use api::time::rfc3339;

use super::Inputs;
use super::resize::{NO_RESIZE, resize_pending};
use crate::model::Container;
use crate::record::Cause;

/// Conditions that are the agent's alone: one that it does not write is gone.
pub const OWN_CONDITIONS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", RESIZE];
pub(super) const RESIZE: &str = "PodResizePending";
/// Of whoever ends a pod for reasons that are not its own; the node is one of them.
pub(super) const DISRUPTED: &str = "DisruptionTarget";

/// Conditions of the kubelet, with those of others kept.
pub(super) fn conditions(inputs: &Inputs<'_>, statuses: &[Value], phase: &str) -> Value {
    let terminal = matches!(phase, "Succeeded" | "Failed");
    let old = &inputs.pod.status["conditions"];
    let unready = |statuses: &[Value]| -> Vec<String> {
        let not = statuses.iter().filter(|status| status["ready"] != true);
        not.filter_map(|status| status["name"].as_str().map(str::to_owned)).collect()
    };
    let not_ready = unready(statuses);
    let containers = match (terminal, &not_ready[..]) {
        (true, _) => over(inputs),
        (false, []) => (true, None, None),
        (false, names) => {
            let message = format!("containers with unready status: [{}]", names.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    };
    let gates = missing_gates(inputs, old);
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
    let mut said: Vec<Condition> = Vec::new();
    if resize_pending(&inputs.pod.spec, inputs.record) {
        said.push(condition(inputs, RESIZE, (true, Some("Infeasible"), Some(NO_RESIZE.to_owned()))));
    }
    said.extend(own.map(|(kind, found)| condition(inputs, kind, found)));
    if let Some(finished) = inputs.record.finished.as_ref().filter(|finished| finished.cause == Cause::Pressure) {
        said.push(condition(inputs, DISRUPTED, (true, Some("TerminationByKubelet"), finished.message.clone())));
    }
    let others = conditions::others(old, &OWN_CONDITIONS, &said);
    let own = conditions::stamped(old, &said, conditions::OF_PODS, &rfc3339(inputs.now));
    json!([others, own].concat())
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

type Found = (bool, Option<&'static str>, Option<String>);

/// Of a pod that is over no container is ready.
fn over(inputs: &Inputs<'_>) -> Found {
    let completed = inputs.record.finished.as_ref().is_some_and(|finished| finished.succeeded);
    (false, Some(if completed { "PodCompleted" } else { "PodFailed" }), None)
}

fn missing_gates(inputs: &Inputs<'_>, old: &Value) -> Vec<String> {
    let gates = inputs.pod.spec.readiness_gates.iter().filter_map(|gate| gate["conditionType"].as_str());
    let old = || old.as_array().into_iter().flatten();
    let good = |gate: &str| old().any(|condition| condition["type"] == gate && condition["status"] == "True");
    gates
        .filter(|gate| !good(gate))
        .map(|gate| format!("corresponding condition of pod readiness gate {gate:?} does not exist."))
        .collect()
}

fn condition(inputs: &Inputs<'_>, kind: &str, (good, reason, message): Found) -> Condition {
    Condition::new(kind, good)
        .because(reason.unwrap_or_default(), message.unwrap_or_default())
        .of_generation(inputs.pod.metadata.generation)
}
