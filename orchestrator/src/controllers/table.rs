//! Every controller, one row each: its name, its identity, what it reads, how it starts.

use std::sync::Arc;

use apiserver::server::Server;
use client::{Caches, Client, Kept};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::given::{Account, Facts, Given};
use super::runtime::{self, Controller};
use super::{
    Selection, bootstrap_tokens, certificates, cron_job, daemon_set, deployment, endpoints, gc, housekeeping, job,
    namespaces, node_ipam, peers, pod_gc, replicaset, replication_controller, stateful_set, taint_eviction,
    ttl_after_finished,
};
use crate::{scheduler, system_objects};

/// Which servers of a cluster run a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The one that leads.
    Leading,
    /// Each: it speaks of itself.
    Everywhere,
}

pub struct Row {
    /// As kube-controller-manager's `--controllers` names it.
    pub name: &'static str,
    runs: Runs,
    account: Account,
    pub reads: &'static [Kept],
    start: fn(Given) -> BoxFuture<'static, ()>,
}

pub static TABLE: [Row; 26] = [
    row::<replicaset::ReplicaSets>(),
    row::<replication_controller::ReplicationControllers>(),
    row::<deployment::Deployments>(),
    row::<stateful_set::StatefulSets>(),
    row::<daemon_set::DaemonSets>(),
    row::<job::Jobs>(),
    row::<cron_job::CronJobs>(),
    row::<ttl_after_finished::TtlAfterFinished>(),
    row::<endpoints::EndpointSlices>(),
    row::<endpoints::EndpointsObjects>(),
    row::<endpoints::Mirroring>(),
    row::<housekeeping::ServiceAccounts>(),
    row::<housekeeping::RootCa>(),
    row::<housekeeping::NodeLifecycle>(),
    row::<taint_eviction::TaintEviction>(),
    row::<pod_gc::PodGarbageCollector>(),
    row::<node_ipam::NodeIpam>(),
    row::<peers::Peers>(),
    row::<certificates::signing::Signing>(),
    row::<certificates::approving::Approving>(),
    row::<certificates::cleaning::Cleaning>(),
    Row {
        name: "token-cleaner-controller",
        runs: Runs::Leading,
        account: Account::Service("token-cleaner"),
        reads: &[],
        start: |given| bootstrap_tokens::run(given.client).boxed(),
    },
    Row {
        name: "garbage-collector-controller",
        runs: Runs::Leading,
        account: Account::Service("generic-garbage-collector"),
        reads: &[],
        start: |given| gc::run(given.client).boxed(),
    },
    Row {
        name: "namespace-controller",
        runs: Runs::Leading,
        account: Account::Service("namespace-controller"),
        reads: namespaces::READS,
        start: |given| namespaces::run(given.client, given.caches).boxed(),
    },
    Row {
        name: "scheduler",
        runs: Runs::Leading,
        account: Account::Scheduler,
        reads: scheduler::READS,
        start: |given| scheduler::run(given.client, given.caches).boxed(),
    },
    // Keeps the `kubernetes` Service and its endpoints.
    Row {
        name: "kubernetes-service-controller",
        runs: Runs::Everywhere,
        account: Account::Server,
        reads: system_objects::READS,
        start: |given| system_objects::run(given).boxed(),
    },
];

const fn row<C: Controller>() -> Row {
    let start = |given: Given| runtime::run(C::new(&given), given.client, given.caches).boxed();
    Row { name: C::NAME, runs: Runs::Leading, account: C::ACCOUNT, reads: C::READS, start }
}

/// A chosen controller that only waits for its views.
pub struct Ready {
    row: &'static Row,
    client: Client,
    facts: Facts,
}

/// The chosen controllers, each under its own identity.
pub fn ready(server: &Server, facts: &Facts, chosen: &Selection) -> Vec<Ready> {
    let rows = TABLE.iter().filter(|row| chosen.has(row.name));
    rows.map(|row| Ready { row, client: row.account.client(server), facts: facts.clone() }).collect()
}

impl Ready {
    pub fn runs(&self) -> Runs {
        self.row.runs
    }
}

/// The views that these controllers read.
pub fn reads(ready: &[Ready]) -> impl Iterator<Item = Kept> {
    ready.iter().flat_map(|one| one.row.reads.iter().copied())
}

pub fn start(ready: &[Ready], caches: &Arc<Caches>, tasks: &mut JoinSet<()>) {
    for Ready { row, client, facts } in ready {
        let given = Given { client: client.clone(), caches: caches.clone(), facts: facts.clone() };
        tasks.spawn((row.start)(given));
    }
}
