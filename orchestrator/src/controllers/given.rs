//! What a controller starts with: its identity, its views, what is known of the cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::engine::ServiceNetwork;
use apiserver::identity::{AUTHENTICATED, MASTERS, User};
use apiserver::pki::Authority;
use apiserver::server::Server;
use client::{Caches, Client};

use crate::pod_ranges::PodRanges;
use crate::servers::Servers;

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
    pub(super) fn client(self, server: &Server) -> Client {
        match self {
            Self::Service(name) => server.client(User::service_account("kube-system", name), "kube-controller-manager"),
            Self::Scheduler => server.client(User::new("system:kube-scheduler", &[AUTHENTICATED]), "kube-scheduler"),
            Self::Server => server.client(User::new("system:apiserver", &[MASTERS]), "kube-apiserver"),
        }
    }
}

/// What there is to know when controllers start.
#[derive(Clone)]
pub struct Facts {
    pub authority: Arc<Authority>,
    /// Where others reach the API server.
    pub address: SocketAddr,
    pub services: ServiceNetwork,
    /// One, or one of each family; the first is the one that pods are known by.
    pub pods: Vec<PodRanges>,
    pub servers: Servers,
}

/// What a controller starts with.
pub struct Given {
    pub client: Client,
    pub caches: Arc<Caches>,
    pub facts: Facts,
}
