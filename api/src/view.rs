//! Small typed views of stored objects, for readers inside Amphipod.
//!
//! Objects are kept as JSON bytes; a reader that needs a few fields (service path, DNS, controllers) decodes only those.
//! Unknown fields are skipped, absent ones take their zero value, so a view never refuses an object that was stored.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::uid::Uid;

/// The label of a node that names its zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Decodes a view. Empty lists and maps that Kubernetes always writes stand as `null` in stored objects; they count as
/// absent. Such objects are few, so they alone pay for the second look.
///
/// # Errors
/// When it is no JSON, or a field of the view has another type there; no object that was stored fails so.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json).or_else(|_| {
        let mut value: Value = serde_json::from_slice(json)?;
        drop_nulls(&mut value);
        serde_json::from_value(value)
    })
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, member| !member.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// What every reader needs of `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: Uid,
    pub resource_version: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// None of kinds whose specification nobody counts.
    pub generation: Option<i64>,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<i64>,
}

/// A port of a container, as its pod says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Empty where it has none.
    pub name: String,
    pub container_port: u16,
    /// 0 where it has none.
    pub host_port: u16,
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    pub protocol: String,
}

/// `v1` Service: what the service path and DNS read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Meta,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (also when absent), `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Empty, `None` (headless) or addresses, first one primary.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// `IPv4`, `IPv6`: those of the addresses, or of a headless Service's endpoints.
    pub ip_families: Vec<String>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    pub external_name: String,
    pub ports: Vec<ServicePort>,
    pub selector: BTreeMap<String, String>,
    /// `None` or `ClientIP`.
    pub session_affinity: String,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `Cluster` (also when absent) or `Local`.
    pub external_traffic_policy: String,
    pub internal_traffic_policy: String,
    pub health_check_node_port: u16,
    pub publish_not_ready_addresses: bool,
    /// `PreferSameZone`, `PreferClose` (the same) or `PreferSameNode`; empty: nobody is preferred.
    pub traffic_distribution: String,
    pub load_balancer_source_ranges: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    /// `TCP` (also when absent), `UDP` or `SCTP`.
    pub protocol: String,
    pub port: u16,
    /// A number or the name of a container's port; null means `port`.
    pub target_port: Value,
    pub node_port: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    pub ingress: Vec<LoadBalancerIngress>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerIngress {
    pub ip: String,
    pub hostname: String,
    /// `VIP` (also when absent): nodes take it for their own; or `Proxy`.
    #[serde(rename = "ipMode")]
    pub ip_mode: String,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<EndpointPort>,
}

impl EndpointSlice {
    /// The Service that this slice belongs to, from the label that ties them.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get("kubernetes.io/service-name").map(String::as_str)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: EndpointConditions,
    pub hostname: String,
    pub node_name: String,
    pub zone: String,
    pub target_ref: Option<ObjectReference>,
    pub hints: EndpointHints,
}

/// Which clients an endpoint is meant for first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    pub for_zones: Vec<Hint>,
    pub for_nodes: Vec<Hint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hint {
    pub name: String,
}

/// Absent means: ready true, serving as ready, terminating false (Kubernetes' reading of unset conditions).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

impl EndpointConditions {
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }

    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    pub name: String,
    pub protocol: String,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ObjectReference {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
}

/// `node.amphipod.io/v1` Peer: what nodes know of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Peer {
    pub metadata: Meta,
    pub spec: PeerSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerSpec {
    /// Of the node itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The ranges that its pods have their addresses from.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
    /// The public key of its end of tunnels; empty while there are none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tunnel_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_counts_as_absent() {
        let slice: EndpointSlice =
            decode(br#"{"metadata":{"name":"a"},"endpoints":null,"ports":[{"port":80,"name":null}]}"#).unwrap();
        assert!(slice.endpoints.is_empty() && slice.ports[0].port == Some(80));
        assert!(decode::<EndpointSlice>(br#"{"endpoints":7}"#).is_err());
    }
}
