//! A container's OCI `config.json`: a pure function of the pod, the image and what was resolved before.

pub mod devices;
pub mod seccomp;
pub mod user;

use std::path::{Path, PathBuf};

use api::quantity::Quantity;
use serde_json::{Value, json};

use crate::image::ImageConfig;
use crate::model::{Container, PodSpec, SeccompProfile, Security};
use user::User;

/// Everything a container's configuration depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub spec: &'a PodSpec,
    pub container: &'a Container,
    pub image: &'a ImageConfig,
    pub env: Vec<(String, String)>,
    pub user: User,
    pub rootfs: &'a Path,
    /// Below each controller's mount.
    pub cgroup: String,
    pub mounts: Vec<Mount>,
    /// The namespace to join instead of one of its own.
    pub pid_namespace: Option<PathBuf>,
    /// The pod's own users.
    pub user_namespace: Option<PathBuf>,
    pub apparmor: Option<String>,
    pub cgroup_v2: bool,
    /// Device files beside those that every container has.
    pub devices: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    pub source: PathBuf,
    pub destination: String,
    pub access: MountAccess,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountAccess {
    Writable,
    ReadOnly,
    /// What is mounted below is read-only too.
    ReadOnlyRecursive,
}

impl MountAccess {
    fn options(self) -> &'static [&'static str] {
        match self {
            MountAccess::Writable => &["rw"],
            MountAccess::ReadOnly => &["ro"],
            MountAccess::ReadOnlyRecursive => &["ro", "rro"],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SpecError {
    #[error("no command specified")]
    NoCommand,
    #[error("invalid capability {0:?}")]
    Capability(String),
    #[error("seccomp profile type {0:?} is not supported")]
    Seccomp(String),
    #[error("invalid quantity for {0}")]
    Quantity(String),
}

pub fn config(inputs: &Inputs<'_>) -> Result<Value, SpecError> {
    let security = &inputs.container.security_context;
    let mut linux = json!({
        "cgroupsPath": inputs.cgroup,
        "resources": resources(inputs.container)?,
        "namespaces": namespaces(inputs),
        "devices": inputs.devices,
    });
    if !security.privileged {
        // Also of a container that joins after the pod was admitted.
        if security.proc_mount.as_deref() != Some("Unmasked") || !inputs.spec.has_own_users() {
            linux["maskedPaths"] = json!(MASKED);
            linux["readonlyPaths"] = json!(READ_ONLY);
        }
        if let Some(profile) = seccomp_profile(inputs)? {
            linux["seccomp"] = profile;
        }
    }
    if inputs.mounts.iter().any(|mount| mount.propagation == Propagation::Bidirectional) {
        linux["rootfsPropagation"] = json!("rshared");
    } else if inputs.mounts.iter().any(|mount| mount.propagation == Propagation::HostToContainer) {
        linux["rootfsPropagation"] = json!("rslave");
    }
    let command = command(inputs)?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(inputs, &command)?,
        "root": {"path": inputs.rootfs, "readonly": security.read_only_root_filesystem},
        "mounts": mounts(inputs),
        "linux": linux,
    }))
}

