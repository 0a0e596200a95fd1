//! A real etcd of one member on loopback, and clients that put into it over gRPC.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::processes::Peer;

const CLIENT_PORT: u16 = 23790;
const PEER_PORT: u16 = 23800;

pub struct Etcd {
    _process: Peer,
    _folder: TempDir,
}

impl Etcd {
    /// In this process's network namespace or another one, its data on the same disk as the servers'.
    pub fn start(netns: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir_in(e2e::workspace().join("target")).context("cannot make a folder for etcd")?;
        let (client, peer) = (format!("http://127.0.0.1:{CLIENT_PORT}"), format!("http://127.0.0.1:{PEER_PORT}"));
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.display())).args(["--", "etcd"]);
                command
            }
            None => Command::new("etcd"),
        };
        command.args(["--name", "bench", "--data-dir"]).arg(folder.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("bench={peer}"), "--log-level", "error"]);
        let process = Peer::start(&mut command, &folder.path().join("log"))?;
        Ok(Self { _process: process, _folder: folder })
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{CLIENT_PORT}")
    }
}

/// `etcdserverpb.PutRequest`, the fields used here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// One client and the key it keeps changing.
pub struct Putter {
    client: tonic::client::Grpc<Channel>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Putter {
    pub async fn put(&mut self) -> Result<()> {
        let request = PutRequest { key: self.key.clone(), value: self.value.clone() };
        self.client.ready().await.context("etcd is gone")?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        self.client.unary(tonic::Request::new(request), path, codec).await.context("etcd refuses a put")?;
        Ok(())
    }
}

/// Clients on a connection each, once etcd answers.
pub async fn putters(endpoint: &str, count: usize, payload: usize) -> Result<Vec<Putter>> {
    let mut putters = Vec::new();
    for index in 0..count {
        let channel = connect(endpoint).await?;
        let (key, value) = (format!("/bench/{index}").into_bytes(), vec![b'x'; payload]);
        putters.push(Putter { client: tonic::client::Grpc::new(channel), key, value });
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = putters[0].put().await {
        ensure!(Instant::now() < deadline, "etcd does not become ready: {error:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(putters)
}

async fn connect(endpoint: &str) -> Result<Channel> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true).connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) => {
                ensure!(Instant::now() < deadline, "etcd does not answer at {endpoint}: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
