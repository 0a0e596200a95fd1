//! Follows the uplink while the agent runs: addresses that come and go on it, and the device itself, which may be renamed, replaced, or
//! get another MTU. And follows other nodes, to whose pods routes lead by it.
//!
//! What the kernel says only wakes the monitor, which then asks what is so: a message that was lost changes nothing.

use std::sync::Arc;
use std::time::Duration;

use proxy_userspace::Proxy;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use crate::netlink::{Changes, Link, Netlink};
use crate::node::{self, Uplink, Wanted};
use crate::peers::{self, Peer};
use crate::pods::Pods;
use crate::{Config, NetworkError, Result};

/// A device that comes gets its addresses one after the other.
const SETTLES_IN: Duration = Duration::from_millis(50);
/// When something failed, it is tried again without being woken.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

pub(crate) struct Monitor {
    pub config: Config,
    pub netlink: Netlink,
    pub changes: Changes,
    pub proxy: Arc<Proxy>,
    pub pods: Arc<Mutex<Pods>>,
    pub near: Link,
    /// As the programs know it.
    pub uplink: Uplink,
    /// The other nodes, and those that the programs know.
    pub peers: watch::Receiver<Vec<Peer>>,
    pub others: Vec<Peer>,
}

/// What there is to do next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    Retry,
}

impl Monitor {
    /// Ends with the netlink socket.
    pub async fn follow(mut self) {
        let mut next = Next::Wait;
        while self.is_woken(next).await {
            sleep(SETTLES_IN).await;
            self.changes.forget();
            next = match self.look().await {
                Ok(()) => Next::Wait,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "uplink not followed");
                    Next::Retry
                }
            };
        }
        tracing::error!("the kernel no longer tells about devices: changes of the uplink will be missed");
    }

    /// False: never again.
    async fn is_woken(&mut self, next: Next) -> bool {
        let woken = self.changes.concerning(self.uplink.link.index, peers::is_ours);
        let woken = async {
            tokio::select! {
                woken = woken => woken,
                // Its sender ends with the node.
                Ok(()) = self.peers.changed() => true,
            }
        };
        match next {
            Next::Wait => woken.await,
            Next::Retry => timeout(AGAIN_AFTER, woken).await.unwrap_or(true),
        }
    }

    async fn look(&mut self) -> Result<()> {
        let found = match node::uplink(&self.config, &self.netlink, Wanted::Any).await {
            // Between two devices, or two leases.
            Err(NetworkError::NoUplink(ip)) => {
                tracing::warn!(%ip, "no device carries the node's address");
                return Ok(());
            }
            found => found?,
        };
        let others = self.peers.borrow_and_update().clone();
        if found != self.uplink || others != self.others {
            self.tell(&found, &others).await?;
        }
        // Also where nothing else changed: somebody may have removed one.
        peers::route(&self.netlink, &found.link, self.config.node_ips(), &others).await?;
        (self.uplink, self.others) = (found, others);
        Ok(())
    }

    async fn tell(&self, found: &Uplink, others: &[Peer]) -> Result<()> {
        if *found == self.uplink {
            return Ok(self.proxy.set_node_addresses(&found.addresses, &peers::addresses(others))?);
        }
        let (device, addresses) = (&found.link, &found.addresses);
        tracing::info!(device = device.name, index = device.index, mtu = device.mtu, ?addresses, "the uplink changed");
        node::tell(&self.config, &self.proxy, &self.near, found, others)?;
        if found.link.name != self.uplink.link.name {
            self.proxy.detach_device(&self.uplink.link.name)?;
        }
        node::service_link(&self.config, &self.netlink, found.link.mtu).await?;
        self.pods.lock().await.set_mtu(found.link.mtu).await;
        Ok(())
    }
}
