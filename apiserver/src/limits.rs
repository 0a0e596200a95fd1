//! How busy clients may keep the server: bodies on their way, requests in flight and streams, by level and by identity,
//! and connections.
//!
//! Each level has seats of its own, so nodes' heartbeats and leader election are answered however many others ask. Within
//! a level no identity takes all seats. Who finds no seat waits a moment and is then told to come back later, in
//! upstream's words. Callers in this process take no seats: they are few, and ours.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authz::Attributes;
use crate::identity::User;

mod bodies;

use bodies::{Bodies, Most};

pub use bodies::Arriving;

/// How long a request waits for a seat; upstream's queues keep one for a quarter of its time-out.
const WAIT: Duration = Duration::from_secs(15);
/// Seconds after which who was refused may try again.
pub const RETRY_SECONDS: u32 = 1;

/// Who shares seats with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What a node must get through to count as ready: its lease and its status.
    Heartbeats,
    /// Leases of kube-system, by its own components.
    LeaderElection,
    /// What else nodes ask.
    Nodes,
    /// Administrators, who have to get in when others do too much.
    Masters,
    Everyone,
}

/// What a request holds its seat for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Request,
    /// A watch, a followed log, a session in a container: open for long, and mostly idle.
    Stream,
}

/// Seats of a level: for requests, for requests of one identity (those that wait included), for streams, for streams of
/// one identity; and MiB of bodies, of all and of one identity. One identity sends as many bodies at a time as it may wait
/// with.
struct Row {
    level: Level,
    name: &'static str,
    requests: (usize, usize),
    streams: (usize, usize),
    bodies: (usize, usize),
}

const fn row(
    level: Level,
    name: &'static str,
    requests: (usize, usize),
    streams: (usize, usize),
    bodies: (usize, usize),
) -> Row {
    Row { level, name, requests, streams, bodies }
}

/// In the order of [`Level`].
const ROWS: [Row; 5] = [
    // They cost little, and mostly wait for the disk beside what others write.
    row(Level::Heartbeats, "node-high", (256, 8), (0, 0), (32, 6)),
    row(Level::LeaderElection, "leader-election", (16, 8), (64, 16), (12, 6)),
    // A node watches itself, its pods, three whole kinds, and each object that its pods refer to.
    row(Level::Nodes, "system", (100, 50), (100_000, 500), (64, 12)),
    row(Level::Masters, "masters", (200, 400), (5_000, 5_000), (128, 64)),
    row(Level::Everyone, "global-default", (200, 100), (5_000, 1_000), (128, 32)),
];

impl Level {
    fn row(self) -> &'static Row {
        let found = ROWS.iter().find(|row| row.level == self);
        found.expect("every level has a row: a test looks at each")
    }

    pub fn of(user: &User, asked: &Attributes) -> Self {
        let lease = asked.group == "coordination.k8s.io" && asked.resource == "leases";
        let single = matches!(&*asked.verb, "get" | "create" | "update" | "patch");
        let status = asked.group.is_empty() && asked.resource == "nodes" && asked.subresource == "status";
        if user.as_node().is_some() {
            let heartbeat = single && (status || (lease && asked.namespace == "kube-node-lease"));
            return if heartbeat { Self::Heartbeats } else { Self::Nodes };
        }
        if lease && asked.namespace == "kube-system" && leads(user) {
            return Self::LeaderElection;
        }
        if user.is_master() { Self::Masters } else { Self::Everyone }
    }
}

/// Components that elect a leader, as upstream's flow schema names them.
fn leads(user: &User) -> bool {
    matches!(&*user.name, "system:kube-controller-manager" | "system:kube-scheduler")
        || user.in_group("system:serviceaccounts:kube-system")
}

/// Everyone's shares.
pub struct Limits {
    pools: Vec<(Level, Form, Arc<Pool>)>,
    bodies: Vec<(Level, Arc<Bodies>)>,
    /// Large bodies that are read into objects at a time: reading one keeps a processor busy for long.
    large: Arc<Semaphore>,
    pub connections: Arc<Connections>,
}

