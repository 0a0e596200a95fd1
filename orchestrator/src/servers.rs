//! Which servers of a cluster live: each renews a Lease of its own, and sees which of the others' still change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::status::Status;
use client::{Client, DeleteOptions, Selector, heartbeat};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::controllers::views::LEASES;

const NAMESPACE: &str = "kube-system";
/// As kube-apiserver labels its own.
const LABEL: &str = "apiserver.kubernetes.io/identity";
/// By which a server is found again by those who read its lease.
const ADDRESS: &str = "amphipod.io/address";
/// A server whose lease did not change for so long is gone.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);

/// The addresses of the servers that live, this one among them.
pub type Servers = watch::Receiver<BTreeSet<SocketAddr>>;

/// A server by itself.
pub fn alone(address: SocketAddr) -> Servers {
    watch::channel(BTreeSet::from([address])).1
}

/// One of several, and the task that keeps the answer right. Told to end, it takes this server's lease away.
pub fn several(
    client: Client,
    address: SocketAddr,
    stop: CancellationToken,
) -> (Servers, impl Future<Output = ()> + Send) {
    let (told, servers) = watch::channel(BTreeSet::from([address]));
    let keep = async move {
        let mut seen = Seen::default();
        loop {
            match turn(&client, address, &mut seen).await {
                Ok(living) => {
                    told.send_if_modified(|known| {
                        let changed = *known != living;
                        *known = living;
                        changed
                    });
                }
                Err(error) => tracing::warn!(%error, "this server's lease is not renewed"),
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = stop.cancelled() => break,
            }
        }
        if let Err(error) = client.delete(&LEASES, NAMESPACE, &name(address), &DeleteOptions::default()).await {
            tracing::warn!(%error, "this server's lease is not taken away: it has to run out");
        }
    };
    (servers, keep)
}

/// Of the lease of the server at an address.
fn name(address: SocketAddr) -> String {
    format!("apiserver-{}", address.to_string().replace([':', '[', ']'], "-").trim_matches('-'))
}

/// The version of each lease, and when it came to be seen.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, (String, Instant)>);

impl Seen {
    /// The addresses whose leases changed lately. Ages count from here: clocks differ.
    fn living(&mut self, leases: &[Value], now: Instant) -> BTreeSet<SocketAddr> {
        let mut living = BTreeSet::new();
        let mut known = BTreeMap::new();
        for lease in leases {
            let text = |field: &str| lease["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (name, version) = (text("name"), text("resourceVersion"));
            let since = match self.0.get(&name) {
                Some((before, since)) if *before == version => *since,
                _ => now,
            };
            let address = lease["metadata"]["annotations"][ADDRESS].as_str().and_then(|text| text.parse().ok());
            if let Some(address) = address.filter(|_| now.duration_since(since) < LEASE) {
                living.insert(address);
            }
            known.insert(name, (version, since));
        }
        self.0 = known;
        living
    }
}

async fn turn(client: &Client, address: SocketAddr, seen: &mut Seen) -> Result<BTreeSet<SocketAddr>, Status> {
    renew(client, address).await?;
    let selector = Selector { labels: format!("{LABEL}=amphipod"), ..Selector::default() };
    let found = client.list(&LEASES, NAMESPACE, &selector).await?;
    let leases: Vec<Value> = found.items.iter().map(client::Item::value).collect();
    let mut living = seen.living(&leases, Instant::now());
    living.insert(address);
    Ok(living)
}

async fn renew(client: &Client, address: SocketAddr) -> Result<(), Status> {
    let now = api::time::micro(Timestamp::now());
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name(address),
            "namespace": NAMESPACE,
            "labels": {LABEL: "amphipod"},
            "annotations": {ADDRESS: address.to_string()},
        },
        "spec": {"holderIdentity": address.to_string(), "leaseDurationSeconds": LEASE.as_secs(), "renewTime": now},
    });
    heartbeat::renew(client, lease).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, version: &str, address: &str) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": version, "annotations": {ADDRESS: address}}})
    }

    #[test]
    fn a_server_lives_as_long_as_its_lease_changes() {
        let (start, mut seen) = (Instant::now(), Seen::default());
        let (a, b) = ("10.0.0.1:6443", "10.0.0.2:6443");
        let both = BTreeSet::from([a.parse().unwrap(), b.parse().unwrap()]);
        assert_eq!(seen.living(&[lease("a", "1", a), lease("b", "1", b)], start), both);
        assert_eq!(seen.living(&[lease("a", "2", a), lease("b", "1", b)], start + LEASE / 2), both);
        let later = seen.living(&[lease("a", "3", a), lease("b", "1", b)], start + LEASE);
        assert_eq!(later, BTreeSet::from([a.parse().unwrap()]));
        assert_eq!(seen.living(&[lease("a", "4", a), lease("b", "2", b)], start + LEASE * 2), both, "it is back");
    }
}
