//! ReplicationControllers: what came before ReplicaSets.

use super::{Behaviour, DEFAULT, Deletion, Dependents, Generation, Part, replica_set};
use crate::default::{Object, nested, set_absent};
use crate::selector::{Labels, field};
use crate::validate::workload::{Counts, counts};
use crate::validate::{At, Errors, pod};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| controller(&At::of(object, "spec"), errors)),
    validate_part: Some(|part, new, old, errors| {
        if part == Part::Status {
            counts(&COUNTS, &At::of(new, "status"), &At::of(old, "status"), errors);
        }
    }),
    defaults: &[("core.v1.ReplicationController", default)],
    generation: Generation::Spec,
    delete: Deletion { dependents: Dependents::Orphaned, ..Deletion::DEFAULT },
    selectable: &[field("status.replicas").or("0")],
    pod: Some("/spec/template"),
    cells: Some(replica_set::cells),
    warnings: Some(|controller| super::job::name_warnings(controller).into_iter().collect()),
    ..DEFAULT
};

const COUNTS: Counts = Counts {
    fields: &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
    parts: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    ready: "cannot be greater than readyReplicas",
};

fn controller(spec: &At<'_>, errors: &mut Errors) {
    spec.at("minReadySeconds").not_negative(errors);
    if spec.at("selector").is_empty() {
        spec.at("selector").required("", errors);
    }
    match spec.at("replicas") {
        replicas if replicas.is_given() => replicas.not_negative(errors),
        replicas => replicas.required("", errors),
    }
    let template = spec.at("template");
    if !template.is_given() {
        return template.required("", errors);
    }
    let (selector, labels) = (Labels::from_map(spec.at("selector").value), template.at("metadata").at("labels"));
    if !selector.matches(|key| labels.value.get(key)?.as_str()) {
        labels.invalid_as(labels.value.clone(), "`selector` does not match template `labels`", errors);
    }
    pod::template(template.value, template.path(), errors);
    let pod = template.at("spec");
    pod.at("restartPolicy").one_of(&["Always"], errors);
    if pod.at("activeDeadlineSeconds").is_given() {
        let why = "activeDeadlineSeconds in ReplicationController is not Supported";
        pod.at("activeDeadlineSeconds").forbidden(why, errors);
    }
}

fn default(map: &mut Object) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        nested(map, "spec", |spec| set_absent(spec, "selector", labels.clone()));
        nested(map, "metadata", |metadata| set_absent(metadata, "labels", labels));
    }
    nested(map, "spec", |spec| set_absent(spec, "replicas", 1));
}
