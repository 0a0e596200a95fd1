//! What a node says of its machine, and when that is worth a write.

use std::time::Duration;

use anyhow::{Context, Result};
use api::conditions::{self, Condition};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Settings;

const MAX_PODS: u32 = 110;

/// Whether pods can run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The network of pods is not set up yet.
    Starting,
    Ready,
}

/// What goes into `status`, less the conditions.
pub type Facts = Value;

/// As Go names it.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

fn read(path: &str) -> String {
    // Facts for people; a machine without one of these files shows it empty.
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What this machine has and is.
///
/// # Errors
/// When the kernel does not say how many CPUs, how much memory or how large a disk there is. What is only for people is
/// left empty instead.
pub fn facts(settings: &Settings) -> Result<Facts> {
    let cpus = std::thread::available_parallelism().context("cannot count CPUs")?;
    let memory = memory_kib()?;
    let disk = disk_bytes(&settings.data_dir)?;
    let amounts = |disk: String| {
        json!({
            "cpu": cpus.to_string(),
            "memory": format!("{memory}Ki"),
            "pods": MAX_PODS.to_string(),
            "ephemeral-storage": disk,
            "hugepages-1Gi": "0",
            "hugepages-2Mi": "0",
        })
    };
    let for_pods = disk - agent::disk_reserve(disk);
    let release = read("/etc/os-release");
    let os = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_owned();
    let version = env!("CARGO_PKG_VERSION");
    Ok(json!({
        "capacity": amounts(format!("{}Ki", disk / 1024)),
        "allocatable": amounts(for_pods.to_string()),
        "addresses": addresses(settings),
        "features": {"supplementalGroupsPolicy": true},
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true}}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": {
            "machineID": read("/etc/machine-id"),
            "systemUUID": read("/sys/class/dmi/id/product_uuid"),
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": os,
            "containerRuntimeVersion": format!("amphipod://{version}"),
            "kubeletVersion": format!("v1.34.3+amphipod.{version}"),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
    }))
}

/// First the address by which it is known.
fn addresses(settings: &Settings) -> Value {
    let ips = settings.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    ips.chain([json!({"type": "Hostname", "address": settings.name})]).collect()
}

fn memory_kib() -> Result<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.context("/proc/meminfo has no MemTotal")
}

fn disk_bytes(path: &std::path::Path) -> Result<u64> {
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).context("a path with a zero byte")?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    #[expect(unsafe_code, reason = "statvfs has no safe wrapper in std")]
    // SAFETY: the path is a C string that outlives the call; the kernel fills the struct when it returns 0.
    let stat = unsafe {
        if libc::statvfs(text.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot read the size of {}", path.display()));
        }
        stat.assume_init()
    };
    Ok(stat.f_blocks * stat.f_frsize)
}

/// The stored status with what this node says: amounts of resources that it does not know stay, and others' conditions.
pub fn merged(stored: &Value, facts: &Facts, readiness: Readiness) -> Value {
    let mut status = stored.clone();
    for (key, value) in facts.as_object().into_iter().flatten() {
        match (key.as_str(), value, status[key].as_object_mut()) {
            ("capacity" | "allocatable", Value::Object(own), Some(all)) => all.extend(own.clone()),
            _ => status[key] = value.clone(),
        }
    }
    let now = api::time::rfc3339(Timestamp::now());
    let merged = conditions::merge(&stored["conditions"], &[], &said(readiness), conditions::OF_NODES, &now);
    status["conditions"] = json!(merged);
    status
}

/// The four conditions of a node in order.
fn said(readiness: Readiness) -> [Condition; 4] {
    let ready = match readiness {
        Readiness::Ready => ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Readiness::Starting => {
            ("Ready", false, "KubeletNotReady", "container runtime network not ready: the node waits for its pod range")
        }
    };
    let all = [
        ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ];
    all.map(|(type_, holds, reason, message)| Condition::new(type_, holds).because(reason, message))
}

