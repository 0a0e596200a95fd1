//! ReplicationControllers: what came before ReplicaSets.

use super::{Behaviour, DEFAULT, Deletion, Dependents, Generation, replica_set};
use crate::default::{Object, nested, set_absent};
use crate::selector::field;

pub const BEHAVIOUR: Behaviour = Behaviour {
    defaults: &[("core.v1.ReplicationController", default)],
    generation: Generation::Spec,
    delete: Deletion { dependents: Dependents::Orphaned, ..Deletion::DEFAULT },
    selectable: &[field("status.replicas").or("0")],
    pod: Some("/spec/template"),
    cells: Some(replica_set::cells),
    inactive: Some("no pods are made for it"),
    ..DEFAULT
};

fn default(map: &mut Object) {
    let labels = map.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        nested(map, "spec", |spec| set_absent(spec, "selector", labels.clone()));
        nested(map, "metadata", |metadata| set_absent(metadata, "labels", labels));
    }
    nested(map, "spec", |spec| set_absent(spec, "replicas", 1));
}
