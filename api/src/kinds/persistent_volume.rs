//! PersistentVolumes.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Shows};
use crate::default::{nested, set, set_absent};
use crate::table::cells::access_modes;
use crate::validate::{At, Errors, diff, volumes};
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        let name = text(&object["metadata"]["name"]);
        volumes::volume(&At::of(object, "spec"), volumes::Place::Object(name), errors);
    }),
    validate_update: Some(update),
    defaults: &[("core.v1.PersistentVolume", |m| {
        nested(m, "spec", |s| {
            set(s, "persistentVolumeReclaimPolicy", "Retain");
            set_absent(s, "volumeMode", "Filesystem");
        });
        nested(m, "status", |s| set(s, "phase", "Pending"));
    })],
    create: Some(|volume| {
        let born = volume["metadata"]["creationTimestamp"].clone();
        volume["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": born});
    }),
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(|o, _| cells(o)),
    inactive: Some("no volume is bound or mounted"),
    missing: &[(Aspect::Warnings, "of old volume sources, old labels, and old annotations")],
    ..DEFAULT
};

fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = At::of(new, "spec");
    volumes::volume(&spec, volumes::Place::Object(text(&new["metadata"]["name"])), errors);
    let source = |object: &Value| -> Value {
        let mut found = json!({});
        for name in volumes::SOURCES.iter().filter(|name| !object["spec"][**name].is_null()) {
            found[*name] = object["spec"][*name].clone();
        }
        found
    };
    let (mut after, before) = (source(new), source(old));
    // The secret for growing a volume may come later.
    if before["csi"].is_object()
        && before["csi"]["controllerExpandSecretRef"].is_null()
        && let Some(csi) = after["csi"].as_object_mut()
    {
        csi.remove("controllerExpandSecretRef");
    }
    if after != before {
        let why = "spec.persistentvolumesource is immutable after creation";
        At::new(spec.value, "spec.persistentvolumesource")
            .forbidden(format!("{why}\n{}", diff(&after, &before)), errors);
    }
    let (mode, was) = (At::new(spec.at("volumeMode").value, "volumeMode"), At::of(&old["spec"], "volumeMode"));
    mode.unchanged(&was, errors);
    let (affinity, was) = (spec.at("nodeAffinity"), &old["spec"]["nodeAffinity"]);
    if !was.is_null() && volumes::with_new_labels(affinity.value) != volumes::with_new_labels(was) {
        let at = At::new(affinity.value, "nodeAffinity");
        let why = "field is immutable, except for updating from beta label to GA";
        at.invalid_struct("core.v1.VolumeNodeAffinity", why, errors);
    }
    let class = spec.at("volumeAttributesClassName");
    if !old["spec"]["volumeAttributesClassName"].is_null() && !class.is_given() {
        class.forbidden("update from non-nil value to nil is forbidden", errors);
    }
}

fn cells(volume: &Value) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let phase = if volume["metadata"]["deletionTimestamp"].is_null() { text(&status["phase"]) } else { "Terminating" };
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
    };
    let or_unset = |v: &Value| json!(v.as_str().unwrap_or("<unset>"));
    let size = spec["capacity"]["storage"].as_str().unwrap_or("0");
    vec![
        ("Capacity", json!(size)),
        ("Access Modes", json!(access_modes(&spec["accessModes"]))),
        ("Reclaim Policy", json!(text(&spec["persistentVolumeReclaimPolicy"]))),
        ("Status", json!(phase)),
        ("Claim", json!(claim)),
        ("StorageClass", json!(text(&spec["storageClassName"]))),
        ("VolumeAttributesClass", or_unset(&spec["volumeAttributesClassName"])),
        ("Reason", json!(text(&status["reason"]))),
        ("VolumeMode", or_unset(&spec["volumeMode"])),
    ]
}
