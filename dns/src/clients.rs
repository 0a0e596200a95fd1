//! Who may ask, and how much of what is shared one of them may hold.
//!
//! The server listens on the node's address, where the whole network reaches it. It is there for the node and its pods;
//! answering anybody else would make it an amplifier, and lend strangers the node's own name servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnetwork::IpNetwork;

/// The prefixes whose addresses are answered; anybody else is counted, and hears nothing.
#[derive(Debug)]
pub(crate) struct Clients {
    prefixes: Vec<IpNetwork>,
    refused: AtomicU64,
}

impl Clients {
    pub fn new(prefixes: Vec<IpNetwork>) -> Self {
        Self { prefixes, refused: AtomicU64::new(0) }
    }

    /// Whether this client is answered.
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let known = self.prefixes.iter().any(|prefix| prefix.contains(client));
        if !known {
            let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
            // Seen by somebody, and no flood of the log either: a line at each power of two.
            if count.is_power_of_two() {
                tracing::warn!(%client, count, "a question from outside the node was dropped");
            }
        }
        known
    }

    /// Questions and connections dropped so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Places of which there are few, and of which each client gets a part at most.
#[derive(Debug)]
pub(crate) struct Quota {
    total: usize,
    each: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    quota: &'a Quota,
    client: IpAddr,
}

impl Quota {
    pub fn new(total: usize, each: usize) -> Self {
        Self { total, each, held: Mutex::default() }
    }

    /// A place for this client, unless it or all together hold as many as there may be.
    pub fn take(&self, client: IpAddr) -> Option<Place<'_>> {
        let mut held = self.lock();
        let (own, all) = (held.get(&client).copied().unwrap_or(0), held.values().sum::<usize>());
        (own < self.each && all < self.total).then(|| {
            *held.entry(client).or_default() += 1;
            Place { quota: self, client }
        })
    }

    /// The table stays usable after a panic: no change to it is ever half done.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.quota.lock();
        if let Some(count) = held.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_and_its_pods_are_answered_and_nobody_else() {
        let prefixes = ["10.244.3.0/24", "192.0.2.7/32", "127.0.0.0/8"].map(|text| text.parse().unwrap());
        let clients = Clients::new(prefixes.into());
        for known in ["10.244.3.9", "192.0.2.7", "127.0.0.1", "::ffff:10.244.3.9"] {
            assert!(clients.admits(known.parse().unwrap()), "{known}");
        }
        for stranger in ["10.244.4.1", "192.0.2.8", "2001:db8::1"] {
            assert!(!clients.admits(stranger.parse().unwrap()), "{stranger}");
        }
        assert_eq!(clients.refused(), 3);
    }

    #[test]
    fn nobody_takes_the_places_of_others() {
        let quota = Quota::new(3, 2);
        let [greedy, modest, late] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap());
        let held = [quota.take(greedy).unwrap(), quota.take(greedy).unwrap()];
        assert!(quota.take(greedy).is_none());
        let _other = quota.take(modest).unwrap();
        assert!(quota.take(late).is_none(), "all are taken");
        drop(held);
        assert!(quota.take(late).is_some() && quota.lock().len() == 1);
    }
}
