//! The Node object and its lease: that this machine is here, what it has, and that it still lives.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::status::Status;
use client::{Client, Selector};
use ipnetwork::Ipv4Network;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Settings;
use crate::conditions::{self, Stamp};
use crate::controllers::views::NODES;
use crate::heartbeat;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i64 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// The part of the pods' range that one node gets, prefix bits.
const NODE_PREFIX: u8 = 24;
const MAX_PODS: u32 = 110;

/// Writes the Node as it is now; returns the node's part of the pods' range.
pub async fn register(settings: &Settings, client: &Client) -> Result<Ipv4Network> {
    let name = &settings.name;
    let facts = facts(settings)?;
    let cidr = match client.get(&NODES, "", name).await {
        Ok(found) => existing_cidr(&found, settings, client).await?,
        Err(status) if status.code == 404 => {
            let cidr = free_cidr(settings, client).await?;
            client
                .create(&NODES, "", node(settings, cidr))
                .await
                .with_context(|| format!("cannot register node {name}"))?;
            cidr
        }
        Err(status) => return Err(status).context("cannot read this node's object"),
    };
    let update = |current: &Value| {
        let mut next = current.clone();
        merge(&mut next["status"], &facts);
        next["status"]["conditions"] = json!(conditions(&current["status"]["conditions"]));
        Ok(next)
    };
    client
        .update(&NODES, "", name, "status", update)
        .await
        .with_context(|| format!("cannot write the status of node {name}"))?;
    renew_once(name, client).await.context("cannot write this node's lease")?;
    Ok(cidr)
}

/// What this node has, into what others say of it: amounts of resources that it does not know stay.
fn merge(status: &mut Value, facts: &Value) {
    for (key, value) in facts.as_object().into_iter().flatten() {
        match (key.as_str(), value, status[key].as_object_mut()) {
            ("capacity" | "allocatable", Value::Object(own), Some(all)) => all.extend(own.clone()),
            _ => status[key] = value.clone(),
        }
    }
}

async fn existing_cidr(found: &Value, settings: &Settings, client: &Client) -> Result<Ipv4Network> {
    match found["spec"]["podCIDR"].as_str() {
        Some(text) => text.parse().with_context(|| format!("node {} has the pod range {text:?}", settings.name)),
        None => {
            let cidr = free_cidr(settings, client).await?;
            let assign = |current: &Value| {
                let mut next = current.clone();
                next["spec"]["podCIDR"] = json!(cidr.to_string());
                next["spec"]["podCIDRs"] = json!([cidr.to_string()]);
                Ok(next)
            };
            client.update(&NODES, "", &settings.name, "", assign).await.context("cannot assign a pod range")?;
            Ok(cidr)
        }
    }
}

/// The first part of the pods' range that no node has.
async fn free_cidr(settings: &Settings, client: &Client) -> Result<Ipv4Network> {
    let nodes = client.list(&NODES, "", &Selector::default()).await.context("cannot list nodes")?;
    let taken: Vec<String> =
        nodes.items.iter().filter_map(|node| node.value()["spec"]["podCIDR"].as_str().map(str::to_owned)).collect();
    let length = settings.pod_cidr.prefix().max(NODE_PREFIX);
    let base = u32::from(settings.pod_cidr.network());
    let parts = 1_u32 << (length - settings.pod_cidr.prefix());
    let part = |index: u32| Ipv4Network::new(Ipv4Addr::from(base + (index << (32 - length))), length).ok();
    let free = (0..parts).filter_map(part).find(|cidr| !taken.contains(&cidr.to_string()));
    match free {
        Some(cidr) => Ok(cidr),
        None => bail!("--pod-cidr {} has no /{length} left for this node: all {parts} are taken", settings.pod_cidr),
    }
}

fn node(settings: &Settings, cidr: Ipv4Network) -> Value {
    let (os, arch) = ("linux", architecture());
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": settings.name, "labels": {
            "kubernetes.io/hostname": settings.name,
            "kubernetes.io/os": os,
            "kubernetes.io/arch": arch,
            "beta.kubernetes.io/os": os,
            "beta.kubernetes.io/arch": arch,
        }},
        "spec": {"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]},
    })
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

fn read(path: &str) -> String {
    // Facts for people; a machine without one of these files shows it empty.
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn facts(settings: &Settings) -> Result<Value> {
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
        "addresses": [{"type": "InternalIP", "address": settings.ip.to_string()}, {"type": "Hostname", "address": settings.name}],
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

/// The four conditions of a healthy node, with the times of those that did not change; others' stay.
fn conditions(stored: &Value) -> Vec<Value> {
    let all = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let wanted = all.map(|(type_, status, reason, message)| {
        json!({"type": type_, "status": status, "reason": reason, "message": message})
    });
    let stamps = [Stamp::Heartbeat, Stamp::Transition];
    conditions::merge(stored, &[], wanted.into(), &stamps, &api::time::rfc3339(Timestamp::now()))
}

/// Renews the lease for ever; a node that was declared silent meanwhile becomes ready again.
pub async fn renew(name: String, client: Client) {
    loop {
        tokio::time::sleep(RENEW).await;
        if let Err(error) = renew_once(&name, &client).await {
            tracing::warn!(%error, "lease not renewed");
            continue;
        }
        if let Err(error) = revive(&name, &client).await {
            tracing::warn!(%error, "node status not written");
        }
    }
}

async fn renew_once(name: &str, client: &Client) -> Result<(), Status> {
    let now = api::time::micro(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let metadata = json!({"name": name, "namespace": LEASE_NAMESPACE});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
    heartbeat::renew(client, lease).await
}

async fn revive(name: &str, client: &Client) -> Result<(), Status> {
    let node = client.get(&NODES, "", name).await?;
    let ready = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    if ready {
        return Ok(());
    }
    let update = |current: &Value| {
        let mut next = current.clone();
        next["status"]["conditions"] = json!(conditions(&current["status"]["conditions"]));
        Ok(next)
    };
    client.update(&NODES, "", name, "status", update).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_of_others_outlast_a_start() {
        let mut status = json!({"capacity": {"cpu": "1", "example.com/fpga": "2"}, "allocatable": {"example.com/fpga": "1"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "volumesInUse": ["x"]});
        let facts = json!({"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}, "addresses": []});
        merge(&mut status, &facts);
        assert_eq!(
            status,
            json!({"capacity": {"cpu": "4", "example.com/fpga": "2"},
            "allocatable": {"cpu": "4", "example.com/fpga": "1"}, "addresses": [], "volumesInUse": ["x"]})
        );
    }

    #[test]
    fn conditions_keep_the_time_of_their_last_change() {
        let old = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}, {"type": "DiskPressure", "status": "Unknown", "lastTransitionTime": "2020-01-01T00:00:00Z"}]);
        let fresh = conditions(&old);
        let since = |type_: &str| fresh.iter().find(|c| c["type"] == type_).unwrap()["lastTransitionTime"].clone();
        assert_eq!(since("Ready"), "2020-01-01T00:00:00Z");
        assert_ne!(since("DiskPressure"), "2020-01-01T00:00:00Z");
    }
}
