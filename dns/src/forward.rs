//! Questions about other names go to the node's own name servers, one after the other, and their answers are kept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::cache::{Cache, Question};
use crate::clients::Quota;

/// One server's time to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way at once, and those of one client; more are refused, not queued.
const AT_ONCE: (usize, usize) = (1000, 100);
const PAYLOAD: u16 = 1232;

/// Which way a question came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no name server is configured for other names")]
    NoUpstream,
    #[error("too many questions of {0}, or of all, are under way")]
    Busy(IpAddr),
    #[error("no name server answered")]
    Unanswered,
}

#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<Cache>,
    places: Quota,
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, cache: Mutex::default(), places: Quota::new(AT_ONCE.0, AT_ONCE.1) }
    }

    /// The answer if it is kept.
    pub fn cached(&self, query: &Query, asked: &Message) -> Option<Message> {
        self.lock().get(&question(query, asked), Instant::now())
    }

    pub fn cached_len(&self) -> usize {
        self.lock().len()
    }

    /// Asks the name servers. The answer has the id and question of `asked`.
    pub async fn ask(
        &self,
        query: &Query,
        asked: &Message,
        client: IpAddr,
        transport: Transport,
    ) -> Result<Message, ForwardError> {
        if let Some(kept) = self.cached(query, asked) {
            return Ok(kept);
        }
        if self.upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let _place = self.places.take(client).ok_or(ForwardError::Busy(client))?;
        let outgoing = outgoing(query, asked);
        for upstream in &self.upstreams {
            let answer = match timeout(PATIENCE, exchange(*upstream, &outgoing, transport)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    tracing::debug!(%upstream, %error, name = %query.name(), "name server failed");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(%upstream, name = %query.name(), "name server is silent");
                    continue;
                }
            };
            self.lock().put(question(query, asked), &answer, Instant::now());
            return Ok(answer);
        }
        Err(ForwardError::Unanswered)
    }

    /// The cache stays usable after a panic: no change to it is ever half done.
    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn question(query: &Query, asked: &Message) -> Question {
    Question {
        name: query.name().to_lowercase().to_ascii(),
        kind: query.query_type().into(),
        class: query.query_class().into(),
        dnssec: asked.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        checking_disabled: asked.metadata.checking_disabled,
    }
}

fn outgoing(query: &Query, asked: &Message) -> Message {
    let mut message = Message::new(random_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = asked.metadata.checking_disabled;
    message.queries.push(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    edns.set_dnssec_ok(asked.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    message.edns = Some(edns);
    message
}

/// Together with the kernel's choice of source port this is what a forger has to guess.
fn random_id() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    // A fresh `RandomState` is keyed by the system's randomness and a counter.
    RandomState::new().hash_one(0u8) as u16
}

async fn exchange(upstream: SocketAddr, outgoing: &Message, transport: Transport) -> io::Result<Message> {
    let bytes = outgoing.to_vec().map_err(io::Error::other)?;
    match transport {
        Transport::Udp => exchange_udp(upstream, &bytes, outgoing).await,
        Transport::Tcp => exchange_tcp(upstream, &bytes, outgoing).await,
    }
}

async fn exchange_udp(upstream: SocketAddr, bytes: &[u8], outgoing: &Message) -> io::Result<Message> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(PAYLOAD)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is a forgery or another question's late answer: the real one may still come.
        if let Some(answer) = matching(&buffer[..length], outgoing) {
            return Ok(answer);
        }
    }
}

async fn exchange_tcp(upstream: SocketAddr, bytes: &[u8], outgoing: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    matching(&buffer, outgoing).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The message, if it answers this question.
fn matching(bytes: &[u8], outgoing: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_reply = answer.metadata.id == outgoing.metadata.id && answer.metadata.message_type == MessageType::Response;
    (is_reply && answer.queries == outgoing.queries).then_some(answer)
}

/// The name servers of a resolv.conf, without those in `own`, which would ask us again.
pub fn upstreams_of(resolv_conf: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    let servers = servers.map(|ip: std::net::IpAddr| SocketAddr::new(ip, 53));
    servers.filter(|server| !own.contains(server)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_we_are_not_our_own() {
        let text = "# made by hand\nsearch example.org\nnameserver 192.0.2.53\nnameserver 10.96.0.10\n nameserver fd00::53\nnameserver x\n";
        let own = ["10.96.0.10:53".parse().unwrap()];
        let expected: Vec<SocketAddr> = ["192.0.2.53:53", "[fd00::53]:53"].map(|text| text.parse().unwrap()).into();
        assert_eq!(upstreams_of(text, &own), expected);
        assert!(upstreams_of("", &[]).is_empty());
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<u16> = (0..100).map(|_| random_id()).collect();
        assert!(ids.len() > 90);
    }
}
