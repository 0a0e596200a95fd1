//! Server, controllers and scheduler of one process.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::Anonymous;
use apiserver::EtcdSettings;
use apiserver::admission;
use apiserver::engine::{ServiceNetwork, ServiceRange};
use apiserver::identity::{AUTHENTICATED, MASTERS, User};
use apiserver::nodes::{NoNodes, Nodes};
use apiserver::server::{Config, Server, StoreAt};
use client::Caches;
use network::PortRange;
use proxy_userspace::ExternalIps;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;
use crate::controllers::Selection;
use crate::controllers::given::Facts;
use crate::controllers::table::{self, Runs};
use crate::pod_ranges::PodRanges;
use crate::store_command;
use crate::store_full;
use crate::{leader, servers};

/// Of an API server, where nobody says otherwise.
pub const PORT: u16 = 6443;

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    /// Where the cluster's state is, when not in the data folder.
    pub etcd: Option<EtcdSettings>,
    pub listen: SocketAddr,
    pub advertise: IpAddr,
    pub services: ServiceNetwork,
    /// Of the families of `services`, in their order.
    pub pods: Vec<PodRanges>,
    pub domain: String,
    pub controllers: Selection,
    pub names: Vec<String>,
    pub admission: admission::Settings,
    pub anonymous: Anonymous,
}

impl Settings {
    /// What nodes have to know.
    pub fn cluster(&self) -> Cluster {
        let ports = &self.services.node_ports;
        Cluster {
            pods: self.pods.iter().map(PodRanges::cluster).collect(),
            services: self.services.ranges().map(ServiceRange::network).collect(),
            node_ports: PortRange { first: *ports.start(), last: *ports.end() },
            dns: self.services.dns(),
            domain: self.domain.clone(),
            external_ips: match self.admission.external_ips {
                admission::ExternalIps::Allowed => ExternalIps::Served,
                admission::ExternalIps::Inactive => ExternalIps::Ignored,
            },
        }
    }
}

/// A control plane with its tasks started.
pub struct Running {
    pub server: Server,
    pub tasks: JoinSet<()>,
    pub parting: Parting,
}

/// What tasks that hold leases do when the process is told to end, while the API still answers.
#[derive(Default)]
pub struct Parting {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Parting {
    /// As long as it may take; what is not given back by then runs out.
    const PATIENCE: Duration = Duration::from_secs(3);

    async fn wait(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(Self::PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("leases are not given back in time: they have to run out");
        }
    }
}

/// `amphipod server`: runs until told to stop.
///
/// # Errors
/// What [`start`] or [`serve`] say.
pub async fn run(settings: Settings) -> Result<()> {
    let Running { server, mut tasks, parting, .. } = start(&settings, Arc::new(NoNodes)).await?;
    tracing::info!(address = %server.address(), "serving");
    serve(server, &mut tasks, &parting).await
}

/// Serves until told to stop; the end of anything before that is fatal.
///
/// # Errors
/// When the store, the listener or one of the tasks ended by itself: nothing is served any more, and leases have to run
/// out. A new start reads what the store holds.
pub async fn serve(server: Server, tasks: &mut JoinSet<()>, parting: &Parting) -> Result<()> {
    let stop = CancellationToken::new();
    let mut serving = tokio::spawn(server.serve(stop.clone()));
    tokio::select! {
        outcome = wait(tasks) => outcome?,
        ended = &mut serving => {
            ended.context("the listener failed")??;
            anyhow::bail!("the listener ended, which should run for ever");
        }
    }
    parting.wait().await;
    stop.cancel();
    tasks.shutdown().await;
    Ok(serving.await.context("the listener failed")??)
}

/// Opens the store and starts everything but the listener.
///
/// # Errors
/// When the folder is not ours, or the server does not open: an empty data folder is removed again.
pub async fn start(settings: &Settings, nodes: Arc<dyn Nodes>) -> Result<Running> {
    agent::claim::data_dir(&settings.data_dir).context("choose another folder with --data-dir")?;
    let config = Config {
        store: match &settings.etcd {
            Some(etcd) => StoreAt::Etcd(etcd.clone()),
            None => StoreAt::File(store_command::store_of(&settings.data_dir)),
        },
        listen: settings.listen,
        advertise: settings.advertise,
        services: settings.services.clone(),
        domain: settings.domain.clone(),
        names: settings.names.clone(),
        admission: settings.admission.clone(),
        anonymous: settings.anonymous,
    };
    let server = match Server::open(&config, nodes).await {
        Ok(server) => server,
        Err(error) => {
            // Leaves a folder that was here, or has something in it, alone.
            let _ = std::fs::remove_dir(&settings.data_dir);
            return Err(error.into());
        }
    };
    let address = SocketAddr::new(settings.advertise, server.address().port());
    write_private(&settings.data_dir.join("admin.kubeconfig"), &server.admin_kubeconfig(&address.to_string())?)?;
    let (mut tasks, parting) = (JoinSet::new(), Parting::default());
    let reader = server.client(User::new("system:kube-controller-manager", &[AUTHENTICATED]), "amphipod");
    let own = || server.client(User::new("system:apiserver", &[MASTERS]), "kube-apiserver");
    settings.cluster().publish(&own()).await.context("cannot tell nodes about the cluster")?;
    let facts = Facts {
        authority: server.authority().clone(),
        address,
        services: settings.services.clone(),
        pods: settings.pods.clone(),
        servers: match settings.etcd {
            Some(_) => {
                let (servers, keep) = servers::several(own(), address, parting.stop.clone());
                tasks.spawn(parting.tasks.track_future(keep));
                servers
            }
            None => servers::alone(address),
        },
    };
    tasks.spawn(store_full::tell(own(), address, server.store_full()));
    let ready = table::ready(&server, &facts, &settings.controllers);
    // Who has its store for itself leads.
    let (here, leading): (Vec<_>, Vec<_>) =
        ready.into_iter().partition(|one| settings.etcd.is_none() || one.runs() == Runs::Everywhere);
    let caches = Arc::new(Caches::new(table::reads(&here)));
    caches.start(&reader, &mut tasks);
    table::start(&here, &caches, &mut tasks);
    if !leading.is_empty() {
        let me = format!("{address}_{}", uuid::Uuid::new_v4());
        let lead = leader::run(own(), me, leader::Terms::default(), parting.stop.clone(), move |tasks| {
            // Views of its own, which go with its term.
            let caches = Arc::new(Caches::new(table::reads(&leading)));
            caches.start(&reader, tasks);
            table::start(&leading, &caches, tasks);
        });
        tasks.spawn(parting.tasks.track_future(lead));
    }
    Ok(Running { server, tasks, parting })
}

/// Waits for SIGTERM or SIGINT; the end of any task before that is fatal.
///
/// # Errors
/// That a task ended.
pub async fn wait(tasks: &mut JoinSet<()>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended.context("a task failed")?;
            anyhow::bail!("a task ended that should run for ever")
        }
    }
}

/// Writes a file nobody else may read; replaces an old one in one step.
///
/// # Errors
/// When it cannot be written; an old file is as it was then.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
