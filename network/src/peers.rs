//! The way to other nodes' pods: a route to each node's range by that node's address, on the link that all of them share.
//!
//! Routes have a mark of their own (`ip route show proto 97`), by which those are found that nobody needs any more. What somebody else
//! removes comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use proxy_userspace::Addresses;
use rtnetlink::RouteMessageBuilder;

use crate::Result;
use crate::netlink::{Link, Netlink, failed, is_absent};

const PROTOCOL: RouteProtocol = RouteProtocol::Other(97);

/// Another node, as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// The first one of a family is where its pods' packets of that go.
    pub addresses: Vec<IpAddr>,
    /// What its pods have their addresses from.
    pub pods: Vec<IpNetwork>,
}

/// A range of addresses and whose it is: route by route.
type Ways<'a> = BTreeMap<IpNetwork, (IpAddr, &'a str)>;

fn ways(peers: &[Peer]) -> Ways<'_> {
    let mut ways = Ways::new();
    for peer in peers {
        for range in &peer.pods {
            // A range that two have, while one of them goes, is the last one's.
            if let Some(via) = peer.addresses.iter().find(|via| via.is_ipv4() == range.is_ipv4()) {
                ways.insert(*range, (*via, &*peer.name));
            }
        }
    }
    ways
}

/// Addresses of other nodes.
pub(crate) fn addresses(peers: &[Peer]) -> Vec<IpAddr> {
    peers.iter().flat_map(|peer| peer.addresses.iter().copied()).collect()
}

/// Whether what the kernel tells of a route that went is about one of ours.
pub(crate) fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL
}

/// Makes routes as they should be, from the node's address of each family; where it has none there are none. A peer to which no route
/// can be made leaves the others theirs.
pub(crate) async fn route(netlink: &Netlink, uplink: &Link, node_ips: Addresses, peers: &[Peer]) -> Result<()> {
    let mut missing = ways(peers);
    missing.retain(|_, (via, _)| node_ips.beside(*via).is_some());
    for found in ours(netlink).await? {
        let wanted = missing.get(&found.to).map(|(via, _)| (Some(*via), Some(uplink.index)));
        if wanted == Some((found.via, found.device)) {
            missing.remove(&found.to);
        } else {
            remove(netlink, found).await?;
        }
    }
    for (to, (via, name)) in missing {
        let Some(source) = node_ips.beside(via) else { continue };
        let made = netlink.handle().route().add(message(to, via, source, uplink.index)).replace().execute().await;
        match made.map_err(failed(format!("adding the route to {to} by {via}"))) {
            Ok(()) => {
                tracing::info!(node = name, range = %to, %via, device = uplink.name, "pods of another node are reached")
            }
            Err(error) => tracing::error!(
                node = name,
                range = %to,
                %via,
                device = uplink.name,
                error = &error as &dyn std::error::Error,
                "no route to the pods of another node: it has to be on the same link"
            ),
        }
    }
    Ok(())
}

fn message(to: IpNetwork, via: IpAddr, source: IpAddr, device: u32) -> RouteMessage {
    const OF_ONE_FAMILY: &str = "a way's addresses are of its range's family";
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.network(), to.prefix())
        .and_then(|route| route.gateway(via))
        .and_then(|route| route.pref_source(source))
        .expect(OF_ONE_FAMILY)
        .output_interface(device)
        .protocol(PROTOCOL)
        .build()
}

/// Takes all of them away.
pub(crate) async fn remove_all(netlink: &Netlink) -> Result<()> {
    for route in ours(netlink).await? {
        remove(netlink, route).await?;
    }
    Ok(())
}

/// A route of ours that is there.
struct Found {
    to: IpNetwork,
    via: Option<IpAddr>,
    device: Option<u32>,
    message: RouteMessage,
}

async fn ours(netlink: &Netlink) -> Result<Vec<Found>> {
    let (v4, v6) = (RouteMessageBuilder::<Ipv4Addr>::new(), RouteMessageBuilder::<Ipv6Addr>::new());
    let mut all: Vec<RouteMessage> = Vec::new();
    for family in [v4.build(), v6.build()] {
        let routes = netlink.handle().route().get(family).execute().try_collect::<Vec<_>>().await;
        all.extend(routes.map_err(failed("listing routes"))?);
    }
    Ok(all.into_iter().filter(is_ours).filter_map(found).collect())
}

fn found(message: RouteMessage) -> Option<Found> {
    let address = |of: &RouteAddress| match of {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut to, mut via, mut device) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = address(destination),
            RouteAttribute::Gateway(gateway) => via = address(gateway),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let to = IpNetwork::new(to?, message.header.destination_prefix_length).ok()?;
    Some(Found { to, via, device, message })
}

async fn remove(netlink: &Netlink, route: Found) -> Result<()> {
    match netlink.handle().route().del(route.message).execute().await {
        // Its device went, and it with that.
        Err(error) if is_absent(&error) => Ok(()),
        removed => removed.map_err(failed(format!("removing the route to {}", route.to))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_has_one_way() {
        let peer = |name: &str, address: u8, range: u8| Peer {
            name: name.into(),
            addresses: ["192.0.2.", "198.51.100.", "2001:db8::"]
                .map(|net| format!("{net}{address}").parse().unwrap())
                .to_vec(),
            pods: [format!("10.244.{range}.0/24"), format!("fd00:{range}::/64")]
                .map(|range| range.parse().unwrap())
                .to_vec(),
        };
        let nowhere = Peer { name: "c".into(), addresses: Vec::new(), pods: vec!["10.244.9.0/24".parse().unwrap()] };
        let peers = [peer("a", 1, 1), peer("b", 2, 2), peer("d", 3, 2), nowhere];
        let ways: Vec<String> = ways(&peers).iter().map(|(to, (via, name))| format!("{to} {via} {name}")).collect();
        let expected = [
            "10.244.1.0/24 192.0.2.1 a",
            "10.244.2.0/24 192.0.2.3 d",
            "fd00:1::/64 2001:db8::1 a",
            "fd00:2::/64 2001:db8::3 d",
        ];
        assert_eq!(ways, expected);
        let all: Vec<String> = addresses(&peers[..1]).iter().map(IpAddr::to_string).collect();
        assert_eq!(all, ["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    }
}
