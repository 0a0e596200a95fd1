//! Pods and pod templates.

mod container;
mod ephemeral;
pub(crate) mod placement;
pub(super) mod volume;

use serde_json::{Value, json};

pub use self::container::resources;

use super::meta::{between, ip, labels};
use super::{Errors, invalid, one_of};
use crate::names;
use crate::status::FieldError;
use crate::value::{entries, items, text};

const MAX_INT: i64 = i32::MAX as i64;

/// Metadata and spec of a template.
pub fn template(template: &Value, path: &str, errors: &mut Errors) {
    labels(&template["metadata"]["labels"], &format!("{path}.labels"), errors);
    let mut annotated = Vec::new();
    for (key, _) in entries(&template["metadata"]["annotations"]) {
        invalid(
            &format!("{path}.annotations"),
            &json!(key),
            names::qualified_name(&key.to_lowercase()),
            &mut annotated,
        );
    }
    errors.append(&mut annotated);
    spec(&template["spec"], &format!("{path}.spec"), errors);
    if items(&template["spec"]["ephemeralContainers"]).next().is_some() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(format!("{path}.spec.ephemeralContainers"), why));
    }
}

pub fn spec(spec: &Value, path: &str, errors: &mut Errors) {
    let at = |name: &str| format!("{path}.{name}");
    let volumes = volume::volumes(&spec["volumes"], &at("volumes"), errors);
    container::containers(spec, path, &volumes, errors);
    ephemeral::containers(spec, path, &volumes, errors);
    one_of(&at("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"], errors);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&at("dnsPolicy"), &spec["dnsPolicy"], &policies, errors);
    placement::labels_of_nodes(&spec["nodeSelector"], &at("nodeSelector"), errors);
    security(spec, path, errors);
    dns_config(spec, path, errors);
    for (i, gate) in items(&spec["readinessGates"]).enumerate() {
        let value = &gate["conditionType"];
        invalid(&at(&format!("readinessGates[{i}].conditionType")), value, names::qualified_name(text(value)), errors);
    }
    placement::affinity(&spec["affinity"], &at("affinity"), errors);
    placement::gates(spec, path, errors);
    placement::spread(&spec["topologySpreadConstraints"], &at("topologySpreadConstraints"), errors);
    for (name, rule) in [
        ("serviceAccountName", names::dns_subdomain as super::NameRule),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ] {
        if !text(&spec[name]).is_empty() {
            invalid(&at(name), &spec[name], rule(text(&spec[name])), errors);
        }
    }
    between(&spec["activeDeadlineSeconds"], 1, MAX_INT, &at("activeDeadlineSeconds"), errors);
    placement::tolerations(&spec["tolerations"], &at("tolerations"), errors);
    host_aliases(&spec["hostAliases"], &at("hostAliases"), errors);
    if !spec["preemptionPolicy"].is_null() {
        one_of(&at("preemptionPolicy"), &spec["preemptionPolicy"], &["PreemptLowerPriority", "Never"], errors);
    }
    if !spec["os"].is_null() {
        one_of(&at("os"), &spec["os"]["name"], &["linux", "windows"], errors);
    }
}

fn security(spec: &Value, path: &str, errors: &mut Errors) {
    let context = &spec["securityContext"];
    let at = |name: &str| format!("{path}.securityContext.{name}");
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(at("shareProcessNamespace"), true, why));
    }
    for name in ["fsGroup", "runAsUser", "runAsGroup"] {
        between(&context[name], 0, MAX_INT, &at(name), errors);
    }
    for (i, group) in items(&context["supplementalGroups"]).enumerate() {
        between(group, 0, MAX_INT, &at(&format!("supplementalGroups[{i}]")), errors);
    }
    let mut seen = std::collections::HashSet::new();
    for (i, sysctl) in items(&context["sysctls"]).enumerate() {
        let name = text(&sysctl["name"]);
        let fine = name.split(['.', '/']).all(|part| {
            let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let inner = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
            ends(part.bytes().next()) && ends(part.bytes().last()) && inner
        });
        let path = at(&format!("sysctls[{i}].name"));
        if name.is_empty() {
            errors.push(FieldError::required(&*path, ""));
        } else if !fine || name.len() > 253 {
            let why = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(&*path, name, why));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(&*path, name));
        }
        match namespace_of(name) {
            Some("net") if spec["hostNetwork"] == true => {
                errors.push(FieldError::invalid(path, name, "may not be specified when 'hostNetwork' is true"));
            }
            Some("ipc") if spec["hostIPC"] == true => {
                errors.push(FieldError::invalid(path, name, "may not be specified when 'hostIPC' is true"));
            }
            _ => {}
        }
    }
    host_users(spec, path, errors);
    seccomp(&context["seccompProfile"], &at("seccompProfile"), errors);
}

