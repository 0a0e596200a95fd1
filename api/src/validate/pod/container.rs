//! Containers of a pod.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::meta::{between, not_negative, port};
use super::super::{Errors, internal, invalid, one_of};
use super::volume::no_backsteps;
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;
use crate::value::{entries, items, text};

pub fn containers(spec: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut seen: HashSet<&str> = HashSet::new();
    let list = format!("{path}.containers");
    if items(&spec["containers"]).next().is_none() {
        errors.push(FieldError::required(list, ""));
    } else {
        let mut taken = HostPorts::default();
        for (i, container) in items(&spec["containers"]).enumerate() {
            one(container, Role::Main, spec, &format!("{list}[{i}]"), volumes, &mut seen, errors);
            taken.check(container, &format!("{list}[{i}]"), errors);
        }
    }
    for (i, container) in items(&spec["initContainers"]).enumerate() {
        let role = if text(&container["restartPolicy"]) == "Always" { Role::Sidecar } else { Role::Init };
        one(container, role, spec, &format!("{path}.initContainers[{i}]"), volumes, &mut seen, errors);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Init,
    Sidecar,
}

fn one<'a>(
    container: &'a Value,
    role: Role,
    spec: &Value,
    path: &str,
    volumes: &HashSet<&str>,
    seen: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    let at = |name: &str| format!("{path}.{name}");
    common(container, spec, path, volumes, errors);
    unique(container, path, seen, errors);
    for hook in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][hook];
        if !handler.is_null() && role != Role::Init {
            self::handler(handler, &at(&format!("lifecycle.{hook}")), errors);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, path) = (&container[name], at(name));
        if probe.is_null() {
        } else if role == Role::Init {
            errors.push(FieldError::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
        } else {
            self::probe(probe, name, &path, errors);
        }
    }
}

/// What holds for containers of every role.
pub(super) fn common(container: &Value, spec: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let at = |name: &str| format!("{path}.{name}");
    match text(&container["name"]) {
        "" => errors.push(FieldError::required(at("name"), "")),
        name => invalid(&at("name"), &container["name"], names::dns_label(name), errors),
    }
    let image = text(&container["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(at("image"), ""));
    } else if image != image.trim() {
        errors.push(FieldError::invalid(at("image"), image, "must not have leading or trailing whitespace"));
    }
    let policies = ["File", "FallbackToLogsOnError"];
    one_of(&at("terminationMessagePolicy"), &container["terminationMessagePolicy"], &policies, errors);
    ports(container, spec, path, errors);
    env(container, path, errors);
    mounts(container, path, volumes, errors);
    one_of(&at("imagePullPolicy"), &container["imagePullPolicy"], &["Always", "IfNotPresent", "Never"], errors);
    resources(&container["resources"], &at("resources"), errors);
    security(&container["securityContext"], spec, &at("securityContext"), errors);
}

/// One name stands for one container.
pub(super) fn unique<'a>(container: &'a Value, path: &str, seen: &mut HashSet<&'a str>, errors: &mut Errors) {
    let name = text(&container["name"]);
    if !name.is_empty() && !seen.insert(name) && names::dns_label(name).is_empty() {
        errors.push(FieldError::duplicate(format!("{path}.name"), name));
    }
}

fn ports(container: &Value, spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, p) in items(&container["ports"]).enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(&p["name"]);
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            invalid(&format!("{path}.name"), &p["name"], complaints, errors);
            seen.insert(name);
        }
        match p["containerPort"].as_i64().unwrap_or(0) {
            0 => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            _ => between(&p["containerPort"], 1, 65535, &format!("{path}.containerPort"), errors),
        }
        if p["hostPort"].as_i64().unwrap_or(0) != 0 {
            between(&p["hostPort"], 1, 65535, &format!("{path}.hostPort"), errors);
            if spec["hostNetwork"] == true && p["hostPort"] != p["containerPort"] {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(format!("{path}.hostPort"), p["hostPort"].clone(), why));
            }
        }
        one_of(&format!("{path}.protocol"), &p["protocol"], &["SCTP", "TCP", "UDP"], errors);
    }
}

/// Host ports that containers of this pod took already.
#[derive(Default)]
struct HostPorts(HashSet<String>);

