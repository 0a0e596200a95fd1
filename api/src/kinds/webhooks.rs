//! Configurations of admission webhooks, and the rules that admission policies choose requests by in the same way.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Version};
use crate::default::{Object, set_absent};
use crate::names::{dns_1035_label, dns_subdomain, qualified_name};
use crate::validate::{At, Errors, Unknown};
use crate::value::{items, text};

const COMMON: Behaviour = Behaviour {
    generation: Generation::Body,
    version: Version::Needed,
    cells: Some(|o, _| vec![("Webhooks", json!(items(&o["webhooks"]).len()))]),
    inactive: Some("no webhook is called"),
    none: &[Aspect::Warnings],
    missing: &[(Aspect::Validation, "expressions of match conditions")],
    ..DEFAULT
};

pub const MUTATING: Behaviour = Behaviour {
    validate: Some(|object, errors| configuration(object, None, errors)),
    validate_update: Some(|new, old, errors| configuration(new, Some(old), errors)),
    defaults: &[
        ("admissionregistration.v1.MutatingWebhook", |m| {
            default(m);
            set_absent(m, "reinvocationPolicy", "Never");
        }),
        ("admissionregistration.v1.Rule", |m| set_absent(m, "scope", "*")),
        ("admissionregistration.v1.RuleWithOperations", |m| set_absent(m, "scope", "*")),
        ("admissionregistration.v1.ServiceReference", |m| set_absent(m, "port", 443)),
    ],
    ..COMMON
};
pub const VALIDATING: Behaviour = Behaviour {
    validate: Some(|object, errors| configuration(object, None, errors)),
    validate_update: Some(|new, old, errors| configuration(new, Some(old), errors)),
    defaults: &[("admissionregistration.v1.ValidatingWebhook", default)],
    ..COMMON
};

fn default(hook: &mut Object) {
    set_absent(hook, "failurePolicy", "Fail");
    set_absent(hook, "matchPolicy", "Equivalent");
    set_absent(hook, "namespaceSelector", json!({}));
    set_absent(hook, "objectSelector", json!({}));
    set_absent(hook, "timeoutSeconds", 10);
}

pub const FAILURE: [&str; 2] = ["Fail", "Ignore"];
pub const MATCH: [&str; 2] = ["Equivalent", "Exact"];
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// What was accepted once may stay: side effects, names that are there twice, versions of reviews.
fn configuration(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let was = |bad: fn(&Value) -> bool| old.is_some_and(|old| items(&old["webhooks"]).any(bad));
    let effects: &[&str] = match was(|hook| !matches!(text(&hook["sideEffects"]), "None" | "NoneOnDryRun")) {
        true => &["None", "NoneOnDryRun", "Some", "Unknown"],
        false => &["None", "NoneOnDryRun"],
    };
    let known = |hook: &Value| items(&hook["admissionReviewVersions"]).any(|v| REVIEWS.contains(&text(v)));
    let had_unknown = old.is_some_and(|old| items(&old["webhooks"]).any(|hook| !known(hook)));
    let unknown = if had_unknown { Unknown::Stays } else { Unknown::Refused };
    let twice = old.is_some_and(|old| {
        let mut seen = HashSet::new();
        !items(&old["webhooks"]).all(|hook| seen.insert(text(&hook["name"])))
    });
    let mut names = HashSet::new();
    for hook in At::of(object, "webhooks").items() {
        webhook(&hook, effects, errors);
        review_versions(&hook.at("admissionReviewVersions"), unknown, &REVIEWS, errors);
        let name = hook.at("name");
        if !twice && !name.is_empty() && !names.insert(name.text()) {
            name.duplicate(errors);
        }
    }
}

fn webhook(hook: &At<'_>, effects: &[&str], errors: &mut Errors) {
    qualified_domain(&hook.at("name"), errors);
    hook.at("rules").items().for_each(|rule| self::rule(&rule, errors));
    hook.at("failurePolicy").one_of_if_given(&FAILURE, errors);
    hook.at("matchPolicy").one_of_if_given(&MATCH, errors);
    let side = hook.at("sideEffects");
    match side.is_given() {
        true => side.one_of(effects, errors),
        false => side.required(&format!("must specify one of {}", effects.join(", ")), errors),
    }
    let timeout = hook.at("timeoutSeconds");
    if timeout.number().is_some_and(|n| !(1..=30).contains(&n)) {
        timeout.invalid("the timeout value must be between 1 and 30 seconds", errors);
    }
    hook.at("namespaceSelector").selector(errors);
    hook.at("objectSelector").selector(errors);
    hook.at("reinvocationPolicy").one_of_if_given(&["IfNeeded", "Never"], errors);
    client(&hook.at("clientConfig"), errors);
    conditions(&hook.at("matchConditions"), errors);
}

/// Three labels at least: whose webhook it is.
fn qualified_domain(name: &At<'_>, errors: &mut Errors) {
    let complaints = dns_subdomain(name.text());
    match name.text() {
        "" => name.required("", errors),
        _ if !complaints.is_empty() => name.invalid(complaints.join(","), errors),
        text if text.split('.').count() < 3 => {
            name.invalid("should be a domain with at least three segments separated by dots", errors);
        }
        _ => {}
    }
}

