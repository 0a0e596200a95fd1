//! What controllers and the scheduler read of each kind.

use std::collections::BTreeMap;

use api::uid::Uid;
use api::view::{ContainerPort, Meta};
pub use client::views::{CONFIG_MAPS, LEASES, NODES, PODS, SERVICES, SLICES, label_entry};
use client::{Resource, View};
use serde::Deserialize;
use serde_json::Value;

pub const ENDPOINTS: Resource = Resource::core("endpoints");
pub const NAMESPACES: Resource = Resource::core("namespaces");
pub const SERVICE_ACCOUNTS: Resource = Resource::core("serviceaccounts");
pub const REPLICA_SETS: Resource = Resource::new("apps", "replicasets");
pub const DEPLOYMENTS: Resource = Resource::new("apps", "deployments");
pub const BUDGETS: Resource = Resource::new("policy", "poddisruptionbudgets");
pub const SIGNING_REQUESTS: Resource = Resource::new("certificates.k8s.io", "certificatesigningrequests");

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: Uid,
    pub controller: Option<bool>,
    pub block_owner_deletion: Option<bool>,
}

/// The members of `metadata` that only controllers read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owned {
    pub owner_references: Vec<OwnerReference>,
    pub creation_timestamp: String,
    pub finalizers: Vec<String>,
}

impl Owned {
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller == Some(true))
    }
}

/// `metadata`, all that anybody reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    #[serde(flatten)]
    pub meta: Meta,
    #[serde(flatten)]
    pub owned: Owned,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub scheduler_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub host_network: bool,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Value>,
    pub topology_spread_constraints: Vec<Value>,
    pub tolerations: Vec<Toleration>,
    pub priority: i64,
    pub preemption_policy: String,
    pub scheduling_gates: Vec<Value>,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub overhead: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub ports: Vec<ContainerPort>,
    pub resources: Resources,
    pub restart_policy: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub requests: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
    /// For ever where nothing is said; not at all from 0 down.
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = self.key.is_empty() && self.operator == "Exists" || self.key == taint.key;
        let value = self.operator == "Exists" || self.value == taint.value;
        effect && key && value
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<Condition>,
    pub container_statuses: Vec<ContainerStatus>,
    pub init_container_statuses: Vec<ContainerStatus>,
    pub nominated_node_name: String,
    pub start_time: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub restart_count: i64,
    pub state: ContainerState,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i64,
    pub finished_at: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: String,
}

