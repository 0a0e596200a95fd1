//! Services with hand-written endpoints, by the thousand.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::http::{Api, create_all};

pub const SERVICES: &str = "/api/v1/namespaces/default/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Name of the service with this number.
pub fn name(number: usize) -> String {
    format!("svc-{number:05}")
}

/// A service without a selector: its slice is ours to change.
pub fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(number), "labels": {"bench": "services"}},
        "spec": {"ports": [{"name": "main", "port": 80, "targetPort": 8080}]},
    })
}

/// The one endpoint of a service.
pub fn slice(number: usize, endpoint: &str, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name(number), "namespace": "default", "labels": {"kubernetes.io/service-name": name(number)}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
        "ports": [{"name": "main", "port": port, "protocol": "TCP"}],
    })
}

/// Creates the services of these numbers, each with one endpoint.
pub async fn create(api: &Api, numbers: std::ops::Range<usize>, endpoint: &str, port: u16) -> Result<()> {
    create_all(api, SERVICES, numbers.clone().map(service).collect()).await?;
    create_all(api, SLICES, numbers.map(|number| slice(number, endpoint, port)).collect()).await
}

/// The addresses of the services, by their numbers.
pub async fn addresses(api: &Api) -> Result<Vec<Ipv4Addr>> {
    let list = api.connect().await?.get(&format!("{SERVICES}?labelSelector=bench%3Dservices")).await?;
    let mut items: Vec<&Value> = list["items"].as_array().context("no list of services")?.iter().collect();
    items.sort_by_key(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    items.iter().map(|item| Ok(item["spec"]["clusterIP"].as_str().context("no clusterIP")?.parse()?)).collect()
}