/// Bodies above this wait for their turn.
const LARGE: usize = 256 << 10;

impl Default for Limits {
    fn default() -> Self {
        let pools = ROWS.iter().flat_map(|row| {
            let pool = |form, (seats, each)| (row.level, form, Arc::new(Pool::new(seats, each)));
            [pool(Form::Request, row.requests), pool(Form::Stream, row.streams)]
        });
        let bodies = ROWS.iter().map(|row| {
            let (all, each) = row.bodies;
            let most = Most { bytes: (all << 20, each << 20), bodies: row.requests.1 };
            (row.level, Arc::new(Bodies::new(most)))
        });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let large = Arc::new(Semaphore::new(processors.div_ceil(2)));
        Self { pools: pools.collect(), bodies: bodies.collect(), large, connections: Arc::default() }
    }
}

impl Limits {
    /// A seat, or `None` when the client has to come back later.
    pub async fn enter(&self, level: Level, form: Form, user: &User) -> Option<Seat> {
        let (.., pool) = self.pools.iter().find(|(l, f, _)| (*l, *f) == (level, form))?;
        pool.enter(&user.name).await
    }

    /// A place for a body, or `None` when the client has to come back later.
    pub fn receive(&self, level: Level, user: &User) -> Option<Arriving> {
        let (_, bodies) = self.bodies.iter().find(|(l, _)| *l == level)?;
        bodies.open(&user.name)
    }

    /// A turn to read a body of this size.
    pub async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= LARGE {
            return None;
        }
        // Never closed.
        self.large.clone().acquire_owned().await.ok()
    }

    /// In Prometheus' text form, under upstream's names where it has them.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, value: &dyn Fn(&Pool) -> u64| {
            out += &format!("# TYPE {name} {kind}\n");
            for (level, form, pool) in &self.pools {
                let execution = if *form == Form::Stream { "stream" } else { "request" };
                let level = level.row().name;
                out += &format!("{name}{{priority_level=\"{level}\",execution=\"{execution}\"}} {}\n", value(pool));
            }
        };
        family("apiserver_flowcontrol_nominal_limit_seats", "gauge", &|pool| pool.seats as u64);
        family("apiserver_flowcontrol_current_executing_seats", "gauge", &|pool| {
            (pool.seats - pool.free.available_permits()) as u64
        });
        family("apiserver_flowcontrol_current_inqueue_requests", "gauge", &|pool| {
            pool.waiting.load(Ordering::Relaxed) as u64
        });
        family("apiserver_flowcontrol_rejected_requests_total", "counter", &|pool| {
            pool.rejected.load(Ordering::Relaxed)
        });
        out += "# TYPE amphipod_apiserver_request_body_bytes gauge\n";
        for (level, bodies) in &self.bodies {
            let (level, bytes) = (level.row().name, bodies.bytes());
            out += &format!("amphipod_apiserver_request_body_bytes{{priority_level=\"{level}\"}} {bytes}\n");
        }
        out + &self.connections.metrics()
    }
}

struct Pool {
    seats: usize,
    free: Arc<Semaphore>,
    held: Arc<Shares<String>>,
    waiting: AtomicUsize,
    rejected: AtomicU64,
}

/// Of requests that wait in one level, whoever sent them: so many clients may ask at once and all be served. What waits costs less
/// than the connection it came by.
const QUEUE: usize = 5_000;

