//! One veth pair per pod: the far end is the pod's eth0, the near end carries the packet programs.
//!
//! The pod sees one neighbour in each family, its gateway, whose Ethernet address never changes; the node sees one route and one
//! neighbour per address of a pod. Nothing is ever asked by ARP or neighbour discovery, and nothing that they say is believed.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use fnv::FnvHasher;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use proxy_common::{Addr as _, HOST_MAC, Ip, Ip4};
use proxy_userspace::desired::HostPort;
use proxy_userspace::sys;
use proxy_userspace::{Addresses, PacketHook, Proxy};

use crate::netlink::{End, Link, Netlink, Route, whole};
use crate::node::gateway;
use crate::{HostPortRefusal, NetworkError, PodNetwork, PortRange, Result, netns, ports, sysctl};

const PREFIX: &str = "amp";
const POD_END: &str = "eth0";
/// What IPv6 demands of a link.
const LEAST_MTU_V6: u32 = 1280;

#[derive(Debug)]
pub(crate) struct Pods {
    netlink: Netlink,
    proxy: Arc<Proxy>,
    node_ips: Addresses,
    mtu: u32,
    /// Ports that the kernel is kept from, whatever pods have.
    reserved: Vec<PortRange>,
    /// By uid.
    attached: HashMap<String, Attached>,
}

#[derive(Debug)]
struct Attached {
    addresses: Addresses,
    /// Leads to the pod's namespace while the pod is there; afterwards to nothing, or to somebody else's.
    netns: PathBuf,
    host_ports: Vec<u16>,
}

impl Pods {
    pub fn new(netlink: Netlink, proxy: Arc<Proxy>, node_ips: Addresses, mtu: u32, reserved: Vec<PortRange>) -> Self {
        Self { netlink, proxy, node_ips, mtu, reserved, attached: HashMap::new() }
    }

