//! Namespaces: they begin with a finalizer of their own, and end when what they hold is gone.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Ending, Generation, Part};
use crate::default::{Object, nested, text as member};
use crate::names;
use crate::selector::field;
use crate::status::FieldError;
use crate::validate::{Errors, invalid};
use crate::value::{items, text};
use crate::write::{keep, keep_field, section};

pub const BEHAVIOUR: Behaviour = Behaviour {
    name: names::dns_label,
    validate: Some(namespace),
    defaults: &[("core.v1.Namespace", label)],
    generation: Generation::Client,
    create: Some(new_namespace),
    update: Some(|new, old| keep_field(new, old, "spec", "finalizers")),
    // The only thing a namespace's spec has is what it is for.
    update_part: Some(|part, out, sent, old| {
        if part == Part::Finalize {
            *out = sent.clone();
            keep(out, old, "status");
        }
    }),
    delete: Deletion {
        protected: &["default", "kube-system", "kube-public"],
        ending: Ending::Held(|namespace| items(&namespace["spec"]["finalizers"]).next().is_some()),
        ..Deletion::DEFAULT
    },
    selectable: &[field("status.phase")],
    cells: Some(|o, _| vec![("Status", o["status"]["phase"].clone())]),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

fn namespace(object: &Value, errors: &mut Errors) {
    for finalizer in items(&object["spec"]["finalizers"]) {
        invalid("spec.finalizers", finalizer, names::qualified_name(text(finalizer)), errors);
        if !text(finalizer).contains('/') && text(finalizer) != "kubernetes" {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("spec.finalizers", finalizer.clone(), why));
        }
    }
}

fn label(map: &mut Object) {
    let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let name = member(metadata, "name").to_string();
    if !name.is_empty() {
        nested(metadata, "labels", |labels| {
            labels.insert("kubernetes.io/metadata.name".into(), json!(name));
        });
    }
}

fn new_namespace(namespace: &mut Value) {
    let finalizers = section(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.contains(&json!("kubernetes"))
    {
        list.push(json!("kubernetes"));
    }
    section(namespace, "status").insert("phase".into(), json!("Active"));
}
