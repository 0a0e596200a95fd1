//! How far one server goes: many changes, many objects, many watchers, many nodes; several servers on one etcd.
//!
//! Each part has an `amphipod server` of its own on loopback, with its data in `target/`, and shares the machine with it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use apiserver::nodes::NoNodes;
use apiserver::server::Config;
use bytes::Bytes;
use clap::ValueEnum;
use client::https::Identity;
use tempfile::TempDir;

use crate::http::Api;
use crate::processes::{self, Peer};
use crate::report::Report;

mod changes;
mod clients;
mod nodes;
mod objects;
mod resources;
mod resumed;
mod servers;
mod watchers;

/// What is measured, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Updates a second by 32, 500, 5,000 clients
    Clients,
    /// Memory under 100,000 changes in five minutes, and six quiet minutes later
    Changes,
    /// Watchers that were away for half a minute under those changes
    Resumed,
    /// Memory and start with 10,000 pods, 1,000 Services, 10,000 endpoints
    Objects,
    /// 1,000 watchers of 100 changes a second
    Watchers,
    /// Three servers on one etcd, one of them killed under 32 writers
    Servers,
    /// 5,000 nodes with 100,000 pods
    Nodes,
}

pub use nodes::ALL_NODES;

/// Runs these parts, or all; the last with so many nodes.
pub fn run(parts: &[Part], nodes: usize) -> Result<Report> {
    let mut report = Report::new("scale")?;
    let wanted = |part: Part| parts.is_empty() || parts.contains(&part);
    for part in Part::value_variants().iter().copied().filter(|part| wanted(*part)) {
        println!("{part:?}");
        match part {
            Part::Clients => clients::run(&mut report)?,
            Part::Changes => changes::run(&mut report)?,
            Part::Resumed => resumed::run(&mut report)?,
            Part::Objects => objects::run(&mut report)?,
            Part::Watchers => watchers::run(&mut report)?,
            Part::Servers => servers::run(&mut report)?,
            Part::Nodes => nodes::run(&mut report, nodes)?,
        }
    }
    Ok(report)
}

/// An `amphipod server` on loopback. It is killed with this, and its data goes.
struct Server {
    process: Option<Peer>,
    folder: TempDir,
    /// Words beside the folder and the address.
    words: Vec<String>,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl Server {
    fn start(words: &[&str]) -> Result<Self> {
        let folder =
            tempfile::tempdir_in(e2e::workspace().join("target")).context("cannot make a folder for a server")?;
        let mut server = Self { process: None, folder, words: words.iter().map(|word| (*word).to_owned()).collect() };
        server.start_again()?;
        Ok(server)
    }

    /// Seconds until it is ready.
    fn start_again(&mut self) -> Result<f64> {
        let kubeconfig = self.kubeconfig();
        if kubeconfig.exists() {
            std::fs::remove_file(&kubeconfig).context("cannot remove the last start's kubeconfig")?;
        }
        let mut command = Command::new(e2e::workspace().join("target/release/amphipod"));
        command.args(["server", "--listen", "127.0.0.1:0", "--data-dir"]).arg(self.data());
        let began = Instant::now();
        self.process = Some(Peer::start(command.args(&self.words), &self.folder.path().join("log"))?);
        crate::http::block_on(async {
            loop {
                if let Ok(api) = Api::from_kubeconfig(&kubeconfig)
                    && let Ok(mut connection) = api.connect().await
                    && connection.call("GET", "/readyz", Bytes::new()).await.is_ok()
                {
                    return Ok(began.elapsed().as_secs_f64());
                }
                ensure!(began.elapsed() < PATIENCE, "the server does not become ready: {}", self.log());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    }

    /// Ends it at once.
    fn kill(&mut self) {
        self.process = None;
    }

    /// Certificates of this server's own for so many users of one group; it is ended and started again for that.
    fn identities(&mut self, count: usize, user: impl Fn(usize) -> String, group: &str) -> Result<Vec<Identity>> {
        self.kill();
        let store = self.data().join("store.redb");
        let issued = crate::http::block_on(async {
            let stopped = apiserver::server::Server::open(&Config::on_loopback(store), Arc::new(NoNodes)).await?;
            let issue = |index| {
                let issued = stopped.authority().client(&user(index), &[group])?;
                anyhow::Ok(Identity::Certificate { chain: issued.certificate, key: issued.key })
            };
            (0..count).map(issue).collect::<Result<Vec<_>>>()
        })?;
        self.start_again()?;
        Ok(issued)
    }

    fn api(&self) -> Result<Api> {
        Api::from_kubeconfig(&self.kubeconfig())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data().join("admin.kubeconfig")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Resident MiB (PSS).
    fn resident(&self) -> Result<f64> {
        Ok(processes::memory(self.pid()?, "Pss")? / 1024.0)
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the server does not run")?.pid())
    }
}