impl Pool {
    fn new(seats: usize, each: usize) -> Self {
        Self {
            seats,
            free: Arc::new(Semaphore::new(seats)),
            held: Arc::new(Shares::new(each)),
            waiting: AtomicUsize::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    async fn enter(&self, identity: &str) -> Option<Seat> {
        let seat = self.try_enter(identity).await;
        if seat.is_none() {
            // The first refusals of a flood are worth a line, and then every thousandth.
            let before = self.rejected.fetch_add(1, Ordering::Relaxed);
            if before.is_multiple_of(1000) {
                tracing::warn!(identity, before, "too many requests: refused, to be tried again later");
            }
        }
        seat
    }

    async fn try_enter(&self, identity: &str) -> Option<Seat> {
        let share = self.held.take(identity.to_owned())?;
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Some(Seat { _share: share, _permit: permit });
        }
        let _place = Waiting::new(&self.waiting)?;
        let permit = tokio::time::timeout(WAIT, self.free.clone().acquire_owned()).await.ok()?.ok()?;
        Some(Seat { _share: share, _permit: permit })
    }
}

/// A place in the queue, given back however the waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < QUEUE).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Held for as long as a request or stream lasts.
pub struct Seat {
    _share: Share<String>,
    _permit: OwnedSemaphorePermit,
}

/// Counts what each holder has; nobody has more than `each`.
#[derive(Debug)]
struct Shares<K> {
    each: usize,
    held: Mutex<HashMap<K, usize>>,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    fn new(each: usize) -> Self {
        Self { each, held: Mutex::default() }
    }

    fn take(self: &Arc<Self>, holder: K) -> Option<Share<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(holder.clone()).or_insert(0);
        if *count >= self.each {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Share { of: self.clone(), holder })
    }

    fn total(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// One of what a holder has.
struct Share<K: Clone + Eq + Hash> {
    of: Arc<Shares<K>>,
    holder: K,
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

/// Connections of one address that nobody has authenticated on yet. Many clients may share an address behind a
/// gateway, so the limit ends for a connection with its first proof of who is there.
const UNPROVEN: usize = 256;
/// The same of all addresses together.
const ALL_UNPROVEN: usize = 4_096;
/// Connections of one identity.
const PROVEN: usize = 2_000;

/// Open connections.
#[derive(Debug)]
pub struct Connections {
    unproven: Arc<Shares<IpAddr>>,
    all_unproven: Arc<Semaphore>,
    proven: Arc<Shares<String>>,
    refused: AtomicU64,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            unproven: Arc::new(Shares::new(UNPROVEN)),
            all_unproven: Arc::new(Semaphore::new(ALL_UNPROVEN)),
            proven: Arc::new(Shares::new(PROVEN)),
            refused: AtomicU64::new(0),
        }
    }
}

/// Whom a connection counts for; `None` once it may not stay.
enum Holder {
    Address { _share: Share<IpAddr>, _place: OwnedSemaphorePermit },
    Identity { _share: Share<String> },
}

/// One open connection.
pub struct Connection {
    of: Arc<Connections>,
    holder: Mutex<Option<Holder>>,
}

impl Connections {
    /// `None` when there are too many that nobody authenticated on, of this address or of all.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Option<Connection> {
        let place = || self.all_unproven.clone().try_acquire_owned().ok();
        let holder = self.unproven.take(network(peer)).zip(place());
        let Some((share, place)) = holder else {
            self.refuse(&peer.to_string());
            return None;
        };
        let holder = Some(Holder::Address { _share: share, _place: place });
        Some(Connection { of: self.clone(), holder: Mutex::new(holder) })
    }

    fn refuse(&self, who: &str) {
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(1000) {
            tracing::warn!(who, before, "too many connections: refused");
        }
    }

    fn metrics(&self) -> String {
        let mut out = String::from("# TYPE amphipod_apiserver_connections gauge\n");
        for (state, count) in [("unauthenticated", self.unproven.total()), ("authenticated", self.proven.total())] {
            out += &format!("amphipod_apiserver_connections{{state=\"{state}\"}} {count}\n");
        }
        let refused = self.refused.load(Ordering::Relaxed);
        out += &format!(
            "# TYPE amphipod_apiserver_connections_refused_total counter\namphipod_apiserver_connections_refused_total {refused}\n"
        );
        out
    }
}

impl Connection {
    /// Somebody proved who they are: the connection counts for them from now on. `false`: they have too many.
    #[must_use]
    pub fn proven(&self, identity: &str) -> bool {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*holder, Some(Holder::Address { .. })) {
            return holder.is_some();
        }
        *holder = self.of.proven.take(identity.to_owned()).map(|share| Holder::Identity { _share: share });
        if holder.is_none() {
            self.of.refuse(identity);
        }
        holder.is_some()
    }
}

