//! The status of each container.

use serde_json::{Value, json};

use api::time::rfc3339;

use super::{Inputs, Waiting};
use crate::model::{Container, VolumeMount};
use crate::oci::user::User;
use crate::record::{ContainerRecord, End, Progress, Run};

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Role {
    Init,
    Main,
    Ephemeral,
}

pub(super) fn container_status(inputs: &Inputs<'_>, container: &Container, role: Role) -> Value {
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
        return json!({"running": {"startedAt": rfc3339(started_at)}});
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
        "startedAt": end.started_at.map(rfc3339),
        "finishedAt": end.finished_at.map(rfc3339),
        "containerID": format!("amphipod://{}", end.id),
    });
    if let Some(message) = &end.message {
        out["message"] = json!(message[..message.floor_char_boundary(message_bytes)]);
    }
    out
}
