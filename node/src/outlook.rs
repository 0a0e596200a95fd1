//! What a node sees of the cluster: itself, its pods, single objects that these refer to, Services, EndpointSlices, peers and
//! the names of namespaces. Nothing else is asked for, and nothing else would be answered.

use std::sync::Arc;

use api::uid::Uid;
use api::view::{EndpointSlice, Meta, Peer, Service};
use client::follow::{self, Scope, Step};
use client::views::NODES;
use client::{Caches, Client, Kept, Resource, View};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::content::Content;

/// Of these a node sees all objects.
const VIEWS: [Kept; 4] =
    [Kept::of::<Service>(), Kept::of::<EndpointSlice>(), Kept::of::<Peer>(), Kept::of::<Namespace>()];

/// `v1` Namespace: DNS tells one without services from one that is not there.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Namespace {
    pub metadata: Meta,
}

impl View for Namespace {
    const RESOURCE: Resource = Resource::core("namespaces");

    fn uid(&self) -> &Uid {
        &self.metadata.uid
    }
}

/// This node's own object; `None` while it is not known, and when it is not there.
pub type Own = watch::Receiver<Option<Arc<Value>>>;

#[derive(Clone)]
pub struct Outlook {
    pub views: Arc<Caches>,
    pub content: Arc<Content>,
    pub own: Own,
}

impl Outlook {
    /// Starts the watches; the pods are followed apart ([`crate::pods`]). UIDs of pods whose content changed come out.
    pub fn open(client: &Client, node: &str, tasks: &mut JoinSet<()>) -> (Self, mpsc::UnboundedReceiver<Uid>) {
        let views = Arc::new(Caches::new(VIEWS));
        views.start(client, tasks);
        let (shown, own) = watch::channel(None);
        let scope = Scope::fields(format!("metadata.name={node}"));
        tasks.spawn(follow::run(client.clone(), NODES, scope, move |step| match step {
            Step::Set(item) => drop(shown.send_replace(Some(Arc::new(item.value())))),
            Step::Remove(_) => drop(shown.send_replace(None)),
            Step::Retain(there) if there.is_empty() => drop(shown.send_replace(None)),
            Step::Retain(_) | Step::Seen(_) => {}
        }));
        let (content, changed) = Content::new(client.clone());
        (Self { views, content: Arc::new(content), own }, changed)
    }
}
