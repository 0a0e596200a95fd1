//! The node's own part: uplink, service link, routes to services, reserved ports, and what the packet programs must know.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv4Network;
use proxy_common::{GATEWAY, HOST_MAC, Ip4, NodeConfig, SERVICE_MAC};
use proxy_userspace::{PacketHook, Proxy};

use crate::netlink::{End, Link, Netlink, Route};
use crate::peers::{self, Peer};
use crate::{Config, NetworkError, PortRange, Result, netns, ports, sysctl};

/// The host's end of the service link: routes to services lead here, and answers of services come in here.
const NEAR: &str = "amphi-svc";
/// Its far end, where the packet program takes over.
const FAR: &str = "amphi-svc-far";

/// The device that carries the node's address, and all that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub link: Link,
    pub addresses: Vec<Ipv4Addr>,
}

/// Gives the uplink and the near end of the service link.
pub(crate) async fn set_up(
    config: &Config,
    netlink: &Netlink,
    proxy: &Proxy,
    others: &[Peer],
) -> Result<(Uplink, Link)> {
    let uplink = uplink(config, netlink).await?;
    let (near, far) = service_link(netlink, uplink.link.mtu).await?;
    route_services(config, netlink, &near).await?;
    proxy.add_node_netns(&netns::open(Path::new("/proc/thread-self/ns/net"))?, config.node_ip)?;
    proxy.attach_device(&far.name, far.index, PacketHook::FromHost)?;
    tell(config, proxy, &near, &uplink, others)?;
    peers::route(netlink, &uplink.link, config.node_ip, others).await?;
    Ok((uplink, near))
}

pub(crate) async fn uplink(config: &Config, netlink: &Netlink) -> Result<Uplink> {
    let addresses = netlink.addresses().await?;
    let link = find_uplink(config.node_ip, &addresses, &netlink.links().await?)?;
    let mut own: Vec<Ipv4Addr> =
        addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, ip)| *ip).collect();
    own.sort_unstable();
    Ok(Uplink { link, addresses: own })
}

/// Tells the programs about the uplink and other nodes, and gives it its own.
pub(crate) fn tell(config: &Config, proxy: &Proxy, near: &Link, uplink: &Uplink, others: &[Peer]) -> Result<()> {
    let Uplink { link, addresses } = uplink;
    proxy.configure_node(&node_config(config, link, near))?;
    proxy.set_node_addresses(addresses, &peers::addresses(others))?;
    proxy.attach_device(&link.name, link.index, PacketHook::FromUplink)?;
    proxy.attach_device(&link.name, link.index, PacketHook::FromStack)?;
    Ok(())
}

fn find_uplink(node_ip: Ipv4Addr, addresses: &[(u32, Ipv4Addr)], links: &[Link]) -> Result<Link> {
    let index = addresses.iter().find(|(_, ip)| *ip == node_ip).map(|(index, _)| *index);
    let link = links.iter().find(|link| Some(link.index) == index);
    link.cloned().ok_or(NetworkError::NoUplink(node_ip))
}

/// Makes the service link, or gives the one that is there this MTU.
pub(crate) async fn service_link(netlink: &Netlink, mtu: u32) -> Result<(Link, Link)> {
    if netlink.link(NEAR).await?.is_none() {
        let near = End { name: NEAR, mac: HOST_MAC, netns: None };
        let far = End { name: FAR, mac: SERVICE_MAC, netns: None };
        netlink.make_pair(&near, &far, mtu).await?;
    }
    let near = netlink.link(NEAR).await?.ok_or_else(|| NetworkError::Vanished(NEAR.into()))?;
    let far = netlink.link(FAR).await?.ok_or_else(|| NetworkError::Vanished(FAR.into()))?;
    for link in [&near, &far] {
        sysctl::write_if_present(&format!("ipv6/conf/{}/disable_ipv6", link.name), "1")?;
        netlink.set_mtu(link, mtu).await?;
        netlink.set_up(link.index).await?;
    }
    for link in [&near, &far] {
        netlink.settle(&link.name)?;
    }
    Ok((near, far))
}

async fn route_services(config: &Config, netlink: &Netlink, near: &Link) -> Result<()> {
    let gateway = Ipv4Addr::from(GATEWAY.octets());
    netlink.add_neighbour(near.index, gateway, SERVICE_MAC).await?;
    let source = Some(config.node_ip);
    let to_gateway = Ipv4Network::from(gateway);
    netlink.add_route(&Route { to: to_gateway, via: None, device: near.index, source }).await?;
    netlink.add_route(&Route { to: config.service_cidr, via: Some(gateway), device: near.index, source }).await
}

/// Keeps the kernel from choosing ports that mean something here. What was reserved before stays so, and is noted for `reset`. Gives
/// the ranges that stay whatever pods come and go.
pub(crate) fn reserve_ports(config: &Config) -> Result<Vec<PortRange>> {
    let found = sysctl::read(sysctl::RESERVED_PORTS)?;
    let file_error = |source| NetworkError::File { path: config.state_file.clone(), source };
    if !config.state_file.exists() {
        if let Some(folder) = config.state_file.parent() {
            fs::create_dir_all(folder).map_err(file_error)?;
        }
        fs::write(&config.state_file, found.trim()).map_err(file_error)?;
    }
    let own = [config.node_ports, config.snat_ports];
    sysctl::write(sysctl::RESERVED_PORTS, &ports::merge(&found, &own))?;
    let before = fs::read_to_string(&config.state_file).map_err(file_error)?;
    Ok(ports::ranges(&ports::merge(&before, &own)))
}

fn node_config(config: &Config, uplink: &Link, near: &Link) -> NodeConfig {
    let (pod_net, pod_mask) = wire(config.pod_cidr);
    let (cluster_net, cluster_mask) = wire(config.cluster_cidr);
    let (service_net, service_mask) = wire(config.service_cidr);
    NodeConfig {
        node_ip: Ip4::new(config.node_ip.octets()),
        uplink: uplink.index,
        service_link: near.index,
        pod_net,
        pod_mask,
        cluster_net,
        cluster_mask,
        service_net,
        service_mask,
        snat_first: config.snat_ports.first,
        snat_count: config.snat_ports.count(),
        // The rest is the proxy's.
        ..NodeConfig::default()
    }
}

pub(crate) async fn tear_down(netlink: &Netlink, state_file: &Path) -> Result<()> {
    peers::remove_all(netlink).await?;
    if let Some(near) = netlink.link(NEAR).await? {
        netlink.delete(near.index).await?;
    }
    let file_error = |source| NetworkError::File { path: state_file.to_owned(), source };
    match fs::read_to_string(state_file) {
        Ok(found) => sysctl::write(sysctl::RESERVED_PORTS, &found)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(file_error(source)),
    }
    fs::remove_file(state_file).map_err(file_error)
}

/// Network and mask as programs read them.
fn wire(range: Ipv4Network) -> (Ip4, Ip4) {
    (Ip4::new(range.network().octets()), Ip4::new(range.mask().octets()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_is_the_device_of_the_node_address() {
        let link = |index, name: &str| Link { index, name: name.into(), mtu: 1500, mac: None };
        let links = [link(1, "lo"), link(2, "eth0")];
        let addresses = [(1, Ipv4Addr::LOCALHOST), (2, [192, 0, 2, 7].into())];
        assert_eq!(find_uplink([192, 0, 2, 7].into(), &addresses, &links).unwrap().name, "eth0");
        let error = find_uplink([192, 0, 2, 8].into(), &addresses, &links).unwrap_err();
        assert!(error.to_string().contains("--node-ip"));
    }
}
