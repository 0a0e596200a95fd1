//! Finds name servers that ask this server what it asks them: a question between the two would never end.
//!
//! Each server is asked once for a name that nobody else knows. When that name comes back as a question, the server leads here,
//! and is asked no more. CoreDNS ends then; here names of the cluster, and other servers, go on.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use hickory_resolver::net::{DnsError, NetError};
use tokio::task::JoinSet;

use crate::forward::{Flags, Forwarder, exchange, pool};

/// Until a silent server is asked again; doubled each time.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A name server, and the zone it is asked for.
type Place = (Name, SocketAddr);

#[derive(Debug, Default)]
pub(crate) struct Loops {
    /// Whom the names under way were sent to.
    probes: Mutex<HashMap<Name, Place>>,
    under_way: AtomicUsize,
    found: Mutex<Vec<Place>>,
}

impl Loops {
    /// Whether this is a name of ours that came back. A glance at a number while there is none under way.
    pub fn came_back(&self, name: &Name) -> bool {
        if self.under_way.load(Ordering::Acquire) == 0 {
            return false;
        }
        let place = self.probes.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let Some(place) = place else { return false };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.contains(&place) {
            found.push(place);
        }
        true
    }

    /// Servers that lead here.
    pub fn count(&self) -> usize {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Asks all servers, each in a task that ends when it has answered or is found out.
    pub fn start(self: &Arc<Self>, forwarder: &Arc<Forwarder>, tasks: &mut JoinSet<()>) {
        for route in forwarder.routes() {
            for server in route.addresses() {
                tasks.spawn(Arc::clone(self).probe(Arc::clone(forwarder), (route.zone.clone(), server)));
            }
        }
    }

    async fn probe(self: Arc<Self>, forwarder: Arc<Forwarder>, place: Place) {
        let (zone, server) = &place;
        let mut pause = PAUSE;
        while !self.answers(&place).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(&place) {
            tracing::error!(%server, %zone, "name server leads back here: it is asked no more");
            if let Err(error) = forwarder.give_up(zone, *server) {
                tracing::error!(%server, %error, "name server cannot be given up");
            }
        }
    }

    /// Whether this server said anything, be it here.
    async fn answers(&self, place: &Place) -> bool {
        let (zone, server) = place;
        let Ok(name) = secret().append_domain(zone) else { return true };
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), place.clone());
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let query = Query::query(name.clone(), RecordType::HINFO);
        let answer = match pool(&[*server]) {
            Ok(pool) => exchange(&pool, &query, Flags { dnssec: false, checking_disabled: false }).await,
            Err(error) => Err(error),
        };
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let said =
            matches!(answer, Ok(_) | Err(NetError::Dns(DnsError::NoRecordsFound(_) | DnsError::ResponseCode(_))));
        said || self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(place)
    }
}

/// Two labels that nobody can have asked for.
fn secret() -> Name {
    // A fresh `RandomState` is keyed by the system's randomness and a counter.
    let label = || format!("{:016x}", RandomState::new().hash_one(0u8));
    let (first, second) = (label(), label());
    Name::from_labels([first.as_bytes(), second.as_bytes()]).unwrap_or_default()
}
