//! Views of the kinds that nodes read too.

use api::view::{EndpointSlice, Service};

use crate::informer::View;
use crate::object::Resource;

pub const SERVICES: Resource = Resource::core("services");
pub const SLICES: Resource = Resource::new("discovery.k8s.io", "endpointslices");

impl View for Service {
    const RESOURCE: Resource = SERVICES;

    fn uid(&self) -> &str {
        &self.metadata.uid
    }
}

/// Found by `service/NAMESPACE/NAME`.
impl View for EndpointSlice {
    const RESOURCE: Resource = SLICES;

    fn uid(&self) -> &str {
        &self.metadata.uid
    }

    fn indexes(&self) -> Vec<String> {
        self.service_name().map(|name| format!("service/{}/{name}", self.metadata.namespace)).into_iter().collect()
    }
}
