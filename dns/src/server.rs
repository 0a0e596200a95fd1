//! Sockets, and from a question to its answer.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use ipnetwork::IpNetwork;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clients::{Clients, Quota};
use crate::forward::{Forwarder, Transport};
use crate::quick::{PAYLOAD, Quick};
use crate::snapshot::Snapshot;
use crate::udp::{self, Batch};
use crate::zone::{Outcome, Zone};

const PLAIN_PAYLOAD: u16 = 512;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// TCP connections at once, and those of one client.
const CONNECTIONS: (usize, usize) = (256, 32);
/// Threads for datagrams, where there are as many CPUs: one answers more than a node's pods ask.
const THREADS: usize = 4;

#[derive(Debug, Clone)]
pub struct Config {
    /// UDP and TCP; port 0 lets the kernel choose one for both.
    pub listen: SocketAddr,
    /// Such as `cluster.local`.
    pub domain: String,
    /// Where pods have their addresses: these are answered for by names such as `10-244-0-5.default.pod.cluster.local`.
    pub pods: Vec<IpNetwork>,
    /// Where other names are asked for.
    pub upstreams: Vec<SocketAddr>,
    /// Who is answered: the addresses of the node and of its pods.
    pub clients: Vec<IpNetwork>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{0:?} is no domain name")]
    Domain(String),
    #[error("DNS cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    datagrams: Vec<Arc<UdpSocket>>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    zone: Zone,
    quick: Quick,
    stopping: AtomicBool,
    snapshot: RwLock<Arc<Snapshot>>,
    forwarder: Forwarder,
    clients: Clients,
    connections: Quota,
}

impl Server {
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let domain = Name::from_ascii(format!("{}.", config.domain.trim_end_matches('.')));
        let domain = domain.map_err(|_| ServerError::Domain(config.domain.clone()))?;
        let failed = |source| ServerError::Listen { address: config.listen, source };
        let (datagrams, tcp) = listen(config.listen).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            quick: Quick::new(&domain),
            zone: Zone::new(domain, config.pods),
            stopping: AtomicBool::new(false),
            snapshot: RwLock::default(),
            forwarder: Forwarder::new(config.upstreams),
            clients: Clients::new(config.clients),
            connections: Quota::new(CONNECTIONS.0, CONNECTIONS.1),
        });
        let mut tasks = JoinSet::new();
        for socket in &datagrams {
            let ended = start_thread(&shared, socket).map_err(failed)?;
            // An end by itself is an error of the sender, which a thread holds as long as it runs.
            tasks.spawn(async move { drop(ended.await) });
        }
        tasks.spawn(serve_tcp(Arc::clone(&shared), tcp));
        Ok(Self { shared, address, datagrams, tasks: Mutex::new(tasks) })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from this content from now on.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.shared.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// The content answered from now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot()
    }

    /// Waits for the end of a task that should have none: the server is broken then, and its owner must not go on without it.
    pub async fn broken(&self) {
        let ended = self.tasks.lock().await.join_next().await;
        tracing::error!(?ended, "a DNS task ended");
    }

    /// Questions and connections of strangers, dropped without a word.
    pub fn refused(&self) -> u64 {
        self.shared.clients.refused()
    }

    /// Answers of other servers kept now.
    pub fn cached_answers(&self) -> usize {
        self.shared.forwarder.cached_len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.datagrams.iter().for_each(|socket| udp::stop(socket));
    }
}

/// Both protocols on one port. With port 0 the kernel's choice for UDP may be taken for TCP: then another is tried.
async fn listen(address: SocketAddr) -> io::Result<(Vec<Arc<UdpSocket>>, TcpListener)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let mut attempts = if address.port() == 0 { 16 } else { 1 };
    loop {
        let datagrams = udp::listen(address, threads)?;
        attempts -= 1;
        match TcpListener::bind(datagrams[0].local_addr()?).await {
            Ok(tcp) => return Ok((datagrams.into_iter().map(Arc::new).collect(), tcp)),
            Err(error) if attempts == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// Serves a socket on a thread of its own, which sleeps in the kernel while nobody asks. What is returned ends with it.
fn start_thread(shared: &Arc<Shared>, socket: &Arc<UdpSocket>) -> io::Result<oneshot::Receiver<()>> {
    let (running, ended) = oneshot::channel::<()>();
    let (shared, socket, runtime) = (Arc::clone(shared), Arc::clone(socket), Handle::current());
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        if let Err(error) = serve_udp(&shared, &socket, &runtime) {
            tracing::error!(%error, "receiving questions failed");
        }
        drop(running);
    })?;
    Ok(ended)
}

