//! Many watchers of a kind that changes often: when the last of them has heard of each change.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::json;

use super::Server;
use super::resources::{many_files, on_all};
use crate::http::Api;
use crate::report::{Goal, Report, Row};
use crate::stats::quantile;

const WATCHERS: usize = 1000;
/// Changes a second.
const RATE: u32 = 100;
const CHANGES: usize = 3000;
/// Text in the object that changes, bytes.
const TEXT: usize = 1000;
/// Connections made at a time.
const AT_ONCE: usize = 64;
const PATH: &str = "/api/v1/namespaces/default/configmaps";
const PATIENCE: Duration = Duration::from_secs(120);

/// When a change was sent, how many have yet to hear of it, and when the last had (nanoseconds since the beginning).
struct Heard {
    began: Instant,
    sent: Vec<OnceLock<Instant>>,
    missing: Vec<AtomicU32>,
    last: Vec<AtomicU64>,
}

pub fn run(report: &mut Report) -> Result<()> {
    many_files()?;
    let server = Server::start(&[])?;
    let api = server.api()?;
    let heard = Arc::new(Heard {
        began: Instant::now(),
        sent: (0..CHANGES).map(|_| OnceLock::new()).collect(),
        missing: (0..CHANGES).map(|_| AtomicU32::new(WATCHERS as u32)).collect(),
        last: (0..CHANGES).map(|_| AtomicU64::new(0)).collect(),
    });
    let (before, after) = on_all(async {
        let mut connection = api.connect().await?;
        let object = |count: usize| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "watched"},
                "data": {"text": format!("{count:0>TEXT$}")}})
        };
        let made = connection.create(PATH, &object(0)).await?;
        let revision = made["metadata"]["resourceVersion"].as_str().context("no revision")?.to_owned();
        let mut tasks = Vec::new();
        for from in (0..WATCHERS).step_by(AT_ONCE) {
            let opened = (from..WATCHERS.min(from + AT_ONCE)).map(async |_| watch(&api, &revision).await);
            for body in futures::future::try_join_all(opened).await? {
                tasks.push(tokio::spawn(count(body, heard.clone())));
            }
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = server.resident()?;
        let began = tokio::time::Instant::now();
        for index in 0..CHANGES {
            tokio::time::sleep_until(began + Duration::from_secs(1) / RATE * u32::try_from(index)?).await;
            ensure!(heard.sent[index].set(Instant::now()).is_ok(), "a change is sent once");
            connection.call("PUT", &format!("{PATH}/watched"), object(index + 1).to_string().into()).await?;
        }
        let took = began.elapsed();
        let rate = CHANGES as f64 / took.as_secs_f64();
        println!("  {CHANGES} changes in {:.1} s ({rate:.0}/s)", took.as_secs_f64());
        for task in tasks {
            tokio::time::timeout(PATIENCE, task).await.context("a watcher misses events")???;
        }
        Ok((before, server.resident()?))
    })?;
    let times: Vec<f64> = (0..CHANGES)
        .filter_map(|index| {
            let last = heard.began + Duration::from_nanos(heard.last[index].load(Ordering::Relaxed));
            Some(last.duration_since(*heard.sent[index].get()?).as_secs_f64() * 1e3)
        })
        .collect();
    let what = format!("{WATCHERS} watchers, {RATE} changes/s of 1 KB, TLS: from a write to the last event");
    report.row(Row::new(format!("{what}, p50"), quantile(&times, 0.5), "ms"));
    report.row(Row::new(format!("{what}, p99"), quantile(&times, 0.99), "ms").goal(Goal::ValueAtMost(100.0)));
    report.row(Row::new("resident after those changes, above before", after - before, "MiB"));
    Ok(())
}

async fn watch(api: &Api, revision: &str) -> Result<hyper::body::Incoming> {
    let path = format!("{PATH}?watch=true&resourceVersion={revision}&fieldSelector=metadata.name%3Dwatched");
    Ok(api.connect().await?.send("GET", &path, Bytes::new()).await?.into_body())
}

/// Counts lines: the how manieth is the change.
async fn count(mut body: hyper::body::Incoming, heard: Arc<Heard>) -> Result<()> {
    let mut index = 0;
    while index < CHANGES {
        let frame = body.frame().await.context("a watch ended")??;
        let Some(data) = frame.data_ref() else { continue };
        let now = u64::try_from(heard.began.elapsed().as_nanos())?;
        for _ in data.iter().filter(|byte| **byte == b'\n') {
            if heard.missing[index].fetch_sub(1, Ordering::Relaxed) == 1 {
                heard.last[index].store(now, Ordering::Relaxed);
            }
            index += 1;
        }
    }
    Ok(())
}
