//! Watchers that lose their connection while objects change, and go on where they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::resources::{many_files, on_all};
use super::{Server, changes};
use crate::http::{Api, Watch};
use crate::report::{Goal, Report, Row};

const WATCHERS: usize = 1000;
/// As long as each is away.
const AWAY: Duration = Duration::from_secs(30);
/// Changes go on for so long before anybody watches: the history is as full as it gets.
const LEAD: Duration = Duration::from_secs(60);
/// Within this they begin, and end.
const SPREAD: Duration = Duration::from_secs(20);
const PATH: &str = "/api/v1/namespaces/default/configmaps";

pub fn run(report: &mut Report) -> Result<()> {
    many_files()?;
    let server = Server::start(&[])?;
    let api = server.api()?;
    let expired = on_all(async {
        changes::prepare(&api).await?;
        let busy = LEAD + SPREAD + AWAY + SPREAD;
        let writer = {
            let api = api.clone();
            tokio::spawn(async move { changes::change(&api, busy).await })
        };
        tokio::time::sleep(LEAD).await;
        let expired = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for index in 0..WATCHERS {
            let (api, expired) = (api.clone(), expired.clone());
            tasks.push(tokio::spawn(async move {
                tokio::time::sleep(SPREAD.mul_f64(index as f64 / WATCHERS as f64)).await;
                if !resumes(&api).await? {
                    expired.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        writer.await??;
        Ok(expired.load(Ordering::Relaxed))
    })?;
    report.note(format!(
        "{WATCHERS} watchers of a kind that is one of ten that change 333 times a second in all, each away for {} s",
        AWAY.as_secs()
    ));
    report.row(
        Row::new("watchers that were told 410 when they came back", expired as f64, "").goal(Goal::ValueAtMost(0.0)),
    );
    Ok(())
}

/// Lists, goes away, and watches from there: whether that was possible.
async fn resumes(api: &Api) -> Result<bool> {
    let mut connection = api.connect().await?;
    let list: serde_json::Value =
        serde_json::from_slice(&connection.call("GET", &format!("{PATH}?limit=1"), Bytes::new()).await?)?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without a revision")?.to_owned();
    drop(connection);
    tokio::time::sleep(AWAY).await;
    let watch = Watch::start(api.connect().await?, &format!("{PATH}?watch=true&resourceVersion={revision}")).await;
    match watch {
        Ok(mut watch) => Ok(watch.next().await?["type"] != "ERROR"),
        Err(error) if error.to_string().contains("410") => Ok(false),
        Err(error) => Err(error),
    }
}
