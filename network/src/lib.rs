//! The pod network of one node: the node's own set-up, and one link per pod.
//!
//! [`Network::start`] finds the uplink by the node's address, makes the service link, leads routes to other nodes' pods and tells the
//! packet programs about all of them; a task of it follows what becomes of the uplink and of the other nodes.
//! [`Network::attach`] gives a pod its link, [`Network::detach`] takes it away, [`Network::reconcile`] brings links in line with the
//! pods that exist. All of it acts in the network namespace of the calling process, writes no firewall rule, and sets per-device
//! settings of its own devices only, but for the reserved port ranges, which [`Network::reset`] restores.

#[expect(unsafe_code, reason = "a wrapper of an ioctl")]
mod ethtool;
mod monitor;
mod netlink;
mod netns;
mod node;
mod peers;
mod pods;
mod ports;
mod sysctl;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
pub use proxy_userspace::Addresses;
use proxy_userspace::desired::HostPort;
use proxy_userspace::table::Refusal;
use proxy_userspace::{Families, Proxy, ProxyError};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

pub use peers::Peer;
pub use ports::PortRange;

use monitor::Monitor;
use netlink::Netlink;
use pods::Pods;

#[derive(Debug, Clone)]
pub struct Config {
    /// At least one of the families.
    pub v4: Option<Ranges<Ipv4Addr, Ipv4Network>>,
    pub v6: Option<Ranges<Ipv6Addr, Ipv6Network>>,
    /// Ports for NodePort services, kept from the kernel's own choice.
    pub node_ports: PortRange,
    /// Source ports of translated connections that show the node's address.
    pub snat_ports: PortRange,
    /// Remembers the settings found before the first start, for `reset`.
    pub state_file: PathBuf,
}

impl Config {
    pub const DEFAULT_SNAT_PORTS: PortRange = PortRange { first: 50_000, last: 64_999 };

    /// Those that the node has addresses of, as the service path has to know them.
    pub fn families(&self) -> Families {
        self.node_ips().families()
    }

    /// The node's address in each family.
    pub fn node_ips(&self) -> Addresses {
        Addresses { v4: self.v4.map(|ranges| ranges.node_ip), v6: self.v6.map(|ranges| ranges.node_ip) }
    }

    /// The range of services of each family.
    fn service_cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        let v4 = self.v4.map(|ranges| IpNetwork::V4(ranges.service_cidr));
        v4.into_iter().chain(self.v6.map(|ranges| IpNetwork::V6(ranges.service_cidr)))
    }
}

/// Addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges<A, N> {
    pub node_ip: A,
    /// The part of the cluster's range that this node's pods get addresses from.
    pub pod_cidr: N,
    /// All pods' addresses.
    pub cluster_cidr: N,
    pub service_cidr: N,
}

/// A pod that has, or shall have, a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    pub uid: String,
    pub addresses: Addresses,
    /// The pod's network namespace, as a path that can be opened.
    pub netns: PathBuf,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// A host port that does not lead to its pod, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortRefusal {
    /// Whoever may run a pod would catch what everybody here sends there.
    #[error("{0} is no address of this node")]
    Elsewhere(IpAddr),
    #[error("the pod has no address of the family of {0}")]
    OtherFamily(IpAddr),
    #[error(transparent)]
    Refused(Refusal),
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no device carries the node's address {0}: name another with --node-ip")]
    NoUplink(IpAddr),
    #[error("the node's addresses {0} and {1} are on different devices")]
    Apart(IpAddr, IpAddr),
    #[error("{0} is of a family that the node has no address of")]
    OtherFamily(IpAddr),
    #[error("netlink: {what}")]
    Netlink { what: String, source: rtnetlink::Error },
    #[error("the kernel gives no socket for the network set-up")]
    Socket(#[source] io::Error),
    #[error("{} cannot be used", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("device {0} vanished while it was set up")]
    Vanished(String),
    #[error("device {0} has no link although both its ends are up")]
    NoLink(String),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

pub(crate) type Result<T> = std::result::Result<T, NetworkError>;

#[derive(Debug)]
pub struct Network {
    pods: Arc<Mutex<Pods>>,
    monitor: AbortHandle,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.monitor.abort();
    }
}

