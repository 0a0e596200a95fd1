//! What this node has of the cluster's addresses, in each family that it serves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use network::Ranges;
use thiserror::Error;

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
    for (place, (cluster, services)) in settings.pod_cidrs.iter().zip(&settings.service_cidrs).enumerate() {
        match share(&settings.ips, *cluster, *services, given) {
            Ok(share) => all.push(share),
            Err(lack) if place > 0 => tracing::warn!(node = settings.name, %lack, "pods here go without a family"),
            Err(lack) => bail!("node {}: {lack}", settings.name),
        }
    }
    Ok(all)
}

/// What a node lacks to serve a family.
#[derive(Debug, PartialEq, Eq, Error)]
enum Lack {
    #[error("it has no address of the family of {0}: give one with --node-ip")]
    Address(IpNetwork),
    #[error("its Node has no part of {0}: one that is made anew gets it (`kubectl delete node`, and start again)")]
    Part(IpNetwork),
}

fn share(
    ips: &[IpAddr],
    cluster: IpNetwork,
    services: IpNetwork,
    given: &[IpNetwork],
) -> std::result::Result<Share, Lack> {
    let ip = ips.iter().find(|ip| ip.is_ipv4() == cluster.is_ipv4()).ok_or(Lack::Address(cluster))?;
    let pods = given.iter().find(|part| part.is_ipv4() == cluster.is_ipv4()).ok_or(Lack::Part(cluster))?;
    Ok(Share { ip: *ip, pods: *pods, cluster, services })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_served_with_an_address_and_a_part_of_its_own() {
        let range = |text: &str| text.parse::<IpNetwork>().unwrap();
        let ips = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let (v4, v6) = (("10.244.0.0/16", "10.96.0.0/12"), ("fd00:244::/56", "fd00:96::/112"));
        let parts = ["10.244.1.0/24", "fd00:244:0:1::/64"].map(range);
        let of = |(cluster, services): (&str, &str), ips: &[IpAddr], given: &[IpNetwork]| {
            share(ips, range(cluster), range(services), given)
        };
        let (first, second) = (of(v4, &ips, &parts).unwrap(), of(v6, &ips, &parts).unwrap());
        assert_eq!((first.ip, first.pods, second.ip, second.pods), (ips[0], parts[0], ips[1], parts[1]));
        assert!(first.v4().is_some() && first.v6().is_none() && second.v4().is_none());
        assert_eq!(second.v6().map(|ranges| ranges.service_cidr.into()), Some(range(v6.1)));
        assert_eq!(of(v6, &ips[..1], &parts), Err(Lack::Address(range(v6.0))));
        assert_eq!(of(v6, &ips, &parts[..1]), Err(Lack::Part(range(v6.0))));
    }
}
