//! The pods bound to this node, from the API to the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agent::Agent;
use api::selector::Fields;
use apiserver::ObjectKey;
use apiserver::client::Client;
use apiserver::engine::{Event, EventKind, WatchOptions};

use crate::controllers::Caches;
use crate::controllers::views::PODS;

/// Tells the agent when something changed that pods may have mounted.
pub fn tell_content(caches: &Caches, agent: &Arc<Agent>) {
    let maps = agent.clone();
    caches.config_maps.on_change(move |old, new| {
        if let Some(map) = new.or(old) {
            maps.content_changed(&map.metadata.meta.namespace);
        }
    });
    let secrets = agent.clone();
    caches.secrets.on_change(move |old, new| {
        if let Some(secret) = new.or(old) {
            secrets.content_changed(&secret.metadata.meta.namespace);
        }
    });
}

/// Follows them for ever; starts over from the whole state when it fell behind.
pub async fn follow(client: Client, node: String, agent: Arc<Agent>) {
    loop {
        match watch(&client, &node) {
            Ok(watch) => relay(watch, &agent).await,
            Err(error) => tracing::error!(%error, "pods of this node cannot be watched"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn watch(client: &Client, node: &str) -> Result<apiserver::engine::Watch, api::status::Status> {
    let kind = client.engine().registry().find("", "v1", "pods").ok_or_else(api::status::Status::no_route)?;
    let fields = Fields::parse(&kind, &format!("spec.nodeName={node}")).map_err(api::status::Status::bad_request)?;
    client.watch(PODS, "", WatchOptions { fields, initial_events: true, ..WatchOptions::default() })
}

async fn relay(mut watch: apiserver::engine::Watch, agent: &Agent) {
    let mut initial = Some(Vec::new());
    let mut uids: BTreeMap<ObjectKey, String> = BTreeMap::new();
    while let Ok(events) = watch.next().await {
        for event in events {
            take(event, agent, &mut initial, &mut uids);
        }
    }
}

fn take(event: Event, agent: &Agent, initial: &mut Option<Vec<Arc<serde_json::Value>>>, uids: &mut BTreeMap<ObjectKey, String>) {
    let Some(object) = event.object else {
        if let (EventKind::InitialEnd, Some(pods)) = (event.kind, initial.take()) {
            agent.resync(pods);
        }
        return;
    };
    if event.kind == EventKind::Deleted {
        uids.remove(&object.key);
        agent.gone(&object.header.uid);
        return;
    }
    // A namesake may have taken the place between two looks.
    if let Some(before) = uids.insert(object.key.clone(), object.header.uid.clone()).filter(|before| *before != object.header.uid) {
        agent.gone(&before);
    }
    let pod = Arc::new(object.value());
    match initial {
        Some(pods) => pods.push(pod),
        None => agent.sync(pod),
    }
}
