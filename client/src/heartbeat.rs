//! Leases by which somebody says that he lives: nodes, and servers that share a store.

use api::status::Status;
use serde_json::{Value, json};

use crate::client::Client;
use crate::views::LEASES;

/// Brings a lease's holder and time to those of `lease`, which is made as given when it is not there. One request, where it
/// is.
///
/// # Errors
/// What the server says, or 503 when none answers. Who lives calls again at the next beat.
pub async fn renew(client: &Client, lease: Value) -> Result<(), Status> {
    let text = |field: &str| lease["metadata"][field].as_str().unwrap_or_default();
    let spec = &lease["spec"];
    let touch = json!({"spec": {"renewTime": spec["renewTime"], "holderIdentity": spec["holderIdentity"]}});
    match client.patch(&LEASES, text("namespace"), text("name"), "", &touch).await {
        Err(status) if status.code == 404 => client.create(&LEASES, text("namespace"), lease.clone()).await.map(drop),
        outcome => outcome.map(drop),
    }
}
