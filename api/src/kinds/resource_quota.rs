//! ResourceQuotas.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Deletion, Part, Shows};
use crate::validate::{At, Errors, internal, resources};
use crate::value::{items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        spec(&At::of(object, "spec"), errors);
        amounts(&At::of(object, "status"), &["hard", "used"], errors);
    }),
    validate_update: Some(|new, old, errors| {
        let (now, was) = (At::of(new, "spec"), At::of(old, "spec"));
        spec(&now, errors);
        let set = |spec: &At<'_>| -> BTreeSet<String> {
            spec.at("scopes").items().map(|scope| scope.text().to_owned()).collect()
        };
        if set(&now) != set(&was) {
            now.at("scopes").invalid("field is immutable", errors);
        }
    }),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            amounts(&At::of(new, "status"), &["hard", "used"], errors);
        }
    }),
    delete: Deletion { shows: Shows::Object, ..Deletion::DEFAULT },
    cells: Some(|o, _| cells(o)),
    inactive: Some("no use of resources is limited"),
    none: &[Aspect::Defaults, Aspect::Warnings],
    ..DEFAULT
};

fn amounts(at: &At<'_>, lists: &[&str], errors: &mut Errors) {
    for list in lists {
        for (name, amount) in at.at(list).entries() {
            let key = json!(name);
            let key = At::new(&key, amount.path());
            resources::known(&key, errors);
            if !name.contains('/') && !resources::is_quota(name) {
                key.invalid("must be a standard resource for quota", errors);
            }
            resources::amount(name, &amount, errors);
        }
    }
}

const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn is_scope(name: &str) -> bool {
    CONFLICTS.as_flattened().contains(&name)
        || matches!(name, "PriorityClass" | "VolumeAttributesClass" | "CrossNamespacePodAffinity")
}

/// Whether what a scope chooses is counted under this name.
fn applies(scope: &str, name: &str) -> bool {
    let computed = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            name == "pods" || computed.contains(&name)
        }
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn spec(spec: &At<'_>, errors: &mut Errors) {
    amounts(spec, &["hard"], errors);
    let hard: Vec<&str> =
        spec.at("hard").entries().map(|(name, _)| name).filter(|name| resources::is_quota(name)).collect();
    let scopes = spec.at("scopes");
    for scope in scopes.items() {
        if !is_scope(scope.text()) {
            scopes.invalid("unsupported scope", errors);
        }
        for _ in hard.iter().filter(|name| !applies(scope.text(), name)) {
            scopes.invalid("unsupported scope applied to resource", errors);
        }
    }
    for _ in CONFLICTS.iter().filter(|pair| pair.iter().all(|scope| scopes.has_text(scope))) {
        scopes.invalid("conflicting scopes", errors);
    }
    selector(spec, &hard, errors);
}

fn selector(spec: &At<'_>, hard: &[&str], errors: &mut Errors) {
    let selector = spec.at("scopeSelector");
    let rules = selector.at("matchExpressions");
    for rule in rules.items() {
        let named = |field: &str| At::new(rule.at(field).value, format!("{}.{field}", rules.path()));
        let (scope, operator, values) = (named("scopeName"), named("operator"), named("values"));
        if !is_scope(scope.text()) {
            scope.invalid("unsupported scope", errors);
        }
        for _ in hard.iter().filter(|name| !applies(scope.text(), name)) {
            let shown = internal::shown("core.v1.ScopeSelector", selector.value);
            rules.invalid_as(shown, "unsupported scope applied to resource", errors);
        }
        let single = CONFLICTS.as_flattened().contains(&scope.text()) || scope.text() == "CrossNamespacePodAffinity";
        if single && operator.text() != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            operator.invalid(why, errors);
        }
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                values.required(why, errors);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                values.invalid(why, errors);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid("not a valid selector operator", errors),
        }
    }
    let chosen: BTreeSet<&str> = items(rules.value).map(|rule| text(&rule["scopeName"])).collect();
    for _ in CONFLICTS.iter().filter(|pair| pair.iter().all(|scope| chosen.contains(scope))) {
        rules.invalid_as(spec.at("scopes").value.clone(), "conflicting scopes", errors);
    }
}

fn cells(quota: &Value) -> Vec<(&'static str, Value)> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
        let used = quota["status"]["used"][name.as_str()].as_str().unwrap_or("0");
        let shown = format!("{name}: {used}/{}", text(hard));
        if name.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![("Request", json!(requests.join(", "))), ("Limit", json!(limits.join(", ")))]
}
