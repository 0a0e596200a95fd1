//! Kinds of `storage.k8s.io`: classes of volumes, drivers, and what is attached where.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Part, Shows, Version};
use crate::default::{nested, set_absent};
use crate::names::{dns_subdomain, qualified_name};
use crate::validate::{At, Errors, volumes};
use crate::value::{entries, items, text};

const COMMON: Behaviour = Behaviour { delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT }, ..DEFAULT };

pub const CLASS: Behaviour = Behaviour {
    validate: Some(class),
    validate_update: Some(class_update),
    defaults: &[("storage.v1.StorageClass", |m| {
        set_absent(m, "reclaimPolicy", "Delete");
        set_absent(m, "volumeBindingMode", "Immediate");
    })],
    cells: Some(|o, _| class_cells(o)),
    inactive: Some("no volume is provisioned"),
    missing: &[(Aspect::Warnings, "of old labels in topologies")],
    ..COMMON
};

pub const ATTRIBUTES_CLASS: Behaviour = Behaviour {
    validate: Some(attributes_class),
    validate_update: Some(|new, old, errors| {
        for field in ["driverName", "parameters"].iter().filter(|field| new[**field] != old[**field]) {
            At::of(new, field).forbidden(format!("updates to {field} are forbidden."), errors);
        }
        attributes_class(new, errors);
    }),
    cells: Some(|o, _| vec![("DriverName", o["driverName"].clone())]),
    inactive: Some("no volume is changed by it"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..COMMON
};

pub const DRIVER: Behaviour = Behaviour {
    validate: Some(|object, errors| driver(&At::of(object, "spec"), errors)),
    validate_update: Some(|new, old, errors| {
        let (spec, before) = (At::of(new, "spec"), At::of(old, "spec"));
        driver(&spec, errors);
        let attach = spec.at("attachRequired");
        At::new(attach.value, "spec.attachedRequired").unchanged(&before.at("attachRequired"), errors);
        spec.at("volumeLifecycleModes").unchanged(&before.at("volumeLifecycleModes"), errors);
    }),
    defaults: &[("storage.v1.CSIDriver", |m| {
        nested(m, "spec", |spec| {
            set_absent(spec, "attachRequired", true);
            set_absent(spec, "podInfoOnMount", false);
            set_absent(spec, "storageCapacity", false);
            set_absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
                spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
            }
            set_absent(spec, "requiresRepublish", false);
            set_absent(spec, "seLinuxMount", false);
        });
    })],
    version: Version::Needed,
    cells: Some(|o, _| driver_cells(o)),
    inactive: Some("no volume is mounted by it"),
    none: &[Aspect::Warnings],
    ..COMMON
};

pub const NODE: Behaviour = Behaviour {
    validate: Some(node),
    validate_update: Some(|new, old, errors| {
        node(new, errors);
        let drivers = At::of(new, "spec").at("drivers");
        for before in items(&old["spec"]["drivers"]) {
            let after = drivers.items().find(|driver| driver.value["name"] == before["name"]);
            if let Some(after) = after {
                let at = At::new(after.value, drivers.path());
                at.unchanged_struct("storage.v1.CSINodeDriver", &At::new(before, ""), errors);
            }
        }
    }),
    version: Version::Needed,
    cells: Some(|o, _| vec![("Drivers", json!(items(&o["spec"]["drivers"]).len()))]),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..COMMON
};

pub const CAPACITY: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        At::of(object, "nodeTopology").selector(errors);
        At::of(object, "storageClassName").named(dns_subdomain, errors);
        At::of(object, "capacity").not_negative_quantity(errors);
    }),
    validate_update: Some(|new, old, errors| {
        for field in ["nodeTopology", "storageClassName"] {
            At::of(new, field).unchanged(&At::of(old, field), errors);
        }
    }),
    version: Version::Needed,
    none: &[Aspect::Defaults],
    missing: &[(Aspect::Warnings, "of old labels in the topology")],
    ..DEFAULT
};

pub const ATTACHMENT: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        attachment(object, errors);
        volumes::driver(&At::of(object, "spec").at("attacher"), errors);
        let volume = At::of(object, "spec").at("source").at("persistentVolumeName");
        if volume.is_given() {
            volume.named(dns_subdomain, errors);
        }
    }),
    validate_update: Some(|new, old, errors| {
        attachment(new, errors);
        let spec = At::of(new, "spec");
        spec.unchanged_struct("storage.v1.VolumeAttachmentSpec", &At::of(old, "spec"), errors);
    }),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            attachment(new, errors);
        }
    }),
    version: Version::Needed,
    cells: Some(|o, _| {
        vec![
            ("Attacher", json!(text(&o["spec"]["attacher"]))),
            ("PV", json!(text(&o["spec"]["source"]["persistentVolumeName"]))),
            ("Node", json!(text(&o["spec"]["nodeName"]))),
            ("Attached", json!(o["status"]["attached"] == true)),
        ]
    }),
    inactive: Some("no volume is attached"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..COMMON
};

