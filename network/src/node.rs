//! The node's own part: uplink, service link, routes to services, reserved ports, and what the packet programs must know.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnetwork::{Ipv4Network, Ipv6Network};
use proxy_common::{GATEWAY, GATEWAY6, HOST_MAC, Ip, Ip4, NodeConfig, SERVICE_MAC};
use proxy_userspace::{Addresses, PacketHook, Proxy};

use crate::netlink::{End, Link, Netlink, Route, whole};
use crate::peers::{self, Peer};
use crate::{Config, NetworkError, PortRange, Result, netns, ports, sysctl};

/// The host's end of the service link: routes to services lead here, and answers of services come in here.
const NEAR: &str = "amphi-svc";
/// Its far end, where the packet program takes over.
const FAR: &str = "amphi-svc-far";

/// The device that carries the node's addresses, and all that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub link: Link,
    pub addresses: Vec<IpAddr>,
}

/// The gateway of the pods, and of services, in an address's family.
pub(crate) fn gateway(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => GATEWAY.octets().into(),
        IpAddr::V6(_) => GATEWAY6.octets().into(),
    }
}

/// Gives the uplink and the near end of the service link.
pub(crate) async fn set_up(
    config: &Config,
    netlink: &Netlink,
    proxy: &Proxy,
    others: &[Peer],
) -> Result<(Uplink, Link)> {
    let uplink = uplink(config, netlink, Wanted::All).await?;
    let (near, far) = service_link(config, netlink, uplink.link.mtu).await?;
    route_services(config, netlink, &near).await?;
    proxy.add_node_netns(&netns::open(Path::new("/proc/thread-self/ns/net"))?, config.node_ips())?;
    proxy.attach_device(&far.name, far.index, PacketHook::FromHost)?;
    tell(config, proxy, &near, &uplink, others)?;
    peers::route(netlink, &uplink.link, config.node_ips(), others).await?;
    Ok((uplink, near))
}

/// Which of the node's addresses the uplink has to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// One family goes on while the other's address is away.
    Any,
}

pub(crate) async fn uplink(config: &Config, netlink: &Netlink, wanted: Wanted) -> Result<Uplink> {
    let addresses = netlink.addresses().await?;
    let link = find_uplink(config.node_ips(), &addresses, &netlink.links().await?, wanted)?;
    let mut own: Vec<IpAddr> = addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, ip)| *ip).collect();
    own.sort_unstable();
    Ok(Uplink { link, addresses: own })
}

/// Tells the programs about the uplink and other nodes, and gives it its own.
pub(crate) fn tell(config: &Config, proxy: &Proxy, near: &Link, uplink: &Uplink, others: &[Peer]) -> Result<()> {
    let Uplink { link, addresses } = uplink;
    let (v4, v6) = (node_config4(config, link, near), node_config6(config, link, near));
    proxy.configure_node(v4.as_ref(), v6.as_ref())?;
    proxy.set_node_addresses(addresses, &peers::addresses(others))?;
    proxy.attach_device(&link.name, link.index, PacketHook::FromUplink)?;
    proxy.attach_device(&link.name, link.index, PacketHook::FromStack)?;
    Ok(())
}

fn find_uplink(node_ips: Addresses, addresses: &[(u32, IpAddr)], links: &[Link], wanted: Wanted) -> Result<Link> {
    let mut found: Option<(IpAddr, &Link)> = None;
    let mut missing = None;
    for node_ip in node_ips.iter() {
        let carrier = addresses.iter().find(|(_, ip)| *ip == node_ip);
        let Some(link) = carrier.and_then(|(index, _)| links.iter().find(|link| link.index == *index)) else {
            missing = Some(node_ip);
            continue;
        };
        match found {
            Some((other, device)) if device != link => return Err(NetworkError::Apart(other, node_ip)),
            _ => found = Some((node_ip, link)),
        }
    }
    match (found, missing) {
        (Some((_, link)), None) => Ok(link.clone()),
        (Some((_, link)), Some(_)) if wanted == Wanted::Any => Ok(link.clone()),
        (_, missing) => Err(NetworkError::NoUplink(missing.unwrap_or(Ipv4Addr::UNSPECIFIED.into()))),
    }
}

