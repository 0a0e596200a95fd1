//! IPAddresses: who has an address of a ServiceCIDR.

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT};
use crate::names::{dns_subdomain, path_segment};
use crate::status::FieldError;
use crate::validate::{At, Errors, meta::immutable};
use crate::value::text;

pub const BEHAVIOUR: Behaviour = Behaviour {
    name: ip_name,
    validate: Some(ip_address),
    validate_update: Some(|new, old, errors| {
        immutable(&new["spec"]["parentRef"], &old["spec"]["parentRef"], "spec.parentRef", errors);
    }),
    cells: Some(|o, _| vec![("ParentRef", json!(parent(&o["spec"]["parentRef"])))]),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

/// The name of an IPAddress is the address.
fn ip_name(name: &str) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == name => Vec::new(),
        _ => vec!["not a valid ip in canonical format".into()],
    }
}

fn ip_address(object: &Value, errors: &mut Errors) {
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        errors.push(FieldError::required("spec.parentRef", ""));
        return;
    }
    let parent = At::new(parent, "spec.parentRef");
    parent.at("group").named_if_given(dns_subdomain, errors);
    parent.at("resource").needs_name(path_segment, errors);
    parent.at("name").needs_name(path_segment, errors);
    parent.at("namespace").named_if_given(path_segment, errors);
}

fn parent(reference: &Value) -> String {
    let parts = ["group", "resource", "namespace", "name"].map(|n| text(&reference[n]));
    match parts {
        ["", resource, "", name] => format!("{resource}/{name}"),
        ["", resource, namespace, name] => format!("{resource}/{namespace}/{name}"),
        [group, resource, namespace, name] => format!("{resource}.{group}/{namespace}/{name}"),
    }
}