fn class(object: &Value, errors: &mut Errors) {
    provisioner(&At::of(object, "provisioner"), errors);
    parameters(&At::of(object, "parameters"), errors);
    let policy = At::of(object, "reclaimPolicy");
    if !policy.is_empty() {
        policy.one_of(&["Delete", "Retain"], errors);
    }
    let mode = At::of(object, "volumeBindingMode");
    match mode.is_given() {
        true => mode.one_of(&["Immediate", "WaitForFirstConsumer"], errors),
        false => mode.required("", errors),
    }
    topologies(&At::of(object, "allowedTopologies"), errors);
}

fn class_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["parameters", "provisioner", "reclaimPolicy"].iter().filter(|field| new[**field] != old[**field]) {
        At::of(new, field).forbidden(format!("updates to {field} are forbidden."), errors);
    }
    At::of(new, "volumeBindingMode").unchanged(&At::of(old, "volumeBindingMode"), errors);
}

fn attributes_class(object: &Value, errors: &mut Errors) {
    provisioner(&At::of(object, "driverName"), errors);
    let parameters = At::of(object, "parameters");
    self::parameters(&parameters, errors);
    if parameters.is_empty() {
        parameters.required("must contain at least one key/value pair", errors);
    }
}

fn provisioner(name: &At<'_>, errors: &mut Errors) {
    match name.text() {
        "" => name.required("", errors),
        text => {
            let lower = json!(text.to_lowercase());
            At::new(&lower, name.path()).named(qualified_name, errors);
        }
    }
}

const PARAMETERS: usize = 512;
const PARAMETER_BYTES: usize = 256 * 1024;

fn parameters(parameters: &At<'_>, errors: &mut Errors) {
    if parameters.entries().count() > PARAMETERS {
        return parameters.too_long(PARAMETERS, errors);
    }
    let mut size = 0;
    for (key, value) in parameters.entries() {
        if key.is_empty() {
            parameters.invalid_as(key, "field can not be empty.", errors);
        }
        size += key.len() + value.text().len();
    }
    if size > PARAMETER_BYTES {
        parameters.too_long(PARAMETER_BYTES, errors);
    }
}

fn topologies(topologies: &At<'_>, errors: &mut Errors) {
    let mut terms = HashSet::new();
    for term in topologies.items() {
        let rules = term.at("matchLabelExpressions");
        let (mut keys, mut shape) = (HashSet::new(), Vec::new());
        for rule in rules.items() {
            let values = rule.at("values");
            if values.is_empty() {
                values.required("", errors);
            }
            let mut seen = HashSet::new();
            for value in values.items() {
                if !seen.insert(value.text()) {
                    value.duplicate(errors);
                }
            }
            rule.at("key").named(qualified_name, errors);
            if !keys.insert(rule.at("key").text()) {
                rule.at("key").duplicate(errors);
            }
            let mut seen: Vec<&str> = seen.into_iter().collect();
            seen.sort_unstable();
            shape.push((rule.at("key").text(), seen));
        }
        shape.sort();
        if !terms.insert(shape) {
            At::new(&Value::Null, rules.path()).duplicate(errors);
        }
    }
}

fn driver(spec: &At<'_>, errors: &mut Errors) {
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.at(field).is_given() {
            At::new(&Value::Null, format!("spec.{shown}")).required("", errors);
        }
    }
    spec.at("fsGroupPolicy").one_of_if_given(&["File", "None", "ReadWriteOnceWithFSType"], errors);
    let mut audiences = HashSet::new();
    for request in spec.at("tokenRequests").items() {
        let (audience, expires) = (request.at("audience"), request.at("expirationSeconds"));
        if !audiences.insert(audience.text()) {
            audience.duplicate(errors);
            continue;
        }
        if expires.number().is_some_and(|n| n < 600) {
            expires.invalid("may not specify a duration less than 10 minutes", errors);
        }
        if expires.number().is_some_and(|n| n > 1 << 32) {
            expires.invalid("may not specify a duration larger than 2^32 seconds", errors);
        }
    }
    let modes = spec.at("volumeLifecycleModes");
    for mode in modes.items() {
        At::new(mode.value, modes.path()).one_of(&["Persistent", "Ephemeral"], errors);
    }
    if !spec.at("seLinuxMount").is_given() {
        spec.at("seLinuxMount").required("", errors);
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    if period.number().is_some_and(|n| n < 10) {
        period.invalid("must be greater than or equal to 10 seconds", errors);
    }
}

