//! What a pod asks of a node, and who it is to others. Pods of one template are the same in this, so they share one value, and
//! what is found out for one of them holds for all.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::quantity::Quantity;
use serde::Deserialize;

use super::company::{Company, Identity};
use crate::controllers::views::{Container, Pod, Toleration};

/// What a container that asks for nothing counts with when nodes are compared: 100m of CPU, 200 MB.
const ASSUMED_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;
/// Demands that nobody has any more are let go when there are so many, and twice as many as are in use.
const KEPT: usize = 1024;

/// Amounts of resources: CPU in thousandths, the others in their units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub storage: i64,
    pub others: BTreeMap<String, i64>,
}

impl Amounts {
    pub fn of(list: &BTreeMap<String, String>) -> Self {
        let mut all = Self::default();
        // Stored quantities passed validation; one that does not parse asks for nothing.
        for (name, quantity) in list.iter().filter_map(|(name, text)| Some((name, Quantity::parse(text).ok()?))) {
            match name.as_str() {
                "cpu" => all.cpu = quantity.milli_value(),
                "memory" => all.memory = quantity.value(),
                "ephemeral-storage" => all.storage = quantity.value(),
                // A node's own number of places.
                "pods" => {}
                _ => drop(all.others.insert(name.clone(), quantity.value())),
            }
        }
        all
    }

    pub fn add(&mut self, more: &Self) {
        self.combine(more, |own, more| own.saturating_add(more));
    }

    pub fn subtract(&mut self, less: &Self) {
        self.combine(less, |own, less| own.saturating_sub(less));
        self.others.retain(|_, amount| *amount != 0);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, how: impl Fn(i64, i64) -> i64) {
        self.cpu = how(self.cpu, other.cpu);
        self.memory = how(self.memory, other.memory);
        self.storage = how(self.storage, other.storage);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = how(*own, *amount);
        }
    }
}

/// A port of the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    ip: String,
    protocol: String,
    port: u16,
}

impl HostPort {
    pub fn collides(&self, other: &Self) -> bool {
        let everywhere = |port: &Self| matches!(&*port.ip, "" | "0.0.0.0");
        (&self.protocol, self.port) == (&other.protocol, other.port)
            && (everywhere(self) || everywhere(other) || self.ip == other.ip)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    pub match_expressions: Vec<Requirement>,
    pub match_fields: Vec<Requirement>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preferred {
    pub weight: i64,
    pub preference: Term,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<Terms>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    preferred: Vec<Preferred>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terms {
    node_selector_terms: Vec<Term>,
}

/// Whether a pod may push others aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Preemption {
    #[default]
    LowerPriority,
    Never,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Demand {
    pub identity: Identity,
    pub company: Option<Arc<Company>>,
    pub amounts: Amounts,
    /// CPU and memory as they count when nodes are compared.
    pub weighed: (i64, i64),
    pub ports: Vec<HostPort>,
    pub selector: BTreeMap<String, String>,
    /// Any of these, where there are any.
    pub required: Option<Vec<Term>>,
    pub preferred: Vec<Preferred>,
    pub tolerations: Vec<Toleration>,
    pub priority: i64,
    pub preemption: Preemption,
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy == "Always"
}

impl Demand {
    pub fn of(pod: &Pod) -> Self {
        let affinity = pod.spec.affinity.as_ref().map(|affinity| affinity["nodeAffinity"].clone());
        // What was stored passed validation.
        let affinity: NodeAffinity = affinity.and_then(|node| serde_json::from_value(node).ok()).unwrap_or_default();
        let exact = total(pod, |container| Amounts::of(&container.resources.requests));
        let weighed = total(pod, |container| {
            let own = Amounts::of(&container.resources.requests);
            let asks = |name: &str| container.resources.requests.contains_key(name);
            Amounts {
                cpu: if asks("cpu") { own.cpu } else { ASSUMED_CPU },
                memory: if asks("memory") { own.memory } else { ASSUMED_MEMORY },
                ..Amounts::default()
            }
        });
        let identity = Identity::of(pod);
        Self {
            company: Company::of(pod, &identity),
            identity,
            amounts: exact,
            weighed: (weighed.cpu, weighed.memory),
            ports: host_ports(pod),
            selector: pod.spec.node_selector.clone(),
            required: affinity.required.map(|required| required.node_selector_terms),
            preferred: affinity.preferred,
            tolerations: pod.spec.tolerations.clone(),
            priority: pod.spec.priority,
            preemption: if pod.spec.preemption_policy == "Never" {
                Preemption::Never
            } else {
                Preemption::LowerPriority
            },
        }
    }

    /// The names of the only nodes that can be meant, where every term names some.
    pub fn named(&self) -> Option<HashSet<&str>> {
        let mut all = HashSet::new();
        for term in self.required.as_ref()? {
            let names = |field: &&Requirement| field.key == "metadata.name" && field.operator == "In";
            let field = term.match_fields.iter().find(names)?;
            all.extend(field.values.iter().map(String::as_str));
        }
        Some(all)
    }

    /// Asks for some CPU or memory.
    pub fn is_measured(&self) -> bool {
        self.amounts.cpu > 0 || self.amounts.memory > 0
    }
}

/// The containers together; or, if that is more, an init container with the sidecars started before it. And the overhead.
fn total(pod: &Pod, amounts: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut all = Amounts::default();
    for container in &pod.spec.containers {
        all.add(&amounts(container));
    }
    let (mut sidecars, mut start) = (Amounts::default(), Amounts::default());
    for container in &pod.spec.init_containers {
        let own = amounts(container);
        if is_sidecar(container) {
            all.add(&own);
            sidecars.add(&own);
            start.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&own);
            start.raise_to(&beside);
        }
    }
    all.raise_to(&start);
    all.add(&Amounts::of(&pod.spec.overhead));
    all
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|container| is_sidecar(container));
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let protocol = |text: &str| if text.is_empty() { "TCP".to_owned() } else { text.to_owned() };
    ports
        .filter(|port| port.host_port != 0)
        .map(|port| HostPort { ip: port.host_ip.clone(), protocol: protocol(&port.protocol), port: port.host_port })
        .collect()
}

/// Every demand once.
#[derive(Debug, Default)]
pub struct Demands {
    known: HashSet<Arc<Demand>>,
    /// Those that nobody has are let go at this size.
    limit: usize,
}

impl Demands {
    pub fn of(&mut self, pod: &Pod) -> Arc<Demand> {
        let demand = Demand::of(pod);
        if let Some(known) = self.known.get(&demand) {
            return known.clone();
        }
        if self.known.len() >= self.limit.max(KEPT) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = self.known.len() * 2;
        }
        let demand = Arc::new(demand);
        self.known.insert(demand.clone());
        demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn asks(cpu: &str) -> serde_json::Value {
        json!({"requests": {"cpu": cpu}})
    }