impl HostPorts {
    fn check(&mut self, container: &Value, path: &str, errors: &mut Errors) {
        for (i, p) in items(&container["ports"]).enumerate() {
            let Some(number) = p["hostPort"].as_i64().filter(|n| *n != 0) else { continue };
            let shown = format!("{}/{}/{number}", text(&p["protocol"]), text(&p["hostIP"]));
            if !self.0.insert(shown.clone()) {
                errors.push(FieldError::duplicate(format!("{path}.ports[{i}].hostPort"), shown));
            }
        }
    }
}

fn env(container: &Value, path: &str, errors: &mut Errors) {
    for (i, variable) in items(&container["env"]).enumerate() {
        let path = format!("{path}.env[{i}]");
        match text(&variable["name"]) {
            "" => errors.push(FieldError::required(format!("{path}.name"), "")),
            name => invalid(&format!("{path}.name"), &variable["name"], names::env_name(name), errors),
        }
        let from = &variable["valueFrom"];
        if from.is_null() {
            continue;
        }
        if !text(&variable["value"]).is_empty() {
            let why = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), "", why));
        }
        env_source(from, &format!("{path}.valueFrom"), errors);
    }
    for (i, source) in items(&container["envFrom"]).enumerate() {
        let at = format!("{path}.envFrom[{i}]");
        if !text(&source["prefix"]).is_empty() {
            invalid(&format!("{at}.prefix"), &source["prefix"], names::env_name(text(&source["prefix"])), errors);
        }
        let mut found = 0;
        for name in ["configMapRef", "secretRef"] {
            if !source[name].is_null() {
                found += 1;
                let target = json!(text(&source[name]["name"]));
                invalid(&format!("{at}.{name}.name"), &target, names::dns_subdomain(text(&target)), errors);
            }
        }
        let why = match found {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(format!("{path}.envFrom"), "", why));
    }
}

fn env_source(from: &Value, path: &str, errors: &mut Errors) {
    let mut found = 0;
    if !from["fieldRef"].is_null() {
        found += 1;
        field_ref(&from["fieldRef"], &format!("{path}.fieldRef"), errors);
    }
    found += usize::from(!from["resourceFieldRef"].is_null());
    for name in ["configMapKeyRef", "secretKeyRef"] {
        let reference = &from[name];
        if reference.is_null() {
            continue;
        }
        found += 1;
        let target = json!(text(&reference["name"]));
        invalid(&format!("{path}.{name}.name"), &target, names::dns_subdomain(text(&target)), errors);
        match text(&reference["key"]) {
            "" => errors.push(FieldError::required(format!("{path}.{name}.key"), "")),
            key => invalid(&format!("{path}.{name}.key"), &reference["key"], names::config_key(key), errors),
        }
    }
    if found > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    } else if found == 0 && from["fileKeyRef"].is_null() {
        errors.push(FieldError::invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    }
}

const POD_FIELDS: [&str; 12] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.annotations",
    "spec.nodeName",
    "spec.serviceAccountName",
    "spec.restartPolicy",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn field_ref(reference: &Value, path: &str, errors: &mut Errors) {
    let at = format!("{path}.fieldPath");
    let field = text(&reference["fieldPath"]);
    let base = field.split('[').next().unwrap_or_default();
    if field.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !POD_FIELDS.contains(&base) {
        let why = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(FieldError::invalid(at, field, why));
    }
}

fn mounts(container: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, mount) in items(&container["volumeMounts"]).enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        match text(&mount["name"]) {
            "" => errors.push(FieldError::required(format!("{at}.name"), "")),
            name if !volumes.contains(&name) => errors.push(FieldError::not_found(format!("{at}.name"), name)),
            _ => {}
        }
        let target = text(&mount["mountPath"]);
        if target.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        }
        if seen.contains(&target) {
            errors.push(FieldError::invalid(format!("{at}.mountPath"), target, "must be unique"));
        }
        seen.insert(target);
        let sub = &mount["subPath"];
        if text(sub).starts_with('/') {
            errors.push(FieldError::invalid(
                format!("{path}.volumeMounts.subPath"),
                sub.clone(),
                "must be a relative path",
            ));
        }
        no_backsteps(sub, &format!("{path}.volumeMounts.subPath"), errors);
    }
}

fn amount(value: &Value) -> Option<Quantity> {
    Quantity::parse(text(value)).ok()
}

