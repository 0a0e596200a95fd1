//! Bootstrap tokens whose time is over are removed. They prove nothing from then on in any case; this is for tidiness.

use std::collections::BTreeMap;
use std::time::Duration;

use api::status::Status;
use api::uid::Uid;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use client::{Client, DeleteOptions, Event, Key, Resource, Selector};
use jiff::Timestamp;
use serde_json::Value;

const SECRETS: Resource = Resource::core("secrets");
const NAMESPACE: &str = "kube-system";
const OURS: &str = "type=bootstrap.kubernetes.io/token";
const RETRY: Duration = Duration::from_secs(5);

/// Removes them as they end, for ever.
pub async fn run(client: Client) {
    loop {
        if let Err(error) = follow(&client).await {
            tracing::warn!(%error, "bootstrap tokens are not followed, will retry");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(client: &Client) -> Result<(), Status> {
    let mut changes = client.watch(&SECRETS, NAMESPACE, &Selector::fields(OURS)).await?;
    let mut ends: BTreeMap<Key, (Timestamp, Uid)> = BTreeMap::new();
    loop {
        let next = ends.values().map(|(end, _)| *end).min();
        tokio::select! {
            events = changes.next() => events?.into_iter().for_each(|event| note(&mut ends, event)),
            () = until(next) => remove(client, &mut ends).await?,
        }
    }
}

async fn until(end: Option<Timestamp>) {
    match end {
        Some(end) => {
            let left = end.duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}

fn note(ends: &mut BTreeMap<Key, (Timestamp, Uid)>, event: Event) {
    match event {
        Event::Applied(item) => {
            let end = serde_json::from_slice(&item.json).ok().and_then(|secret: Value| end(&secret));
            match end {
                Some(end) => drop(ends.insert(item.key, end)),
                None => drop(ends.remove(&item.key)),
            }
        }
        Event::Deleted(item) => drop(ends.remove(&item.key)),
        Event::Synced(_) | Event::Bookmark(_) => {}
    }
}

/// When a token ends, if it does, and its UID. What cannot be read as a time has ended.
fn end(secret: &Value) -> Option<(Timestamp, Uid)> {
    let text = BASE64_STANDARD.decode(secret["data"]["expiration"].as_str()?).ok().filter(|text| !text.is_empty())?;
    let end = String::from_utf8_lossy(&text).parse().unwrap_or(Timestamp::UNIX_EPOCH);
    Some((end, Uid::of(secret)))
}

async fn remove(client: &Client, ends: &mut BTreeMap<Key, (Timestamp, Uid)>) -> Result<(), Status> {
    let now = Timestamp::now();
    let over: Vec<Key> = ends.iter().filter(|(_, (end, _))| *end <= now).map(|(key, _)| key.clone()).collect();
    for key in over {
        let uid = ends.remove(&key).map(|(_, uid)| uid);
        let options = DeleteOptions { uid, ..DeleteOptions::default() };
        match client.delete(&SECRETS, &key.namespace, &key.name, &options).await {
            // Gone already, or a new one of that name.
            Err(status) if !matches!(status.code, 404 | 409) => return Err(status),
            _ => {}
        }
    }
    Ok(())
}