/// The `process` object of a container.
fn process(inputs: &Inputs<'_>, command: &[String]) -> Result<Value, SpecError> {
    let (security, terminal) = (&inputs.container.security_context, inputs.container.tty);
    let capabilities = capabilities(security)?;
    let mut env: Vec<String> = inputs.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if terminal && !inputs.env.iter().any(|(name, _)| name == "TERM") {
        env.push("TERM=xterm".into());
    }
    let mut process = json!({
        "terminal": terminal,
        "user": {"uid": inputs.user.uid, "gid": inputs.user.gid, "additionalGids": inputs.user.groups},
        "args": command,
        "env": env,
        "cwd": working_folder(inputs.container, inputs.image),
        "capabilities": {"bounding": capabilities, "permitted": capabilities, "effective": capabilities},
    });
    if let Some(profile) = &inputs.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if inputs.user.uid != 0 {
        // Another user than root has them in the bounding set only, as the kernel would on execve.
        process["capabilities"]["permitted"] = json!([]);
        process["capabilities"]["effective"] = json!([]);
    }
    // An explicit `false` makes libcontainer load the filter too late to be allowed to: leave it out.
    if security.allow_privilege_escalation == Some(false) {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

/// Where the container's processes begin.
pub fn working_folder<'a>(container: &'a Container, image: &'a ImageConfig) -> &'a str {
    let wanted = container.working_dir.as_deref().filter(|folder| !folder.is_empty());
    Some(wanted.unwrap_or(&image.working_dir)).filter(|folder| !folder.is_empty()).unwrap_or("/")
}

/// `command` replaces the image's entry point and its arguments; `args` only the arguments.
fn command(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let variables = |name: &str| inputs.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let expand = |words: &[String]| words.iter().map(|word| crate::env::expand(word, &variables)).collect::<Vec<_>>();
    let (command, args) = (&inputs.container.command, &inputs.container.args);
    let entrypoint = inputs.image.entrypoint.clone().unwrap_or_default();
    let words = match (command.is_empty(), args.is_empty()) {
        (false, _) => [expand(command), expand(args)].concat(),
        (true, false) => [entrypoint, expand(args)].concat(),
        (true, true) => [entrypoint, inputs.image.cmd.clone().unwrap_or_default()].concat(),
    };
    if words.is_empty() { Err(SpecError::NoCommand) } else { Ok(words) }
}

/// Paths that other runtimes hide or protect in every container.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capability set, limited to what this agent itself may give.
fn capabilities(security: &Security) -> Result<Vec<String>, SpecError> {
    let short = |name: &String| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    let (add, drop): (Vec<_>, Vec<_>) =
        (security.capabilities.add.iter().map(short).collect(), security.capabilities.drop.iter().map(short).collect());
    if let Some(unknown) =
        add.iter().chain(&drop).find(|name| *name != "ALL" && !pod::capability::NAMES.contains(&name.as_str()))
    {
        return Err(SpecError::Capability(unknown.clone()));
    }
    let has = |list: &[String], name: &str| list.iter().any(|item| item == name);
    let wanted = |name: &&&str| {
        if security.privileged {
            return true;
        }
        let base = (DEFAULT_CAPABILITIES.contains(*name) && !has(&drop, "ALL")) || has(&add, "ALL");
        has(&add, name) || (base && !has(&drop, name))
    };
    let own = own_bounding_set();
    let allowed =
        pod::capability::NAMES.iter().enumerate().filter(|(bit, _)| own & (1 << bit) != 0).map(|(_, name)| name);
    Ok(allowed.filter(wanted).map(|name| format!("CAP_{name}")).collect())
}

/// A nested machine may lack some (CAP_SYS_RESOURCE); asking for them would fail the container.
fn own_bounding_set() -> u64 {
    static SET: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SET.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX)
    })
}

fn seccomp_profile(inputs: &Inputs<'_>) -> Result<Option<Value>, SpecError> {
    let default = SeccompProfile { kind: "RuntimeDefault".into(), localhost_profile: None };
    let own = inputs.container.security_context.seccomp_profile.as_ref();
    let profile = own.or(inputs.spec.security_context.seccomp_profile.as_ref()).unwrap_or(&default);
    match profile.kind.as_str() {
        "Unconfined" => Ok(None),
        "RuntimeDefault" => Ok(Some(seccomp::runtime_default(&capabilities(&inputs.container.security_context)?))),
        other => Err(SpecError::Seccomp(other.to_owned())),
    }
}

