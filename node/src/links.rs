//! The pod network as the agent asks for it.

use std::net::IpAddr;

use agent::boundary::{Attachment, NetworkError, PodNetwork};
use async_trait::async_trait;
use network::Network;

pub struct PodLinks {
    network: Network,
}

impl PodLinks {
    pub fn new(network: Network) -> Self {
        Self { network }
    }
}

/// A failure with all its causes, for an event.
fn failed(error: &dyn std::error::Error) -> NetworkError {
    NetworkError(causes::chain(error))
}

#[async_trait]
impl PodNetwork for PodLinks {
    async fn attach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let IpAddr::V4(ip) = attachment.ip else {
            return Err(NetworkError(format!("{} is no IPv4 address", attachment.ip)));
        };
        self.network.attach(&attachment.pod.uid, ip, &attachment.netns).await.map_err(|error| failed(&error))
    }

    async fn detach(&self, pod_uid: &str, _ip: IpAddr) -> Result<(), NetworkError> {
        self.network.detach(pod_uid).await.map_err(|error| failed(&error))
    }
}