fn serve_udp(shared: &Arc<Shared>, socket: &Arc<UdpSocket>, runtime: &Handle) -> io::Result<()> {
    let mut batch = Batch::new();
    loop {
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if shared.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        let snapshot = shared.snapshot();
        for index in 0..count {
            let client = batch.client(index).filter(|client| shared.clients.admits(client.ip()));
            let Some(client) = client else { continue };
            let quick =
                |question: &[u8], answer: &mut Vec<u8>| shared.quick.answer(&snapshot, question, PAYLOAD, answer);
            if !batch.answer(index, quick) {
                answer_slowly(shared, socket, runtime, &mut batch, (index, client));
            }
        }
        batch.send(socket);
    }
}

/// With the general code: at once if it can, else as a task.
fn answer_slowly(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    runtime: &Handle,
    batch: &mut Batch,
    (index, client): (usize, SocketAddr),
) {
    let Some(asked) = question(batch.question(index)) else { return };
    if let Some(answer) = shared.answer_now(&asked) {
        let Some(bytes) = encode(answer, datagram_limit(&asked)) else { return };
        batch.answer(index, |_, buffer| {
            *buffer = bytes;
            true
        });
        return;
    }
    let (shared, socket) = (Arc::clone(shared), Arc::clone(socket));
    runtime.spawn(async move {
        let answer = shared.answer(&asked, client.ip(), Transport::Udp).await;
        let Some(bytes) = encode(answer, datagram_limit(&asked)) else { return };
        if let Err(error) = udp::send_now(&socket, &bytes, client) {
            tracing::debug!(%client, %error, "sending an answer failed");
        }
    });
}

/// The longest datagram that a client takes and every path lets through.
fn datagram_limit(asked: &Message) -> usize {
    asked.edns.as_ref().map_or(PLAIN_PAYLOAD, |edns| edns.max_payload().clamp(PLAIN_PAYLOAD, PAYLOAD)).into()
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok((stream, client)) => (stream, client.ip()),
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection failed");
                // Out of descriptors: they need a moment to come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !shared.clients.admits(client) {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Some(_place) = shared.connections.take(client) else {
                tracing::debug!(%client, "too many DNS connections: one was closed");
                return;
            };
            if let Err(error) = serve_stream(&shared, stream, client).await {
                tracing::debug!(%error, "DNS connection ended");
            }
        });
    }
}

async fn serve_stream(shared: &Shared, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let length = match length {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let mut buffer = vec![0; length.into()];
        timeout(IDLE, stream.read_exact(&mut buffer)).await??;
        let Some(asked) = question(&buffer) else { return Ok(()) };
        let answer = shared.answer(&asked, client, Transport::Tcp).await;
        let Some(bytes) = encode(answer, usize::from(u16::MAX)) else { return Ok(()) };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat())).await??;
    }
}

/// A readable question. What is not even a message, or is an answer, gets none.
fn question(bytes: &[u8]) -> Option<Message> {
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Some(message),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "unreadable question");
            None
        }
    }
}

/// A message, who sent it and how.
type Asked<'a> = (&'a Message, IpAddr, Transport);

impl Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer when it takes no other server.
    fn answer_now(&self, asked: &Message) -> Option<Message> {
        let query = match only_query(asked) {
            Ok(query) => query,
            Err(code) => return Some(reply(asked, code)),
        };
        match self.zone.lookup(&self.snapshot(), query.name(), query.query_type()) {
            Outcome::Alias(record, _) if query.query_type() == RecordType::CNAME => {
                let mut answer = authoritative(asked, ResponseCode::NoError);
                answer.answers.push(*record);
                Some(answer)
            }
            Outcome::Alias(..) => None,
            Outcome::Elsewhere => self.forwarder.cached(query, asked).map(|kept| adopt(asked, kept)),
            outcome => Some(own(asked, outcome)),
        }
    }

    async fn answer(&self, asked: &Message, client: IpAddr, transport: Transport) -> Message {
        if let Some(answer) = self.answer_now(asked) {
            return answer;
        }
        let query = match only_query(asked) {
            Ok(query) => query,
            Err(code) => return reply(asked, code),
        };
        match self.zone.lookup(&self.snapshot(), query.name(), query.query_type()) {
            Outcome::Alias(record, target) => {
                let mut answer = authoritative(asked, ResponseCode::NoError);
                answer.answers.push(*record);
                self.follow((asked, client, transport), query, target, &mut answer).await;
                answer
            }
            _ => self.forward((asked, client, transport), query).await,
        }
    }

    /// Adds what an alias leads to: stub resolvers do not ask again.
    async fn follow(&self, asked: Asked<'_>, query: &Query, target: Name, answer: &mut Message) {
        let mut onward = Query::query(target, query.query_type());
        onward.set_query_class(query.query_class());
        match self.zone.lookup(&self.snapshot(), onward.name(), onward.query_type()) {
            Outcome::Found(found) => answer.answers.extend(found.answers),
            Outcome::Elsewhere => {
                let found = self.forward(asked, &onward).await;
                answer.metadata.response_code = found.metadata.response_code;
                answer.metadata.authoritative = false;
                answer.answers.extend(found.answers);
            }
            // An alias of an alias may be a circle, and nothing behind it changes what was found so far.
            Outcome::Alias(record, _) => answer.answers.push(*record),
            Outcome::NoData(_) | Outcome::NoName(_) => {}
        }
    }

    async fn forward(&self, (asked, client, transport): Asked<'_>, query: &Query) -> Message {
        match self.forwarder.ask(query, asked, client, transport).await {
            Ok(answer) => adopt(asked, answer),
            Err(error) => {
                tracing::debug!(%error, name = %query.name(), "question not answered");
                reply(asked, ResponseCode::ServFail)
            }
        }
    }
}

