//! PersistentVolumeClaims.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Deletion, Shows};
use crate::default::{nested, set, set_absent};
use crate::table::cells::access_modes;
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[
        ("core.v1.PersistentVolumeClaimSpec", |m| set_absent(m, "volumeMode", "Filesystem")),
        ("core.v1.PersistentVolumeClaim", |m| nested(m, "status", |s| set(s, "phase", "Pending"))),
    ],
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(cells),
    inactive: Some("no volume is bound or provisioned"),
    ..DEFAULT
};

fn cells(claim: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let phase = if claim["metadata"]["deletionTimestamp"].is_null() { text(&status["phase"]) } else { "Terminating" };
    let volume = text(&spec["volumeName"]);
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (text(&status["capacity"]["storage"]).into(), access_modes(&status["accessModes"])),
    };
    let or_unset = |v: &Value| json!(if text(v).is_empty() { "<unset>" } else { text(v) });
    vec![
        ("Status", json!(phase)),
        ("Volume", json!(volume)),
        ("Capacity", json!(capacity)),
        ("Access Modes", json!(modes)),
        ("StorageClass", json!(text(&spec["storageClassName"]))),
        ("VolumeAttributesClass", or_unset(&spec["volumeAttributesClassName"])),
        ("VolumeMode", or_unset(&spec["volumeMode"])),
    ]
}
