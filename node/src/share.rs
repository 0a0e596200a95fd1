//! What this node has of the cluster's addresses, in each family that it serves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use network::Ranges;

use crate::Settings;

/// Addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub ip: IpAddr,
    /// What its pods have their addresses from.
    pub pods: IpNetwork,
    cluster: IpNetwork,
    services: IpNetwork,
}

impl Share {
    pub fn v4(&self) -> Option<Ranges<Ipv4Addr, Ipv4Network>> {
        match *self {
            Share {
                ip: IpAddr::V4(node_ip),
                pods: IpNetwork::V4(pod_cidr),
                cluster: IpNetwork::V4(cluster_cidr),
                services: IpNetwork::V4(service_cidr),
            } => Some(Ranges { node_ip, pod_cidr, cluster_cidr, service_cidr }),
            _ => None,
        }
    }

    pub fn v6(&self) -> Option<Ranges<Ipv6Addr, Ipv6Network>> {
        match *self {
            Share {
                ip: IpAddr::V6(node_ip),
                pods: IpNetwork::V6(pod_cidr),
                cluster: IpNetwork::V6(cluster_cidr),
                services: IpNetwork::V6(service_cidr),
            } => Some(Ranges { node_ip, pod_cidr, cluster_cidr, service_cidr }),
            _ => None,
        }
    }
}

/// A family each, in the cluster's order, of which the machine has an address and was given a range for pods. What it lacks of the
/// later one is said in the log.
///
/// # Errors
/// Without the first one, by which nodes and pods are known.
pub(crate) fn of(settings: &Settings, given: &[IpNetwork]) -> Result<Vec<Share>> {
    let mut all = Vec::new();
    for (place, cluster) in settings.pod_cidrs.iter().enumerate() {
        let same = |range: &&IpNetwork| range.is_ipv4() == cluster.is_ipv4();
        let ip = settings.ips.iter().find(|ip| ip.is_ipv4() == cluster.is_ipv4());
        let pods = given.iter().find(same);
        match (ip, pods, settings.service_cidrs.iter().find(same)) {
            (Some(ip), Some(pods), Some(services)) => {
                all.push(Share { ip: *ip, pods: *pods, cluster: *cluster, services: *services });
            }
            _ => {
                let family = if cluster.is_ipv4() { "IPv4" } else { "IPv6" };
                let lacks = if ip.is_none() { "no address" } else { "no range of addresses for pods" };
                let (node, name) = (format!("node {} has {lacks} of {family}", settings.name), &settings.name);
                let remedy = match ip {
                    None => "give one with --node-ip".to_owned(),
                    Some(_) => format!("one is given to a new Node object, after `kubectl delete node {name}`"),
                };
                ensure!(place > 0, "{node}, by which this cluster's pods are known: {remedy}");
                tracing::warn!(remedy, "{node}: its pods go without");
            }
        }
    }
    Ok(all)
}
