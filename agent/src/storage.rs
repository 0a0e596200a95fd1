//! How much of the node's disk a pod may take: what it said it would, and what is left. `Limits` and the choice among
//! pods are pure; `measure` looks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use api::quantity::Quantity;
use api::uid::Uid;

use crate::door::{Folder, Weight};
use crate::model::{Container, Pod, PodSpec, Volume};
use crate::node::Node;
use crate::record::Cause;
use crate::room::{Level, Want};

const RESOURCE: &str = "ephemeral-storage";
/// From here on pods keep the system itself going, and are not evicted.
const CRITICAL: i32 = 2_000_000_000;

/// Why a pod must go, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub message: String,
    pub cause: Cause,
}

/// What a pod has written that goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Writable layer and logs of each container.
    pub containers: BTreeMap<String, Weight>,
    /// Each emptyDir on disk.
    pub volumes: BTreeMap<String, Weight>,
}

impl Usage {
    pub fn total(&self) -> Weight {
        let mut total = Weight::default();
        self.containers.values().chain(self.volumes.values()).for_each(|weight| total += *weight);
        total
    }
}

/// What a pod's own words allow it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    volumes: Vec<(String, Quantity)>,
    containers: Vec<(String, Quantity)>,
    pod: Option<Quantity>,
}

impl Limits {
    pub fn of(spec: &PodSpec) -> Limits {
        if is_critical(spec) {
            return Limits::default();
        }
        let volumes = spec.volumes.iter().filter(|volume| on_disk(volume)).filter_map(|volume| {
            let limit = Quantity::of(volume.empty_dir.as_ref()?.size_limit.as_ref()?)?;
            Some((volume.name.clone(), limit))
        });
        let containers = spec.containers.iter().filter_map(|c| Some((c.name.clone(), limit(c)?)));
        Limits {
            volumes: volumes.filter(|(_, limit)| limit.value() > 0).collect(),
            containers: containers.filter(|(_, limit)| limit.value() > 0).collect(),
            pod: largest_sum(spec, limit),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.containers.is_empty() && self.pod.is_none()
    }

    /// The first limit that is exceeded: a volume's, all containers' together, one container's.
    pub fn exceeded(&self, usage: &Usage) -> Option<Eviction> {
        let beyond = |limit: &Quantity, weight: Option<&Weight>| weight.is_some_and(|weight| bytes(weight) > *limit);
        let volume = self.volumes.iter().find(|(name, limit)| beyond(limit, usage.volumes.get(name)));
        let container = self.containers.iter().find(|(name, limit)| beyond(limit, usage.containers.get(name)));
        let pod = self.pod.as_ref().filter(|limit| beyond(limit, Some(&usage.total())));
        let message = match (volume, pod, container) {
            (Some((name, limit)), ..) => {
                format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". ")
            }
            (None, Some(limit), _) => {
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
            }
            (None, None, Some((name, limit))) => {
                format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ")
            }
            (None, None, None) => return None,
        };
        Some(Eviction { message, cause: Cause::Itself })
    }
}

fn on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|empty| empty.medium != "Memory")
}

pub fn is_critical(spec: &PodSpec) -> bool {
    spec.priority.is_some_and(|priority| priority >= CRITICAL)
}

fn limit(container: &Container) -> Option<Quantity> {
    Quantity::of(container.resources.limits.get(RESOURCE)?)
}

fn request(container: &Container) -> Option<Quantity> {
    Quantity::of(container.resources.requests.get(RESOURCE)?)
}

/// Containers run beside each other and beside sidecars; init containers one at a time, beside the sidecars before them.
fn largest_sum(spec: &PodSpec, of: fn(&Container) -> Option<Quantity>) -> Option<Quantity> {
    let add = |sum: Option<Quantity>, more: Option<Quantity>| match (sum, more) {
        (Some(sum), Some(more)) => Some(sum + more),
        (sum, more) => sum.or(more),
    };
    let (mut sidecars, mut most) = (None, None);
    for container in &spec.init_containers {
        let now = add(sidecars, of(container));
        if container.is_sidecar() {
            sidecars = now;
        }
        most = most.max(now);
    }
    let running = spec.containers.iter().map(of).fold(sidecars, add);
    most.max(running)
}

