//! PersistentVolumeClaims.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Part, Shows};
use crate::default::{nested, set, set_absent};
use crate::names::{dns_label, dns_subdomain, qualified_name};
use crate::quantity::Quantity;
use crate::table::cells::access_modes;
use crate::validate::{At, Errors, diff, volumes};
use crate::value::{entries, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| spec(&At::of(object, "spec"), errors)),
    validate_update: Some(update),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            status(new, errors);
        }
    }),
    defaults: &[
        ("core.v1.PersistentVolumeClaimSpec", |m| set_absent(m, "volumeMode", "Filesystem")),
        ("core.v1.PersistentVolumeClaim", |m| nested(m, "status", |s| set(s, "phase", "Pending"))),
    ],
    create: Some(|claim| claim["status"] = json!({"phase": "Pending"})),
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(cells),
    inactive: Some("no volume is bound or provisioned"),
    missing: &[(Aspect::Warnings, "of sizes with fractions of bytes")],
    ..DEFAULT
};

/// What a claim asks for, in templates too.
pub fn spec(spec: &At<'_>, errors: &mut Errors) {
    if spec.at("accessModes").is_empty() {
        spec.at("accessModes").required("at least 1 access mode is required", errors);
    }
    spec.at("selector").selector(errors);
    volumes::access_modes(&spec.at("accessModes"), errors);
    let storage = spec.at("resources").at("requests").at("storage");
    let storage = At::new(storage.value, format!("{}.resources[storage]", spec.path()));
    match storage.is_given() {
        true => storage.positive_quantity(errors),
        false => storage.required("", errors),
    }
    spec.at("storageClassName").named_if_given(dns_subdomain, errors);
    spec.at("volumeMode").one_of_if_given(&["Block", "Filesystem"], errors);
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    for source in [&source, &reference].into_iter().filter(|source| source.is_given()) {
        data_source(source, errors);
    }
    reference.at("namespace").named_if_given(dns_label, errors);
    let wrong = |why: &str, errors: &mut Errors| spec.invalid_as(json!({}), why, errors);
    if source.is_given() && !reference.at("namespace").is_empty() {
        wrong("may not be specified when dataSourceRef.namespace is specified", errors);
    } else if source.is_given() && reference.is_given() {
        let same = ["apiGroup", "kind", "name"].iter().all(|field| source.at(field).value == reference.at(field).value);
        if !same {
            wrong("must match dataSourceRef", errors);
        }
    }
    spec.at("volumeAttributesClassName").named_if_given(dns_subdomain, errors);
}

fn data_source(source: &At<'_>, errors: &mut Errors) {
    source.at("name").needs_text(errors);
    source.at("kind").needs_text(errors);
    let (group, kind) = (source.at("apiGroup"), source.at("kind").text());
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        source.invalid_as(kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup", errors);
    }
    group.named_if_given(dns_subdomain, errors);
}

/// The class was an annotation once.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = At::of(new, "spec");
    self::spec(&spec, errors);
    let (mut after, mut before) = (new["spec"].clone(), old["spec"].clone());
    if text(&before["volumeName"]).is_empty() {
        take(&mut before, &after, &["volumeName"]);
    }
    let annotation = |object: &Value| object["metadata"]["annotations"].get(CLASS).cloned();
    let (was, now) = (annotation(old), annotation(new));
    let upgraded = was.is_some()
        && before["storageClassName"].is_null()
        && after["storageClassName"] == was.clone().unwrap_or_default()
        && (now.is_none() || now == was);
    let named = !after["storageClassName"].is_null()
        && before["storageClassName"].is_null()
        && was.as_ref().is_none_or(|was| *was == after["storageClassName"]);
    if !upgraded && now != was {
        let annotations = At::of(new, "metadata").at("annotations");
        let at = At::new(annotations.value, format!("metadata.annotations[{CLASS}]"));
        at.invalid_as(now.unwrap_or_else(|| json!("")), "field is immutable", errors);
    }
    if upgraded || named {
        take(&mut after, &before, &["storageClassName"]);
    }
    if new["status"]["phase"] == "Bound" {
        let size = old["spec"]["resources"]["requests"].get("storage").cloned();
        if let (Some(size), Some(requests)) = (size, after["resources"]["requests"].as_object_mut()) {
            requests.insert("storage".into(), size);
        }
        take(&mut after, &before, &["volumeAttributesClassName"]);
    }
    if after != before {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        spec.forbidden(format!("{why}\n{}", diff(&after, &before)), errors);
    }
    let amount = |value: &Value| Quantity::parse(text(value)).unwrap_or(Quantity::from_int(0));
    let size = spec.at("resources").at("requests").at("storage");
    if amount(size.value) < amount(&old["spec"]["resources"]["requests"]["storage"])
        && amount(size.value) <= amount(&old["status"]["capacity"]["storage"])
    {
        size.forbidden("field can not be less than status.capacity", errors);
    }
    At::new(spec.at("volumeMode").value, "volumeMode").unchanged(&At::of(&old["spec"], "volumeMode"), errors);
    let (class, was) = (spec.at("volumeAttributesClassName"), &old["spec"]["volumeAttributesClassName"]);
    if class.value != was && !old["status"]["currentVolumeAttributesClassName"].is_null() && class.is_empty() {
        let what = if class.is_given() { "empty string" } else { "nil" };
        let why = format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil");
        class.forbidden(why, errors);
    }
}

/// These fields as another state has them.
fn take(into: &mut Value, from: &Value, fields: &[&str]) {
    let Some(map) = into.as_object_mut() else { return };
    for field in fields {
        match from.get(*field) {
            Some(value) => map.insert((*field).into(), value.clone()),
            None => map.remove(*field),
        };
    }
}

const RESIZING: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn status(claim: &Value, errors: &mut Errors) {
    if entries(&claim["spec"]).all(|(field, _)| field != "accessModes") {
        At::new(&Value::Null, "Spec.accessModes").required("", errors);
    }
    let status = At::of(claim, "status");
    for (_, amount) in status.at("capacity").entries() {
        volumes::basic_amount(&amount, errors);
    }
    let states = status.at("allocatedResourceStatuses");
    for (name, state) in states.entries() {
        resource_key(name, &states, errors);
        if !RESIZING.contains(&state.text()) {
            At::new(&json!(name), states.path()).not_supported(&sorted(RESIZING), errors);
        }
    }
    let allocated = status.at("allocatedResources");
    for (name, amount) in allocated.entries() {
        if resource_key(name, &allocated, errors) {
            volumes::basic_amount(&amount, errors);
            amount.not_negative_quantity(errors);
        }
    }
}

fn sorted<const N: usize>(mut list: [&'static str; N]) -> [&'static str; N] {
    list.sort_unstable();
    list
}

/// Storage, or what a driver calls its own.
fn resource_key(name: &str, at: &At<'_>, errors: &mut Errors) -> bool {
    let key = json!(name);
    let at = At::new(&key, at.path());
    let complaints = qualified_name(name);
    if !complaints.is_empty() {
        at.complain(complaints, errors);
        return false;
    }
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if native && name != "storage" {
        at.not_supported(&["storage"], errors);
        return false;
    }
    true
}

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
