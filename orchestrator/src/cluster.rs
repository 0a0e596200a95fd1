//! What every node of a cluster has to know and do alike: said by the server's flags, kept in a ConfigMap that nodes may read.

use std::net::IpAddr;

use anyhow::{Context, Result};
use api::status::Status;
use client::Client;
use client::views::CONFIG_MAPS;
use ipnetwork::IpNetwork;
use network::PortRange;
use proxy_userspace::ExternalIps;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
/// A role of nodes names it, too.
const NAME: &str = "amphipod-cluster";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// All pods' addresses, all Services': a range, or one of each family, both lists in one order. By those of the first family
    /// nodes and pods are known.
    pub pods: Vec<IpNetwork>,
    pub services: Vec<IpNetwork>,
    pub node_ports: PortRange,
    /// Of the first family.
    pub dns: IpAddr,
    pub domain: String,
    pub external_ips: ExternalIps,
}

impl Cluster {
    /// Texts, by the names of the flags where there are such.
    fn data(&self) -> Value {
        let PortRange { first, last } = self.node_ports;
        let list = |ranges: &[IpNetwork]| ranges.iter().map(IpNetwork::to_string).collect::<Vec<_>>().join(",");
        json!({
            "pod-cidr": list(&self.pods),
            "service-cidr": list(&self.services),
            "node-ports": format!("{first}-{last}"),
            "cluster-dns": self.dns.to_string(),
            "cluster-domain": self.domain,
            "allow-external-ips": (self.external_ips == ExternalIps::Served).to_string(),
        })
    }

    fn of_data(data: &Value) -> Result<Self> {
        let text = |name: &'static str| data[name].as_str().with_context(|| format!("{name} is missing"));
        let bad = |name: &str, text: &str| format!("{name}: {text:?} cannot be understood");
        let ranges = |name| -> Result<Vec<IpNetwork>> {
            let list = text(name)?.split(',');
            list.map(|range| range.parse().with_context(|| bad(name, range))).collect()
        };
        let ports = text("node-ports")?;
        let (first, last) = ports.split_once('-').with_context(|| bad("node-ports", ports))?;
        let port = |text: &str| text.parse().with_context(|| bad("node-ports", ports));
        let dns = text("cluster-dns")?;
        Ok(Self {
            pods: ranges("pod-cidr")?,
            services: ranges("service-cidr")?,
            node_ports: PortRange { first: port(first)?, last: port(last)? },
            dns: dns.parse().with_context(|| bad("cluster-dns", dns))?,
            domain: text("cluster-domain")?.to_owned(),
            external_ips: match text("allow-external-ips")? {
                "true" => ExternalIps::Served,
                _ => ExternalIps::Ignored,
            },
        })
    }

    /// Tells nodes, as an administrator.
    ///
    /// # Errors
    /// What the server says.
    pub async fn publish(&self, client: &Client) -> Result<(), Status> {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": self.data(),
            "metadata": {"name": NAME, "namespace": NAMESPACE}});
        match client.create(&CONFIG_MAPS, NAMESPACE, map).await {
            Err(status) if status.reason == "AlreadyExists" => {
                let change = |current: &Value| {
                    let mut next = current.clone();
                    next["data"] = self.data();
                    Ok(next)
                };
                client.update(&CONFIG_MAPS, NAMESPACE, NAME, "", change).await.map(drop)
            }
            made => made.map(drop),
        }
    }

    /// As a node.
    ///
    /// # Errors
    /// What the server says, or what it tells that cannot be understood.
    pub async fn read(client: &Client) -> Result<Self> {
        let map = client.get(&CONFIG_MAPS, NAMESPACE, NAME).await;
        let map = map.context("the cluster does not say how its nodes are to be set up")?;
        Self::of_data(&map["data"]).with_context(|| format!("ConfigMap {NAMESPACE}/{NAME}"))
    }
}

#[cfg(test)]
pub fn usual() -> Cluster {
    Cluster {
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        services: vec!["10.96.0.0/12".parse().unwrap()],
        node_ports: PortRange { first: 30_000, last: 32_767 },
        dns: [10, 96, 0, 10].into(),
        domain: "cluster.local".into(),
        external_ips: ExternalIps::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_read_what_the_server_says() {
        let served = Cluster { external_ips: ExternalIps::Served, ..usual() };
        let ranges = |list: [&str; 2]| list.map(|range| range.parse().unwrap()).to_vec();
        let both = Cluster {
            pods: ranges(["fd00:10:244::/56", "10.244.0.0/16"]),
            services: ranges(["fd00:10:96::/112", "10.96.0.0/12"]),
            dns: "fd00:10:96::a".parse().unwrap(),
            ..usual()
        };
        assert_eq!(both.data()["pod-cidr"], "fd00:10:244::/56,10.244.0.0/16");
        for cluster in [usual(), served, both] {
            assert_eq!(Cluster::of_data(&cluster.data()).unwrap(), cluster);
        }
        let mut data = usual().data();
        data["node-ports"] = json!("30000");
        assert!(Cluster::of_data(&data).unwrap_err().to_string().starts_with("node-ports"));
        assert!(Cluster::of_data(&json!({})).unwrap_err().to_string().ends_with("is missing"));
    }
}