    /// Of the pods that are there, and of those that come from now on.
    pub async fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
        for (uid, pod) in &self.attached {
            if let Err(error) = self.fit(uid, pod).await {
                tracing::warn!(uid, error = &error as &dyn std::error::Error, "pod keeps its MTU");
            }
        }
    }

    async fn fit(&self, uid: &str, pod: &Attached) -> Result<()> {
        let name = device_name(uid);
        let near = self.netlink.link(&name).await?.ok_or_else(|| NetworkError::Vanished(name))?;
        let inside = Netlink::in_netns(&netns::open(&pod.netns)?)?;
        let far = inside.link(POD_END).await?.filter(|far| far.mac == Some(mac(pod.addresses)));
        let far = far.ok_or_else(|| NetworkError::Vanished(POD_END.into()))?;
        let mtu = self.mtu_of(pod.addresses);
        inside.set_mtu(&far, mtu).await?;
        self.netlink.set_mtu(&near, mtu).await
    }

    /// The uplink's. With less than IPv6 demands a pod would lose its address: what is too long then is not sent on.
    fn mtu_of(&self, addresses: Addresses) -> u32 {
        if addresses.v6.is_some() { self.mtu.max(LEAST_MTU_V6) } else { self.mtu }
    }

    /// Forgets pods whose links went while no agent ran: a link goes with its pod's namespace.
    pub async fn forget_vanished(&self) -> Result<()> {
        let links = self.netlink.links().await?;
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        self.proxy.forget_devices(&names)?;
        let present: HashSet<u32> =
            links.iter().filter(|link| is_pod_device(&link.name)).map(|link| link.index).collect();
        for (ip, ifindex) in self.proxy.pods()? {
            if !present.contains(&ifindex) {
                self.proxy.remove_pod(ip)?;
            }
        }
        Ok(())
    }

    pub async fn attach(&mut self, pod: &PodNetwork) -> Result<Vec<HostPortRefusal>> {
        if let Some(ip) = pod.addresses.iter().find(|ip| self.node_ips.beside(*ip).is_none()) {
            return Err(NetworkError::OtherFamily(ip));
        }
        let mtu = self.mtu_of(pod.addresses);
        let netns = netns::open(&pod.netns)?;
        let inside = Netlink::in_netns(&netns)?;
        let name = device_name(&pod.uid);
        let far = match (self.netlink.link(&name).await?, inside.link(POD_END).await?) {
            (Some(_), Some(far)) => far,
            (near, _) => {
                // Half of a pair is nobody's.
                if let Some(near) = near {
                    self.netlink.delete(near.index).await?;
                }
                let near = End { name: &name, mac: HOST_MAC, netns: None };
                let far = End { name: POD_END, mac: mac(pod.addresses), netns: Some(&netns) };
                self.netlink.make_pair(&near, &far, mtu).await?;
                inside.link(POD_END).await?.ok_or_else(|| NetworkError::Vanished(POD_END.into()))?
            }
        };
        let near = self.netlink.link(&name).await?.ok_or_else(|| NetworkError::Vanished(name.clone()))?;
        self.set_up_near(&near, pod.addresses).await?;
        // One hook only: each costs a grace period of the kernel's, and what the host answers a pod as a service comes back by
        // the service link.
        self.proxy.attach_device(&near.name, near.index, PacketHook::FromPod)?;
        self.proxy.add_pod(pod.addresses, near.index, &netns)?;
        self.netlink.set_mtu(&near, mtu).await?;
        inside.set_mtu(&far, mtu).await?;
        set_up_far(&netns, &inside, &far, pod.addresses).await?;
        self.netlink.settle(&near.name)?;
        inside.settle(&far.name)?;
        let host_ports = pod.host_ports.iter().map(|port| port.host_port).collect();
        self.attached
            .insert(pod.uid.clone(), Attached { addresses: pod.addresses, netns: pod.netns.clone(), host_ports });
        tracing::debug!(uid = pod.uid, addresses = ?pod.addresses, device = name, "pod attached");
        self.open_host_ports(pod).await
    }

    async fn open_host_ports(&self, pod: &PodNetwork) -> Result<Vec<HostPortRefusal>> {
        let own = match pod.host_ports.iter().any(|port| port.host_ip.is_some()) {
            true => self.netlink.addresses().await?,
            false => Vec::new(),
        };
        let (here, mut refused) = by_place(&pod.host_ports, pod.addresses, |ip| own.iter().any(|(_, own)| *own == ip));
        ports::reserve(here.iter().map(|port| PortRange { first: port.host_port, last: port.host_port }))?;
        for ip in pod.addresses.iter() {
            refused.extend(self.proxy.set_host_ports(ip, &here)?.into_iter().map(HostPortRefusal::Refused));
        }
        Ok(refused)
    }

    async fn set_up_near(&self, near: &Link, addresses: Addresses) -> Result<()> {
        // Routes of pods are looked up as if forwarded; the host's own setting stays as it is.
        sysctl::write(&format!("ipv4/conf/{}/forwarding", near.name), "1")?;
        match addresses.v6 {
            Some(_) => {
                sysctl::settle_v6(&near.name)?;
                sysctl::forward_v6(&near.name)?;
            }
            None => sysctl::write_if_present(&format!("ipv6/conf/{}/disable_ipv6", near.name), "1")?,
        }
        self.netlink.set_up(near.index).await?;
        for ip in addresses.iter() {
            self.netlink.add_neighbour(near.index, ip, mac(addresses)).await?;
            let source = self.node_ips.beside(ip);
            self.netlink.add_route(&Route { to: whole(ip), via: None, device: near.index, source }).await?;
        }
        Ok(())
    }

    pub async fn detach(&mut self, uid: &str) -> Result<()> {
        let name = device_name(uid);
        let near = self.netlink.link(&name).await?;
        // An earlier agent may have attached it: then only its device tells the address.
        let index = near.as_ref().map(|near| near.index);
        let attached = self.attached.get(uid).map(|pod| pod.addresses).unwrap_or_default();
        for (ip, ifindex) in self.proxy.pods()? {
            if attached.has(ip) || index == Some(ifindex) {
                self.proxy.remove_pod(ip)?;
            }
        }
        self.proxy.detach_device(&name)?;
        if let Some(near) = near {
            self.netlink.delete(near.index).await?;
        }
        let gone = self.attached.remove(uid);
        self.release(&gone.map(|pod| pod.host_ports).unwrap_or_default())
    }

    /// Ports that nobody else has. Those of pods that an earlier agent attached stay reserved until `reset`.
    fn release(&self, ports: &[u16]) -> Result<()> {
        let used = |port: u16| self.attached.values().any(|pod| pod.host_ports.contains(&port));
        let kept = |port: u16| self.reserved.iter().any(|range| range.has(port));
        let free: Vec<u16> = ports.iter().copied().filter(|port| !used(*port) && !kept(*port)).collect();
        ports::release(&free)
    }

    /// Removal first: an address may have gone from a pod that is no more to one that waits.
    pub async fn reconcile(&mut self, known: &[PodNetwork]) -> Result<Vec<(String, NetworkError)>> {
        let uids: HashSet<&str> = known.iter().map(|pod| pod.uid.as_str()).collect();
        let gone: Vec<String> = self.attached.keys().filter(|uid| !uids.contains(uid.as_str())).cloned().collect();
        for uid in gone {
            self.detach(&uid).await?;
        }
        let names: HashSet<String> = known.iter().map(|pod| device_name(&pod.uid)).collect();
        for link in self.netlink.links().await? {
            if is_pod_device(&link.name) && !names.contains(&link.name) {
                self.proxy.detach_device(&link.name)?;
                self.netlink.delete(link.index).await?;
            }
        }
        let addresses: HashSet<IpAddr> = known.iter().flat_map(|pod| pod.addresses.iter()).collect();
        for (ip, _) in self.proxy.pods()? {
            if !addresses.contains(&ip) {
                self.proxy.remove_pod(ip)?;
            }
        }
        let mut failures = Vec::new();
        for pod in known {
            match self.attach(pod).await {
                Ok(refused) => {
                    refused.iter().for_each(|why| tracing::warn!(uid = pod.uid, %why, "host port not opened"))
                }
                Err(error) => failures.push((pod.uid.clone(), error)),
            }
        }
        Ok(failures)
    }
}

