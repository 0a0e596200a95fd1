//! The checks, one row each.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Level, Standard, Version, Violation};

pub type Check = fn(&Value, &Value) -> Option<Violation>;

/// A check and the versions from which (and before which) it holds. At the restricted level a check replaces the
/// baseline's that has its name.
struct Row {
    name: &'static str,
    level: Level,
    since: u32,
    until: u32,
    check: Check,
}

const fn row(name: &'static str, level: Level, since: u32, check: Check) -> Row {
    Row { name, level, since, until: u32::MAX, check }
}

const B: Level = Level::Baseline;
const R: Level = Level::Restricted;

/// In the order in which upstream reports them.
const CHECKS: &[Row] = &[
    row("appArmorProfile", B, 0, app_armor),
    row("capabilities", B, 0, |_, spec| added_capabilities(spec)),
    row("hostNamespaces", B, 0, |_, spec| host_namespaces(spec)),
    row("volumes", B, 0, |_, spec| host_paths(spec)),
    row("hostPorts", B, 0, |_, spec| host_ports(spec)),
    row("hostProbesAndHostLifecycle", B, 34, |_, spec| probe_hosts(spec)),
    row("privileged", B, 0, |_, spec| privileged(spec)),
    row("procMount", B, 0, |_, spec| proc_mount(spec)),
    Row { until: 31, ..row("seLinuxOptions", B, 0, |_, spec| se_linux(spec, &SE_LINUX_TYPES[..4])) },
    row("seLinuxOptions", B, 31, |_, spec| se_linux(spec, &SE_LINUX_TYPES)),
    row("seccompProfile", B, 19, |_, spec| seccomp(spec, Unset::Fine)),
    Row { until: 27, ..row("sysctls", B, 0, |_, spec| sysctls(spec, &SYSCTLS[..5])) },
    Row { until: 29, ..row("sysctls", B, 27, |_, spec| sysctls(spec, &SYSCTLS[..6])) },
    Row { until: 32, ..row("sysctls", B, 29, |_, spec| sysctls(spec, &SYSCTLS[..10])) },
    row("sysctls", B, 32, |_, spec| sysctls(spec, &SYSCTLS)),
    row("windowsHostProcess", B, 0, |_, spec| host_process(spec)),
    Row { until: 25, ..row("allowPrivilegeEscalation", R, 8, |_, spec| escalation(spec)) },
    row("allowPrivilegeEscalation", R, 25, |_, spec| unless_windows(spec, escalation)),
    Row { until: 25, ..row("capabilities", R, 22, |_, spec| dropped_capabilities(spec)) },
    row("capabilities", R, 25, |_, spec| unless_windows(spec, dropped_capabilities)),
    row("volumes", R, 0, |_, spec| volume_types(spec)),
    row("runAsNonRoot", R, 0, |_, spec| run_as_non_root(spec)),
    row("runAsUser", R, 23, |_, spec| run_as_user(spec)),
    Row { until: 25, ..row("seccompProfile", R, 19, |_, spec| seccomp(spec, Unset::Wrong)) },
    row("seccompProfile", R, 25, |_, spec| unless_windows(spec, |spec| seccomp(spec, Unset::Wrong))),
];

/// The checks of a standard.
pub fn applying(standard: Standard) -> impl Iterator<Item = Check> {
    let holds = move |row: &Row| match standard.version {
        Version::Latest => row.until == u32::MAX,
        Version::Minor(minor) => row.since <= minor && minor < row.until,
    };
    let replaced = move |row: &Row| {
        let stricter = |other: &Row| other.level == R && other.name == row.name && holds(other);
        row.level == B && standard.level == R && CHECKS.iter().any(stricter)
    };
    CHECKS.iter().filter(move |row| row.level <= standard.level && holds(row) && !replaced(row)).map(|row| row.check)
}

/// Capabilities that a container runtime gives by default.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The last one came later.
const SE_LINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// In the order in which releases allowed them.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Volumes that bring nothing of the node.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// All containers, in upstream's order.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| items(&spec[list]))
}