    #[test]
    fn the_largest_moment_of_a_pod_counts() {
        let cpu = |init: serde_json::Value| {
            let spec =
                json!({"initContainers": init, "containers": [{"resources": asks("100m")}], "overhead": {"cpu": "5m"}});
            Demand::of(&pod(spec)).amounts.cpu
        };
        assert_eq!(cpu(json!([])), 105);
        assert_eq!(cpu(json!([{"resources": asks("300m")}])), 305);
        let sidecar = json!({"resources": asks("50m"), "restartPolicy": "Always"});
        assert_eq!(cpu(json!([sidecar])), 155);
        assert_eq!(cpu(json!([sidecar, {"resources": asks("300m")}])), 355, "the sidecar runs by then");
        assert_eq!(cpu(json!([{"resources": asks("300m")}, sidecar])), 305, "and here it does not");
    }

    #[test]
    fn pods_of_one_template_share_a_demand() {
        let mut demands = Demands::default();
        let spec = json!({"containers": [{"resources": asks("1")}], "tolerations": [{"key": "a"}]});
        let (a, b) = (demands.of(&pod(spec.clone())), demands.of(&pod(spec)));
        assert!(Arc::ptr_eq(&a, &b));
        for index in 0..3000 {
            demands.of(&pod(json!({"nodeSelector": {"n": index.to_string()}})));
        }
        assert!(demands.known.len() <= KEPT + 1 && demands.known.contains(&a), "{}", demands.known.len());
    }

    #[test]
    fn a_pod_may_name_its_nodes() {
        let field = |operator: &str| json!([{"key": "metadata.name", "operator": operator, "values": ["n"]}]);
        let affinity = |terms: serde_json::Value| {
            let required = json!({"nodeSelectorTerms": terms});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
        };
        let named = Demand::of(&pod(affinity(json!([{"matchFields": field("In")}]))));
        assert_eq!(named.named(), Some(HashSet::from(["n"])));
        let other = Demand::of(&pod(affinity(json!([{"matchFields": field("In")}, {"matchFields": field("NotIn")}]))));
        assert_eq!(other.named(), None);
    }

    #[test]
    fn ports_of_different_addresses_do_not_collide() {
        let port = |ip: &str, port| HostPort { ip: ip.into(), protocol: "TCP".into(), port };
        assert!(port("", 80).collides(&port("10.0.0.1", 80)) && port("10.0.0.1", 80).collides(&port("10.0.0.1", 80)));
        assert!(!port("10.0.0.1", 80).collides(&port("10.0.0.2", 80)) && !port("", 80).collides(&port("", 81)));
    }
}
