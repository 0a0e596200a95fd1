//! What every cluster has: the system's namespaces, the Service `kubernetes` with the living servers as its endpoints, and
//! `kube-dns`.
//!
//! Kept as they should be: whoever deletes or edits them gets them back.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use api::status::Status;
use api::view::{EndpointSlice, Service};
use client::{Caches, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::controllers::given::{Facts, Given};
use crate::controllers::views::{ENDPOINTS, Endpoints, NAMESPACES, Namespace, SERVICES, SLICES};

/// Namespaces that come back. Three of them cannot be deleted at all; nodes tell in the last that they live.
const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// One object to keep: where it is, and the members that must be as given.
struct Kept {
    resource: Resource,
    namespace: &'static str,
    name: &'static str,
    object: Value,
    members: &'static [&'static str],
}

pub const READS: &[client::Kept] = &[
    client::Kept::of::<Namespace>(),
    client::Kept::of::<Service>(),
    client::Kept::of::<Endpoints>(),
    client::Kept::of::<EndpointSlice>(),
];

/// Keeps them, for ever.
pub async fn run(given: Given) {
    let Given { client, caches, facts } = given;
    keep(client, caches, facts).await;
}

/// Servers of one cluster listen on the same port: this one's.
fn objects(facts: &Facts, servers: &BTreeSet<SocketAddr>) -> Vec<Kept> {
    let (first, dns) = (facts.services.api_server().to_string(), facts.services.dns().to_string());
    let (first, dns, server) = (first.as_str(), dns.as_str(), facts.address);
    // Nobody else reaches a loopback address, and endpoints may not have one.
    let reached = |other: &&SocketAddr| {
        other.port() == server.port() && other.is_ipv4() == server.is_ipv4() && !other.ip().is_loopback()
    };
    let living = || servers.iter().filter(reached).map(SocketAddr::ip);
    let addresses: Vec<Value> = living().map(|ip| json!({"ip": ip})).collect();
    let endpoints: Vec<Value> = living().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = |name: &str, namespace: &str, labels: Value, address: &str, ports: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports},
        })
    };
    let https = json!([{"name": "https", "protocol": "TCP", "port": 443, "targetPort": server.port()}]);
    let endpoint_port = json!([{"name": "https", "protocol": "TCP", "port": server.port()}]);
    let dns_ports = json!([
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
    ]);
    let dns_labels =
        json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "DNS"});
    let namespaces = SYSTEM_NAMESPACES.map(|name| Kept {
        resource: NAMESPACES,
        namespace: "",
        name,
        object: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        members: &[],
    });
    let services = vec![
        Kept {
            resource: SERVICES,
            namespace: "default",
            name: "kubernetes",
            object: service("kubernetes", "default", labels, first, https),
            members: &[],
        },
        Kept {
            resource: ENDPOINTS,
            namespace: "default",
            name: "kubernetes",
            object: json!({
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
                "subsets": if addresses.is_empty() { json!([]) } else { json!([{"addresses": addresses, "ports": endpoint_port}]) },
            }),
            members: &["subsets"],
        },
        Kept {
            resource: SLICES,
            namespace: "default",
            name: "kubernetes",
            object: json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": if server.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": endpoints,
                "ports": endpoint_port,
            }),
            members: &["endpoints", "ports"],
        },
        Kept {
            resource: SERVICES,
            namespace: "kube-system",
            name: "kube-dns",
            object: service("kube-dns", "kube-system", dns_labels, dns, dns_ports),
            members: &[],
        },
    ];
    namespaces.into_iter().chain(services).collect()
}

async fn keep(client: Client, caches: Arc<Caches>, facts: Facts) {
    let mut servers = facts.servers.clone();
    let wake = Arc::new(Notify::new());
    let concerns = |namespace: &str, name: &str| {
        matches!((namespace, name), ("default", "kubernetes") | ("kube-system", "kube-dns"))
    };
    let (namespaces, services, endpoints, slices) = (wake.clone(), wake.clone(), wake.clone(), wake.clone());
    caches.of::<Namespace>().on_change(move |old, new| {
        if new.is_none() && old.is_some_and(|gone| SYSTEM_NAMESPACES.contains(&&*gone.metadata.meta.name)) {
            namespaces.notify_one();
        }
    });
    caches.of::<Service>().on_change(move |old, new| {
        if new.or(old).is_some_and(|found| concerns(&found.metadata.namespace, &found.metadata.name)) {
            services.notify_one();
        }
    });
    caches.of::<Endpoints>().on_change(move |old, new| {
        if new.or(old).is_some_and(|found| concerns(&found.metadata.meta.namespace, &found.metadata.meta.name)) {
            endpoints.notify_one();
        }
    });
    caches.of::<EndpointSlice>().on_change(move |old, new| {
        if new.or(old).is_some_and(|found| concerns(&found.metadata.namespace, &found.metadata.name)) {
            slices.notify_one();
        }
    });
    loop {
        let living = servers.borrow_and_update().clone();
        for one in &objects(&facts, &living) {
            if let Err(error) = ensure(&client, one).await {
                tracing::warn!(object = one.name, resource = &*one.resource.plural, %error, "not kept; will retry");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                wake.notify_one();
            }
        }
        tokio::select! {
            () = wake.notified() => {}
            // A server by itself has nobody who tells.
            Ok(()) = servers.changed() => {}
        }
    }
}

/// Creates what is missing, sets right what differs.
async fn ensure(client: &Client, kept: &Kept) -> Result<(), Status> {
    let found = match client.get(&kept.resource, kept.namespace, kept.name).await {
        Ok(found) => found,
        Err(status) if status.code == 404 => {
            return client.create(&kept.resource, kept.namespace, kept.object.clone()).await.map(drop);
        }
        Err(status) => return Err(status),
    };
    if kept.members.iter().all(|member| found[*member] == kept.object[*member]) {
        return Ok(());
    }
    let correct = |current: &Value| {
        let mut next = current.clone();
        for member in kept.members {
            next[*member] = kept.object[*member].clone();
        }
        Ok(next)
    };
    client.update(&kept.resource, kept.namespace, kept.name, "", correct).await.map(drop)
}