/// Versions of what is sent to a webhook, of which one at least is known, unless `unknown` ones stay.
pub fn review_versions(versions: &At<'_>, unknown: Unknown, known: &[&str], errors: &mut Errors) {
    if versions.is_empty() {
        return versions.required(&format!("must specify one of {}", known.join(", ")), errors);
    }
    let mut seen = HashSet::new();
    for version in versions.items() {
        match seen.insert(version.text()) {
            true => version.named(dns_1035_label, errors),
            false => version.invalid("duplicate version", errors),
        }
    }
    if unknown == Unknown::Refused && !known.iter().any(|version| seen.contains(version)) {
        versions.invalid(format!("must include at least one of {}", known.join(", ")), errors);
    }
}

/// Where a webhook is.
pub fn client(client: &At<'_>, errors: &mut Errors) {
    let (url, service) = (client.at("url"), client.at("service"));
    match (url.is_given(), service.is_given()) {
        (true, false) => self::url(&url, errors),
        (false, true) => self::service(&service, errors),
        _ => client.required("exactly one of url or service is required", errors),
    }
}

fn url(url: &At<'_>, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.text().split_once(':').unwrap_or(("", url.text()));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        url.invalid_as(scheme, format!("'https' is the only allowed URL scheme{FORM}"), errors);
    }
    if host.is_empty() {
        url.invalid_as("", format!("host must be specified{FORM}"), errors);
    }
    if let Some(user) = user {
        url.invalid_as(user, "user information is not permitted in the URL", errors);
    }
    if !fragment.is_empty() {
        url.invalid_as(fragment, "fragments are not permitted in the URL", errors);
    }
    if !query.is_empty() {
        url.invalid_as(query, "query parameters are not permitted in the URL", errors);
    }
}

fn service(service: &At<'_>, errors: &mut Errors) {
    service.at("name").needs_text(errors);
    service.at("namespace").needs_text(errors);
    let port = service.at("port");
    if port.is_given() && !port.number().is_some_and(|n| (1..=65535).contains(&n)) {
        port.invalid("port is not valid: must be between 1 and 65535, inclusive", errors);
    }
    let path = service.at("path");
    match path.text() {
        "" | "/" => return,
        "//" => return path.invalid("segment[0] may not be empty", errors),
        text if !text.starts_with('/') => path.invalid("must start with a '/'", errors),
        _ => {}
    }
    let steps = path.text().get(1..).unwrap_or_default();
    for (i, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        match step {
            "" => path.invalid(format!("segment[{i}] may not be empty"), errors),
            _ => dns_subdomain(step).into_iter().for_each(|why| path.invalid(format!("segment[{i}]: {why}"), errors)),
        }
    }
}

const CONDITIONS: usize = 64;

/// Conditions by name; their expressions are not read here.
pub fn conditions(conditions: &At<'_>, errors: &mut Errors) {
    if items(conditions.value).len() > CONDITIONS {
        conditions.too_many(CONDITIONS, errors);
    }
    let mut names = HashSet::new();
    for condition in conditions.items() {
        if condition.at("expression").text().trim().is_empty() {
            condition.at("expression").required("", errors);
        }
        let name = condition.at("name");
        name.needs_name(qualified_name, errors);
        if !name.is_empty() && !names.insert(name.text()) {
            name.duplicate(errors);
        }
    }
}

/// Which requests a webhook or policy looks at.
pub fn rule(rule: &At<'_>, errors: &mut Errors) {
    let operations = rule.at("operations");
    if operations.is_empty() {
        operations.required("", errors);
    }
    alone(&operations, "operations", errors);
    let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    operations.items().for_each(|operation| operation.one_of(&known, errors));
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let list = rule.at(field);
        if list.is_empty() {
            list.required("", errors);
        }
        alone(&list, what, errors);
    }
    rule.at("apiVersions").items().for_each(|version| version.needs_text(errors));
    resources(&rule.at("resources"), errors);
    rule.at("scope").one_of_if_given(&["*", "Cluster", "Namespaced"], errors);
}

/// `*` is all, so nothing else goes with it.
fn alone(list: &At<'_>, what: &str, errors: &mut Errors) {
    if items(list.value).len() > 1 && list.has_text("*") {
        list.invalid(format!("if '*' is present, must not specify other {what}"), errors);
    }
}

fn resources(resources: &At<'_>, errors: &mut Errors) {
    if resources.is_empty() {
        resources.required("", errors);
    }
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    let mut plain = false;
    for resource in resources.items() {
        let name = resource.text();
        if name.is_empty() {
            resource.required("", errors);
            continue;
        }
        let Some((kind, part)) = name.split_once('/') else {
            plain = name != "*";
            continue;
        };
        if whole.contains(kind) {
            resource.invalid(format!("if '{kind}/*' is present, must not specify {name}"), errors);
        }
        if everywhere.contains(part) {
            resource.invalid(format!("if '*/{part}' is present, must not specify {name}"), errors);
        }
        if part == "*" {
            whole.insert(kind);
        }
        if kind == "*" {
            everywhere.insert(part);
        }
    }
    if items(resources.value).len() > 1 && resources.has_text("*/*") {
        resources.invalid("if '*/*' is present, must not specify other resources", errors);
    }
    if resources.has_text("*") && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        resources.invalid(why, errors);
    }
}
