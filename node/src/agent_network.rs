//! The pod network as the agent asks for it.

use std::net::IpAddr;
use std::sync::Arc;

use agent::boundary::{self, Attachment, NetworkError, PodNetwork};
use api::uid::Uid;
use async_trait::async_trait;
use network::Network;
use proxy_userspace::desired::{HostPort, protocol_number};

pub struct AgentNetwork {
    network: Network,
    dns: Arc<dns::Server>,
}

impl AgentNetwork {
    pub fn new(network: Network, dns: Arc<dns::Server>) -> Self {
        Self { network, dns }
    }
}

/// A failure with all its causes, for an event.
fn failed(error: &dyn std::error::Error) -> NetworkError {
    NetworkError(causes::chain(error))
}

/// Host ports as the service path takes them, and what is said of those that it does not translate.
fn translated(asked: &[boundary::HostPort]) -> (Vec<HostPort>, Vec<String>) {
    let (mut ports, mut absent) = (Vec::new(), Vec::new());
    for boundary::HostPort { host_ip, host_port, container_port, protocol } in asked {
        match protocol_number(protocol) {
            Some(protocol) => {
                let (host_ip, host_port, container_port) = (*host_ip, *host_port, *container_port);
                ports.push(HostPort { host_ip, host_port, container_port, protocol });
            }
            None => absent.push(format!("host port: {host_port}/{protocol} is not translated on this node")),
        }
    }
    (ports, absent)
}

#[async_trait]
impl PodNetwork for AgentNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError> {
        let (host_ports, absent) = translated(&attachment.host_ports);
        let (uid, netns) = (&attachment.pod.uid, attachment.netns.clone());
        let addresses = attachment.ips.iter().copied().collect();
        let pod = network::PodNetwork { uid: uid.to_string(), addresses, netns, host_ports };
        let refused = self.network.attach(&pod).await.map_err(|error| failed(&error))?;
        let (namespace, searches) = (&attachment.pod.namespace, attachment.searches.as_deref());
        attachment.ips.iter().for_each(|ip| self.dns.pod_came(*ip, uid, namespace, searches));
        let mut said: Vec<String> = refused.iter().map(|refusal| format!("host port: {refusal}")).collect();
        // The same for clients inside and outside.
        said.dedup();
        Ok(absent.into_iter().chain(said).collect())
    }

    async fn detach(&self, pod_uid: &Uid, ips: &[IpAddr]) -> Result<(), NetworkError> {
        ips.iter().for_each(|ip| self.dns.pod_went(*ip, pod_uid));
        self.network.detach(pod_uid.as_str()).await.map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_translated_is_said() {
        let asked = |host_ip: Option<&str>, protocol: &str| boundary::HostPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: protocol.into(),
        };
        let all = [asked(None, "TCP"), asked(Some("192.0.2.1"), "UDP"), asked(None, "DCCP"), asked(Some("::1"), "TCP")];
        let (ports, absent) = translated(&all);
        let port = |host_ip, protocol| HostPort { host_ip, host_port: 8080, container_port: 80, protocol };
        let number = |name| protocol_number(name).unwrap();
        let ip = |text: &str| Some(text.parse().unwrap());
        let [tcp, udp] = ["TCP", "UDP"].map(number);
        assert_eq!(ports, [port(None, tcp), port(ip("192.0.2.1"), udp), port(ip("::1"), tcp)]);
        assert_eq!(absent, ["host port: 8080/DCCP is not translated on this node"]);
    }
}
