//! RuntimeClasses.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Put, Version};
use crate::names::dns_label;
use crate::validate::At;
use crate::validate::pod::{placement, resources};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        At::of(object, "handler").named(dns_label, errors);
        let overhead = At::of(object, "overhead");
        if overhead.is_given() {
            resources(&json!({"limits": overhead.at("podFixed").value}), overhead.path(), errors);
        }
        let scheduling = At::of(object, "scheduling");
        scheduling.at("nodeSelector").labels(errors);
        let tolerations = scheduling.at("tolerations");
        placement::tolerations(tolerations.value, &format!("{}.tolerations", tolerations.path()), errors);
        let mut seen = HashSet::new();
        for toleration in tolerations.items() {
            let key = ["key", "operator", "value", "effect"].map(|field| toleration.at(field).text());
            if !seen.insert(key) {
                let shown: Value = crate::validate::internal::shown("core.v1.Toleration", toleration.value);
                At::new(&shown, toleration.path()).duplicate(errors);
            }
        }
    }),
    validate_update: Some(|new, old, errors| At::of(new, "handler").unchanged(&At::of(old, "handler"), errors)),
    put: Put::Creates,
    version: Version::Needed,
    cells: Some(|o, _| vec![("Handler", o["handler"].clone())]),
    none: &[Aspect::Defaults],
    missing: &[(Aspect::Warnings, "of old node labels")],
    ..DEFAULT
};
