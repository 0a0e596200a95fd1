//! What this crate asks of netlink, each call repeatable: making what exists and deleting what does not are no errors.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use proxy_userspace::sys::inside;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder};

use crate::ethtool::settle_link;
use crate::{NetworkError, Result};

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const ESRCH: i32 = 3;

/// A netlink socket, in the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    /// For calls that netlink does not have.
    plain: UnixDatagram,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// None of a device that is not Ethernet's.
    pub mac: Option<[u8; 6]>,
}

/// One end of a pair to be made.
pub(crate) struct End<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    /// Where it goes; here when none.
    pub netns: Option<&'a File>,
}

/// Where a route leads: all its addresses are of one family.
pub(crate) struct Route {
    pub to: IpNetwork,
    pub via: Option<IpAddr>,
    pub device: u32,
    pub source: Option<IpAddr>,
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { what: what.into(), source }
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// Whether a route or its device was not there.
pub(crate) fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(code(error), Some(ESRCH | ENODEV))
}

impl Netlink {
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn here() -> Result<Self> {
        Self::new().map_err(NetworkError::Socket)
    }

    pub fn in_netns(netns: &File) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let opened = inside(netns, || {
            let _entered = runtime.enter();
            Self::new()
        });
        opened.map_err(NetworkError::Socket)
    }

    fn new() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // Ends with the last handle.
        tokio::spawn(connection);
        Ok(Self { handle, plain: UnixDatagram::unbound()? })
    }

    /// With what happens to devices, addresses and routes here from now on.
    pub fn listening() -> Result<(Self, Changes)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        let plain = UnixDatagram::unbound().map_err(NetworkError::Socket)?;
        Ok((Self { handle, plain }, Changes(messages)))
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(error) if code(&error) == Some(ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("reading device {name}"))(error)),
        }
    }

    pub async fn links(&self) -> Result<Vec<Link>> {
        let found: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("listing devices"))?;
        Ok(found.iter().map(link).collect())
    }

    /// Every address that means something beyond its link, with its device.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>> {
        let found: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(failed("listing addresses"))?;
        // That of an end is told beside that of the other end, and alone where there is no such.
        let own = |message: &AddressMessage| {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })
            })
        };
        let all = found.iter().filter_map(|message| Some((message.header.index, own(message)?)));
        Ok(all.filter(|(_, ip)| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())).collect())
    }

    pub async fn make_pair(&self, near: &End<'_>, far: &End<'_>, mtu: u32) -> Result<()> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(far.name).address(far.mac.to_vec()).mtu(mtu);
        if let Some(netns) = far.netns {
            peer = peer.setns_by_fd(netns.as_raw_fd());
        }
        let pair = LinkVeth::new(near.name, far.name)
            .address(near.mac.to_vec())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        let what = format!("making the pair {} {}", near.name, far.name);
        self.handle.link().add(pair).execute().await.map_err(failed(what))
    }

    pub async fn set_up(&self, link: u32) -> Result<()> {
        let request = self.handle.link().set(LinkUnspec::new_with_index(link).up().build());
        request.execute().await.map_err(failed(format!("setting device {link} up")))
    }

    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        if link.mtu == mtu {
            return Ok(());
        }
        let request = self.handle.link().set(LinkUnspec::new_with_index(link.index).mtu(mtu).build());
        request.execute().await.map_err(failed(format!("giving device {} its MTU", link.name)))
    }

    /// A device both of whose ends are up carries packets from now on.
    pub fn settle(&self, device: &str) -> Result<()> {
        match settle_link(&self.plain, device) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NetworkError::NoLink(device.to_owned())),
            Err(source) => Err(NetworkError::Socket(source)),
        }
    }

    pub async fn delete(&self, link: u32) -> Result<()> {
        match self.handle.link().del(link).execute().await {
            Err(error) if code(&error) != Some(ENODEV) => Err(failed(format!("deleting device {link}"))(error)),
            _ => Ok(()),
        }
    }

    /// An address of no other's, which there is no need to ask the link about.
    pub async fn add_address(&self, link: u32, ip: IpAddr) -> Result<()> {
        let mut request = self.handle.address().add(link, ip, whole(ip).prefix()).replace();
        if ip.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(failed(format!("adding address {ip}")))
    }

    pub async fn add_neighbour(&self, link: u32, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        let request = self.handle.neighbours().add(link, ip).link_layer_address(&mac).replace();
        request.execute().await.map_err(failed(format!("adding neighbour {ip}")))
    }

    pub async fn add_route(&self, route: &Route) -> Result<()> {
        match self.handle.route().add(message(route)).replace().execute().await {
            Err(error) if code(&error) != Some(EEXIST) => {
                Err(failed(format!("adding the route to {}", route.to))(error))
            }
            _ => Ok(()),
        }
    }
}

/// The range of one address.
pub(crate) fn whole(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

fn message(route: &Route) -> RouteMessage {
    const OF_ONE_FAMILY: &str = "a route's addresses are of one family";
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.network(), route.to.prefix())
        .expect(OF_ONE_FAMILY)
        .output_interface(route.device)
        // Of routes that it did not make, systemd-networkd removes all others.
        .protocol(RouteProtocol::Kernel);
    let builder = match route.via {
        Some(gateway) => builder.gateway(gateway).expect(OF_ONE_FAMILY).onlink(),
        None => builder.scope(RouteScope::Link),
    };
    match route.source {
        Some(source) => builder.pref_source(source).expect(OF_ONE_FAMILY).build(),
        None => builder.build(),
    }
}

/// What the kernel says by itself about devices, addresses and routes.
pub(crate) struct Changes(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>);

impl Changes {
    /// Waits for one that may concern a device, or one of the routes that are to stay. False: there will be none.
    pub async fn concerning(&mut self, device: u32, stays: impl Fn(&RouteMessage) -> bool) -> bool {
        use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
        while let Some((message, _)) = self.0.next().await {
            match message.payload {
                // Pods' devices come and go all the time.
                NetlinkPayload::InnerMessage(NewLink(link) | DelLink(link)) if link.header.index != device => {}
                NetlinkPayload::InnerMessage(NewRoute(_)) => {}
                NetlinkPayload::InnerMessage(DelRoute(route)) if !stays(&route) => {}
                // Any address may be the node's, and what was lost may be about it.
                _ => return true,
            }
        }
        false
    }

    /// What was said so far.
    pub fn forget(&mut self) {
        while self.0.try_recv().is_ok() {}
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, name: String::new(), mtu: 1500, mac: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac[..].try_into().ok(),
            _ => {}
        }
    }
    link
}