impl Connection {
    /// Whether somebody proved who they are.
    pub fn is_proven(&self) -> bool {
        let holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*holder, Some(Holder::Identity { .. }))
    }
}

/// Whoever has one address of an IPv6 /64 has all of them.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: &str, resource: &str, subresource: &str, namespace: &str) -> Attributes {
        let group = if resource == "leases" { "coordination.k8s.io" } else { "" };
        let text = str::to_owned;
        Attributes {
            verb: text(verb),
            group: text(group),
            resource: text(resource),
            subresource: text(subresource),
            namespace: text(namespace),
            ..Attributes::default()
        }
    }

    #[test]
    fn heartbeats_and_leader_election_have_levels_of_their_own() {
        let (node, robot) = (User::node("a"), User::service_account("kube-system", "leader"));
        let lease = |namespace| asked("update", "leases", "", namespace);
        for (user, asked, level) in [
            (&node, lease("kube-node-lease"), Level::Heartbeats),
            (&node, asked("patch", "nodes", "status", ""), Level::Heartbeats),
            (&node, asked("list", "pods", "", ""), Level::Nodes),
            (&robot, lease("kube-system"), Level::LeaderElection),
            (&robot, asked("list", "leases", "", "default"), Level::Everyone),
            (&User::service_account("x", "y"), lease("kube-system"), Level::Everyone),
            (&User::new("admin", &[crate::identity::MASTERS]), lease("kube-system"), Level::Masters),
            (&User::anonymous(), lease("kube-node-lease"), Level::Everyone),
        ] {
            assert_eq!(Level::of(user, &asked), level, "{} {asked:?}", user.name);
            assert_eq!(level.row().level, level);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_identity_does_not_take_all_seats() {
        let pool = Pool::new(4, 2);
        let first = (pool.enter("a").await, pool.enter("a").await);
        assert!(first.0.is_some() && first.1.is_some() && pool.enter("a").await.is_none());
        let other = pool.enter("b").await;
        assert!(other.is_some());
        drop(first);
        assert!(pool.enter("a").await.is_some());
        assert_eq!(pool.rejected.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_seat_waits_and_is_then_refused() {
        let pool = Pool::new(1, 9);
        let only = pool.enter("a").await;
        assert!(pool.enter("b").await.is_none(), "after a while");
        let ((), entered) = tokio::join!(async { drop(only) }, pool.enter("b"));
        assert!(entered.is_some());
        assert_eq!((pool.waiting.load(Ordering::Relaxed), pool.held.total()), (0, 1), "the seat that is still held");
    }

    #[test]
    fn an_address_is_limited_until_somebody_authenticates() {
        let connections = Arc::new(Connections { unproven: Arc::new(Shares::new(1)), ..Connections::default() });
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.open(peer("2001:db8::1")).unwrap();
        assert!(connections.open(peer("2001:db8::2")).is_none(), "the same network");
        assert!(first.proven("robot") && first.proven("robot"));
        assert!(connections.open(peer("2001:db8::2")).is_some());
        assert!(connections.open(peer("10.0.0.1")).is_some());
        drop(first);
        assert_eq!(connections.proven.total(), 0);
    }

    #[test]
    fn all_addresses_together_are_limited_too() {
        let few = Arc::new(Semaphore::new(1));
        let connections = Arc::new(Connections { all_unproven: few, ..Connections::default() });
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.open(peer("10.0.0.1")).unwrap();
        assert!(connections.open(peer("10.0.0.2")).is_none());
        assert!(!first.is_proven() && first.proven("robot") && first.is_proven());
        assert!(connections.open(peer("10.0.0.2")).is_some());
    }

    #[test]
    fn metrics_name_every_level() {
        let text = Limits::default().metrics();
        for row in &ROWS {
            assert!(
                text.contains(&format!("priority_level=\"{}\",execution=\"request\"}} {}\n", row.name, row.requests.0))
            );
        }
    }
}
