//! FlowSchemas and PriorityLevelConfigurations.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Part};
use crate::default::{set, set_absent};
use crate::names::{dns_label, dns_subdomain};
use crate::validate::{At, Errors, internal};
use crate::value::{items, number, text};

pub const SCHEMA: Behaviour = Behaviour {
    validate: Some(schema),
    validate_part: Some(|part, new, _, errors| status_part(part, new, errors)),
    defaults: &[("flowcontrol.v1.FlowSchemaSpec", |m| set(m, "matchingPrecedence", 1000))],
    generation: Generation::Spec,
    cells: Some(|o, _| {
        let dangling = items(&o["status"]["conditions"]).find(|c| c["type"] == "Dangling");
        vec![
            ("PriorityLevel", json!(text(&o["spec"]["priorityLevelConfiguration"]["name"]))),
            ("MatchingPrecedence", json!(number(&o["spec"]["matchingPrecedence"]))),
            ("DistinguisherMethod", json!(o["spec"]["distinguisherMethod"]["type"].as_str().unwrap_or("<none>"))),
            ("MissingPL", json!(dangling.map_or("?", |c| text(&c["status"])))),
        ]
    }),
    inactive: Some("requests are not classified by it"),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

pub const LEVEL: Behaviour = Behaviour {
    validate: Some(level),
    validate_part: Some(|part, new, _, errors| status_part(part, new, errors)),
    defaults: &[
        ("flowcontrol.v1.ExemptPriorityLevelConfiguration", |m| {
            set_absent(m, "nominalConcurrencyShares", 0);
            set_absent(m, "lendablePercent", 0);
        }),
        ("flowcontrol.v1.LimitedPriorityLevelConfiguration", |m| {
            set_absent(m, "nominalConcurrencyShares", 30);
            set_absent(m, "lendablePercent", 0);
        }),
        ("flowcontrol.v1.QueuingConfiguration", |m| {
            set(m, "handSize", 8);
            set(m, "queues", 64);
            set(m, "queueLengthLimit", 50);
        }),
    ],
    generation: Generation::Spec,
    cells: Some(|o, _| {
        let limited = &o["spec"]["limited"];
        let queuing = &limited["limitResponse"]["queuing"];
        let or_none = |v: &Value, given: &Value| if given.is_null() { json!("<none>") } else { json!(number(v)) };
        vec![
            ("Type", json!(text(&o["spec"]["type"]))),
            ("NominalConcurrencyShares", or_none(&limited["nominalConcurrencyShares"], limited)),
            ("Queues", or_none(&queuing["queues"], queuing)),
            ("HandSize", or_none(&queuing["handSize"], queuing)),
            ("QueueLengthLimit", or_none(&queuing["queueLengthLimit"], queuing)),
        ]
    }),
    inactive: Some("requests are not limited by it"),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

const MAX_PRECEDENCE: i64 = 10_000;

fn schema(object: &Value, errors: &mut Errors) {
    let spec = At::of(object, "spec");
    let name = text(&object["metadata"]["name"]);
    let precedence = spec.at("matchingPrecedence");
    let value = precedence.number().unwrap_or(0);
    if value <= 0 {
        precedence.invalid_as(value, "must be a positive value", errors);
    }
    if value > MAX_PRECEDENCE {
        precedence.invalid(format!("must not be greater than {MAX_PRECEDENCE}"), errors);
    }
    if value == 1 && name != "exempt" {
        precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1", errors);
    }
    let method = spec.at("distinguisherMethod");
    if method.is_given() && !matches!(method.at("type").text(), "ByNamespace" | "ByUser") {
        let shown = internal::shown("flowcontrol.v1.FlowDistinguisherMethod", method.value);
        At::new(&shown, method.at("type").path()).not_supported(&["ByNamespace", "ByUser"], errors);
    }
    let level = spec.at("priorityLevelConfiguration").at("name");
    match level.text() {
        "" => level.required("must reference a priority level", errors),
        _ => level.named(dns_subdomain, errors),
    }
    spec.at("rules").items().for_each(|rule| self::rule(&rule, errors));
    if let Some((_, fixed)) = fixed_schemas().into_iter().find(|(own, _)| *own == name)
        && *spec.value != fixed
    {
        let why = format!("spec of '{name}' must equal the fixed value");
        spec.invalid_struct("flowcontrol.v1.FlowSchemaSpec", why, errors);
    }
    status(&At::of(object, "status"), errors);
}

/// Schemas that are as they are.
fn fixed_schemas() -> [(&'static str, Value); 2] {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let everything = |subjects: Value| {
        json!({
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        })
    };
    let all = json!([group("system:unauthenticated"), group("system:authenticated")]);
    [
        (
            "exempt",
            json!({"priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1,
                "rules": [everything(json!([group("system:masters")]))]}),
        ),
        (
            "catch-all",
            json!({"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 10000,
                "distinguisherMethod": {"type": "ByUser"}, "rules": [everything(all)]}),
        ),
    ]
}

fn rule(rule: &At<'_>, errors: &mut Errors) {
    let subjects = rule.at("subjects");
    if subjects.is_empty() {
        subjects.required("subjects must contain at least one value", errors);
    }
    subjects.items().for_each(|subject| self::subject(&subject, errors));
    let (resources, paths) = (rule.at("resourceRules"), rule.at("nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        rule.required("at least one of resourceRules and nonResourceRules has to be non-empty", errors);
    }
    resources.items().for_each(|rule| resource_rule(&rule, errors));
    for rule in paths.items() {
        verbs(&rule.at("verbs"), errors);
        urls(&rule.at("nonResourceURLs"), errors);
    }
}

const SUBJECTS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

fn subject(subject: &At<'_>, errors: &mut Errors) {
    let kind = subject.at("kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(name, _)| *name == kind.text()) else {
        return kind.not_supported(&SUBJECTS.map(|(name, _)| name), errors);
    };
    let at = subject.at(own);
    let name = at.at("name");
    if !at.is_given() {
        at.required(&format!("{own} is required when subject kind is '{}'", kind.text()), errors);
    } else {
        match (name.text(), *own) {
            ("", _) => name.required("", errors),
            (text, "serviceAccount") if text != "*" => name.named(dns_subdomain, errors),
            _ => {}
        }
        let namespace = at.at("namespace");
        match (*own, namespace.text()) {
            ("serviceAccount", "") => namespace.required("must specify namespace for service account", errors),
            ("serviceAccount", _) => namespace.named(dns_label, errors),
            _ => {}
        }
    }
    // In the order in which each kind of subject refuses the others.
    let order: &[&str] = match *own {
        "serviceAccount" => &["user", "group"],
        "user" => &["serviceAccount", "group"],
        _ => &["serviceAccount", "user"],
    };
    for other in order.iter().filter(|other| subject.at(other).is_given()) {
        let kind = SUBJECTS.iter().find(|(_, member)| member == other).map_or("", |(name, _)| name);
        let why = format!("{other} is forbidden when subject kind is not '{kind}'");
        subject.at(other).forbidden(why, errors);
    }
}

fn verbs(verbs: &At<'_>, errors: &mut Errors) {
    let known = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    if verbs.is_empty() {
        verbs.required("verbs must contain at least one value", errors);
    } else if verbs.has_text("*") {
        if items(verbs.value).len() > 1 {
            verbs.invalid("if '*' is present, must not specify other verbs", errors);
        }
    } else if !items(verbs.value).all(|verb| known.contains(&text(verb))) {
        verbs.not_supported(&known, errors);
    }
}

fn resource_rule(rule: &At<'_>, errors: &mut Errors) {
    verbs(&rule.at("verbs"), errors);
    for (field, one, more) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let list = rule.at(field);
        if list.is_empty() {
            list.required(&format!("resource rules must supply at least one {one}"), errors);
        } else if items(list.value).len() > 1 && list.has_text("*") {
            list.invalid(format!("if '*' is present, must not specify other {more}"), errors);
        }
    }
    let namespaces = rule.at("namespaces");
    if namespaces.is_empty() && !rule.at("clusterScope").is_true() {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        namespaces.required(why, errors);
    } else if namespaces.has_text("*") {
        if items(namespaces.value).len() > 1 {
            namespaces.invalid("if '*' is present, must not specify other namespaces", errors);
        }
    } else {
        for namespace in namespaces.items() {
            for why in dns_label(namespace.text()) {
                let text = "each member of this list must be '*' or a DNS-1123 label; ";
                namespace.invalid(format!("{text}{why}"), errors);
            }
        }
    }
}

fn urls(urls: &At<'_>, errors: &mut Errors) {
    if urls.is_empty() {
        return urls.required("nonResourceURLs must contain at least one value", errors);
    }
    if urls.has_text("*") {
        if items(urls.value).len() > 1 {
            urls.invalid("if '*' is present, must not specify other non-resource URLs", errors);
        }
        return;
    }
    for url in urls.items() {
        let text = url.text();
        if text.is_empty() {
            url.invalid("must not be empty", errors);
        } else if text == "/" {
        } else if !text.starts_with('/') {
            url.invalid("must start with slash", errors);
        } else if text.contains(' ') {
            url.invalid("must not contain white-space", errors);
        } else if text.contains("//") {
            url.invalid("must not contain double slash", errors);
        } else if text.contains('*') && (text.matches('*').count() > 1 || !text.ends_with("/*")) {
            url.invalid("wildcard can only do suffix matching", errors);
        }
    }
}

fn level(object: &Value, errors: &mut Errors) {
    let (name, spec) = (text(&object["metadata"]["name"]), At::of(object, "spec"));
    const KEPT: &str = "flowcontrol.k8s.io/preserve-zero-concurrency-shares";
    if object["metadata"]["annotations"].get(KEPT).is_some() {
        let why = format!("annotation '{KEPT}' is forbidden");
        At::of(object, "metadata").at("annotations").forbidden(why, errors);
    }
    let kind = spec.at("type");
    if (name == "exempt") != (kind.text() == "Exempt") {
        kind.invalid("must be 'Exempt' if and only if `name` is 'exempt'", errors);
    }
    let (limited, exempt) = (spec.at("limited"), spec.at("exempt"));
    match kind.text() {
        "Exempt" => {
            if limited.is_given() {
                limited.forbidden("must be nil if the type is not Limited", errors);
            }
            shares(&exempt, errors);
        }
        "Limited" => {
            if exempt.is_given() {
                exempt.forbidden("must be nil if the type is Limited", errors);
            }
            match limited.is_given() {
                true => limits(&limited, errors),
                false => limited.required("must not be empty when type is Limited", errors),
            }
        }
        _ => kind.not_supported(&["Exempt", "Limited"], errors),
    }
    if name == "exempt" && (kind.text() != "Exempt" || limited.is_given()) {
        let why = "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value";
        spec.invalid_struct("flowcontrol.v1.PriorityLevelConfigurationSpec", why, errors);
    }
    let fixed = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
        "limitResponse": {"type": "Reject"}}});
    if name == "catch-all" && *spec.value != fixed {
        let why = "spec of 'catch-all' must equal the fixed value";
        spec.invalid_struct("flowcontrol.v1.PriorityLevelConfigurationSpec", why, errors);
    }
    status(&At::of(object, "status"), errors);
}