fn namespaces(inputs: &Inputs<'_>) -> Value {
    // Network, IPC and UTS are the pod process's own; a child inherits them.
    let mut namespaces = vec![json!({"type": "mount"})];
    match &inputs.pid_namespace {
        Some(path) => namespaces.push(json!({"type": "pid", "path": path})),
        None if inputs.spec.host_pid => {}
        None => namespaces.push(json!({"type": "pid"})),
    }
    if let Some(path) = &inputs.user_namespace {
        namespaces.push(json!({"type": "user", "path": path}));
    }
    if inputs.cgroup_v2 {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Value::Array(namespaces)
}

fn mounts(inputs: &Inputs<'_>) -> Value {
    let privileged = inputs.container.security_context.privileged;
    let system = if privileged { "rw" } else { "ro" };
    let fixed = [
        ("/proc", "proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", vec!["nosuid", "noexec", "nodev", system]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", vec!["nosuid", "noexec", "nodev", "relatime", system]),
    ];
    let mut list: Vec<Value> = fixed
        .iter()
        .map(|(to, kind, source, options)| json!({"destination": to, "type": kind, "source": source, "options": options}))
        .collect();
    let mut binds: Vec<&Mount> = inputs.mounts.iter().collect();
    // A mount below another one must come after it.
    binds.sort_by_key(|mount| Path::new(&mount.destination).components().count());
    list.extend(binds.into_iter().map(|mount| {
        let propagation = match mount.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let options = [&["rbind", propagation], mount.access.options()].concat();
        json!({"destination": mount.destination, "type": "bind", "source": mount.source, "options": options})
    }));
    Value::Array(list)
}

fn resources(container: &Container) -> Result<Value, SpecError> {
    let resources = &container.resources;
    let read = |map: &std::collections::BTreeMap<String, Value>, name: &str, parse: fn(&Value) -> Option<i64>| {
        let value = map.get(name);
        value.map(|value| parse(value).ok_or_else(|| SpecError::Quantity(name.to_owned()))).transpose()
    };
    let milli = |value: &Value| Quantity::of(value).map(Quantity::milli_value);
    let cpu_limit = read(&resources.limits, "cpu", milli)?;
    let cpu_request = read(&resources.requests, "cpu", milli)?.or(cpu_limit);
    let memory = read(&resources.limits, "memory", |value| Quantity::of(value).map(Quantity::value))?;
    let mut out = json!({"cpu": {"shares": cpu_shares(cpu_request.unwrap_or(0))}});
    if let Some(limit) = cpu_limit {
        out["cpu"]["period"] = json!(CPU_PERIOD);
        out["cpu"]["quota"] = json!(cpu_quota(limit));
    }
    if let Some(limit) = memory.filter(|limit| *limit > 0) {
        out["memory"] = json!({"limit": limit});
    }
    if container.security_context.privileged {
        out["devices"] = json!([{"allow": true, "access": "rwm"}]);
    } else {
        out["devices"] = json!([{"allow": false, "access": "rwm"}]);
    }
    Ok(out)
}

const CPU_PERIOD: i64 = 100_000;

/// How much of each period a limit is: at least a millisecond, and never more than the kernel counts. Somebody may ask
/// for more processors than numbers have room for.
fn cpu_quota(milli: i64) -> i64 {
    milli.saturating_mul(CPU_PERIOD / 1000).clamp(1000, MAX_CPU_QUOTA)
}

/// The kernel refuses more microseconds than these (`MAX_BW` of its scheduler).
const MAX_CPU_QUOTA: i64 = (1 << 44) - 1;

/// The kernel's weight for a request: 1024 for a whole processor, at least 2, at most 262144.
pub fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(pod: Value, change: impl FnOnce(&mut Inputs<'_>)) -> Result<Value, SpecError> {
        let spec: PodSpec = serde_json::from_value(pod).unwrap();
        let image = ImageConfig {
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["default".into()]),
            working_dir: "/work".into(),
            ..ImageConfig::default()
        };
        let mut inputs = Inputs {
            spec: &spec,
            container: &spec.containers[0],
            image: &image,
            env: vec![("A".into(), "1".into())],
            user: User::default(),
            rootfs: Path::new("/rootfs"),
            cgroup: "/kubepods/podx/c".into(),
            mounts: Vec::new(),
            pid_namespace: None,
            user_namespace: None,
            apparmor: None,
            cgroup_v2: false,
            devices: Vec::new(),
        };
        change(&mut inputs);
        config(&inputs)
    }

    fn of(container: Value) -> Value {
        build(json!({"containers": [container]}), |_| {}).unwrap()
    }

    #[test]
    fn command_and_args_as_the_api_says() {
        for (container, expected) in [
            (json!({}), json!(["/entry", "default"])),
            (json!({"args": ["x"]}), json!(["/entry", "x"])),
            (json!({"command": ["c"]}), json!(["c"])),
            (json!({"command": ["c"], "args": ["$(A)", "$(B)", "$$(A)"]}), json!(["c", "1", "$(B)", "$(A)"])),
        ] {
            assert_eq!(of(container.clone())["process"]["args"], expected, "{container}");
        }
    }

    #[test]
    fn secure_unless_asked_otherwise() {
        let plain = of(json!({}));
        assert_eq!(plain["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        assert!(plain["linux"]["seccomp"].is_object() && plain["linux"]["maskedPaths"].is_array());
        assert!(plain["process"].get("noNewPrivileges").is_none());
        let strict = of(json!({"securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}));
        assert_eq!(strict["process"]["capabilities"]["bounding"], json!(["CAP_NET_BIND_SERVICE"]));
        assert_eq!((&strict["process"]["noNewPrivileges"], &strict["root"]["readonly"]), (&json!(true), &json!(true)));
        let privileged = of(json!({"securityContext": {"privileged": true}}));
        assert!(privileged["linux"].get("seccomp").is_none() && privileged["linux"].get("maskedPaths").is_none());
        let unconfined = of(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}));
        assert!(unconfined["linux"].get("seccomp").is_none());
    }

    #[test]
    fn proc_is_open_to_own_users_only() {
        for (own_users, masked) in [(json!(null), true), (json!(true), true), (json!(false), false)] {
            let container = json!({"securityContext": {"procMount": "Unmasked"}});
            let config = build(json!({"hostUsers": own_users, "containers": [container]}), |_| {}).unwrap();
            assert_eq!(config["linux"].get("maskedPaths").is_some(), masked, "hostUsers: {own_users}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let bad = json!({"containers": [{"securityContext": {"capabilities": {"add": ["FLY"]}}}]});
        assert_eq!(build(bad, |_| {}).unwrap_err(), SpecError::Capability("FLY".into()));
        let bad = json!({"containers": [{"resources": {"limits": {"cpu": "much"}}}]});
        assert_eq!(build(bad, |_| {}).unwrap_err(), SpecError::Quantity("cpu".into()));
    }

    #[test]
    fn resources_become_cgroup_values() {
        let config =
            of(json!({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}));
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["cpu"], json!({"shares": 256, "period": 100_000, "quota": 50_000}));
        assert_eq!(resources["memory"]["limit"], json!(64 << 20));
        assert_eq!(of(json!({}))["linux"]["resources"]["cpu"]["shares"], json!(2));
    }

    #[test]
    fn amounts_beyond_all_machines_are_the_most_there_is() {
        let cpu =
            |amount: &str| of(json!({"resources": {"limits": {"cpu": amount}}}))["linux"]["resources"]["cpu"].clone();
        let most = json!({"shares": 262_144, "period": 100_000, "quota": MAX_CPU_QUOTA});
        for amount in ["10P", "9223372036854775807", "100E", "1e30"] {
            assert_eq!(cpu(amount), most, "{amount}");
        }
        assert_eq!(cpu("1n"), json!({"shares": 2, "period": 100_000, "quota": 1000}));
        let [least, most] = [i64::MIN, i64::MAX].map(|milli| (cpu_quota(milli), cpu_shares(milli)));
        assert_eq!((least, most), ((1000, 2), (MAX_CPU_QUOTA, 262_144)));
        let memory = of(json!({"resources": {"limits": {"memory": "100E"}}}));
        assert_eq!(memory["linux"]["resources"]["memory"]["limit"], json!(i64::MAX));
    }

    #[test]
    fn nested_mounts_follow_their_parents() {
        let mount = |destination: &str| Mount {
            source: "/x".into(),
            destination: destination.into(),
            access: MountAccess::Writable,
            propagation: Propagation::Private,
        };
        let config = build(json!({"containers": [{}]}), |inputs| inputs.mounts = vec![mount("/a/b/c"), mount("/a")]);
        let config = config.unwrap();
        let order: Vec<_> =
            config["mounts"].as_array().unwrap()[6..].iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(order, ["/a", "/a/b/c"]);
    }
}
