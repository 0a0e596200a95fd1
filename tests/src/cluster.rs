//! A running test cluster, its nodes, and the outside.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::{Kubectl, succeeded, workspace, xtask};

/// A running test cluster; taken down when dropped.
pub struct Cluster {
    name: String,
    nodes: Vec<Node>,
    client: Place,
    kubectl: Kubectl,
    binary: PathBuf,
}

/// One machine of a cluster.
#[derive(Debug, Deserialize)]
pub struct Node {
    pub name: String,
    /// First the one by which it is known.
    pub ips: Vec<String>,
    /// As text: it goes into command lines.
    pub data_dir: String,
    pub log: PathBuf,
    #[serde(flatten)]
    place: Place,
}

/// A network namespace where commands run.
#[derive(Debug, Deserialize)]
pub struct Place {
    netns: String,
}

/// What `cluster up` writes about what it made.
#[derive(Deserialize)]
struct Made {
    kubeconfig: String,
    nodes: Vec<Node>,
    client: Place,
}

/// What a cluster is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The first one has the server.
    pub nodes: usize,
    /// `ipv4`, `dual` or `ipv6`.
    pub families: &'a str,
    /// Another release than `target/release/amphipod`.
    pub binary: Option<&'a Path>,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self { nodes: 1, families: "ipv4", binary: None }
    }
}

impl Cluster {
    /// Brings up a cluster of one node. One of this name that an earlier run left is taken down first.
    ///
    /// # Errors
    /// As for [`Cluster::up_as`].
    pub fn up(name: &str) -> Result<Self> {
        Self::up_as(name, Wanted::default())
    }

    /// Brings up such a cluster. One of this name that an earlier run left is taken down first.
    ///
    /// # Errors
    /// When an earlier cluster of this name cannot be taken down, or this one not be brought up. What is left of it goes with the
    /// next try.
    pub fn up_as(name: &str, wanted: Wanted<'_>) -> Result<Self> {
        let folder = workspace().join("target/clusters").join(name);
        if folder.exists() {
            xtask(&["cluster", "down", name])?;
        }
        let nodes = wanted.nodes.to_string();
        let mut words = vec!["cluster", "up", "--nodes", &nodes, "--name", name, "--families", wanted.families];
        let binary = wanted.binary.map(|binary| binary.display().to_string());
        words.extend(binary.iter().flat_map(|binary| ["--binary", binary]));
        xtask(&words)?;
        let path = folder.join("cluster.json");
        let read = || -> Result<Made> { Ok(serde_json::from_str(&std::fs::read_to_string(&path)?)?) };
        let made = read().with_context(|| format!("cannot read {}", path.display()))?;
        let kubectl = Kubectl::new(&made.kubeconfig, "default");
        let binary = wanted.binary.map_or_else(|| workspace().join("target/release/amphipod"), Path::to_owned);
        Ok(Self { name: name.to_owned(), nodes: made.nodes, client: made.client, kubectl, binary })
    }

    /// Takes the cluster down, which its end would do as well, but without telling of failures.
    ///
    /// # Errors
    /// When something of it cannot be removed; the next [`Cluster::up`] of its name tries again.
    pub fn down(self) -> Result<()> {
        let name = self.name.clone();
        std::mem::forget(self);
        xtask(&["cluster", "down", &name])
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The first node, which has the API server.
    pub fn node(&self) -> &Node {
        &self.nodes[0]
    }

    /// Outside, on the same link as the nodes.
    pub fn client(&self) -> &Place {
        &self.client
    }

    pub fn node_ip(&self) -> &str {
        &self.node().ips[0]
    }

    /// The release that runs there.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs a command of this release on the node.
    ///
    /// # Errors
    /// As for [`Place::run`].
    pub fn amphipod(&self, arguments: &[&str]) -> Result<String> {
        self.node().run(&self.binary.display().to_string(), arguments)
    }

    /// The node's folder of sockets.
    pub fn run_dir(&self) -> String {
        format!("/run/amphipod-{}/{}", self.name, self.node().name)
    }

    pub fn data_dir(&self) -> &str {
        &self.node().data_dir
    }
}

/// kubectl in the default namespace.
impl Deref for Cluster {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only on the way out of a failure: what went wrong before matters more.
        if let Err(error) = xtask(&["cluster", "down", &self.name]) {
            eprintln!("taking the cluster down: {error:#}");
        }
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Node {
    /// What the node's programs hold, read past the agent.
    ///
    /// # Errors
    /// When the node's `places.json` cannot be read or names no folder of pins, or that holds no maps of this release's layout.
    pub fn kernel(&self) -> Result<proxy_userspace::Pinned> {
        let path = Path::new(&self.data_dir).join("places.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let places: Value = serde_json::from_str(&text)?;
        let root = places["bpf_root"].as_str().context("places.json names no bpf_root")?;
        proxy_userspace::Pinned::open(Path::new(root)).with_context(|| format!("cannot open the maps of {root}"))
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Place {
    /// The namespace, to be entered.
    ///
    /// # Errors
    /// When the namespace is not there.
    pub fn netns(&self) -> Result<File> {
        let path = Path::new("/run/netns").join(&self.netns);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program to its end; its standard output.
    ///
    /// # Errors
    /// When the program cannot be started or fails: with the command and what it wrote to standard error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program, arguments).output().with_context(|| format!("cannot run {program}"))?;
        succeeded(output, &format!("{}: {program} {}", self.netns, arguments.join(" ")))
    }

    /// A page over HTTP, fetched within five seconds.
    ///
    /// # Errors
    /// As for [`Place::run`]: also for a status of 400 and more.
    pub fn fetch(&self, url: &str) -> Result<String> {
        self.run("curl", &["--silent", "--show-error", "--fail", "--max-time", "5", url])
    }
}
