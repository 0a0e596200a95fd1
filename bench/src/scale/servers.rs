//! Three servers on one etcd, one of which is killed while clients write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use super::Server;
use super::resources::on_all;
use crate::api::etcd::{Etcd, putters};
use crate::http::{Api, Connection};
use crate::report::{Goal, Report, Row};
use crate::stats::median;

const SERVERS: usize = 3;
const WRITERS: usize = 32;
/// Before the kill, and after it.
const TIME: Duration = Duration::from_secs(10);
/// A call that takes longer goes to another server.
const PATIENCE: Duration = Duration::from_secs(2);
const PATH: &str = "/api/v1/namespaces/default/configmaps";

pub fn run(report: &mut Report) -> Result<()> {
    let etcd = Etcd::start(None)?;
    // Whoever puts something knows that it answers.
    on_all(putters(&etcd.endpoint(), 1, 1))?;
    let store = etcd.endpoint().replace("http://", "etcd://");
    let mut servers = (0..SERVERS).map(|_| Server::start(&["--store", &store])).collect::<Result<Vec<_>>>()?;
    let apis = servers.iter().map(Server::api).collect::<Result<Vec<_>>>()?;
    let written = on_all(async {
        let killed = Instant::now() + TIME;
        let writing: Vec<_> =
            (0..WRITERS).map(|index| tokio::spawn(write(apis.clone(), index, killed, killed + TIME))).collect();
        tokio::time::sleep_until(killed.into()).await;
        servers[0].kill();
        let mut written = Vec::new();
        for writer in writing {
            written.push(writer.await??);
        }
        let mut reader = apis[1].connect().await?;
        for (index, written) in written.iter().enumerate() {
            let object = reader.get(&format!("{PATH}/{}", name(index))).await?;
            let count: u64 = object["data"]["count"].as_str().context("no count")?.parse()?;
            ensure!(
                count >= written.acknowledged,
                "writer {index}: {count} is there, {} was acknowledged",
                written.acknowledged
            );
        }
        Ok(written)
    })?;
    let calls: u64 = written.iter().map(|written| written.acknowledged).sum();
    let pauses: Vec<f64> = written.iter().map(|written| written.pause.as_secs_f64()).collect();
    report.note(format!(
        "{SERVERS} servers on one etcd: {calls} writes acknowledged, none lost when one server was killed"
    ));
    report.row(Row::new("servers: longest pause of a writer over a kill, median", median(&pauses), "s"));
    let longest = pauses.iter().copied().fold(0.0, f64::max);
    report.row(
        Row::new("servers: longest pause of a writer over a kill, most", longest, "s").goal(Goal::ValueAtMost(5.0)),
    );
    Ok(())
}

struct Written {
    /// The last count that a server said it has.
    acknowledged: u64,
    /// The longest time without such an answer, from the kill on.
    pause: Duration,
}

fn name(index: usize) -> String {
    format!("writer-{index:02}")
}

/// Counts in an object of its own, at whichever server answers.
async fn write(servers: Vec<Api>, index: usize, killed: Instant, end: Instant) -> Result<Written> {
    let mut at = index % servers.len();
    let mut connection: Option<Connection> = None;
    let mut written = Written { acknowledged: 0, pause: Duration::ZERO };
    let mut last = Instant::now();
    while Instant::now() < end {
        let call = async {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(servers[at].connect().await?),
            };
            set(connection, index, written.acknowledged + 1).await
        };
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(())) => {
                written.acknowledged += 1;
                if Instant::now() > killed {
                    written.pause = written.pause.max(last.max(killed).elapsed());
                }
                last = Instant::now();
            }
            Ok(Err(_)) | Err(_) => {
                connection = None;
                at = (at + 1) % servers.len();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    ensure!(last > killed, "writer {index} did not go on");
    Ok(written)
}

/// Makes the object with its first count, and changes it from then on.
async fn set(connection: &mut Connection, index: usize, count: u64) -> Result<()> {
    let object: Value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(index)},
        "data": {"count": count.to_string()}});
    let body: Bytes = object.to_string().into();
    let path = format!("{PATH}/{}", name(index));
    match connection.call("PUT", &path, body.clone()).await {
        Err(error) if error.to_string().contains("404") => connection.call("POST", PATH, body).await.map(drop),
        outcome => outcome.map(drop),
    }
}
