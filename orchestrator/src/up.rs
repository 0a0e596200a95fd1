//! `amphipod up`: server and agent in one process; `amphipod reset`: away with everything that `up` made.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::boundary::{Attachment, NetworkError, PodNetwork};
use anyhow::{Context, Result, bail};
use network::{Cidr, Network};
use proxy_userspace::Proxy;
use serde::{Deserialize, Serialize};

use crate::control_plane::{self, ControlPlane};
use crate::node::{self, Settings, streams::AgentSlot};

/// One agent per network namespace: abstract sockets are scoped by it.
const AGENT_SOCKET: &[u8] = b"amphipod-agent";
/// In the data folder: what `reset` has to know.
const PLACES: &str = "places.json";

/// Where `up` put things.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Places {
    run_dir: PathBuf,
    pod_cgroup: String,
    bpf_root: PathBuf,
}

/// Runs until told to stop; pods run on.
pub async fn run(control: ControlPlane, settings: Settings) -> Result<()> {
    check_machine(&settings)?;
    let _only_one = claim_namespace()?;
    let slot = AgentSlot::new(&settings.name);
    let mut running = control_plane::start(&control, Arc::new(slot.clone())).await?;
    remember(&settings)?;
    let mut tasks = std::mem::take(&mut running.tasks);
    let _node = node::start(&settings, &running, &slot, &mut tasks).await?;
    tracing::info!(address = %running.server.address(), node = settings.name, "ready");
    control_plane::serve(running.server, &mut tasks).await
}

/// Everything that would make a start fail halfway, before anything is made.
fn check_machine(settings: &Settings) -> Result<()> {
    #[expect(unsafe_code, reason = "geteuid has no safe wrapper in std")]
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    if user != 0 {
        bail!("running pods needs root: start amphipod up as root");
    }
    proxy_userspace::object::check_machine(&settings.cgroup_root)?;
    Ok(())
}

fn claim_namespace() -> Result<UnixListener> {
    let address = UnixAddress::from_abstract_name(AGENT_SOCKET).context("abstract socket names")?;
    UnixListener::bind_addr(&address).context("another amphipod agent runs in this network namespace: stop it first")
}

fn remember(settings: &Settings) -> Result<()> {
    let places = Places {
        run_dir: settings.run_dir.clone(),
        pod_cgroup: settings.pod_cgroup.clone(),
        bpf_root: settings.bpf_root.clone(),
    };
    let path = settings.data_dir.join(PLACES);
    let text = serde_json::to_string_pretty(&places).context("encoding")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes pods, network, programs, images and the store of a data folder.
pub async fn reset(data_dir: &Path) -> Result<()> {
    let path = data_dir.join(PLACES);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{} holds nothing of amphipod's (no {PLACES}): is it the right --data-dir?", data_dir.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let places: Places =
        serde_json::from_str(&text).with_context(|| format!("{} cannot be understood", path.display()))?;
    let _only_one = claim_namespace()?;
    let config = agent::config::Config {
        data_dir: data_dir.to_owned(),
        run_dir: places.run_dir.clone(),
        node_name: String::new(),
        node_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
        pod_cidr: agent::config::PodCidr { base: std::net::Ipv4Addr::UNSPECIFIED, prefix: 24 },
        cgroup_root: places.pod_cgroup.clone(),
        pod_cgroup: places.pod_cgroup.clone(),
        cluster_dns: None,
        cluster_domain: String::new(),
        registries: None,
    };
    agent::remove_everything(config, Arc::new(LinksGoLast)).await.context("cannot remove the pods")?;
    Proxy::unload(&places.bpf_root)
        .with_context(|| format!("cannot unload the programs of {}", places.bpf_root.display()))?;
    Network::reset(&node::state_file(data_dir)).await.context("cannot undo the network set-up")?;
    remove_files(data_dir, &places.run_dir)
}

/// Reset removes all links at once, after the pods.
struct LinksGoLast;

#[async_trait::async_trait]
impl PodNetwork for LinksGoLast {
    async fn attach(&self, _: &Attachment) -> Result<(), NetworkError> {
        Err(NetworkError("the node is being reset".into()))
    }

    async fn detach(&self, _: &str, _: std::net::IpAddr) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// The files of the control plane, then the folders, if nobody else put anything there.
fn remove_files(data_dir: &Path, run_dir: &Path) -> Result<()> {
    for name in ["store.redb", "admin.kubeconfig", "network.json", PLACES] {
        gone(std::fs::remove_file(data_dir.join(name)))
            .with_context(|| format!("cannot remove {name} of {}", data_dir.display()))?;
    }
    for dir in [run_dir, data_dir] {
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                eprintln!("{} stays: it holds files that are not amphipod's", dir.display());
            }
            other => gone(other).with_context(|| format!("cannot remove {}", dir.display()))?,
        }
    }
    Ok(())
}

fn gone(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The whole range, for those who parse one.
pub fn parse_cidr(flag: &str, text: &str) -> Result<Cidr> {
    text.parse().with_context(|| format!("{flag} {text}"))
}
