//! A Service's own addresses and their families. Whether the cluster has a family is the server's to say, which gives addresses.

use serde_json::{Value, json};

use crate::status::FieldError;
use crate::validate::meta::ip;
use crate::validate::{Errors, one_of};
use crate::value::{items, text};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];

pub(super) fn is_headless(spec: &Value) -> bool {
    text(&spec["clusterIP"]) == "None"
}

pub(super) fn validate(spec: &Value, errors: &mut Errors) {
    if text(&spec["type"]) == "ExternalName" {
        return none(spec, errors);
    }
    if !spec["ipFamilyPolicy"].is_null() {
        one_of("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], POLICIES, errors);
    }
    let families: Vec<&str> = items(&spec["ipFamilies"]).map(text).collect();
    for (i, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(path, *family));
        } else {
            one_of(&path, &json!(family), FAMILIES, errors);
        }
    }
    let list: Vec<&str> = items(&spec["clusterIPs"]).map(text).collect();
    if list.first().is_some_and(|first| *first != text(&spec["clusterIP"])) {
        let why = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs", json!(list), why));
        return;
    }
    if list.len() > 2 {
        errors.push(FieldError::invalid("spec.clusterIPs", json!(list), "may only hold up to 2 values"));
        return;
    }
    if is_headless(spec) {
        if list.len() > 1 {
            let why = "'None' must be the first and only value";
            errors.push(FieldError::invalid("spec.clusterIPs", json!(list), why));
        }
        return;
    }
    let read = items(&spec["clusterIPs"]).enumerate();
    let read: Vec<_> = read.map(|(i, value)| ip(value, &format!("spec.clusterIPs[{i}]"), errors)).collect();
    for (i, (address, family)) in read.iter().zip(&families).enumerate() {
        if address.is_some_and(|address| address.is_ipv4() != (*family == "IPv4")) {
            let article = if *family == "IPv4" { "an IPv4" } else { "an IPv6" };
            let why = format!("expected {article} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), list[i], why));
        }
    }
    if let [Some(first), Some(second)] = read[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid("spec.clusterIPs", json!(list), why));
    }
}

/// Names elsewhere have no addresses here.
fn none(spec: &Value, errors: &mut Errors) {
    let why = "may not be set for ExternalName services";
    if !spec["ipFamilyPolicy"].is_null() {
        errors.push(FieldError::forbidden("spec.ipFamilyPolicy", why));
    }
    if items(&spec["ipFamilies"]).next().is_some() {
        errors.push(FieldError::forbidden("spec.ipFamilies", why));
    }
}

/// What was given stays, but for a second address, which may come and go.
pub(super) fn stay(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    if [spec, before].iter().any(|spec| text(&spec["type"]) == "ExternalName") {
        return;
    }
    let why = "may not change once set";
    for name in ["clusterIPs", "ipFamilies"] {
        let free = name == "ipFamilies" && is_headless(spec);
        for i in [0, 1] {
            let (now, was) = (&spec[name][i], &before[name][i]);
            let left = i == 1 && now.is_null();
            if !was.is_null() && now != was && !left && !free {
                let shown = if now.is_null() { json!([]) } else { spec[name].clone() };
                errors.push(FieldError::invalid(format!("spec.{name}[{i}]"), shown, why));
            }
        }
    }
}
