//! Ingresses and their classes.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Aspect, Behaviour, DEFAULT, Generation, Part};
use crate::default::{nested, set_absent};
use crate::names::{dns_1035_label, dns_label, dns_subdomain, path_segment, port_name, wildcard_subdomain};
use crate::table::cells::{NONE, at_most_three, or_none};
use crate::validate::{At, Errors, NameRule};
use crate::value::{count, items, text};

pub const BEHAVIOUR: Behaviour = Behaviour {
    validate: Some(|object, errors| {
        spec(&At::of(object, "spec"), None, errors);
        let (class, old) = (&object["spec"]["ingressClassName"], &object["metadata"]["annotations"][CLASS_BEFORE]);
        if !class.is_null() && !old.is_null() && class != old {
            let why = "must match `ingressClassName` when both are specified";
            At::new(old, format!("annotations.{CLASS_BEFORE}")).invalid(why, errors);
        }
    }),
    validate_update: Some(|new, old, errors| spec(&At::of(new, "spec"), Some(&old["spec"]), errors)),
    validate_part: Some(|part, new, _, errors| {
        if part == Part::Status {
            status(&At::of(new, "status").at("loadBalancer"), errors);
        }
    }),
    generation: Generation::Spec,
    cells: Some(cells),
    warnings: Some(|object| {
        let old = !object["metadata"]["annotations"][CLASS_BEFORE].is_null();
        let why = "is deprecated, please use 'spec.ingressClassName' instead";
        old.then(|| format!("annotation {CLASS_BEFORE:?} {why}")).into_iter().collect()
    }),
    inactive: Some("no traffic is routed by it"),
    none: &[Aspect::Defaults],
    ..DEFAULT
};

/// How classes were named before there was a field.
const CLASS_BEFORE: &str = "kubernetes.io/ingress.class";

pub const CLASS: Behaviour = Behaviour {
    validate: Some(|object, errors| class(&At::of(object, "spec"), errors)),
    validate_update: Some(|new, old, errors| {
        let spec = At::of(new, "spec");
        spec.at("controller").unchanged(&At::of(old, "spec").at("controller"), errors);
        class(&spec, errors);
    }),
    defaults: &[("networking.v1.IngressClassSpec", |m| {
        if m.get("parameters").is_some_and(|p| !p.is_null()) {
            nested(m, "parameters", |parameters| set_absent(parameters, "scope", "Cluster"));
        }
    })],
    generation: Generation::Spec,
    cells: Some(|o, _| {
        let p = &o["spec"]["parameters"];
        let name = [&p["kind"], &p["apiGroup"], &p["name"]].map(text);
        let shown = match name {
            ["", ..] => NONE.to_string(),
            [kind, "", name] => format!("{kind}/{name}"),
            [kind, group, name] => format!("{kind}.{group}/{name}"),
        };
        vec![("Controller", o["spec"]["controller"].clone()), ("Parameters", json!(shown))]
    }),
    none: &[Aspect::Warnings],
    ..DEFAULT
};

fn spec(spec: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    let (rules, default) = (spec.at("rules"), spec.at("defaultBackend"));
    if rules.is_empty() && !default.is_given() {
        let shown = rules.value.clone();
        spec.invalid_as(shown, "either `defaultBackend` or `rules` must be specified", errors);
    }
    let service: NameRule = if old.is_some_and(has_relaxed_name) { dns_label } else { dns_1035_label };
    if default.is_given() {
        backend(&default, service, errors);
    }
    for rule in rules.items() {
        self::rule(&rule, old, service, errors);
    }
    let secrets = |tls: &Value| {
        items(tls)
            .any(|tls| !text(&tls["secretName"]).is_empty() && !dns_subdomain(text(&tls["secretName"])).is_empty())
    };
    let lenient = old.is_some_and(|old| secrets(&old["tls"]));
    for tls in spec.at("tls").items() {
        for host in tls.at("hosts").items() {
            host.named(if host.text().contains('*') { wildcard_subdomain } else { dns_subdomain }, errors);
        }
        if !lenient {
            tls.at("secretName").named_if_given(dns_subdomain, errors);
        }
    }
    let class = spec.at("ingressClassName");
    if class.is_given() {
        class.named(dns_subdomain, errors);
    }
}

/// A Service of an Ingress had a name of the newer, wider form.
fn has_relaxed_name(old: &Value) -> bool {
    let paths = items(&old["rules"]).flat_map(|rule| items(&rule["http"]["paths"]));
    let mut names = paths.map(|path| text(&path["backend"]["service"]["name"]));
    names.any(|name| dns_label(name).is_empty() && !dns_1035_label(name).is_empty())
}

fn rule(rule: &At<'_>, old: Option<&Value>, service: NameRule, errors: &mut Errors) {
    let host = rule.at("host");
    if !host.is_empty() {
        if host.text().parse::<IpAddr>().is_ok() {
            host.invalid("must be a DNS name, not an IP address", errors);
        }
        host.named(if host.text().contains('*') { wildcard_subdomain } else { dns_subdomain }, errors);
    }
    // Rules of such hosts were not looked at once.
    let unchecked = |old: &Value| {
        let rules = At::of(old, "rules");
        rules.items().filter(|rule| rule.at("host").text().contains('*')).any(|rule| {
            let mut found = Vec::new();
            paths(&rule.at("http"), service, &mut found);
            !found.is_empty()
        })
    };
    if !(host.text().contains('*') && old.is_some_and(unchecked)) {
        paths(&rule.at("http"), service, errors);
    }
}

