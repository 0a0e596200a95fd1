//! A whole API server: its engine, its keys, its listener.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use api::kind::Registry;
use api::status::Status;
use client::Client;
use ipnetwork::{IpNetwork, Ipv4Network};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Settings;
use crate::authn::Tokens;
use crate::engine::{Engine, ServiceNetwork};
use crate::http::{self, Documents, Serving, TlsError};
use crate::identity::{MASTERS, User};
use crate::limits::Limits;
use crate::local::Local;
use crate::nodes::Nodes;
use crate::nodes::tunnel::Fleet;
use crate::pki::{Authority, PkiError};
use crate::shared::{Anonymous, Shared};
use crate::store::Failure;
use crate::store::StoreError;
use crate::store::{etcd, local};

#[derive(Debug, Clone)]
pub struct Config {
    pub store: StoreAt,
    pub listen: SocketAddr,
    /// The address others reach this server at.
    pub advertise: IpAddr,
    pub services: ServiceNetwork,
    pub domain: String,
    /// More names for the serving certificate.
    pub names: Vec<String>,
    pub admission: Settings,
    pub anonymous: Anonymous,
}

/// Where Services' addresses come from when nobody says.
const SERVICES: IpNetwork =
    IpNetwork::V4(Ipv4Network::new_checked(Ipv4Addr::new(10, 96, 0, 0), 12).expect("12 bits fit"));

impl Config {
    /// A server by itself on loopback, at a port the kernel chooses, with Kubernetes' usual ranges: for tests and examples.
    pub fn on_loopback(store: PathBuf) -> Self {
        Self {
            store: StoreAt::File(store),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: Ipv4Addr::LOCALHOST.into(),
            services: ServiceNetwork::new(&[SERVICES]).expect("a range of ours"),
            domain: "cluster.local".into(),
            names: Vec::new(),
            admission: Settings::default(),
            anonymous: Anonymous::default(),
        }
    }
}

/// Where the cluster's state is.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// A file that is this server's alone.
    File(PathBuf),
    /// An etcd that it may share with other servers.
    Etcd(etcd::Settings),
}

#[derive(Debug, Error)]
pub enum ServerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store failed: what is on its disk is not known, so the server stops; a new start reads it again")]
    StoreFailed(#[source] Arc<StoreError>),
    #[error(transparent)]
    Keys(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the key of service account tokens cannot be used")]
    Tokens(#[from] jsonwebtoken::errors::Error),
    #[error("cannot listen on {address}: choose another with --listen, or stop what uses it")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot create the cluster's first objects")]
    Bootstrap(#[source] Status),
}

/// A server that is ready: bound, with its first objects written, not yet accepting.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    serving: Serving,
    authority: Arc<Authority>,
    address: SocketAddr,
}

impl Server {
    /// Binds first (a port in use leaves nothing half made), then opens the store.
    ///
    /// # Errors
    /// [`ServerError`] says which part does not start. A port in use is found before the store is opened; after that
    /// the store may hold the first objects, and another start goes on from them.
    pub async fn open(config: &Config, nodes: Arc<dyn Nodes>) -> Result<Self, ServerError> {
        let listen = |source| ServerError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let store = match &config.store {
            StoreAt::File(path) => local::open(path)?,
            StoreAt::Etcd(settings) => etcd::open(settings).await?,
        };
        let engine =
            Arc::new(Engine::open(store, Registry::builtin(), config.services.clone(), config.admission.clone())?);
        let authority = Arc::new(Authority::open(&engine).await?);
        crate::bootstrap::run(&engine).await.map_err(ServerError::Bootstrap)?;
        let serving = Serving::new(authority.clone(), names(config), addresses(config))?;
        let tokens = Tokens::new(&authority, &config.domain)?;
        let public = SocketAddr::new(config.advertise, address.port()).to_string();
        let shared = Shared {
            engine,
            tokens,
            nodes: Arc::new(Fleet::new(nodes)),
            documents: Documents::default(),
            limits: Limits::default(),
            anonymous: config.anonymous,
            address: public,
        };
        Ok(Self { shared: Arc::new(shared), listener, serving, authority, address })
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Where it listens; the port is the real one when `0` was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An in-process client with an identity and field manager of its own.
    pub fn client(&self, user: User, manager: &str) -> Client {
        Client::new(Local::new(self.shared.clone(), user, manager))
    }

    /// Announces when the store begins and ends to refuse writes for want of space.
    pub fn store_full(&self) -> watch::Receiver<bool> {
        self.shared.engine.full()
    }

    /// A kubeconfig of the administrator, its certificate inline.
    ///
    /// # Errors
    /// Those of [`Authority::client`].
    pub fn admin_kubeconfig(&self, address: &str) -> Result<String, PkiError> {
        use base64::Engine as _;
        let encode = |text: &str| base64::prelude::BASE64_STANDARD.encode(text);
        let admin = self.authority.client("kubernetes-admin", &[MASTERS])?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: amphipod\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: amphipod\n  context:\n    cluster: amphipod\n    user: admin\ncurrent-context: amphipod\n",
            encode(&self.authority.ca_certificate),
            encode(&admin.certificate),
            encode(&admin.key),
        ))
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the store failed: what is on the disk is not known then, so nothing is acknowledged any more. A new start
    /// reads the disk and says what it finds.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), ServerError> {
        let engine = self.shared.engine.clone();
        let mut failure = engine.failure();
        let expiry = crate::expiry::run(engine.reader(), engine.events.clone(), stop.clone());
        let tls = self.serving.acceptor()?;
        let renewal = self.serving.keep(stop.clone());
        let history = engine.cache().forget(stop.clone());
        let memory = crate::memory::after_start(stop.clone());
        let roles = crate::aggregation::run(engine.clone(), stop.clone());
        let definitions = crate::definitions::lives::run(engine.clone(), stop.clone());
        let requests = http::serve(self.shared, self.listener, tls, stop);
        let serving = async { tokio::join!(requests, expiry, renewal, history, memory, roles, definitions) };
        tokio::select! {
            _ = serving => Ok(()),
            Some(failed) = failed(&mut failure) => Err(ServerError::StoreFailed(failed)),
        }
    }
}

/// Why the store failed; `None` when its writer is gone.
async fn failed(failure: &mut watch::Receiver<Failure>) -> Option<Arc<StoreError>> {
    failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone())
}

fn names(config: &Config) -> Vec<String> {
    let service = "kubernetes.default.svc";
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", service].map(str::to_owned).into();
    names.push(format!("{service}.{}", config.domain));
    names.extend(config.names.iter().cloned());
    names
}

fn addresses(config: &Config) -> Vec<IpAddr> {
    // The Service `kubernetes` has the first one; who gives it another family's too reaches the server there.
    let mut all: Vec<IpAddr> = config.services.ranges().map(|range| range.at(1)).collect();
    all.extend([config.advertise, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    if !config.listen.ip().is_unspecified() {
        all.push(config.listen.ip());
    }
    all.dedup();
    all
}
