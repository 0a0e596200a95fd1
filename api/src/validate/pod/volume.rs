//! Volumes of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::super::{Errors, invalid};
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;
use crate::value::{items, text};

/// The names of the volumes.
pub fn volumes<'a>(volumes: &'a Value, path: &str, errors: &mut Errors) -> HashSet<&'a str> {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, volume) in items(volumes).enumerate() {
        let path = format!("{path}[{i}]");
        source(volume, &path, errors);
        let name = text(&volume["name"]);
        let at = format!("{path}.name");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let complaints = names::dns_label(name);
        if complaints.is_empty() && seen.contains(&name) {
            errors.push(FieldError::duplicate(&*at, name));
        }
        invalid(&at, &volume["name"], complaints, errors);
        seen.insert(name);
    }
    seen
}

/// In the order in which upstream looks at them; of several the later ones are refused.
const SOURCES: [&str; 16] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "persistentVolumeClaim",
    "rbd",
    "cephfs",
    "downwardAPI",
    "fc",
    "configMap",
    "projected",
    "csi",
    "ephemeral",
    "image",
];

fn source(volume: &Value, path: &str, errors: &mut Errors) {
    let mut found = 0;
    for name in SOURCES.iter().filter(|name| !volume[**name].is_null()) {
        let path = format!("{path}.{name}");
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        one_source(name, &volume[*name], &path, errors);
    }
    let other = volume.as_object().is_some_and(|m| m.keys().any(|k| k != "name"));
    if found == 0 && !other {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
}

fn one_source(name: &str, source: &Value, path: &str, errors: &mut Errors) {
    match name {
        "emptyDir" => {
            let limit = text(&source["sizeLimit"]);
            if Quantity::parse(limit).is_ok_and(Quantity::is_negative) {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(format!("{path}.sizeLimit"), why));
            }
        }
        "hostPath" => host_path(source, path, errors),
        "secret" => {
            required(source, "secretName", path, errors);
            files(source, path, errors);
        }
        "configMap" => {
            required(source, "name", path, errors);
            files(source, path, errors);
        }
        "downwardAPI" => mode(source, path, errors),
        "projected" => mode(source, path, errors),
        "persistentVolumeClaim" => required(source, "claimName", path, errors),
        _ => {}
    }
}

fn required(source: &Value, field: &str, path: &str, errors: &mut Errors) {
    if text(&source[field]).is_empty() {
        errors.push(FieldError::required(format!("{path}.{field}"), ""));
    }
}

pub fn host_path(source: &Value, path: &str, errors: &mut Errors) {
    let at = format!("{path}.path");
    if text(&source["path"]).is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    no_backsteps(&source["path"], &at, errors);
    let types = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if !types.contains(&text(&source["type"])) {
        errors.push(FieldError::not_supported(format!("{path}.type"), source["type"].clone(), &types));
    }
}

pub fn no_backsteps(value: &Value, path: &str, errors: &mut Errors) {
    if text(value).split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value.clone(), "must not contain '..'"));
    }
}

fn bad_mode(mode: &Value) -> bool {
    mode.as_i64().is_some_and(|n| !(0..=0o777).contains(&n))
}

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

fn mode(source: &Value, path: &str, errors: &mut Errors) {
    if bad_mode(&source["defaultMode"]) {
        errors.push(FieldError::invalid(format!("{path}.defaultMode"), source["defaultMode"].clone(), MODE));
    }
}

fn files(source: &Value, path: &str, errors: &mut Errors) {
    mode(source, path, errors);
    for (i, item) in items(&source["items"]).enumerate() {
        let path = format!("{path}.items[{i}]");
        required(item, "key", &path, errors);
        let at = format!("{path}.path");
        let target = text(&item["path"]);
        if target.is_empty() {
            errors.push(FieldError::required(&*at, ""));
        } else if target.starts_with('/') {
            errors.push(FieldError::invalid(&*at, target, "must be a relative path"));
        }
        no_backsteps(&item["path"], &at, errors);
        if target.starts_with("..") && !target.starts_with("../") {
            errors.push(FieldError::invalid(&*at, target, "must not start with '..'"));
        }
        if bad_mode(&item["mode"]) {
            errors.push(FieldError::invalid(format!("{path}.mode"), item["mode"].clone(), MODE));
        }
    }
}
