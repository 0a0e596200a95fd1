//! How soon new connections follow a change of endpoints.

use std::net::SocketAddrV4;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::load::{Pick, visit};
use super::{OTHER_PORT, PORT, Setting};
use crate::host;
use crate::http::{Api, Connection, block_on};
use crate::objects::{self, SLICES};
use crate::report::{Goal, Report, Row};
use crate::stats::quantile;

const QUIET: usize = 200;
const BURST: usize = 1000;
const WRITERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// Number of a service, and the moment its change was acknowledged.
type Written = (usize, Instant);

pub fn measure(report: &mut Report, api: &Api, setting: &Setting, endpoint: &str) -> Result<()> {
    let services = setting.services.len();
    ensure!(last(&setting.services)?.port() == 80, "services listen elsewhere");
    report.note(
        "a change: one service's slice is written through the API to lead to another server; counted from the answer of the \
         API server until a connection begins that meets the other server (of a burst: looked at one after the other while \
         it is written)",
    );
    let mut quiet = Vec::new();
    let mut pick = Pick::new(7);
    for _ in 0..QUIET {
        let number = pick.below(services);
        let acknowledged = write(api, vec![(number, OTHER_PORT)], endpoint, None)?[0].1;
        quiet.push(followed(setting, vec![(number, acknowledged)], b'B')?[0]);
        write(api, vec![(number, PORT)], endpoint, None)?;
        followed(setting, vec![(number, Instant::now())], b'A')?;
    }
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        let what = format!("endpoint change → connections follow, {services} services, quiet, {name}");
        report.row(Row::new(what, quantile(&quiet, share), "ms").goal(Goal::ValueAtMost(5.0)));
    }
    let count = BURST.min(services);
    let (tell, told) = channel();
    let began = Instant::now();
    let changes = (0..count).map(|number| (number, OTHER_PORT)).collect();
    let (late, writing) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| write(api, changes, endpoint, Some(tell)).map(|_| began.elapsed()));
        let late = followed(setting, told, b'B');
        anyhow::Ok((late?, writing.join().map_err(|_| anyhow!("a writer panicked"))??))
    })?;
    ensure!(late.len() == count, "{} of {count} changes were followed", late.len());
    let what =
        format!("burst of {count} changes (written within {} ms): each follows its write within", writing.as_millis());
    report.row(Row::new(what, quantile(&late, 1.0), "ms").goal(Goal::ValueAtMost(250.0)));
    report.samples.push(("quiet change, ms".to_owned(), quiet));
    Ok(())
}

/// Writes slices over several connections; each with the moment of its acknowledgement.
fn write(api: &Api, changes: Vec<(usize, u16)>, endpoint: &str, tell: Option<Sender<Written>>) -> Result<Vec<Written>> {
    let (api, endpoint) = (api.clone(), endpoint.to_owned());
    host::join(host::inside(&node()?, move || {
        block_on(async {
            let parts: Vec<Vec<_>> = changes.chunks(changes.len().div_ceil(WRITERS)).map(<[_]>::to_vec).collect();
            let writers = parts.into_iter().map(|part| write_part(&api, part, &endpoint, tell.clone()));
            let mut written: Vec<_> = futures::future::try_join_all(writers).await?.concat();
            written.sort_by_key(|(_, at)| *at);
            Ok(written)
        })
    }))
}

async fn write_part(
    api: &Api,
    part: Vec<(usize, u16)>,
    endpoint: &str,
    tell: Option<Sender<Written>>,
) -> Result<Vec<Written>> {
    let mut connection: Connection = api.connect().await?;
    let mut written = Vec::new();
    for (number, port) in part {
        let path = format!("{SLICES}/{}", objects::name(number));
        connection.call("PUT", &path, objects::slice(number, endpoint, port).to_string().into()).await?;
        let done = (number, Instant::now());
        written.push(done);
        if let Some(tell) = &tell {
            tell.send(done)?;
        }
    }
    Ok(written)
}

/// Milliseconds from each moment until the service leads to the server of this letter; 0 when it did so before.
fn followed(
    setting: &Setting,
    changes: impl IntoIterator<Item = Written> + Send + 'static,
    letter: u8,
) -> Result<Vec<f64>> {
    let services = setting.services.clone();
    setting.client.run(move || {
        let mut times = Vec::new();
        for (number, acknowledged) in changes {
            let at = *services.get(number).context("a service without an address")?;
            let deadline = Instant::now() + PATIENCE;
            let seen = loop {
                let began = Instant::now();
                if visit(at)? == letter {
                    break began;
                }
                ensure!(began < deadline, "{at} does not follow its change");
            };
            times.push(seen.saturating_duration_since(acknowledged).as_secs_f64() * 1e3);
        }
        Ok(times)
    })
}

/// The node's namespace, where the API is reached.
fn node() -> Result<std::path::PathBuf> {
    let place = host::node(host::CLUSTER);
    ensure!(place.exists(), "the cluster has no node1");
    Ok(place)
}

/// The last part of an address list that is never empty.
fn last(addresses: &[SocketAddrV4]) -> Result<SocketAddrV4> {
    addresses.last().copied().context("there is no service")
}
