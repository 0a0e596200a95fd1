//! Questions about other names go to the node's own name servers, or to those of the zone they are in, and their answers are kept.
//!
//! Asking, choosing among servers, joining equal questions and keeping answers are hickory-resolver's. Its lookups are not used:
//! they follow aliases themselves and give records, where clients are to get the very message that the server gave, with its code
//! and authority. What one client may hold of what all share ([`Quota`]) it does not know, so that stays ours.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record};
use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use hickory_server::server::Request;

use crate::clients::Quota;
use crate::message::Source;
use crate::udp::PAYLOAD;

/// The time that servers have to answer a question, all those asked together.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers asked at once.
const TOGETHER: usize = 2;
/// Questions under way at once, and those of one client; more are refused, not queued.
const AT_ONCE: (usize, usize) = (1000, 100);
/// Answers kept, of each sort.
pub(crate) const CAPACITY: u64 = 10_000;
const LONGEST: Duration = Duration::from_secs(3600);
/// Names that do not exist are asked for again sooner.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(30);

/// Name servers of one zone and all names below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    pub zone: Name,
    pub servers: Vec<SocketAddr>,
}

impl Stub {
    /// Without servers yet; none where this is no domain name.
    pub fn of(zone: &str) -> Option<Self> {
        let zone = Name::from_ascii(format!("{}.", zone.strip_suffix('.').unwrap_or(zone))).ok()?;
        Some(Self { zone: zone.to_lowercase(), servers: Vec::new() })
    }
}

/// What of a question, beside its name and type, an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags {
    pub dnssec: bool,
    pub checking_disabled: bool,
}

impl Flags {
    pub fn of(request: &Request) -> Self {
        Self {
            dnssec: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: request.metadata.checking_disabled,
        }
    }
}

/// Another server's answer.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub code: ResponseCode,
    pub authentic: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    pub source: Source,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no name server is configured for other names")]
    NoUpstream,
    #[error("too many questions of {0}, or of all, are under way")]
    Busy(IpAddr),
    #[error("no name server answered")]
    Unanswered(#[source] NetError),
}

pub(crate) struct Forwarder {
    /// The longest zone first; the node's own servers last.
    routes: Vec<Route>,
    /// Answers without and with signatures. What was asked with checking disabled is not kept.
    caches: [ResponseCache; 2],
    places: Quota,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
}

/// The servers of a zone.
pub(crate) struct Route {
    pub zone: Name,
    servers: RwLock<Servers>,
    pub asked: AtomicU64,
    pub failed: AtomicU64,
}

struct Servers {
    addresses: Vec<SocketAddr>,
    pool: NameServerPool<TokioRuntimeProvider>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.routes.iter().map(|route| (&route.zone, route.addresses()))).finish()
    }
}

impl Servers {
    fn new(addresses: Vec<SocketAddr>) -> Result<Self, NetError> {
        Ok(Self { pool: pool(&addresses)?, addresses })
    }
}

impl Route {
    fn new(zone: Name, servers: Vec<SocketAddr>) -> Result<Self, NetError> {
        let (asked, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { zone, servers: RwLock::new(Servers::new(servers)?), asked, failed })
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    fn source(&self) -> Source {
        match self.zone.is_root() {
            true => Source::Forward,
            false => Source::Stub(self.zone.clone()),
        }
    }

    /// The servers to ask and their number; none if there are none left.
    fn pool(&self) -> Option<(NameServerPool<TokioRuntimeProvider>, usize)> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        (!servers.addresses.is_empty()).then(|| (servers.pool.clone(), servers.addresses.len()))
    }
}

