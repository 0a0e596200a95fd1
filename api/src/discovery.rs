//! Discovery documents made from the table.

use serde_json::Value;

use crate::kind::Registry;

/// The two forms of aggregated discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// The content type to answer with.
    pub fn content_type(self) -> &'static str {
        match self {
            Aggregated::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Aggregated::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// `/api` in its aggregated form.
pub fn aggregated_core(registry: &Registry, form: Aggregated) -> Value {
    let _ = (registry, form);
    Value::Null
}

/// `/apis` in its aggregated form.
pub fn aggregated_groups(registry: &Registry, form: Aggregated) -> Value {
    let _ = (registry, form);
    Value::Null
}

/// `/api`: APIVersions.
pub fn api_versions(registry: &Registry, server_address: &str) -> Value {
    let _ = (registry, server_address);
    Value::Null
}

/// `/apis`: APIGroupList.
pub fn group_list(registry: &Registry) -> Value {
    let _ = registry;
    Value::Null
}

/// `/apis/<group>`: APIGroup.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    let _ = (registry, group);
    None
}

/// `/api/v1`, `/apis/<group>/<version>`: APIResourceList.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let _ = (registry, group, version);
    None
}