/// The names of the containers of which something holds.
fn named(spec: &Value, holds: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|container| holds(container)).map(|container| text(&container["name"])).collect()
}

fn one_or_more(one: &'static str, count: usize) -> String {
    if count == 1 { one.into() } else { format!("{one}s") }
}

fn quoted<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
}

/// `container "a"` or `containers "a", "b"`.
fn who(names: &[&str]) -> String {
    format!("{} {}", one_or_more("container", names.len()), quoted(names.iter().copied()))
}

/// `pod and container "a"`: everything whose security context is wrong.
fn setters(spec: &Value, wrong: impl Fn(&Value) -> bool) -> Vec<String> {
    let pod = wrong(&spec["securityContext"]).then(|| "pod".to_owned());
    let names = named(spec, |container| wrong(&container["securityContext"]));
    pod.into_iter().chain((!names.is_empty()).then(|| who(&names))).collect()
}

fn violation(reason: impl Into<String>, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail })
}

fn unless_windows(spec: &Value, check: fn(&Value) -> Option<Violation>) -> Option<Violation> {
    if spec["os"]["name"] == "windows" { None } else { check(spec) }
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
    let wrong = |context: &Value| {
        let profile = &context["appArmorProfile"];
        !profile.is_null() && !matches!(text(&profile["type"]), "RuntimeDefault" | "Localhost")
    };
    let mut bad = setters(spec, wrong);
    let contexts = containers(spec).map(|c| &c["securityContext"]).chain([&spec["securityContext"]]);
    let types: BTreeSet<&str> =
        contexts.filter(|c| wrong(c)).map(|context| text(&context["appArmorProfile"]["type"])).collect();
    let mut values: Vec<String> = types.into_iter().map(str::to_owned).collect();
    let annotations = metadata["annotations"].as_object().into_iter().flatten().filter(|(key, value)| {
        let value = text(value);
        key.starts_with("container.apparmor.security.beta.kubernetes.io/")
            && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
    });
    let mut annotations: Vec<String> = annotations.map(|(key, value)| format!("{key}={:?}", text(value))).collect();
    if !annotations.is_empty() {
        annotations.sort();
        bad.push(one_or_more("annotation", annotations.len()));
        values.append(&mut annotations);
    }
    if bad.is_empty() {
        return None;
    }
    let reason = one_or_more("forbidden AppArmor profile", values.len());
    let values = quoted(values.iter().map(String::as_str));
    violation(reason, format!("{} must not set AppArmor profile type to {values}", bad.join(" and ")))
}

fn added<'a>(container: &'a Value, allowed: &'a [&str]) -> impl Iterator<Item = &'a str> {
    items(&container["securityContext"]["capabilities"]["add"]).map(text).filter(|name| !allowed.contains(name))
}

fn forbidden_capabilities(spec: &Value, allowed: &[&str]) -> Option<String> {
    let bad = named(spec, |container| added(container, allowed).next().is_some());
    let names: BTreeSet<&str> = containers(spec).flat_map(|container| added(container, allowed)).collect();
    (!bad.is_empty())
        .then(|| format!("{} must not include {} in securityContext.capabilities.add", who(&bad), quoted(names)))
}

fn added_capabilities(spec: &Value) -> Option<Violation> {
    violation("non-default capabilities", forbidden_capabilities(spec, &CAPABILITIES)?)
}