fn shares(level: &At<'_>, errors: &mut Errors) {
    let (shares, percent) = (level.at("nominalConcurrencyShares"), level.at("lendablePercent"));
    if shares.number().is_some_and(|n| n < 0) {
        shares.invalid("must be a non-negative integer", errors);
    }
    if percent.number().is_some_and(|n| !(0..=100).contains(&n)) {
        percent.invalid("must be between 0 and 100, inclusive", errors);
    }
}

fn limits(limited: &At<'_>, errors: &mut Errors) {
    let shares = limited.at("nominalConcurrencyShares");
    if shares.number().is_some_and(|n| n < 0) {
        shares.invalid("must be a non-negative integer", errors);
    }
    let response = limited.at("limitResponse");
    let queuing = response.at("queuing");
    match response.at("type").text() {
        "Reject" if queuing.is_given() => {
            queuing.forbidden("must be nil if limited.limitResponse.type is not Limited", errors);
        }
        "Reject" => {}
        "Queue" if !queuing.is_given() => {
            queuing.required("must not be empty if limited.limitResponse.type is Limited", errors);
        }
        "Queue" => self::queuing(&queuing, errors),
        _ => response.at("type").not_supported(&["Queue", "Reject"], errors),
    }
    let (lendable, borrowing) = (limited.at("lendablePercent"), limited.at("borrowingLimitPercent"));
    if lendable.number().is_some_and(|n| !(0..=100).contains(&n)) {
        lendable.invalid("must be between 0 and 100, inclusive", errors);
    }
    if borrowing.number().is_some_and(|n| n < 0) {
        borrowing.invalid("if specified, must be a non-negative integer", errors);
    }
}