/// The one question of a message, or the code to refuse it with.
fn only_query(asked: &Message) -> Result<&Query, ResponseCode> {
    if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    match (asked.metadata.op_code, asked.queries.as_slice()) {
        (OpCode::Query, [query]) if query.query_type() == RecordType::AXFR => Err(ResponseCode::Refused),
        (OpCode::Query, [query]) if query.query_class() == DNSClass::IN => Ok(query),
        (OpCode::Query, [_]) => Err(ResponseCode::Refused),
        (OpCode::Query, _) => Err(ResponseCode::FormErr),
        _ => Err(ResponseCode::NotImp),
    }
}

fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.checking_disabled = asked.metadata.checking_disabled;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.queries.clone_from(&asked.queries);
    answer.edns = asked.edns.as_ref().map(|_| {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_version(0).set_rcode_high((u16::from(code) >> 4) as u8);
        edns
    });
    answer
}

fn authoritative(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = reply(asked, code);
    answer.metadata.authoritative = true;
    answer
}

fn own(asked: &Message, outcome: Outcome) -> Message {
    match outcome {
        Outcome::Found(found) => {
            let mut answer = authoritative(asked, ResponseCode::NoError);
            answer.answers = found.answers;
            answer.additionals = found.additionals;
            rotate(&mut answer);
            answer
        }
        Outcome::NoData(soa) => {
            let mut answer = authoritative(asked, ResponseCode::NoError);
            answer.authorities.push(*soa);
            answer
        }
        Outcome::NoName(soa) => {
            let mut answer = authoritative(asked, ResponseCode::NXDomain);
            answer.authorities.push(*soa);
            answer
        }
        Outcome::Alias(..) | Outcome::Elsewhere => reply(asked, ResponseCode::ServFail),
    }
}

/// Clients take the first address: each gets another one first.
fn rotate(answer: &mut Message) {
    if answer.answers.len() > 1 {
        let by = usize::from(answer.metadata.id) % answer.answers.len();
        answer.answers.rotate_left(by);
    }
}

/// Another server's answer as ours.
fn adopt(asked: &Message, found: Message) -> Message {
    let mut answer = reply(asked, found.metadata.response_code);
    answer.metadata.truncation = found.metadata.truncation;
    answer.metadata.authentic_data = found.metadata.authentic_data;
    answer.answers = found.answers;
    answer.authorities = found.authorities;
    answer.additionals = found.additionals;
    answer
}

/// The message in at most `limit` bytes: what does not fit is left out and, where it is part of the answer, said to be.
fn encode(mut answer: Message, limit: usize) -> Option<Vec<u8>> {
    loop {
        match answer.to_vec() {
            Ok(bytes) if bytes.len() <= limit => return Some(bytes),
            Ok(_) if !answer.additionals.is_empty() => answer.additionals.clear(),
            Ok(_) if !answer.authorities.is_empty() && !answer.answers.is_empty() => answer.authorities.clear(),
            Ok(_) if !answer.answers.is_empty() => {
                answer.metadata.truncation = true;
                answer.answers.truncate(answer.answers.len() * 3 / 4);
            }
            Ok(bytes) => {
                tracing::warn!(length = bytes.len(), limit, "an answer cannot be made to fit");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "an answer cannot be encoded");
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