/// As the kubelet writes sizes it has measured.
fn bytes(weight: &Weight) -> Quantity {
    let text = format!("{}Ki", weight.bytes / 1024);
    let whole = weight.bytes.is_multiple_of(1024).then(|| Quantity::parse(&text).ok()).flatten();
    whole.unwrap_or_else(|| Quantity::from_int(i64::try_from(weight.bytes).unwrap_or(i64::MAX)))
}

/// A pod among others when the node is short of disk.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub uid: Uid,
    pub spec: std::sync::Arc<Pod>,
    pub usage: Usage,
}

impl Candidate {
    fn beyond_request(&self, want: Want) -> i64 {
        let total = self.usage.total();
        let weight = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        match want {
            Want::Bytes => {
                weight(total.bytes) - largest_sum(&self.spec.spec, request).map_or(0, |request| request.value())
            }
            Want::Files => weight(total.files),
        }
    }

    fn taken(&self, want: Want) -> u64 {
        match want {
            Want::Bytes => self.usage.total().bytes,
            Want::Files => self.usage.total().files,
        }
    }
}

/// Who takes so little that its end would help nobody.
const NOT_WORTH_IT: (u64, u64) = (1 << 20, 100);

/// Who goes first, in the kubelet's order: those beyond what they requested, the less important, the larger.
pub fn choose(candidates: &[Candidate], want: Want) -> Option<&Candidate> {
    let least = match want {
        Want::Bytes => NOT_WORTH_IT.0,
        Want::Files => NOT_WORTH_IT.1,
    };
    let worth = candidates.iter().filter(|one| !is_critical(&one.spec.spec) && one.taken(want) >= least);
    worth.max_by_key(|one| {
        let beyond = one.beyond_request(want);
        (beyond > 0, std::cmp::Reverse(one.spec.spec.priority.unwrap_or(0)), beyond)
    })
}

/// What a pod is told that goes for the node's sake.
pub fn pressure(candidate: &Candidate, level: Level, want: Want) -> Eviction {
    let (resource, threshold, available) = match want {
        Want::Bytes => (RESOURCE, size(level.reserve), size(level.available)),
        Want::Files => ("inodes", level.reserved_files.to_string(), level.available_files.to_string()),
    };
    let mut message = format!("The node was low on resource: {resource}. ");
    message += &format!("Threshold quantity: {threshold}, available: {available}. ");
    for container in candidate.spec.spec.all_containers() {
        let Some(weight) = candidate.usage.containers.get(&container.name) else { continue };
        let (used, asked) = (bytes(weight), request(container).unwrap_or(Quantity::ZERO));
        if used > asked && want == Want::Bytes {
            message += &format!(
                "Container {} was using {used}, request is {asked}, has larger consumption of {resource}. ",
                container.name
            );
        }
    }
    Eviction { message, cause: Cause::Pressure }
}

fn size(bytes: u64) -> String {
    self::bytes(&Weight { bytes: bytes / 1024 * 1024, files: 0 }).to_string()
}

/// What is looked at of a pod.
#[derive(Clone, Debug)]
pub struct Places {
    pub uid: Uid,
    /// Containers with their runs.
    pub runs: Vec<(String, String)>,
    pub volumes: BTreeSet<String>,
}

impl Places {
    pub fn of(uid: &Uid, spec: &PodSpec, runs: Vec<(String, String)>) -> Places {
        let volumes = spec.volumes.iter().filter(|volume| on_disk(volume)).map(|volume| volume.name.clone());
        Places { uid: uid.clone(), runs, volumes: volumes.collect() }
    }

    /// Takes as long as there are files, or as it may: not for a thread that others wait for.
    pub fn measure(&self, node: &Node, patience: Duration) -> io::Result<Usage> {
        let deadline = Instant::now() + patience;
        let weigh = |path: &Path| weigh(path, deadline);
        let mut usage = Usage::default();
        for (container, run) in &self.runs {
            let mut weight = weigh(&node.pod_layers(&self.uid).join(run))?;
            weight += weigh(&node.pod_logs(&self.uid).join(container))?;
            usage.containers.insert(container.clone(), weight);
        }
        for volume in &self.volumes {
            usage.volumes.insert(volume.clone(), weigh(&node.pod_volumes(&self.uid).join(volume))?);
        }
        Ok(usage)
    }
}

