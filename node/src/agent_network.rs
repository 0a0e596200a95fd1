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
        let host_ip = match host_ip {
            None => Ok(None),
            Some(IpAddr::V4(ip)) => Ok(Some(*ip)),
            Some(IpAddr::V6(ip)) => Err(ip),
        };
        match (host_ip, protocol_number(protocol)) {
            (Ok(host_ip), Some(protocol)) => {
                let (host_port, container_port) = (*host_port, *container_port);
                ports.push(HostPort { host_ip, host_port, container_port, protocol });
            }
            (Ok(_), None) => absent.push(format!("host port: {host_port}/{protocol} is not translated on this node")),
            (Err(ip), _) => {
                absent.push(format!("host port: the pod has no IPv6 address to lead [{ip}]:{host_port} to"))
            }
        }
    }
    (ports, absent)
}

#[async_trait]
impl PodNetwork for AgentNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError> {
        let IpAddr::V4(ip) = attachment.ip else {
            return Err(NetworkError(format!("{} is no IPv4 address", attachment.ip)));
        };
        let (host_ports, absent) = translated(&attachment.host_ports);
        let (uid, netns) = (&attachment.pod.uid, attachment.netns.clone());
        let pod = network::PodNetwork { uid: uid.to_string(), ip, netns, host_ports };
        let refused = self.network.attach(&pod).await.map_err(|error| failed(&error))?;
        let (namespace, searches) = (&attachment.pod.namespace, attachment.searches.as_deref());
        self.dns.pod_came(attachment.ip, uid, namespace, searches);
        let mut said: Vec<String> = refused.iter().map(|refusal| format!("host port: {refusal}")).collect();
        // The same for clients inside and outside.
        said.dedup();
        Ok(absent.into_iter().chain(said).collect())
    }

    async fn detach(&self, pod_uid: &Uid, ip: IpAddr) -> Result<(), NetworkError> {
        self.dns.pod_went(ip, pod_uid);
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
        let all = [asked(None, "TCP"), asked(Some("192.0.2.1"), "UDP"), asked(None, "SCTP"), asked(Some("::1"), "TCP")];
        let (ports, absent) = translated(&all);
        let port = |host_ip, protocol| HostPort { host_ip, host_port: 8080, container_port: 80, protocol };
        let number = |name| protocol_number(name).unwrap();
        assert_eq!(ports, [port(None, number("TCP")), port(Some([192, 0, 2, 1].into()), number("UDP"))]);
        let expected = [
            "host port: 8080/SCTP is not translated on this node",
            "host port: the pod has no IPv6 address to lead [::1]:8080 to",
        ];
        assert_eq!(absent, expected);
    }
}