/// Resources that a container may name without a domain.
fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Those that must be limited as they are requested.
fn is_exact(name: &str) -> bool {
    !matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

/// Limits and requests of a container.
pub fn resources(resources: &Value, path: &str, errors: &mut Errors) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    let mut huge = false;
    for (list, values) in [("limits", limits), ("requests", requests)] {
        for (name, value) in entries(values) {
            let at = format!("{path}.{list}[{name}]");
            huge |= name.starts_with("hugepages-");
            if !name.contains('/') && !is_standard(name) {
                errors.push(FieldError::invalid(&*at, name.clone(), "must be a standard resource for containers"));
            }
            let Some(amount) = amount(value) else { continue };
            if amount.is_negative() {
                errors.push(FieldError::invalid(&*at, value.clone(), "must be greater than or equal to 0"));
            }
            if name.contains('/') && !amount.is_integer() {
                errors.push(FieldError::invalid(&*at, value.clone(), "must be an integer"));
            }
            if list == "requests" {
                request(name, value, amount, limits, path, errors);
            }
            if let Some(size) = name.strip_prefix("hugepages-").and_then(|s| Quantity::parse(s).ok())
                && !amount.is_multiple_of(size)
            {
                let why = format!("{} is not positive integer multiple of {name}", text(value));
                errors.push(FieldError::invalid(&*at, value.clone(), why));
            }
        }
    }
    let has = |name: &str| limits.get(name).is_some() || requests.get(name).is_some();
    if huge && !has("cpu") && !has("memory") {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn request(name: &str, value: &Value, request: Quantity, limits: &Value, path: &str, errors: &mut Errors) {
    match amount(&limits[name]) {
        Some(limit) if request > limit => {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(format!("{path}.requests"), value.clone(), why));
        }
        Some(limit) if is_exact(name) && request != limit => {
            let why = format!("must be equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(format!("{path}.requests"), value.clone(), why));
        }
        None if is_exact(name) && (name.contains('/') || name.starts_with("hugepages-")) => {
            let why = "Limit must be set for non overcommitable resources";
            errors.push(FieldError::required(format!("{path}.limits"), why));
        }
        _ => {}
    }
}

fn security(context: &Value, spec: &Value, path: &str, errors: &mut Errors) {
    for name in ["runAsUser", "runAsGroup"] {
        between(&context[name], 0, i64::from(i32::MAX), &format!("{path}.{name}"), errors);
    }
    if !context["procMount"].is_null() {
        one_of(&format!("{path}.procMount"), &context["procMount"], &["Default", "Unmasked"], errors);
    }
    if context["procMount"] == "Unmasked" && spec["hostUsers"] != false {
        let why = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(format!("{path}.procMount"), "Unmasked", why));
    }
    if context["allowPrivilegeEscalation"] == false {
        let shown = || internal::shown("core.v1.SecurityContext", context);
        let mut wrong = |what: &str| {
            let why = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            errors.push(FieldError::invalid(path, shown(), why));
        };
        if context["privileged"] == true {
            wrong("`privileged` to true");
        }
        for _ in items(&context["capabilities"]["add"]).filter(|name| *name == "CAP_SYS_ADMIN") {
            wrong("`capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

fn handler(handler: &Value, path: &str, errors: &mut Errors) {
    let mut found = 0;
    for name in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = &handler[name];
        if action.is_null() {
            continue;
        }
        let path = format!("{path}.{name}");
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        match name {
            "exec" if items(&action["command"]).next().is_none() => {
                errors.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => {
                if text(&action["path"]).is_empty() {
                    errors.push(FieldError::required(format!("{path}.path"), ""));
                }
                port(&action["port"], &format!("{path}.port"), errors);
                one_of(&format!("{path}.scheme"), &action["scheme"], &["HTTP", "HTTPS"], errors);
                for header in items(&action["httpHeaders"]) {
                    let name = json!(text(&header["name"]));
                    invalid(&format!("{path}.httpHeaders"), &name, names::http_header(text(&name)), errors);
                }
            }
            "tcpSocket" | "grpc" => port(&action["port"], &format!("{path}.port"), errors),
            _ => {}
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn probe(probe: &Value, name: &str, path: &str, errors: &mut Errors) {
    handler(probe, path, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        not_negative(&probe[field], &format!("{path}.{field}"), errors);
    }
    let grace = &probe["terminationGracePeriodSeconds"];
    if name == "readinessProbe" {
        if !grace.is_null() {
            let why = "must not be set for readinessProbes";
            errors.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), grace.clone(), why));
        }
        return;
    }
    if grace.as_i64().is_some_and(|n| n <= 0) {
        errors.push(FieldError::invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            grace.clone(),
            "must be greater than 0",
        ));
    }
    if probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            probe["successThreshold"].clone(),
            "must be 1",
        ));
    }
}