const NODE_ID: usize = 256;

fn node(object: &Value, errors: &mut Errors) {
    let mut names = HashSet::new();
    for driver in At::of(object, "spec").at("drivers").items() {
        let (name, id) = (driver.at("name"), driver.at("nodeID"));
        volumes::driver(&name, errors);
        id.needs_text(errors);
        if id.text().len() > NODE_ID {
            id.invalid(format!("must be {NODE_ID} characters or less"), errors);
        }
        driver.at("allocatable").at("count").not_negative(errors);
        if !names.insert(name.text()) {
            name.duplicate(errors);
        }
        let mut keys = HashSet::new();
        for key in driver.at("topologyKeys").items() {
            let at = At::new(key.value, driver.path());
            at.needs_text(errors);
            if !keys.insert(key.text()) {
                at.duplicate(errors);
            }
            at.named(qualified_name, errors);
        }
    }
}

const METADATA_BYTES: usize = 256 * 1024;
const MESSAGE_BYTES: usize = 1024;

fn attachment(object: &Value, errors: &mut Errors) {
    let spec = At::of(object, "spec");
    spec.at("attacher").needs_text(errors);
    let source = spec.at("source");
    let (inline, named) = (source.at("inlineVolumeSpec"), source.at("persistentVolumeName"));
    let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_given(), named.is_given()) {
        (false, false) => source.required(why, errors),
        (true, true) => source.forbidden(why, errors),
        (false, true) if named.is_empty() => named.required("must specify non empty persistentVolumeName", errors),
        (false, true) => {}
        (true, false) => volumes::volume(&inline, volumes::Place::Inline, errors),
    }
    spec.at("nodeName").named(dns_subdomain, errors);
    let status = At::of(object, "status");
    let metadata = status.at("attachmentMetadata");
    let size: usize = entries(metadata.value).map(|(key, value)| key.len() + text(value).len()).sum();
    if size > METADATA_BYTES {
        metadata.too_long(METADATA_BYTES, errors);
    }
    for error in ["attachError", "detachError"] {
        let (message, code) = (status.at(error).at("message"), status.at(error).at("errorCode"));
        if message.text().len() > MESSAGE_BYTES {
            message.too_long(METADATA_BYTES, errors);
        }
        if code.number().is_some_and(|n| n < 0) {
            code.invalid(format!("must be between 0 and {}, inclusive", i32::MAX), errors);
        }
    }
}

fn class_cells(o: &Value) -> Vec<(&'static str, Value)> {
    let annotations = &o["metadata"]["annotations"];
    let marks = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    let default = marks.iter().any(|mark| annotations[*mark] == "true");
    let name = text(&o["metadata"]["name"]);
    let or = |field: &str, absent: &str| json!(o[field].as_str().unwrap_or(absent));
    vec![
        ("Name", json!(if default { format!("{name} (default)") } else { name.to_owned() })),
        ("Provisioner", json!(text(&o["provisioner"]))),
        ("ReclaimPolicy", or("reclaimPolicy", "Delete")),
        ("VolumeBindingMode", or("volumeBindingMode", "Immediate")),
        ("AllowVolumeExpansion", json!(o["allowVolumeExpansion"].as_bool().unwrap_or(false))),
    ]
}

fn driver_cells(o: &Value) -> Vec<(&'static str, Value)> {
    let spec = &o["spec"];
    let flag = |field: &str, absent: bool| json!(spec[field].as_bool().unwrap_or(absent));
    let list = |values: Vec<&str>, none: &str| json!(if values.is_empty() { none.into() } else { values.join(",") });
    let audiences: Vec<&str> = items(&spec["tokenRequests"]).map(|request| text(&request["audience"])).collect();
    let requests = if spec["tokenRequests"].is_null() { json!("<unset>") } else { list(audiences, "") };
    vec![
        ("AttachRequired", flag("attachRequired", true)),
        ("PodInfoOnMount", flag("podInfoOnMount", false)),
        ("StorageCapacity", flag("storageCapacity", false)),
        ("TokenRequests", requests),
        ("RequiresRepublish", flag("requiresRepublish", false)),
        ("Modes", list(items(&spec["volumeLifecycleModes"]).map(text).collect(), "<none>")),
    ]
}
