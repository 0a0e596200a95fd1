//! Flags of `amphipod agent`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::node::{NodeArguments, local_address};
use crate::agent_command::Settings;
use crate::control_plane::PORT;
use crate::kubeconfig::host_port;
use crate::token::JoinToken;

#[derive(Args)]
pub struct AgentArguments {
    /// The cluster's API server: https://HOST[:PORT] [default port: 6443]
    #[arg(long, value_name = "URL")]
    server: String,
    /// Join token, until this machine has a certificate. Every user of this machine can see it in the list of processes: a file is better
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File that holds the join token; not read once this machine has a certificate that holds
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where this machine's certificate, its pods and images live
    #[arg(long, default_value = "/var/lib/amphipod")]
    data_dir: PathBuf,
    #[command(flatten)]
    node: NodeArguments,
    /// YAML file with these settings (`server: https://10.0.0.1:6443`); the command line wins
    #[arg(long)]
    config: Option<PathBuf>,
}

impl AgentArguments {
    pub fn settings(&self) -> Result<Settings> {
        let server = host_port(&self.server, PORT).context("--server")?;
        let machine = self.node.machine(&self.data_dir, || local_address(resolve(&server)?).map(Some))?;
        Ok(Settings { server, token: self.token()?, machine })
    }

    fn token(&self) -> Result<Option<JoinToken>> {
        let text = match (&self.token, &self.token_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => text,
                // Who has joined may do away with it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("--token-file {}", path.display())),
            },
            (None, None) => return Ok(None),
        };
        let flag = if self.token.is_some() { "--token" } else { "--token-file" };
        text.trim().parse().map(Some).context(flag)
    }
}

fn resolve(server: &str) -> Result<SocketAddr> {
    let first = server.to_socket_addrs().with_context(|| format!("--server: {server} is not found"))?.next();
    first.with_context(|| format!("--server: {server} has no address"))
}
