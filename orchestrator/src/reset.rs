//! `amphipod reset`: away with everything that `up` or `agent` made, in whatever state it was left.
//!
//! What they made is known from `places.json`, which they write before they make anything outside the data folder; it is
//! removed last, so that a reset that was cut off can be repeated.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::boundary::{Attachment, NetworkError, PodNetwork};
use anyhow::{Context, Result, bail};
use api::uid::Uid;
use network::Network;
use proxy_userspace::Proxy;
use serde::{Deserialize, Serialize};

use crate::claim;
use crate::control_plane::write_private;
use crate::machine::Machine;
use crate::store_command::store_of;

/// In the data folder: what reset has to know.
const PLACES: &str = "places.json";
/// Files of the data folder beside those of the store, the last one last.
const FILES: [&str; 11] = [
    "admin.kubeconfig",
    "admin.new",
    "node.crt",
    "node.key",
    "node.new",
    "node-ca.crt",
    "node-ca.new",
    "network.json",
    "places.new",
    "agent.lock",
    PLACES,
];

/// Where things were put.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Places {
    run_dir: PathBuf,
    pod_cgroup: String,
    bpf_root: PathBuf,
}

/// Notes where things will be put.
///
/// # Errors
/// When the file cannot be written; nothing may be put anywhere then.
pub fn remember(machine: &Machine) -> Result<()> {
    let places = Places {
        run_dir: machine.run_dir.clone(),
        pod_cgroup: machine.pod_cgroup.clone(),
        bpf_root: machine.bpf_root.clone(),
    };
    write_private(&machine.data_dir.join(PLACES), &serde_json::to_string_pretty(&places).context("encoding")?)
}

/// Removes pods, network, programs, images and the store of a data folder.
///
/// # Errors
/// When an agent or a server runs, the folder is not ours, or a step fails: the later ones are left undone, and a reset
/// may be repeated.
pub async fn run(data_dir: &Path) -> Result<()> {
    let shown = data_dir.display();
    if !data_dir.exists() {
        println!("there is no {shown}: nothing to remove");
        return Ok(());
    }
    let _only_one = claim::claim_namespace()?;
    if apiserver::store_tools::in_use(&store_of(data_dir))? {
        bail!("a server uses the store in {shown}: stop it first");
    }
    match places(data_dir)? {
        Some(places) => {
            remove_node(data_dir, &places).await?;
            remove_files(data_dir)?;
            let filters = places.run_dir.join("seccomp");
            gone(fs::remove_dir_all(&filters)).with_context(|| format!("cannot remove {}", filters.display()))?;
            remove_folder(&places.run_dir)?;
        }
        // Cut off before it made anything else.
        None if has_store(data_dir)? => remove_files(data_dir)?,
        None if fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_none()) => {}
        None => bail!("{shown} holds nothing of amphipod's (no {PLACES}): is it the right --data-dir?"),
    }
    remove_folder(data_dir)
}

fn places(data_dir: &Path) -> Result<Option<Places>> {
    let path = data_dir.join(PLACES);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let places = serde_json::from_str(&text);
            Ok(Some(places.with_context(|| format!("{} cannot be understood", path.display()))?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

async fn remove_node(data_dir: &Path, places: &Places) -> Result<()> {
    let config = agent::config::Config {
        data_dir: data_dir.to_owned(),
        run_dir: places.run_dir.clone(),
        node_name: String::new(),
        node_ips: Vec::new(),
        pod_cidrs: Vec::new(),
        cgroup_root: places.pod_cgroup.clone(),
        pod_cgroup: places.pod_cgroup.clone(),
        cluster_dns: None,
        cluster_domain: String::new(),
        registries: None,
        pod_max_pids: None,
        allowed_unsafe_sysctls: Vec::new(),
    };
    agent::remove_everything(config, Arc::new(LinksGoLast)).await.context("cannot remove the pods")?;
    Proxy::unload(&places.bpf_root)
        .with_context(|| format!("cannot unload the programs of {}", places.bpf_root.display()))?;
    Network::reset(&node::state_file(data_dir)).await.context("cannot undo the network set-up")?;
    node::forget_dns(&places.run_dir)
}

/// Reset removes all links at once, after the pods.
struct LinksGoLast;

#[async_trait::async_trait]
impl PodNetwork for LinksGoLast {
    async fn attach(&self, _: &Attachment) -> Result<Vec<String>, NetworkError> {
        Err(NetworkError("the node is being reset".into()))
    }

    async fn detach(&self, _: &Uid, _: &[std::net::IpAddr]) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// Files of the store: the store itself, its mark, and what creating or restoring it left.
fn store_files(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(data_dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.with_context(|| format!("cannot read {}", data_dir.display()))?;
    let ours = |name: &str| name == "store.mark" || name == "store.redb" || name.starts_with("store.redb.");
    Ok(entries
        .into_iter()
        .filter(|entry| entry.file_name().to_str().is_some_and(ours))
        .map(|entry| entry.path())
        .collect())
}

fn has_store(data_dir: &Path) -> Result<bool> {
    Ok(!store_files(data_dir)?.is_empty())
}

fn remove_files(data_dir: &Path) -> Result<()> {
    let files = FILES.iter().map(|name| data_dir.join(name));
    for path in store_files(data_dir)?.into_iter().chain(files) {
        gone(fs::remove_file(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Removes a folder, if nobody else put anything there.
fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            eprintln!("{} stays: it holds files that are not amphipod's", folder.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            eprintln!("{} stays, empty: something is mounted there", folder.display());
            Ok(())
        }
        other => gone(other).with_context(|| format!("cannot remove {}", folder.display())),
    }
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_store_are_taken_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let ours = ["store.redb", "store.mark", "store.redb.new", "store.redb.replaced-1"];
        for name in ours.iter().chain(&["restore.txt", "store.txt"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(store_files(folder.path()).unwrap().len(), ours.len());
        remove_files(folder.path()).unwrap();
        assert!(!has_store(folder.path()).unwrap());
        remove_folder(folder.path()).unwrap();
        assert!(folder.path().join("store.txt").exists(), "not ours");
    }

    #[tokio::test]
    async fn what_is_not_ours_is_refused_and_what_is_not_there_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        run(&folder.path().join("not/there")).await.unwrap();
        fs::write(folder.path().join("precious"), "").unwrap();
        let refused = run(folder.path()).await.unwrap_err().to_string();
        // Another test, or an agent of this machine, may hold the namespace.
        assert!(refused.contains("is it the right --data-dir?") || refused.contains("another amphipod"), "{refused}");
        assert!(folder.path().join("precious").exists());
    }
}
