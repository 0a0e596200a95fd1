//! An API server alone: no controllers, no nodes. What the durability test kills, and what a replay by hand talks to.
//!
//! `serve --data-dir DIR --listen ADDRESS` writes `DIR/admin.kubeconfig` and serves until it is killed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| arguments.iter().skip_while(|given| *given != flag).nth(1);
    let data_dir = PathBuf::from(value("--data-dir").ok_or("--data-dir DIR is needed")?);
    let listen: SocketAddr = value("--listen").map_or("127.0.0.1:0", String::as_str).parse()?;
    let config = Config { listen, ..Config::on_loopback(data_dir.join("store.redb")) };
    let server = Server::open(&config, Arc::new(NoNodes)).await?;
    let kubeconfig = server.admin_kubeconfig(&server.address().to_string())?;
    // Renamed into place: who waits for the file reads all of it.
    std::fs::write(data_dir.join("admin.kubeconfig.new"), kubeconfig)?;
    std::fs::rename(data_dir.join("admin.kubeconfig.new"), data_dir.join("admin.kubeconfig"))?;
    Ok(server.serve(CancellationToken::new()).await?)
}