fn paths(http: &At<'_>, service: NameRule, errors: &mut Errors) {
    if !http.is_given() {
        return;
    }
    let paths = http.at("paths");
    if paths.is_empty() {
        paths.required("", errors);
    }
    for path in paths.items() {
        let (kind, place) = (path.at("pathType"), path.at("path"));
        if !kind.is_given() {
            kind.required("pathType must be specified", errors);
            continue;
        }
        match kind.text() {
            "Exact" | "Prefix" => strict_path(&place, errors),
            "ImplementationSpecific" => {
                if !place.is_empty() && !place.text().starts_with('/') {
                    place.invalid("must be an absolute path", errors);
                }
            }
            _ => kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"], errors),
        }
        backend(&path.at("backend"), service, errors);
    }
}

fn strict_path(path: &At<'_>, errors: &mut Errors) {
    let given = path.text();
    if !given.starts_with('/') {
        path.invalid("must be an absolute path", errors);
    }
    for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| given.contains(**part)) {
        path.invalid(format!("must not contain '{part}'"), errors);
    }
    for end in ["/..", "/."].iter().filter(|end| given.ends_with(**end)) {
        path.invalid(format!("cannot end with '{end}'"), errors);
    }
}

/// `named` is what the Service's name has to be.
fn backend(backend: &At<'_>, named: NameRule, errors: &mut Errors) {
    let (resource, service) = (backend.at("resource"), backend.at("service"));
    match (resource.is_given(), service.is_given()) {
        (true, true) => return backend.invalid_as("", "cannot set both resource and service backends", errors),
        (false, false) => return backend.invalid_as("", "resource or service backend is required", errors),
        (true, false) => return reference(&resource, errors),
        (false, true) => {}
    }
    service.at("name").needs_name(named, errors);
    let (name, number) = (service.at("port").at("name"), service.at("port").at("number"));
    match (!name.is_empty(), number.number().unwrap_or(0) != 0) {
        (true, true) => backend.invalid_as("", "cannot set both port name & port number", errors),
        (true, false) => name.named(port_name, errors),
        (false, true) => number.port_number(errors),
        (false, false) => backend.required("port name or number is required", errors),
    }
}

fn reference(reference: &At<'_>, errors: &mut Errors) {
    let group = reference.at("apiGroup");
    if group.is_given() {
        group.named(dns_subdomain, errors);
    }
    reference.at("kind").needs_name(path_segment, errors);
    reference.at("name").needs_name(path_segment, errors);
}

fn status(balancer: &At<'_>, errors: &mut Errors) {
    for place in balancer.at("ingress").items() {
        let (ip, host) = (place.at("ip"), place.at("hostname"));
        if !ip.is_empty() {
            crate::validate::meta::ip(ip.value, ip.path(), errors);
        }
        host.named_if_given(dns_subdomain, errors);
        if host.text().parse::<IpAddr>().is_ok() {
            host.invalid("must be a DNS name, not an IP address", errors);
        }
    }
}

const CONTROLLER_BYTES: usize = 250;

fn class(spec: &At<'_>, errors: &mut Errors) {
    let controller = spec.at("controller");
    if controller.text().len() > CONTROLLER_BYTES {
        controller.too_long(CONTROLLER_BYTES, errors);
    }
    controller.domain_path(errors);
    let parameters = spec.at("parameters");
    if !parameters.is_given() {
        return;
    }
    reference(&parameters, errors);
    let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
    match (scope.is_given(), scope.text()) {
        (false, _) => scope.required("", errors),
        (_, "Namespace") if !namespace.is_given() => {
            namespace.required("`parameters.scope` is set to 'Namespace'", errors);
        }
        (_, "Namespace") => namespace.named(dns_label, errors),
        (_, "Cluster") if namespace.is_given() => {
            namespace.forbidden("`parameters.scope` is set to 'Cluster'", errors);
        }
        (_, "Cluster") => {}
        _ => scope.not_supported(&["Cluster", "Namespace"], errors),
    }
}

fn cells(ingress: &Value, _: Timestamp) -> Vec<(&'static str, Value)> {
    let spec = &ingress["spec"];
    let hosts: Vec<String> =
        items(&spec["rules"]).map(|r| text(&r["host"]).to_string()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".into() } else { at_most_three(&hosts) };
    let addresses: Vec<&str> = items(&ingress["status"]["loadBalancer"]["ingress"])
        .map(|i| if text(&i["ip"]).is_empty() { text(&i["hostname"]) } else { text(&i["ip"]) })
        .collect();
    vec![
        ("Class", json!(or_none(text(&spec["ingressClassName"]).into()))),
        ("Hosts", json!(hosts)),
        ("Address", json!(addresses.join(","))),
        ("Ports", json!(if count(&spec["tls"]) > 0 { "80, 443" } else { "80" })),
    ]
}