/// What is not there takes nothing.
fn weigh(path: &Path, deadline: Instant) -> io::Result<Weight> {
    match Folder::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Weight::default()),
        folder => folder?.weigh(deadline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn usage(containers: &[(&str, u64)], volumes: &[(&str, u64)]) -> Usage {
        let all = |list: &[(&str, u64)]| {
            list.iter().map(|(name, bytes)| ((*name).to_owned(), Weight { bytes: *bytes, files: 1 })).collect()
        };
        Usage { containers: all(containers), volumes: all(volumes) }
    }

    fn limited(name: &str, limit: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    #[test]
    fn who_exceeds_which_limit() {
        let spec = pod(json!({"containers": [limited("a", "1Mi"), limited("b", "2Mi")],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1024Ki"}}, {"name": "w", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Ki"}}]}))
        .spec;
        let of = |containers: &[(&str, u64)], volumes: &[(&str, u64)]| {
            Limits::of(&spec).exceeded(&usage(containers, volumes)).map(|eviction| eviction.message)
        };
        assert_eq!(of(&[("a", 1 << 20), ("b", 1 << 20)], &[("v", 1 << 20)]), None);
        let volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        assert_eq!(of(&[("a", 9 << 20)], &[("v", (1 << 20) + 1)]).as_deref(), Some(volume));
        let all = "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ";
        assert_eq!(of(&[("a", 0), ("b", 0)], &[("w", 4 << 20)]).as_deref(), Some(all));
        let one = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
        assert_eq!(of(&[("a", 2 << 20), ("b", 0)], &[]).as_deref(), Some(one));
    }

    #[test]
    fn who_set_no_limit_or_keeps_the_system_going_has_none() {
        assert!(
            Limits::of(&pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]})).spec)
                .is_empty()
        );
        let critical = pod(json!({"priority": 2_000_001_000, "containers": [limited("a", "1")]}));
        assert!(Limits::of(&critical.spec).is_empty());
    }

    #[test]
    fn init_containers_count_where_they_are_larger() {
        let spec = pod(json!({"containers": [limited("a", "1Mi"), limited("b", "1Mi")], "initContainers": [
            {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
            limited("i", "5Mi")]}));
        assert_eq!(largest_sum(&spec.spec, limit).unwrap().to_string(), "6Mi");
    }

    fn candidate(uid: &str, spec: Value, bytes: u64) -> Candidate {
        Candidate { uid: Uid::new(uid), spec: pod(spec).into(), usage: usage(&[("a", bytes)], &[]) }
    }

    #[test]
    fn the_node_lets_go_those_who_took_more_than_they_asked_for() {
        let asked = json!({"containers": [{"name": "a", "resources": {"requests": {"ephemeral-storage": "1Gi"}}}]});
        let plain = |priority: i32| json!({"priority": priority, "containers": [{"name": "a"}]});
        let all = [
            candidate("modest", asked, 900 << 20),
            candidate("important", plain(1000), 800 << 20),
            candidate("small", plain(0), 100 << 20),
            candidate("large", plain(0), 200 << 20),
            candidate("critical", plain(2_000_000_000), 999 << 20),
        ];
        assert_eq!(choose(&all, Want::Bytes).unwrap().uid.as_str(), "large");
        assert_eq!(choose(&all[..2], Want::Bytes).unwrap().uid.as_str(), "important");
        assert_eq!(choose(&all[..1], Want::Bytes).unwrap().uid.as_str(), "modest");
        assert!(choose(&all[4..], Want::Bytes).is_none());
        assert!(choose(&[candidate("idle", plain(0), 4096)], Want::Bytes).is_none());
        let level = Level { reserve: 1 << 30, available: (1 << 29) + 7, ..Level::default() };
        assert_eq!(
            pressure(&all[3], level, Want::Bytes).message,
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 512Mi. Container a was \
             using 200Mi, request is 0, has larger consumption of ephemeral-storage. "
        );
    }
}
