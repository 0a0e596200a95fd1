//! ReplicaSets, and what ReplicationControllers share with them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Behaviour, DEFAULT, Generation, Part};
use crate::default::{nested, set_absent};
use crate::selector::field;
use crate::table::cells::template as columns;
use crate::validate::meta::{immutable, not_negative};
use crate::validate::workload::{Counts, chosen, counts, template};
use crate::validate::{At, Errors};
use crate::value::number;

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(replica_set),
    validate_update: Some(|new, old, errors| {
        immutable(&new["spec"]["selector"], &old["spec"]["selector"], "spec.selector", errors);
        replica_set(new, errors);
    }),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            counts(&COUNTS, &At::of(new, "status"), &At::of(old, "status"), errors);
        }
    }),
    defaults: &[("apps.v1.ReplicaSet", |m| nested(m, "spec", |s| set_absent(s, "replicas", 1)))],
    generation: Generation::Spec,
    selectable: &[field("status.replicas").or("0")],
    unknown_field: Some(|path| format!("field label not supported for appsv1.ReplicaSet: {path}")),
    pod: Some("/spec/template"),
    cells: Some(cells),
    ..DEFAULT
};

const COUNTS: Counts = Counts {
    fields: &[
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ],
    parts: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    ready: "cannot be greater than readyReplicas",
};

fn replica_set(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    not_negative(&spec["replicas"], "spec.replicas", errors);
    not_negative(&spec["minReadySeconds"], "spec.minReadySeconds", errors);
    chosen(spec, "deployment", errors);
    template(spec, errors);
}

pub fn cells(object: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let mut out = vec![
        ("Desired", json!(number(&object["spec"]["replicas"]))),
        ("Current", json!(number(&object["status"]["replicas"]))),
        ("Ready", json!(number(&object["status"]["readyReplicas"]))),
    ];
    out.extend(columns(object));
    out
}
