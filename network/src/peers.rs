//! The way to other nodes' pods: a route to each node's range by that node's address, on the link that all of them share.
//!
//! Routes have a mark of their own (`ip route show proto 97`), by which those are found that nobody needs any more. What somebody else
//! removes comes back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::RouteMessageBuilder;

use crate::Result;
use crate::netlink::{Link, Netlink, failed, is_absent};

const PROTOCOL: RouteProtocol = RouteProtocol::Other(97);

/// Another node, as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// The first one is where its pods' packets go.
    pub addresses: Vec<Ipv4Addr>,
    /// What its pods have their addresses from.
    pub pods: Vec<Ipv4Network>,
}

/// A range of addresses and whose it is: route by route.
type Ways<'a> = BTreeMap<Ipv4Network, (Ipv4Addr, &'a str)>;

fn ways(peers: &[Peer]) -> Ways<'_> {
    let mut ways = Ways::new();
    for peer in peers {
        // A range that two have, while one of them goes, is the last one's.
        if let Some(via) = peer.addresses.first() {
            ways.extend(peer.pods.iter().map(|range| (*range, (*via, &*peer.name))));
        }
    }
    ways
}

/// Addresses of other nodes.
pub(crate) fn addresses(peers: &[Peer]) -> Vec<IpAddr> {
    peers.iter().flat_map(|peer| peer.addresses.iter().copied().map(IpAddr::from)).collect()
}

/// Whether what the kernel tells of a route that went is about one of ours.
pub(crate) fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL
}

/// Makes routes as they should be, from the node's IPv4 address; without one there are none. A peer to which no route can be made
/// leaves the others theirs.
pub(crate) async fn route(netlink: &Netlink, uplink: &Link, source: Option<Ipv4Addr>, peers: &[Peer]) -> Result<()> {
    let Some(source) = source else { return Ok(()) };
    let mut missing = ways(peers);
    for found in ours(netlink).await? {
        let wanted = missing.get(&found.to).map(|(via, _)| (Some(*via), Some(uplink.index)));
        if wanted == Some((found.via, found.device)) {
            missing.remove(&found.to);
        } else {
            remove(netlink, found).await?;
        }
    }
    for (to, (via, name)) in missing {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix())
            .output_interface(uplink.index)
            .gateway(via)
            .pref_source(source)
            .protocol(PROTOCOL)
            .build();
        let made = netlink.handle().route().add(message).replace().execute().await;
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

/// Takes all of them away.
pub(crate) async fn remove_all(netlink: &Netlink) -> Result<()> {
    for route in ours(netlink).await? {
        remove(netlink, route).await?;
    }
    Ok(())
}

/// A route of ours that is there.
struct Found {
    to: Ipv4Network,
    via: Option<Ipv4Addr>,
    device: Option<u32>,
    message: RouteMessage,
}

async fn ours(netlink: &Netlink) -> Result<Vec<Found>> {
    let request = netlink.handle().route().get(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let all: Vec<RouteMessage> = request.execute().try_collect().await.map_err(failed("listing routes"))?;
    Ok(all.into_iter().filter(is_ours).filter_map(found).collect())
}

fn found(message: RouteMessage) -> Option<Found> {
    let address = |of: &RouteAddress| match of {
        RouteAddress::Inet(ip) => Some(*ip),
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
    let to = Ipv4Network::new(to?, message.header.destination_prefix_length).ok()?;
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
            addresses: vec![[192, 0, 2, address].into(), [198, 51, 100, address].into()],
            pods: vec![Ipv4Network::new([10, 244, range, 0].into(), 24).unwrap()],
        };
        let nowhere = Peer { name: "c".into(), addresses: Vec::new(), pods: vec!["10.244.9.0/24".parse().unwrap()] };
        let peers = [peer("a", 1, 1), peer("b", 2, 2), peer("d", 3, 2), nowhere];
        let ways: Vec<String> = ways(&peers).iter().map(|(to, (via, name))| format!("{to} {via} {name}")).collect();
        assert_eq!(ways, ["10.244.1.0/24 192.0.2.1 a", "10.244.2.0/24 192.0.2.3 d"]);
        assert_eq!(addresses(&peers[..1]), [IpAddr::from([192, 0, 2, 1]), [198, 51, 100, 1].into()]);
    }
}