impl Network {
    /// Sets the node up. Safe to repeat: what an earlier agent made is taken up. `peers` are the other nodes, complete as it begins:
    /// connections to those that it does not name would be taken for some to the outside.
    ///
    /// # Errors
    /// [`NetworkError::NoUplink`] where no device carries a node's address, `Apart` where it is not one that carries both, `NoLink`
    /// and `Vanished` for the service link;
    /// `Netlink`, `File`, `Socket` and `Proxy` say what was refused. What was made stays, and a repeat takes it up.
    pub async fn start(config: &Config, proxy: Arc<Proxy>, mut peers: watch::Receiver<Vec<Peer>>) -> Result<Self> {
        // What changes from here on is heard of.
        let (listening, changes) = Netlink::listening()?;
        let netlink = Netlink::here()?;
        let others = peers.borrow_and_update().clone();
        let (uplink, near) = node::set_up(config, &netlink, &proxy, &others).await?;
        let reserved = node::reserve_ports(config)?;
        let pods = Pods::new(netlink, Arc::clone(&proxy), config.node_ips(), uplink.link.mtu, reserved);
        pods.forget_vanished().await?;
        let pods = Arc::new(Mutex::new(pods));
        let (config, followed) = (config.clone(), Arc::clone(&pods));
        let monitor =
            Monitor { config, netlink: listening, changes, proxy, pods: followed, near, uplink, peers, others };
        Ok(Self { pods, monitor: tokio::spawn(monitor.follow()).abort_handle() })
    }

    /// Gives a pod its link, and the ports of the node that are its own but for those that come back. Repeating it repairs what is
    /// missing.
    ///
    /// # Errors
    /// [`NetworkError::OtherFamily`] for an address of which the node has no kind, `File` where the pod's namespace is gone or a
    /// setting refused, `Vanished` and `NoLink` where an end of the
    /// link went or carries nothing; `Netlink`, `Socket` and `Proxy` say what was refused. A repeat makes the link whole,
    /// [`Network::detach`] takes it away.
    pub async fn attach(&self, pod: &PodNetwork) -> Result<Vec<HostPortRefusal>> {
        self.pods.lock().await.attach(pod).await
    }

    /// Takes a pod's link away, whichever agent made it. A pod that has none is no error.
    ///
    /// # Errors
    /// `Netlink`, `Proxy` and `File` say what was refused. A repeat goes on with the rest, but for ports of the node that could
    /// not be handed back to the kernel's choice: these stay reserved until [`Network::reset`].
    pub async fn detach(&self, uid: &str) -> Result<()> {
        self.pods.lock().await.detach(uid).await
    }

    /// Makes links for all `known` pods and removes those of pods that are gone. Failures of single pods come back by uid.
    ///
    /// # Errors
    /// Where something that nobody owns any more cannot be removed, as for [`Network::detach`]: then no link was made, and a
    /// repeat goes on.
    pub async fn reconcile(&self, known: &[PodNetwork]) -> Result<Vec<(String, NetworkError)>> {
        self.pods.lock().await.reconcile(known).await
    }

    /// Removes every device made here and restores the settings. The proxy is unloaded apart, before this.
    ///
    /// # Errors
    /// [`NetworkError::Netlink`] where a device cannot be deleted, `File` where the settings found before cannot be read or
    /// restored. They are remembered until they are restored, so it may be repeated.
    pub async fn reset(state_file: &Path) -> Result<()> {
        let netlink = Netlink::here()?;
        pods::remove_all(&netlink).await?;
        node::tear_down(&netlink, state_file).await
    }
}