impl Pod {
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|ready| ready.status == "True")
    }

    /// Waits to be counted by a Job.
    pub fn is_tracked(&self) -> bool {
        tracked_by(self).is_some()
    }

    pub fn is_deleting(&self) -> bool {
        self.metadata.meta.deletion_timestamp.is_some()
    }

    /// It ended and will not run again.
    pub fn has_ended(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    /// Counts as one of its ReplicaSet's.
    pub fn is_active(&self) -> bool {
        !self.is_deleting() && !self.has_ended()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub metadata: Metadata,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: i64,
    pub min_ready_seconds: i64,
    pub selector: Value,
    pub template: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i64,
    pub fully_labeled_replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub observed_generation: i64,
    pub conditions: Vec<Value>,
}

impl ReplicaSetStatus {
    pub fn condition(&self, type_: &str) -> Option<&Value> {
        self.conditions.iter().find(|condition| condition["type"] == type_)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: Metadata,
    pub spec: DeploymentSpec,
    pub status: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: i64,
    pub min_ready_seconds: i64,
    pub paused: bool,
    pub progress_deadline_seconds: Option<i64>,
    pub revision_history_limit: Option<i64>,
    pub selector: Value,
    pub strategy: Strategy,
    pub template: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub type_: String,
    pub rolling_update: Option<RollingUpdate>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_surge: Value,
    pub max_unavailable: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: Metadata,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

impl Node {
    /// Empty where it is in none.
    pub fn zone(&self) -> &str {
        self.metadata.meta.labels.get(api::view::ZONE).map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub type_: String,
    pub address: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub addresses: Vec<NodeAddress>,
    pub allocatable: BTreeMap<String, String>,
    pub conditions: Vec<NodeCondition>,
}

/// All that a node's condition has, since whoever changes one writes all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: Metadata,
    pub spec: NamespaceSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    pub finalizers: Vec<String>,
}

/// Kinds of which only the metadata matters.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServiceAccount {
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    pub metadata: Metadata,
    pub data: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    pub metadata: Metadata,
    pub subsets: Vec<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Lease {
    pub metadata: Metadata,
    pub spec: LeaseSpec,
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Budget {
    pub metadata: Metadata,
    pub spec: BudgetSpec,
    pub status: BudgetStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct BudgetSpec {
    pub selector: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetStatus {
    pub disruptions_allowed: i64,
    pub disrupted_pods: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    pub renew_time: String,
}

/// `owner/UID` for the owner that controls the object, `orphan/NAMESPACE` where none does.
pub fn owner_index(metadata: &Metadata) -> String {
    match metadata.owned.controller() {
        Some(owner) => format!("owner/{}", owner.uid),
        None => format!("orphan/{}", metadata.meta.namespace),
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SigningRequest {
    pub metadata: Metadata,
    pub spec: SigningRequestSpec,
    pub status: SigningRequestStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SigningRequestSpec {
    /// PEM in base64.
    pub request: String,
    pub signer_name: String,
    pub usages: Vec<String>,
    pub expiration_seconds: Option<i64>,
    pub username: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SigningRequestStatus {
    /// PEM in base64.
    pub certificate: String,
    pub conditions: Vec<Value>,
}

impl SigningRequest {
    /// The condition of this type, which holds if it is there.
    pub fn condition(&self, kind: &str) -> Option<&Value> {
        self.status.conditions.iter().find(|condition| condition["type"] == kind)
    }
}

/// A view of a kind, and the index entries under which its objects are found.
macro_rules! views {
    ($($view:ty => $resource:expr $(, $indexes:expr)?;)*) => {$(
        impl View for $view {
            const RESOURCE: Resource = $resource;

            fn uid(&self) -> &Uid {
                &self.metadata.meta.uid
            }

            $(fn indexes(&self) -> Vec<String> {
                let indexes: fn(&$view) -> Vec<String> = $indexes;
                indexes(self)
            })?
        }
    )*};
}

views! {
    Pod => PODS, pod_indexes;
    ReplicaSet => REPLICA_SETS, |set| vec![owner_index(&set.metadata)];
    Deployment => DEPLOYMENTS;
    Node => NODES;
    Namespace => NAMESPACES;
    ServiceAccount => SERVICE_ACCOUNTS;
    ConfigMap => CONFIG_MAPS;
    Endpoints => ENDPOINTS;
    Lease => LEASES;
    Budget => BUDGETS;
    SigningRequest => SIGNING_REQUESTS;
}

/// The index entry of the pods of a node.
pub fn node_entry(node: &str) -> String {
    format!("node/{node}")
}

/// What keeps a pod until its Job has counted it.
pub const JOB_TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// The index entry of the pods that wait to be counted by a Job of that name; without a name, by nobody.
pub fn tracked_entry(namespace: &str, job: &str) -> String {
    format!("tracked/{namespace}/{job}")
}

/// The Job that is to count a pod: its controller's name, empty where that is none.
pub fn tracked_by(pod: &Pod) -> Option<&str> {
    let tracked = pod.metadata.owned.finalizers.iter().any(|finalizer| finalizer == JOB_TRACKING);
    let owner = pod.metadata.owned.controller().filter(|owner| owner.kind == "Job");
    tracked.then(|| owner.map_or("", |owner| &*owner.name))
}

/// By owner, node, each label ([`label_entry`]), and the Job that is to count it.
fn pod_indexes(pod: &Pod) -> Vec<String> {
    let meta = &pod.metadata.meta;
    let mut all = vec![owner_index(&pod.metadata)];
    all.extend(tracked_by(pod).map(|job| tracked_entry(&meta.namespace, job)));
    if !pod.spec.node_name.is_empty() {
        all.push(node_entry(&pod.spec.node_name));
    }
    all.extend(meta.labels.iter().map(|label| label_entry(&meta.namespace, label)));
    all
}
