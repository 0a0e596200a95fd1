//! The controllers: each a pure `reconcile` over shared caches, run by one runtime ([`runtime`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use api::view::{EndpointSlice, Service};
use apiserver::Revision;
use apiserver::client::{Client, Resource};
use apiserver::identity::User;
use apiserver::server::Server;
use thiserror::Error;
use tokio::task::JoinSet;

pub mod deployment;
pub mod endpoints;
pub mod gc;
pub mod housekeeping;
pub mod informer;
pub mod namespaces;
pub mod ownership;
pub mod replicaset;
pub mod runtime;
pub mod views;

use informer::{Informer, View};
use runtime::Controller;
use views::{ConfigMap, Deployment, Endpoints, Lease, Namespace, Node, Pod, ReplicaSet, Secret, ServiceAccount};

/// The decoded views that controllers, the scheduler and the node share.
#[derive(Default)]
pub struct Caches {
    pub pods: Arc<Informer<Pod>>,
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    pub deployments: Arc<Informer<Deployment>>,
    pub services: Arc<Informer<Service>>,
    pub slices: Arc<Informer<EndpointSlice>>,
    pub endpoints: Arc<Informer<Endpoints>>,
    pub nodes: Arc<Informer<Node>>,
    pub namespaces: Arc<Informer<Namespace>>,
    pub service_accounts: Arc<Informer<ServiceAccount>>,
    pub config_maps: Arc<Informer<ConfigMap>>,
    pub secrets: Arc<Informer<Secret>>,
    pub leases: Arc<Informer<Lease>>,
}

/// Does the same with each of the caches.
macro_rules! each_cache {
    ($caches:expr, $cache:ident => $act:expr) => {{
        let caches = $caches;
        each_cache!(@ caches, $cache => $act; pods, replica_sets, deployments, services, slices, endpoints, nodes, namespaces, service_accounts, config_maps, secrets, leases);
    }};
    (@ $caches:ident, $cache:ident => $act:expr; $($field:ident),*) => {
        $({ let $cache = &$caches.$field; $act; })*
    };
}

fn resource_of<T: View>(_: &Arc<Informer<T>>) -> Resource {
    T::RESOURCE
}

impl Caches {
    /// Starts the watches.
    pub fn start(&self, client: &Client, tasks: &mut JoinSet<()>) {
        each_cache!(self, cache => { tasks.spawn(cache.clone().run(client.clone())); });
    }

    /// Waits until every first state is complete.
    pub async fn synced(&self) {
        each_cache!(self, cache => cache.caught_up(0).await);
    }

    /// Waits until one kind's cache holds everything up to a revision.
    pub async fn caught_up(&self, resource: Resource, revision: Revision) {
        each_cache!(self, cache => if resource_of(cache) == resource { cache.caught_up(revision).await });
    }
}

/// Which controllers run: names, `*` for all, `-name` for all but one, as kube-controller-manager's flag; empty for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(BTreeSet<&'static str>);

/// Every name the flag takes.
pub const NAMES: [&str; 12] = [
    replicaset::ReplicaSets::NAME,
    deployment::Deployments::NAME,
    endpoints::EndpointSlices::NAME,
    endpoints::EndpointsObjects::NAME,
    endpoints::Mirroring::NAME,
    housekeeping::ServiceAccounts::NAME,
    housekeeping::RootCa::NAME,
    housekeeping::NodeLifecycle::NAME,
    GARBAGE_COLLECTOR,
    NAMESPACE,
    SCHEDULER,
    KUBERNETES_SERVICE,
];
pub const GARBAGE_COLLECTOR: &str = "garbage-collector-controller";
pub const NAMESPACE: &str = "namespace-controller";
pub const SCHEDULER: &str = "scheduler";
/// Keeps the `kubernetes` Service and its endpoints.
pub const KUBERNETES_SERVICE: &str = "kubernetes-service-controller";

#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no controller {0:?}; the names are: {list}", list = NAMES.join(", "))]
pub struct UnknownController(String);

impl Selection {
    pub fn parse(items: &[String]) -> Result<Self, UnknownController> {
        let find = |name: &str| {
            NAMES.into_iter().find(|known| *known == name).ok_or_else(|| UnknownController(name.to_owned()))
        };
        let mut chosen = BTreeSet::new();
        if items.iter().any(|item| item == "*") {
            chosen.extend(NAMES);
        }
        for item in items.iter().filter(|item| !matches!(item.as_str(), "" | "*")) {
            match item.strip_prefix('-') {
                Some(name) => drop(chosen.remove(find(name)?)),
                None => drop(chosen.insert(find(item)?)),
            }
        }
        Ok(Self(chosen))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Starts the chosen controllers, each under its own service account.
pub fn start(server: &Server, caches: &Arc<Caches>, chosen: &Selection, tasks: &mut JoinSet<()>) {
    let starter = Starter { server, caches, chosen };
    starter.start(replicaset::ReplicaSets, tasks);
    starter.start(deployment::Deployments, tasks);
    starter.start(endpoints::EndpointSlices, tasks);
    starter.start(endpoints::EndpointsObjects, tasks);
    starter.start(endpoints::Mirroring, tasks);
    starter.start(housekeeping::ServiceAccounts, tasks);
    starter.start(housekeeping::RootCa { certificate: server.authority().ca_certificate.clone() }, tasks);
    starter.start(housekeeping::NodeLifecycle::default(), tasks);
    if chosen.has(GARBAGE_COLLECTOR) {
        tasks.spawn(gc::GarbageCollector::new(starter.client("generic-garbage-collector")).run());
    }
    if chosen.has(NAMESPACE) {
        tasks.spawn(namespaces::Namespaces::new(starter.client(NAMESPACE)).run());
    }
}

struct Starter<'a> {
    server: &'a Server,
    caches: &'a Arc<Caches>,
    chosen: &'a Selection,
}

impl Starter<'_> {
    fn start<C: Controller>(&self, controller: C, tasks: &mut JoinSet<()>) {
        if self.chosen.has(C::NAME) {
            tasks.spawn(runtime::run(controller, self.client(C::ACCOUNT), self.caches.clone()));
        }
    }

    /// As a controller's own account.
    fn client(&self, account: &str) -> Client {
        self.server.client(User::service_account("kube-system", account), "kube-controller-manager")
    }
}

#[cfg(test)]
mod tests;