/// Makes the service link, or gives the one that is there this MTU.
pub(crate) async fn service_link(config: &Config, netlink: &Netlink, mtu: u32) -> Result<(Link, Link)> {
    if netlink.link(NEAR).await?.is_none() {
        let near = End { name: NEAR, mac: HOST_MAC, netns: None };
        let far = End { name: FAR, mac: SERVICE_MAC, netns: None };
        netlink.make_pair(&near, &far, mtu).await?;
    }
    let near = netlink.link(NEAR).await?.ok_or_else(|| NetworkError::Vanished(NEAR.into()))?;
    let far = netlink.link(FAR).await?.ok_or_else(|| NetworkError::Vanished(FAR.into()))?;
    match config.v6 {
        Some(_) => sysctl::settle_v6(&near.name)?,
        None => sysctl::write_if_present(&format!("ipv6/conf/{}/disable_ipv6", near.name), "1")?,
    }
    // It is no place to receive anything.
    sysctl::write_if_present(&format!("ipv6/conf/{}/disable_ipv6", far.name), "1")?;
    for link in [&near, &far] {
        netlink.set_mtu(link, mtu).await?;
        netlink.set_up(link.index).await?;
    }
    for link in [&near, &far] {
        netlink.settle(&link.name)?;
    }
    Ok((near, far))
}

async fn route_services(config: &Config, netlink: &Netlink, near: &Link) -> Result<()> {
    for to in config.service_cidrs() {
        let (gateway, source) = (gateway(to.ip()), config.node_ips().beside(to.ip()));
        netlink.add_neighbour(near.index, gateway, SERVICE_MAC).await?;
        netlink.add_route(&Route { to: whole(gateway), via: None, device: near.index, source }).await?;
        netlink.add_route(&Route { to, via: Some(gateway), device: near.index, source }).await?;
    }
    Ok(())
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

fn node_config4(config: &Config, uplink: &Link, near: &Link) -> Option<NodeConfig> {
    let ranges = config.v4?;
    let nets = [ranges.pod_cidr, ranges.cluster_cidr, ranges.service_cidr].map(wire4);
    Some(node_config(config, ranges.node_ip.into(), nets, uplink, near))
}

fn node_config6(config: &Config, uplink: &Link, near: &Link) -> Option<NodeConfig<Ip>> {
    let ranges = config.v6?;
    let nets = [ranges.pod_cidr, ranges.cluster_cidr, ranges.service_cidr].map(wire6);
    Some(node_config(config, ranges.node_ip.into(), nets, uplink, near))
}

/// `nets` are those of the node's pods, of all pods, and of services.
fn node_config<A: Default>(
    config: &Config,
    node_ip: A,
    nets: [(A, A); 3],
    uplink: &Link,
    near: &Link,
) -> NodeConfig<A> {
    let [(pod_net, pod_mask), (cluster_net, cluster_mask), (service_net, service_mask)] = nets;
    NodeConfig {
        node_ip,
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
fn wire4(range: Ipv4Network) -> (Ip4, Ip4) {
    (range.network().into(), range.mask().into())
}

fn wire6(range: Ipv6Network) -> (Ip, Ip) {
    (range.network().into(), range.mask().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_is_the_device_of_the_node_address() {
        let link = |index, name: &str| Link { index, name: name.into(), mtu: 1500, mac: None };
        let links = [link(1, "lo"), link(2, "eth0")];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = [(1, ip("127.0.0.1")), (2, ip("192.0.2.7")), (2, ip("2001:db8::7")), (1, ip("2001:db8::8"))];
        let find_some =
            |ips: &[&str], wanted| find_uplink(ips.iter().map(|text| ip(text)).collect(), &addresses, &links, wanted);
        let find = |ips: &[&str]| find_some(ips, Wanted::All);
        for ips in [&["192.0.2.7"][..], &["2001:db8::7"], &["192.0.2.7", "2001:db8::7"]] {
            assert_eq!(find(ips).unwrap().name, "eth0", "{ips:?}");
        }
        assert!(find(&["192.0.2.8"]).unwrap_err().to_string().contains("--node-ip"));
        assert!(matches!(find(&["192.0.2.7", "2001:db8::8"]), Err(NetworkError::Apart(..))));
        assert!(matches!(find(&["192.0.2.7", "2001:db8::9"]), Err(NetworkError::NoUplink(_))));
        assert_eq!(find_some(&["192.0.2.7", "2001:db8::9"], Wanted::Any).unwrap().name, "eth0");
        assert!(find_some(&["192.0.2.8", "2001:db8::9"], Wanted::Any).is_err());
    }
}
