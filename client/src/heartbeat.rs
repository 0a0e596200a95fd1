//! Leases by which somebody says that he lives: nodes, and servers that share a store.

use api::status::Status;
use serde_json::Value;

use crate::client::Client;
use crate::views::LEASES;

/// Brings a lease's holder and time to those of `lease`, which is made as given when it is not there.
pub async fn renew(client: &Client, lease: Value) -> Result<(), Status> {
    let text = |field: &str| lease["metadata"][field].as_str().unwrap_or_default();
    let touch = |current: &Value| {
        let mut next = current.clone();
        for field in ["renewTime", "holderIdentity"] {
            next["spec"][field] = lease["spec"][field].clone();
        }
        Ok(next)
    };
    match client.update(&LEASES, text("namespace"), text("name"), "", touch).await {
        Err(status) if status.code == 404 => client.create(&LEASES, text("namespace"), lease.clone()).await.map(drop),
        outcome => outcome.map(drop),
    }
}
