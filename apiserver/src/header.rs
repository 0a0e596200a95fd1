//! An object as its kind is now, and what is known of it beside its bytes.

use api::kind::{Kind, Text};
use api::uid::Uid;
use serde_json::Value;

use crate::object::Header;

/// A stored object as its kind is now.
pub(crate) fn shown(kind: &Kind, object: Value) -> Value {
    // A definition may say less than it did; what Kubernetes itself has only grows.
    let mut object = match &kind.custom {
        Some(_) => api::decode::canonical(&kind.gvk(), &kind.schema, &object),
        None => object,
    };
    api::default::apply(kind, &mut object);
    api::decode::canonical(&kind.gvk(), &kind.schema, &object)
}

/// The header of an object of this (storage) kind.
pub(crate) fn header(kind: &Kind, object: &Value) -> Header {
    let metadata = &object["metadata"];
    let labels = metadata["labels"].as_object().into_iter().flatten();
    Header {
        uid: Uid::of(object),
        labels: labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
        fields: api::selector::selectable(kind)
            .map(|field| (label(kind, field.stored), field.value(object).into()))
            .collect(),
    }
}

/// The name of a field: of the kinds of Kubernetes itself it is never copied.
fn label(kind: &Kind, stored: &str) -> Text {
    let known = api::selector::COMMON.iter().chain(kind.behaviour.selectable).find(|field| field.stored == stored);
    known.map_or_else(|| stored.to_owned().into(), |field| field.stored.into())
}