/// Somebody else has written over what this node says of how it is.
fn is_contradicted(stored: &Value, readiness: Readiness) -> bool {
    said(readiness).iter().any(|own| !own.is_said_in(&stored["conditions"]))
}

/// How often a status is written.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// Between two looks at the machine, which hardly ever changes.
    pub look: Duration,
    /// The least between two writes.
    pub spacing: Duration,
    /// After which it is written though nothing changed.
    pub repeat: Duration,
}

impl Rhythm {
    /// As the kubelet has it, which looks every five minutes.
    pub const USUAL: Self =
        Self { look: Duration::from_secs(60), spacing: Duration::from_secs(10), repeat: Duration::from_secs(300) };
}

/// What was written last, and when.
#[derive(Debug)]
pub struct Reports {
    rhythm: Rhythm,
    last: Option<(Facts, Instant)>,
}

impl Reports {
    pub fn new(rhythm: Rhythm) -> Self {
        Self { rhythm, last: None }
    }

    pub fn wrote(&mut self, facts: Facts, now: Instant) {
        self.last = Some((facts, now));
    }

    /// When to look again.
    pub fn next(&self, now: Instant) -> Instant {
        now + self.rhythm.look
    }

    /// When the status is to be written next, as things are now.
    pub fn due(&self, stored: &Value, facts: &Facts, readiness: Readiness, now: Instant) -> Instant {
        let Some((said, at)) = &self.last else { return now };
        let news = said != facts || is_contradicted(stored, readiness);
        *at + if news { self.rhythm.spacing } else { self.rhythm.repeat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_of_others_outlast_a_start() {
        let stored = json!({"capacity": {"cpu": "1", "example.com/fpga": "2"}, "allocatable": {"example.com/fpga": "1"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "volumesInUse": ["x"]});
        let facts = json!({"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}, "addresses": []});
        let mut status = merged(&stored, &facts, Readiness::Ready);
        status.as_object_mut().unwrap().remove("conditions");
        assert_eq!(
            status,
            json!({"capacity": {"cpu": "4", "example.com/fpga": "2"},
            "allocatable": {"cpu": "4", "example.com/fpga": "1"}, "addresses": [], "volumesInUse": ["x"]})
        );
    }

    #[test]
    fn conditions_keep_the_time_of_their_last_change() {
        let old = json!({"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "DiskPressure", "status": "Unknown", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "Foreign", "status": "True"}]});
        let fresh = merged(&old, &json!({}), Readiness::Ready);
        let find =
            |type_: &str| fresh["conditions"].as_array().unwrap().iter().find(|c| c["type"] == type_).unwrap().clone();
        assert_eq!(find("Ready")["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_ne!(find("DiskPressure")["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(find("Foreign")["status"], "True");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unchanged_status_is_written_every_five_minutes_and_a_changed_one_soon() {
        let (facts, start) = (json!({"capacity": {"cpu": "4"}}), Instant::now());
        let stored = merged(&Value::Null, &facts, Readiness::Ready);
        let mut reports = Reports::new(Rhythm::USUAL);
        let due = |reports: &Reports, stored: &Value, facts: &Value| {
            reports.due(stored, facts, Readiness::Ready, start).duration_since(start).as_secs()
        };
        assert_eq!(due(&reports, &stored, &facts), 0, "never written");
        reports.wrote(facts.clone(), start);
        assert_eq!(due(&reports, &stored, &facts), 300);
        assert_eq!(due(&reports, &stored, &json!({"capacity": {"cpu": "8"}})), 10);
        let mut silent = stored.clone();
        silent["conditions"][3]["status"] = json!("Unknown");
        assert_eq!(due(&reports, &silent, &facts), 10, "declared silent");
        let mut more = stored.clone();
        more["conditions"].as_array_mut().unwrap().push(json!({"type": "Foreign", "status": "True"}));
        more["conditions"][0]["lastHeartbeatTime"] = json!("2020-01-01T00:00:00Z");
        assert_eq!(due(&reports, &more, &facts), 300, "others' conditions, and times, are no news");
    }
}