const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals queues.
const HASH_BITS: u32 = 60;

fn queuing(queuing: &At<'_>, errors: &mut Errors) {
    let value = |field: &str| queuing.at(field).number().unwrap_or(0);
    let wrong = |field: &str, why: String, errors: &mut Errors| {
        queuing.at(field).invalid_as(value(field), why, errors);
    };
    let (queues, hand) = (value("queues"), value("handSize"));
    if value("queueLengthLimit") <= 0 {
        wrong("queueLengthLimit", "must be positive".into(), errors);
    }
    if queues <= 0 {
        wrong("queues", "must be positive".into(), errors);
    } else if queues > MAX_QUEUES {
        wrong("queues", format!("must not be greater than {MAX_QUEUES}"), errors);
    }
    if hand <= 0 {
        wrong("handSize", "must be positive".into(), errors);
    } else if hand > queues {
        wrong("handSize", format!("should not be greater than queues ({queues})"), errors);
    } else if entropy(queues, hand) > HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        wrong("handSize", why, errors);
    }
}

/// Bits that it takes to deal a hand.
fn entropy(deck: i64, hand: i64) -> u32 {
    ((deck as f64).log2() * hand as f64).ceil() as u32
}

fn status_part(part: Part, object: &Value, errors: &mut Errors) {
    if part == Part::Status {
        status(&At::of(object, "status"), errors);
    }
}

fn status(status: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for condition in status.at("conditions").items() {
        let kind = condition.at("type");
        if !seen.insert(kind.text()) {
            kind.duplicate(errors);
        }
        kind.needs_text(errors);
    }
}