fn dropped_capabilities(spec: &Value) -> Option<Violation> {
    let kept = named(spec, |c| !items(&c["securityContext"]["capabilities"]["drop"]).any(|name| name == "ALL"));
    let missing =
        (!kept.is_empty()).then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", who(&kept)));
    let details: Vec<String> = missing.into_iter().chain(forbidden_capabilities(spec, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(spec: &Value) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| spec[*field] == true);
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_paths(spec: &Value) -> Option<Violation> {
    let volumes = items(&spec["volumes"]).filter(|volume| !volume["hostPath"].is_null());
    let names: Vec<&str> = volumes.map(|volume| text(&volume["name"])).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", one_or_more("volume", names.len()), quoted(names)))
}

fn host_ports(spec: &Value) -> Option<Violation> {
    let ports = |container: &Value| -> Vec<String> {
        let numbers = items(&container["ports"]).filter_map(|port| port["hostPort"].as_i64());
        numbers.filter(|number| *number != 0).map(|number| number.to_string()).collect()
    };
    let bad = named(spec, |container| !ports(container).is_empty());
    let all: BTreeSet<String> = containers(spec).flat_map(ports).collect();
    if bad.is_empty() {
        return None;
    }
    let uses = if bad.len() == 1 { "uses" } else { "use" };
    let list = all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    violation("hostPort", format!("{} {uses} {} {list}", who(&bad), one_or_more("hostPort", all.len())))
}

fn hosts_of(container: &Value) -> Vec<&str> {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|name| &container[name]);
    let hooks = ["postStart", "preStop"].map(|name| &container["lifecycle"][name]);
    let handlers = probes.into_iter().chain(hooks);
    let hosts = handlers.flat_map(|handler| ["httpGet", "tcpSocket"].map(|kind| text(&handler[kind]["host"])));
    hosts.filter(|host| !host.is_empty()).collect()
}

fn probe_hosts(spec: &Value) -> Option<Violation> {
    let bad: BTreeSet<&str> = named(spec, |container| !hosts_of(container).is_empty()).into_iter().collect();
    let hosts: BTreeSet<&str> = containers(spec).flat_map(hosts_of).collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    let uses = if bad.len() == 1 { "uses" } else { "use" };
    let what = one_or_more("probe or lifecycle host", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", who(&bad), quoted(hosts)))
}

fn privileged(spec: &Value) -> Option<Violation> {
    let bad = named(spec, |container| container["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", who(&bad)))
}

fn proc_mount(spec: &Value) -> Option<Violation> {
    let mount = |container: &Value| {
        let mount = container["securityContext"]["procMount"].as_str().map(str::to_owned);
        mount.filter(|mount| mount != "Default")
    };
    let bad = named(spec, |container| mount(container).is_some());
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<String> = containers(spec).filter_map(mount).collect();
    let types = quoted(types.iter().map(String::as_str));
    violation("procMount", format!("{} must not set securityContext.procMount to {types}", who(&bad)))
}

fn se_linux(spec: &Value, allowed: &[&str]) -> Option<Violation> {
    let options = |context: &Value| context["seLinuxOptions"].clone();
    let set = |options: &Value, field: &str| !text(&options[field]).is_empty();
    let wrong = |context: &Value| {
        let options = options(context);
        !allowed.contains(&text(&options["type"])) || set(&options, "user") || set(&options, "role")
    };
    let bad = setters(spec, wrong);
    if bad.is_empty() {
        return None;
    }
    let contexts = containers(spec).map(|c| &c["securityContext"]).chain([&spec["securityContext"]]);
    let all: Vec<Value> = contexts.map(options).collect();
    let types: BTreeSet<&str> =
        all.iter().map(|options| text(&options["type"])).filter(|name| !allowed.contains(name)).collect();
    let mut data = Vec::new();
    // Upstream tells of user and role beside a wrong type only.
    if !types.is_empty() {
        data.push(format!("{} {}", one_or_more("type", types.len()), quoted(types)));
        for field in ["user", "role"] {
            if all.iter().any(|options| set(options, field)) {
                data.push(format!("{field} may not be set"));
            }
        }
    }
    let detail = format!("{} set forbidden securityContext.seLinuxOptions: {}", bad.join(" and "), data.join("; "));
    violation("seLinuxOptions", detail)
}

/// What a container is that says nothing about seccomp.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unset {
    Fine,
    Wrong,
}

fn seccomp(spec: &Value, unset: Unset) -> Option<Violation> {
    let profile = |context: &Value| context["seccompProfile"]["type"].as_str().map(str::to_owned);
    let valid = |name: &String| matches!(name.as_str(), "RuntimeDefault" | "Localhost");
    let wrong = |context: &Value| !context["seccompProfile"].is_null() && !profile(context).is_some_and(|p| valid(&p));
    let pod = &spec["securityContext"];
    let bad = setters(spec, wrong);
    if !bad.is_empty() {
        let contexts = containers(spec).map(|c| &c["securityContext"]).chain([pod]);
        let types: BTreeSet<String> = contexts.filter(|c| wrong(c)).map(|c| profile(c).unwrap_or_default()).collect();
        let types = quoted(types.iter().map(String::as_str));
        let detail = format!("{} must not set securityContext.seccompProfile.type to {types}", bad.join(" and "));
        return violation("seccompProfile", detail);
    }
    if unset == Unset::Fine || profile(pod).is_some() {
        return None;
    }
    let silent = named(spec, |container| container["securityContext"]["seccompProfile"].is_null());
    if silent.is_empty() {
        return None;
    }
    let how = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    violation("seccompProfile", format!("pod or {} {how}", who(&silent)))
}

fn sysctls(spec: &Value, allowed: &[&str]) -> Option<Violation> {
    let names = items(&spec["securityContext"]["sysctls"]).map(|sysctl| text(&sysctl["name"]));
    let bad: Vec<&str> = names.filter(|name| !allowed.contains(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(spec: &Value) -> Option<Violation> {
    let wrong = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let bad = setters(spec, wrong);
    if bad.is_empty() {
        return None;
    }
    violation(
        "hostProcess",
        format!("{} must not set securityContext.windowsOptions.hostProcess=true", bad.join(" and ")),
    )
}

fn escalation(spec: &Value) -> Option<Violation> {
    let bad = named(spec, |container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", who(&bad));
    violation("allowPrivilegeEscalation != false", detail)
}

fn volume_types(spec: &Value) -> Option<Violation> {
    let source = |volume: &Value| -> Option<String> {
        let sources = volume.as_object()?.iter().filter(|(key, value)| *key != "name" && !value.is_null());
        let sources: Vec<&String> = sources.map(|(key, _)| key).collect();
        let fine = sources.iter().any(|source| VOLUMES.contains(&source.as_str()));
        (!fine).then(|| sources.first().map_or("unknown".to_owned(), |source| source.to_string()))
    };
    let bad: Vec<&Value> = items(&spec["volumes"]).filter(|volume| source(volume).is_some()).collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<String> = bad.iter().filter_map(|volume| source(volume)).collect();
    let uses = if bad.len() == 1 { "uses" } else { "use" };
    let volumes = format!("{} {}", one_or_more("volume", bad.len()), quoted(bad.iter().map(|v| text(&v["name"]))));
    let what = one_or_more("restricted volume type", types.len());
    let types = quoted(types.iter().map(String::as_str));
    violation("restricted volume types", format!("{volumes} {uses} {what} {types}"))
}

fn run_as_non_root(spec: &Value) -> Option<Violation> {
    let reason = "runAsNonRoot != true";
    let bad = setters(spec, |context| context["runAsNonRoot"] == false);
    if !bad.is_empty() {
        return violation(reason, format!("{} must not set securityContext.runAsNonRoot=false", bad.join(" and ")));
    }
    let silent = named(spec, |c| c["securityContext"]["runAsNonRoot"].is_null());
    if spec["securityContext"]["runAsNonRoot"] == true || silent.is_empty() {
        return None;
    }
    violation(reason, format!("pod or {} must set securityContext.runAsNonRoot=true", who(&silent)))
}

fn run_as_user(spec: &Value) -> Option<Violation> {
    let wrong = |context: &Value| context["runAsUser"] == 0;
    let bad = setters(spec, wrong);
    if bad.is_empty() {
        return None;
    }
    violation("runAsUser=0", format!("{} must not set runAsUser=0", bad.join(" and ")))
}