impl Forwarder {
    /// `upstreams` answer for all names that no stub's zone holds.
    pub fn new(upstreams: Vec<SocketAddr>, stubs: Vec<Stub>) -> Result<Self, NetError> {
        let mut stubs = stubs;
        stubs.push(Stub { zone: Name::root(), servers: upstreams });
        stubs.sort_by_key(|stub| std::cmp::Reverse(stub.zone.num_labels()));
        let routes = stubs.into_iter().map(|stub| Route::new(stub.zone.to_lowercase(), stub.servers));
        Ok(Self {
            routes: routes.collect::<Result<_, _>>()?,
            caches: [(); 2].map(|()| cache()),
            places: Quota::new(AT_ONCE.0, AT_ONCE.1),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Asks this server no more.
    pub fn give_up(&self, zone: &Name, server: SocketAddr) -> Result<(), NetError> {
        for route in self.routes.iter().filter(|route| route.zone == *zone) {
            let mut servers = route.servers.write().unwrap_or_else(PoisonError::into_inner);
            let rest = servers.addresses.iter().copied().filter(|address| *address != server).collect();
            *servers = Servers::new(rest)?;
        }
        Ok(())
    }

    /// The answer if it is kept.
    pub fn cached(&self, query: &Query, flags: Flags) -> Option<Found> {
        let kept = self.cache(flags)?.get(query, Instant::now());
        let found = kept.and_then(|kept| found(kept, Source::Cache).ok())?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// Where answers about this name come from.
    pub fn source_for(&self, name: &Name) -> Source {
        self.route(name).map_or(Source::Forward, Route::source)
    }

    /// Asks the name servers what is not kept.
    pub async fn ask(&self, query: &Query, flags: Flags, client: IpAddr) -> Result<Found, ForwardError> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let route = self.route(query.name()).ok_or(ForwardError::NoUpstream)?;
        let (pool, servers) = route.pool().ok_or(ForwardError::NoUpstream)?;
        let _place = self.places.take(client).ok_or(ForwardError::Busy(client))?;
        route.asked.fetch_add(1, Ordering::Relaxed);
        let mut answer = exchange(&pool, query, flags).await;
        // Those that were silent come last now.
        if servers > TOGETHER && matches!(answer, Err(NetError::Timeout)) {
            answer = exchange(&pool, query, flags).await;
        }
        if let Some(cache) = self.cache(flags) {
            cache.insert(query.clone(), answer.clone(), Instant::now());
        }
        let found = found(answer, route.source());
        if found.is_err() {
            route.failed.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    fn route(&self, name: &Name) -> Option<&Route> {
        self.routes.iter().find(|route| route.zone.zone_of(name))
    }

    fn cache(&self, flags: Flags) -> Option<&ResponseCache> {
        (!flags.checking_disabled).then(|| &self.caches[usize::from(flags.dnssec)])
    }
}

fn cache() -> ResponseCache {
    let mut options = ResolverOpts::default();
    options.positive_max_ttl = Some(LONGEST);
    options.negative_max_ttl = Some(LONGEST_NEGATIVE);
    ResponseCache::new(CAPACITY, TtlConfig::from_opts(&options))
}

pub(crate) fn pool(servers: &[SocketAddr]) -> Result<NameServerPool<TokioRuntimeProvider>, NetError> {
    let mut options = ResolverOpts::default();
    options.timeout = PATIENCE;
    options.num_concurrent_reqs = TOGETHER;
    options.max_active_requests = AT_ONCE.0;
    // The kernel keeps node ports and ports of translated connections out of its choice.
    options.os_port_selection = true;
    let context = PoolContext::new(options, TlsConfig::new()?);
    let servers = servers.iter().map(|address| {
        let mut config = NameServerConfig::udp_and_tcp(address.ip());
        config.connections.iter_mut().for_each(|connection| connection.port = address.port());
        config
    });
    Ok(NameServerPool::from_config(servers, Arc::new(context), TokioRuntimeProvider::default()))
}

pub(crate) async fn exchange(
    pool: &NameServerPool<TokioRuntimeProvider>,
    query: &Query,
    flags: Flags,
) -> Result<Message, NetError> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = flags.checking_disabled;
    message.queries.push(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(flags.dnssec);
    message.edns = Some(edns);
    let request = DnsRequest::new(message, DnsRequestOptions::default());
    pool.send(request).first_answer().await.map(|response| response.into_message())
}

/// A server's answer, of whatever code; anything else is none.
fn found(answer: Result<Message, NetError>, source: Source) -> Result<Found, ForwardError> {
    let nothing = |code| Found {
        code,
        authentic: false,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        source: source.clone(),
    };
    match answer {
        Ok(message) => Ok(Found {
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
            ..nothing(message.metadata.response_code)
        }),
        Err(NetError::Dns(DnsError::NoRecordsFound(no_records))) => Ok(Found {
            authorities: no_records.authorities.iter().flat_map(|records| records.iter().cloned()).collect(),
            ..nothing(no_records.response_code)
        }),
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Ok(nothing(code)),
        Err(error) => Err(ForwardError::Unanswered(error)),
    }
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

    #[tokio::test]
    async fn the_longest_zone_that_holds_a_name_answers_for_it() {
        let stub =
            |zone: &str| Stub { zone: Name::from_ascii(zone).unwrap(), servers: vec!["192.0.2.1:53".parse().unwrap()] };
        let forwarder = Forwarder::new(Vec::new(), vec![stub("corp."), stub("Lab.Corp.")]).unwrap();
        for (name, expected) in [
            ("a.lab.corp.", "stub lab.corp."),
            ("LAB.corp.", "stub lab.corp."),
            ("xlab.corp.", "stub corp."),
            ("example.org.", "forward"),
        ] {
            assert_eq!(forwarder.source_for(&Name::from_ascii(name).unwrap()).to_string(), expected, "{name}");
        }
    }
}