/// The host ports that this node can have and that can lead to the pod, and why not the others.
fn by_place(
    ports: &[HostPort],
    pod: Addresses,
    is_own: impl Fn(IpAddr) -> bool,
) -> (Vec<HostPort>, Vec<HostPortRefusal>) {
    let (mut here, mut refused) = (Vec::new(), Vec::new());
    for port in ports {
        match port.host_ip {
            Some(ip) if pod.beside(ip).is_none() => refused.push(HostPortRefusal::OtherFamily(ip)),
            Some(ip) if !ip.is_loopback() && !is_own(ip) => refused.push(HostPortRefusal::Elsewhere(ip)),
            _ => here.push(*port),
        }
    }
    (here, refused)
}

/// The Ethernet address of a pod's own end.
fn mac(addresses: Addresses) -> [u8; 6] {
    match (addresses.v4, addresses.v6) {
        (Some(ip), _) => Ip4::from(ip).pod_mac(),
        (None, ip) => Ip::from(ip.unwrap_or(Ipv6Addr::UNSPECIFIED)).pod_mac(),
    }
}

async fn set_up_far(netns: &File, inside: &Netlink, far: &Link, addresses: Addresses) -> Result<()> {
    if let Some(loopback) = inside.link("lo").await? {
        inside.set_up(loopback.index).await?;
    }
    if addresses.v6.is_some() {
        sys::inside(netns, || Ok(sysctl::settle_v6(POD_END))).map_err(NetworkError::Socket)??;
    }
    inside.set_up(far.index).await?;
    for ip in addresses.iter() {
        let (gateway, device) = (gateway(ip), far.index);
        inside.add_address(device, ip).await?;
        inside.add_neighbour(device, gateway, HOST_MAC).await?;
        inside.add_route(&Route { to: whole(gateway), via: None, device, source: None }).await?;
        inside.add_route(&Route { to: everywhere(ip), via: Some(gateway), device, source: None }).await?;
    }
    Ok(())
}

/// All addresses of an address's family.
fn everywhere(ip: IpAddr) -> IpNetwork {
    match ip {
        IpAddr::V4(_) => IpNetwork::V4(Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).expect("no bits fit")),
        IpAddr::V6(_) => IpNetwork::V6(Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).expect("no bits fit")),
    }
}

pub(crate) async fn remove_all(netlink: &Netlink) -> Result<()> {
    for link in netlink.links().await? {
        if is_pod_device(&link.name) {
            netlink.delete(link.index).await?;
        }
    }
    Ok(())
}

/// `amp` and twelve digits, the most a device name holds, from all of the uid (FNV-1a).
fn device_name(uid: &str) -> String {
    let mut hash = FnvHasher::default();
    hash.write(uid.as_bytes());
    format!("{PREFIX}{:012x}", hash.finish() & 0xffff_ffff_ffff)
}

fn is_pod_device(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_are_recognised() {
        let name = device_name("550e8400-e29b-41d4-a716-446655440000");
        assert_eq!(name, "amp538ee83a5048", "links of running pods are found by this name");
        assert_eq!(name.len(), 15);
        assert!(is_pod_device(&name));
        assert_ne!(name, device_name("550e8400-e29b-41d4-a716-446655440001"));
        for other in ["amphi-svc", "amphi-svc-far", "eth0", "amp12", "ampzzzzzzzzzzzz"] {
            assert!(!is_pod_device(other), "{other}");
        }
    }
}
