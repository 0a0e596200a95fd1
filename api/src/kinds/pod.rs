//! Pods.

mod birth;
mod cells;
mod resize;
mod update;

use serde_json::{Value, json};

pub use self::birth::qos_class;

use super::{Aspect, Behaviour, DEFAULT, Deletion, Ending, Generation, Part, Shows};
use crate::default::{Object, nested, set, set_absent, text as member};
use crate::selector::field;
use crate::status::FieldError;
use crate::validate::{Errors, pod::spec};
use crate::value::{items, text};
use crate::write::{keep_field, put, section};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(pod),
    validate_update: Some(update::whole),
    validate_part: Some(|part, new, old, errors| match part {
        Part::Resize => resize::check(new, old, errors),
        Part::EphemeralContainers => update::ephemeral_containers(new, old, errors),
        Part::Status => update::pod_status(new, old, errors),
        _ => {}
    }),
    defaults: &[
        ("core.v1.Pod", default),
        ("core.v1.PodStatus", |m| match (member(m, "podIP").to_string(), m.get("podIPs").cloned()) {
            (ip, None) if !ip.is_empty() => {
                m.insert("podIPs".into(), json!([{"ip": ip}]));
            }
            (ip, Some(Value::Array(list))) if ip.is_empty() && !list.is_empty() => {
                m.insert("podIP".into(), list[0]["ip"].clone());
            }
            _ => {}
        }),
    ],
    generation: Generation::Spec,
    create: Some(birth::new_pod),
    update_part: Some(take),
    status_keeps: &["deletionTimestamp", "ownerReferences"],
    delete: Deletion { ending: Ending::Graceful(grace), shows: Shows::Object, ..Deletion::DEFAULT },
    selectable: &[
        field("spec.nodeName"),
        field("spec.restartPolicy"),
        field("spec.schedulerName"),
        field("spec.serviceAccountName"),
        field("spec.hostNetwork").or("false"),
        field("status.phase"),
        field("status.podIP"),
        field("status.podIPs"),
        field("status.nominatedNodeName"),
    ],
    pod: Some(""),
    cells: Some(cells::of),
    row_conditions: Some(cells::conditions),
    missing: &[
        (
            Aspect::Validation,
            "Windows options, devices, resources of whole pods, and the inner fields of volume sources other than emptyDir, hostPath, secret, configMap, claims",
        ),
        (Aspect::Warnings, "of volume sources and fields that are old"),
    ],
    ..DEFAULT
};

fn pod(object: &Value, errors: &mut Errors) {
    spec(&object["spec"], "spec", errors);
    if items(&object["spec"]["ephemeralContainers"]).next().is_some() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
}

/// Only in pods, not in templates.
fn default(map: &mut Object) {
    let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) else { return };
    set_absent(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    nested(resources, "requests", |requests| {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    });
}

fn host_ports(container: &mut Value) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(number) = port.get("containerPort").cloned() {
            set_host_port(port, number);
        }
    }
}

fn set_host_port(port: &mut Value, number: Value) {
    if let Some(port) = port.as_object_mut() {
        set(port, "hostPort", number);
    }
}

/// Grace of a pod: none when no node runs it, or when it has ended.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let bound = !text(&pod["spec"]["nodeName"]).is_empty();
    let ended = matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
    if !bound || ended {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match asked.unwrap_or(own) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// What a write through a part of a pod takes.
fn take(part: Part, out: &mut Value, sent: &Value, old: &Value) {
    match part {
        Part::Status if out["status"]["qosClass"].is_null() => keep_field(out, old, "status", "qosClass"),
        Part::EphemeralContainers => put(section(out, "spec"), &sent["spec"], "ephemeralContainers"),
        Part::Resize => {
            for list in ["containers", "initContainers"] {
                take_resources(section(out, "spec").get_mut(list), &sent["spec"][list]);
            }
        }
        _ => {}
    }
}

/// Resources and their policy, container by container of the same name; containers come and go on no other way either.
fn take_resources(containers: Option<&mut Value>, sent: &Value) {
    for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
        let wanted = sent.as_array().into_iter().flatten().find(|other| other["name"] == container["name"]);
        if let (Some(container), Some(wanted)) = (container.as_object_mut(), wanted) {
            put(container, wanted, "resources");
            put(container, wanted, "resizePolicy");
        }
    }
}
