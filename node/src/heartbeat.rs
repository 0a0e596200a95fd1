//! That this node lives: its lease, renewed by itself; and its status, written when there is something to say.

use std::time::Duration;

use api::status::Status;
use client::{Client, heartbeat};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use crate::outlook::Own;
use crate::registration;
use crate::status::{Facts, Readiness, Reports, Rhythm};

const NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i64 = 40;
/// How often the lease is renewed.
pub const RENEW: Duration = Duration::from_secs(10);

/// Renews the lease for ever.
pub async fn renew(name: String, client: Client, own: Own, every: Duration) {
    let mut next = tokio::time::interval(every);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    next.tick().await;
    loop {
        next.tick().await;
        if let Err(error) = renew_once(&name, &own, &client).await {
            tracing::warn!(%error, "lease not renewed");
        }
    }
}

/// Renews the lease; a new one belongs to its node, and goes with it.
///
/// # Errors
/// What the server says, or 503 when none answers. The lease runs out unless a later renewal gets through.
pub async fn renew_once(name: &str, own: &Own, client: &Client) -> Result<(), Status> {
    let now = api::time::micro(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let mut metadata = json!({"name": name, "namespace": NAMESPACE});
    let uid = own.borrow().as_ref().and_then(|node| node["metadata"]["uid"].as_str().map(str::to_owned));
    if let Some(uid) = uid {
        metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
    }
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
    heartbeat::renew(client, lease).await
}

/// Keeps the status as it is, for ever, after `said` was written: looks at the machine now and then, and at once when
/// somebody else wrote.
pub async fn keep<F>(name: String, client: Client, mut own: Own, rhythm: Rhythm, said: Facts, facts: F)
where
    F: Fn() -> anyhow::Result<Facts> + Send + Sync,
{
    let mut reports = Reports::new(rhythm);
    reports.wrote(said, Instant::now());
    loop {
        let look = Instant::now() + rhythm.look;
        let due = match facts() {
            Ok(facts) => say(&name, &client, &own, &mut reports, facts).await,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "this machine cannot be looked at");
                look
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(due.min(look)) => {}
            // Its sender ends with the node.
            Ok(()) = own.changed() => {}
        }
    }
}

/// Writes the status if it is time to; returns when to look again.
async fn say(name: &str, client: &Client, own: &Own, reports: &mut Reports, facts: Facts) -> Instant {
    let now = Instant::now();
    let stored = own.borrow().as_ref().map(|node| node["status"].clone());
    // A node that somebody removed is not told about.
    let Some(stored) = stored else { return reports.next(now) };
    let due = reports.due(&stored, &facts, Readiness::Ready, now);
    if due > now {
        return due;
    }
    match registration::report(name, client, &facts, Readiness::Ready).await {
        Ok(()) => reports.wrote(facts, now),
        Err(error) => tracing::warn!(%error, "node status not written"),
    }
    reports.next(now)
}