/// The kernel namespace that holds a sysctl, if one does.
fn namespace_of(name: &str) -> Option<&'static str> {
    // The first separator tells which one is meant: `net/ipv4/conf/eth0.1/x` is `net.ipv4.conf.eth0/1.x`.
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let name = if slashes { name.replace('/', ".") } else { name.to_owned() };
    let ipc = name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    match ipc {
        true => Some("ipc"),
        false => name.starts_with("net.").then_some("net"),
    }
}

/// A user namespace of its own does not go with the host's other namespaces.
fn host_users(spec: &Value, path: &str, errors: &mut Errors) {
    if spec["hostUsers"] != false {
        return;
    }
    let why = "when `hostUsers` is false";
    // Upstream shows two of them by other names than they have.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec[field] == true {
            errors.push(FieldError::forbidden(format!("{path}.{shown}"), why));
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let devices = items(&spec[list]).enumerate().filter(|(_, c)| items(&c["volumeDevices"]).next().is_some());
        errors.extend(devices.map(|(i, _)| FieldError::forbidden(format!("{path}.{list}[{i}].volumeDevices"), why)));
    }
}

fn seccomp(profile: &Value, path: &str, errors: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let local = !text(&profile["localhostProfile"]).is_empty();
    match text(&profile["type"]) {
        "Localhost" if !local => {
            errors.push(FieldError::required(
                format!("{path}.localhostProfile"),
                "must be set when seccomp type is Localhost",
            ));
        }
        "Localhost" => {}
        "RuntimeDefault" | "Unconfined" => {
            if local {
                let why = "can only be set when seccomp type is Localhost";
                errors.push(FieldError::invalid(
                    format!("{path}.localhostProfile"),
                    profile["localhostProfile"].clone(),
                    why,
                ));
            }
        }
        "" => errors.push(FieldError::required(format!("{path}.type"), "type is required when seccompProfile is set")),
        other => errors.push(FieldError::not_supported(
            format!("{path}.type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        )),
    }
}

fn dns_config(spec: &Value, path: &str, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    let at = |name: &str| format!("{path}.dnsConfig{name}");
    let servers = &config["nameservers"];
    let own = text(&spec["dnsPolicy"]) == "None";
    if own && config.is_null() {
        errors.push(FieldError::required(at(""), "must provide `dnsConfig` when `dnsPolicy` is None"));
        return;
    }
    if own && items(servers).next().is_none() {
        errors.push(FieldError::required(
            at(".nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if items(servers).count() > 3 {
        errors.push(FieldError::invalid(at(".nameservers"), servers.clone(), "must not have more than 3 nameservers"));
    }
    for (i, server) in items(servers).enumerate() {
        ip(server, &at(&format!(".nameservers[{i}]")), errors);
    }
    let searches = &config["searches"];
    if items(searches).count() > 32 {
        errors.push(FieldError::invalid(at(".searches"), searches.clone(), "must not have more than 32 search paths"));
    }
    for (i, search) in items(searches).enumerate() {
        let name = text(search).trim_end_matches('.');
        if !name.is_empty() {
            invalid(&at(&format!(".searches[{i}]")), search, names::dns_subdomain(name), errors);
        }
    }
    for (i, option) in items(&config["options"]).enumerate() {
        if text(&option["name"]).is_empty() {
            errors.push(FieldError::required(at(&format!(".options[{i}]")), "must not be empty"));
        }
    }
}

fn host_aliases(aliases: &Value, path: &str, errors: &mut Errors) {
    for (i, alias) in items(aliases).enumerate() {
        ip(&alias["ip"], &format!("{path}[{i}].ip"), errors);
        for (j, name) in items(&alias["hostnames"]).enumerate() {
            invalid(&format!("{path}[{i}].hostnames[{j}]"), name, names::dns_subdomain(text(name)), errors);
        }
    }
}
