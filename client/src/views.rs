//! Names and views of the kinds that nodes read too.

use api::uid::Uid;
use api::view::{EndpointSlice, Peer, Service};

use crate::informer::View;
use crate::object::Resource;

pub const PODS: Resource = Resource::core("pods");
pub const NODES: Resource = Resource::core("nodes");
pub const CONFIG_MAPS: Resource = Resource::core("configmaps");
pub const SECRETS: Resource = Resource::core("secrets");
pub const LEASES: Resource = Resource::new("coordination.k8s.io", "leases");
pub const SERVICES: Resource = Resource::core("services");
pub const SLICES: Resource = Resource::new("discovery.k8s.io", "endpointslices");

pub const PEERS: Resource = Resource::new("node.amphipod.io", "peers");

impl View for Peer {
    const RESOURCE: Resource = PEERS;

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }
}

/// The index entry of what has, or selects, a label in a namespace.
pub fn label_entry(namespace: &str, (key, value): (&String, &String)) -> String {
    format!("label/{namespace}/{key}={value}")
}

/// Found by the first label of its selector ([`label_entry`]).
impl View for Service {
    const RESOURCE: Resource = SERVICES;

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }

    fn indexes(&self) -> Vec<String> {
        self.spec
            .selector
            .first_key_value()
            .map(|label| label_entry(&self.metadata.namespace, label))
            .into_iter()
            .collect()
    }
}

/// Found by `service/NAMESPACE/NAME`.
impl View for EndpointSlice {
    const RESOURCE: Resource = SLICES;

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }

    fn indexes(&self) -> Vec<String> {
        self.service_name().map(|name| format!("service/{}/{name}", self.metadata.namespace)).into_iter().collect()
    }
}
