//! A store without space takes no Event about it either: what happened is told once it takes writes again.

use std::net::SocketAddr;

use api::uid::Uid;
use api::view::Meta;
use client::Client;
use client::events::{Recorder, Reference};
use client::views::SERVICES;
use jiff::Timestamp;
use tokio::sync::watch;

/// Tells at the Service `kubernetes` of each time in which this server's writes were refused. Ends with its server.
pub async fn tell(client: Client, address: SocketAddr, mut full: watch::Receiver<bool>) {
    let events = Recorder::new(client.clone(), "amphipod", &address.to_string());
    while full.wait_for(|full| *full).await.is_ok() {
        let began = Timestamp::now();
        tracing::error!("the store has no space: writes are refused until it has");
        if full.wait_for(|full| !full).await.is_err() {
            return;
        }
        let (began, ended) = (api::time::rfc3339(began), api::time::rfc3339(Timestamp::now()));
        tracing::info!(began, "the store has space again");
        let message =
            format!("server {address} refused writes from {began} to {ended}: the store had used up its space");
        events.warning(&about(&client).await, "StoreFull", &message).await;
    }
}

/// The API itself, as users see it.
async fn about(client: &Client) -> Reference {
    let (namespace, name) = ("default", "kubernetes");
    let found = client.get(&SERVICES, namespace, name).await.unwrap_or_default();
    let meta = Meta { namespace: namespace.into(), name: name.into(), uid: Uid::of(&found), ..Meta::default() };
    Reference::new("v1", "Service", &meta)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use apiserver::identity::{MASTERS, User};
    use apiserver::nodes::NoNodes;
    use apiserver::server::{Config, Server};
    use client::{Resource, Selector};

    use super::*;

    #[tokio::test]
    async fn what_was_refused_is_told_when_there_is_space_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let client = server.client(User::new("system:apiserver", &[MASTERS]), "amphipod");
        let (full, seen) = watch::channel(true);
        let telling = tokio::spawn(tell(client.clone(), server.address(), seen));
        let events = Resource::core("events");
        let listed = async || client.list(&events, "default", &Selector::default()).await.unwrap().items;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(listed().await.is_empty(), "told while nothing can be written");
        full.send_replace(false);
        let told = async {
            loop {
                if let Some(event) = listed().await.first() {
                    return event.value();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let event = tokio::time::timeout(Duration::from_secs(20), told).await.unwrap();
        assert_eq!((&event["reason"], &event["type"]), (&"StoreFull".into(), &"Warning".into()));
        assert_eq!(event["involvedObject"]["name"], "kubernetes");
        drop(full);
        telling.await.unwrap();
    }
}
