//! Every controller, one row each: its name, its identity, what it reads, how it starts.

use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::engine::ServiceNetwork;
use apiserver::identity::{AUTHENTICATED, MASTERS, User};
use apiserver::server::Server;
use client::{Caches, Client, Kept};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::runtime::{self, Controller};
use super::{Selection, deployment, endpoints, gc, housekeeping, namespaces, replicaset};
use crate::{scheduler, system_objects};

/// Under which identity a controller acts.
#[derive(Debug, Clone, Copy)]
pub enum Account {
    /// A service account of kube-system.
    Service(&'static str),
    Scheduler,
    /// The server's own hand.
    Server,
}

impl Account {
    fn client(self, server: &Server) -> Client {
        match self {
            Self::Service(name) => server.client(User::service_account("kube-system", name), "kube-controller-manager"),
            Self::Scheduler => server.client(User::new("system:kube-scheduler", &[AUTHENTICATED]), "kube-scheduler"),
            Self::Server => server.client(User::new("system:apiserver", &[MASTERS]), "kube-apiserver"),
        }
    }
}

/// What there is to know when controllers start.
#[derive(Debug, Clone)]
pub struct Facts {
    pub ca_certificate: String,
    /// Where others reach the API server.
    pub address: SocketAddr,
    pub services: ServiceNetwork,
}

/// What a controller starts with.
pub struct Given {
    pub client: Client,
    pub caches: Arc<Caches>,
    pub facts: Facts,
}

pub struct Row {
    /// As kube-controller-manager's `--controllers` names it.
    pub name: &'static str,
    account: Account,
    pub reads: &'static [Kept],
    start: fn(Given) -> BoxFuture<'static, ()>,
}

pub static TABLE: [Row; 12] = [
    row::<replicaset::ReplicaSets>(),
    row::<deployment::Deployments>(),
    row::<endpoints::EndpointSlices>(),
    row::<endpoints::EndpointsObjects>(),
    row::<endpoints::Mirroring>(),
    row::<housekeeping::ServiceAccounts>(),
    row::<housekeeping::RootCa>(),
    row::<housekeeping::NodeLifecycle>(),
    Row {
        name: "garbage-collector-controller",
        account: Account::Service("generic-garbage-collector"),
        reads: &[],
        start: |given| gc::run(given.client).boxed(),
    },
    Row {
        name: "namespace-controller",
        account: Account::Service("namespace-controller"),
        reads: namespaces::READS,
        start: |given| namespaces::run(given.client, given.caches).boxed(),
    },
    Row {
        name: "scheduler",
        account: Account::Scheduler,
        reads: scheduler::READS,
        start: |given| scheduler::run(given.client, given.caches).boxed(),
    },
    // Keeps the `kubernetes` Service and its endpoints.
    Row {
        name: "kubernetes-service-controller",
        account: Account::Server,
        reads: system_objects::READS,
        start: |given| system_objects::run(given).boxed(),
    },
];

const fn row<C: Controller>() -> Row {
    let start = |given: Given| runtime::run(C::new(&given), given.client, given.caches).boxed();
    Row { name: C::NAME, account: C::ACCOUNT, reads: C::READS, start }
}

/// The views that the chosen controllers read.
pub fn reads(chosen: &Selection) -> impl Iterator<Item = Kept> {
    TABLE.iter().filter(|row| chosen.has(row.name)).flat_map(|row| row.reads.iter().copied())
}

/// Starts the chosen controllers, each under its own identity.
pub fn start(server: &Server, caches: &Arc<Caches>, facts: &Facts, chosen: &Selection, tasks: &mut JoinSet<()>) {
    for row in TABLE.iter().filter(|row| chosen.has(row.name)) {
        let given = Given { client: row.account.client(server), caches: caches.clone(), facts: facts.clone() };
        tasks.spawn((row.start)(given));
    }
}
