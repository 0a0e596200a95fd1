//! A DNS server over made-up services, to be measured with `dnsperf` beside others:
//! `cargo run --release -p dns --example serve_names -- 127.0.0.1:5300 10000` serves `s0` … `s9999` in `default.svc.cluster.local`.

use std::error::Error;

use dns::{Autopath, Config, QueryLog, Server, Snapshot, Sockets};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen: std::net::SocketAddr = arguments.next().ok_or("where to listen?")?.parse()?;
    let count: u32 = arguments.next().ok_or("how many services?")?.parse()?;
    let service = |index: u32| {
        let ip = std::net::Ipv4Addr::from(0x0a60_0001 + index);
        json!({"metadata": {"namespace": "default", "name": format!("s{index}")}, "spec": {"clusterIPs": [ip], "ports": []}})
    };
    let services: Vec<_> = (0..count).map(|index| serde_json::from_value(service(index))).collect::<Result<_, _>>()?;
    let clients = vec!["127.0.0.0/8".parse()?];
    let config = Config {
        domain: "cluster.local".into(),
        node: "example".into(),
        pods: Vec::new(),
        servers: Vec::new(),
        upstreams: Vec::new(),
        stubs: Vec::new(),
        clients,
        log: QueryLog::Off,
        autopath: Autopath::Off,
    };
    let server = Server::start(config, Sockets::bind(listen)?)?;
    server.publish(Snapshot::compute(["default".to_owned()], &services, &[]));
    println!("{count} services on {}", server.address());
    server.broken().await;
    Err("the server ended".into())
}
