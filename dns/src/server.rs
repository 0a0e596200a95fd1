//! The running server: its sockets, its threads and tasks, and what its owner may ask of it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use api::uid::Uid;
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_resolver::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use ipnetwork::IpNetwork;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinSet;

use crate::autopath::{Autopath, SearchPath, Searches};
use crate::clients::Clients;
use crate::forward::{CAPACITY, Forwarder, Route, Stub};
use crate::kept::Listening;
use crate::message;
use crate::metrics::Counters;
use crate::names::{Names, QueryLog};
use crate::quick::{NO_NAME, Quick, Said};
use crate::snapshot::Snapshot;
use crate::tcp;
use crate::udp::{self, Batch, PAYLOAD};
use crate::zone::Zone;

#[derive(Debug, Clone)]
pub struct Config {
    /// Such as `cluster.local`.
    pub domain: String,
    /// Name of this node, which `hostname.bind` of class CHAOS says.
    pub node: String,
    /// Where pods have their addresses: these are answered for by names such as `10-244-0-5.default.pod.cluster.local`.
    pub pods: Vec<IpNetwork>,
    /// Where clients reach the cluster's name servers: the addresses of `ns.dns.cluster.local`.
    pub servers: Vec<IpAddr>,
    /// Where other names are asked for.
    pub upstreams: Vec<SocketAddr>,
    /// Zones that are asked for elsewhere.
    pub stubs: Vec<Stub>,
    /// Who is answered: the addresses of the node and of its pods.
    pub clients: Vec<IpNetwork>,
    pub log: QueryLog,
    pub autopath: Autopath,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{0:?} is no domain name")]
    Domain(String),
    #[error("DNS cannot serve its sockets")]
    Sockets(#[source] io::Error),
    #[error("DNS cannot prepare to ask other servers")]
    Forwarding(#[source] NetError),
}

/// A running server. It takes no question before it has content: what is asked earlier waits in its sockets, for an answer
/// from an empty zone would be a lie. It stops when dropped, unless its sockets are to outlive it: then it answers as long as
/// its process lives.
#[derive(Debug)]
pub struct Server {
    names: Arc<Names>,
    clients: Arc<Clients>,
    has_content: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    address: SocketAddr,
    datagrams: Vec<Arc<UdpSocket>>,
    /// Whether the sockets are others' as well.
    is_kept: bool,
    tasks: Mutex<JoinSet<()>>,
    /// They may end by themselves, and end with the server.
    _helpers: JoinSet<()>,
}

impl Server {
    /// Serves these sockets. Within a runtime.
    ///
    /// # Errors
    /// [`ServerError::Domain`] for a domain that is none, [`ServerError::Forwarding`] where the name servers to ask cannot be
    /// prepared for, [`ServerError::Sockets`] where the sockets or a thread for them are refused. The sockets are closed then,
    /// unless they are kept.
    pub fn start(config: Config, listening: impl Into<Listening>) -> Result<Self, ServerError> {
        let Listening { sockets, kept } = listening.into();
        let domain = Name::from_ascii(format!("{}.", config.domain.trim_end_matches('.')));
        let domain = domain.map_err(|_| ServerError::Domain(config.domain.clone()))?;
        let forwarder = Forwarder::new(config.upstreams, config.stubs).map_err(ServerError::Forwarding)?;
        let clients = Arc::new(Clients::new(config.clients));
        let names = Arc::new(Names {
            quick: Quick::new(&domain),
            zone: Zone::new(domain, config.pods, config.servers),
            snapshot: RwLock::default(),
            forwarder: Arc::new(forwarder),
            loops: Arc::default(),
            searches: Searches::new(config.autopath),
            walked: AtomicU64::new(0),
            counters: Counters::new(sockets.datagrams.len()),
            log: config.log,
            node: config.node,
        });
        let address = sockets.address().map_err(ServerError::Sockets)?;
        let datagrams: Vec<_> = sockets.datagrams.into_iter().map(Arc::new).collect();
        let listener = sockets.listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(sockets.listener));
        let listener = listener.map_err(ServerError::Sockets)?;
        let (has_content, content) = watch::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (shard, socket) in datagrams.iter().enumerate() {
            let thread = Thread {
                shard,
                names: Arc::clone(&names),
                clients: Arc::clone(&clients),
                content: content.clone(),
                stopping: Arc::clone(&stopping),
                socket: Arc::clone(socket),
                runtime: Handle::current(),
            };
            let ended = thread.start().map_err(ServerError::Sockets)?;
            // An end by itself is an error of the sender, which a thread holds as long as it runs.
            tasks.spawn(async move { drop(ended.await) });
        }
        let connections = tcp::serve(Arc::clone(&names), Arc::clone(&clients), listener);
        let mut content = content;
        tasks.spawn(async move {
            if content.wait_for(|there| *there).await.is_ok() {
                connections.await;
            }
        });
        let mut helpers = JoinSet::new();
        names.loops.start(&names.forwarder, &mut helpers);
        let is_kept = kept.is_some();
        if let Some(kept) = kept {
            helpers.spawn(kept.watch());
        }
        let tasks = Mutex::new(tasks);
        Ok(Self { names, clients, has_content, stopping, address, datagrams, is_kept, tasks, _helpers: helpers })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from this content from now on.
    pub fn publish(&self, snapshot: Snapshot) {
        self.names.publish(snapshot);
        self.has_content.send_replace(true);
    }

    /// Tells the search list of a pod of this node, whose address is its alone; none where it is not known for certain.
    pub fn pod_came(&self, client: IpAddr, pod: &Uid, namespace: &str, searches: Option<&[String]>) {
        let path = searches.and_then(|searches| SearchPath::of(namespace, searches));
        self.names.searches.set(client, pod, path);
    }

    pub fn pod_went(&self, client: IpAddr, pod: &Uid) {
        self.names.searches.forget(client, pod);
    }

    /// The content answered from now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.names.snapshot()
    }

    /// Waits for the end of a task that should have none: the server is broken then, and its owner must not go on without it.
    pub async fn broken(&self) {
        let ended = self.tasks.lock().await.join_next().await;
        tracing::error!(?ended, "a DNS task ended");
    }

    /// What it counts, in Prometheus' text form.
    pub fn metrics(&self) -> String {
        let (forwarder, mut out) = (&self.names.forwarder, self.names.counters.text());
        let mut one = |kind: &str, name: &str, value: u64| {
            out += &format!("# TYPE amphipod_dns_{name} {kind}\namphipod_dns_{name} {value}\n");
        };
        one("counter", "refused_total", self.clients.refused());
        one("counter", "autopath_answers_total", self.names.walked.load(Ordering::Relaxed));
        one("counter", "cache_hits_total", forwarder.hits.load(Ordering::Relaxed));
        one("counter", "cache_misses_total", forwarder.misses.load(Ordering::Relaxed));
        one("gauge", "cache_limit", CAPACITY);
        one("gauge", "forward_loops", self.names.loops.count() as u64);
        for (name, pick) in
            [("requests", (|route| &route.asked) as fn(&Route) -> &AtomicU64), ("failures", |route| &route.failed)]
        {
            out += &format!("# TYPE amphipod_dns_forward_{name}_total counter\n");
            for route in forwarder.routes() {
                let count = pick(route).load(Ordering::Relaxed);
                out += &format!("amphipod_dns_forward_{name}_total{{zone=\"{}\"}} {count}\n", route.zone);
            }
        }
        out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Sockets that outlive the process are others' too, and would be closed for them as well.
        if !self.is_kept {
            self.stopping.store(true, Ordering::Release);
            self.datagrams.iter().for_each(|socket| udp::stop(socket));
        }
    }
}

/// One socket's thread, which sleeps in the kernel while nobody asks.
struct Thread {
    shard: usize,
    names: Arc<Names>,
    clients: Arc<Clients>,
    content: watch::Receiver<bool>,
    stopping: Arc<AtomicBool>,
    socket: Arc<UdpSocket>,
    runtime: Handle,
}

impl Thread {
    /// What is returned ends with it.
    fn start(mut self) -> io::Result<oneshot::Receiver<()>> {
        let (running, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("dns".into()).spawn(move || {
            // Without its sender the server is gone.
            if self.runtime.block_on(self.content.wait_for(|there| *there)).is_err() {
                return;
            }
            if let Err(error) = self.run() {
                tracing::error!(%error, "receiving questions failed");
            }
            drop(running);
        })?;
        Ok(ended)
    }

    fn run(&self) -> io::Result<()> {
        let (mut batch, mut said) = (Batch::new(), Vec::new());
        loop {
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            let since = Instant::now();
            let snapshot = self.names.snapshot();
            said.clear();
            for index in 0..count {
                let client = batch.client(index).filter(|client| self.clients.admits(client.ip()));
                let Some(client) = client else { continue };
                match self.quickly(&snapshot, &mut batch, (index, client)) {
                    Some(answered) => said.push(answered),
                    None => self.slowly(&mut batch, (index, client), since),
                }
            }
            self.names.counters.count_batch(self.shard, &said, since.elapsed());
            batch.send(&self.socket);
        }
    }

    /// A log of all questions is kept by the general code alone, and so is the search beyond a name that is not there.
    fn quickly(&self, snapshot: &Snapshot, batch: &mut Batch, (index, client): (usize, SocketAddr)) -> Option<Said> {
        let names = &self.names;
        match names.log {
            QueryLog::Off => batch.answer(index, |asked, answer| {
                let said = names.quick.answer(snapshot, asked, answer)?;
                let ends = said.code != NO_NAME || names.searches.of(client.ip()).is_none();
                ends.then_some(said)
            }),
            QueryLog::On => None,
        }
    }

    /// With the general code: at once if it can, else as a task.
    fn slowly(&self, batch: &mut Batch, (index, client): (usize, SocketAddr), since: Instant) {
        let bytes = batch.question(index).to_vec();
        let Some(malformed) = message::malformed(&bytes) else { return };
        let request = match Request::from_bytes(bytes, client, Protocol::Udp) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%client, %error, "unreadable question");
                return give(batch, index, malformed);
            }
        };
        if let Some(answer) = self.names.answer_now(&request) {
            let mut answer = self.names.finish(self.shard, &request, answer, since);
            return answer.fit(&request).into_iter().for_each(|bytes| give(batch, index, bytes));
        }
        let (names, reply) = (Arc::clone(&self.names), Datagram { socket: Arc::clone(&self.socket), client });
        self.runtime.spawn(async move { names.handle_request::<_, TokioTime>(&request, reply).await });
    }
}

fn give(batch: &mut Batch, index: usize, bytes: Vec<u8>) {
    batch.answer(index, |_, answer| {
        *answer = bytes;
        Some(())
    });
}

/// Sends an answer by itself.
#[derive(Clone)]
struct Datagram {
    socket: Arc<UdpSocket>,
    client: SocketAddr,
}

#[async_trait::async_trait]
impl ResponseHandler for Datagram {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(PAYLOAD);
        let info = response.destructive_emit(&mut encoder)?;
        udp::send_now(&self.socket, &bytes, self.client)?;
        Ok(info)
    }
}

#[cfg(test)]
mod tests;
