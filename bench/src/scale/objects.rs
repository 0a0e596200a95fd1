//! A server with many objects: what it holds in memory, and how soon it is there again.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::Server;
use super::resources::on_all;
use crate::http::create_all;
use crate::objects::{SERVICES, SLICES, name, service};
use crate::report::{Goal, Report, Row};
use crate::stats::median;

const PODS: usize = 10_000;
const ALL_SERVICES: usize = 1000;
/// Of each service.
const ENDPOINTS: usize = 10;
const STARTS: usize = 5;
const SETTLE: Duration = Duration::from_secs(10);

pub fn run(report: &mut Report) -> Result<()> {
    let mut server = Server::start(&[])?;
    let api = server.api()?;
    on_all(async {
        let pods = (0..PODS).map(|index| crate::api::waiting_pod(&format!("pod-{index:05}"), 0)).collect();
        create_all(&api, "/api/v1/namespaces/default/pods", pods).await?;
        create_all(&api, SERVICES, (0..ALL_SERVICES).map(service).collect()).await?;
        create_all(&api, SLICES, (0..ALL_SERVICES).map(slice).collect()).await
    })?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        server.kill();
        starts.push(server.start_again()?);
    }
    std::thread::sleep(SETTLE);
    let what = format!("{PODS} pods, {ALL_SERVICES} services, {} endpoints", ALL_SERVICES * ENDPOINTS);
    report.row(Row::new(format!("resident with {what}"), server.resident()?, "MiB").goal(Goal::ValueAtMost(200.0)));
    report.row(Row::new(format!("start with {what}, after a kill"), median(&starts), "s").goal(Goal::ValueAtMost(2.0)));
    Ok(())
}

/// All endpoints of a service.
fn slice(number: usize) -> serde_json::Value {
    let endpoint = |index: usize| {
        let address = format!("10.244.{}.{}", number / 25, number % 25 * 10 + index);
        json!({"addresses": [address], "conditions": {"ready": true}})
    };
    let mut slice = crate::objects::slice(number, "10.244.0.1", 8080);
    slice["metadata"]["name"] = format!("{}-1", name(number)).into();
    slice["endpoints"] = (0..ENDPOINTS).map(endpoint).collect();
    slice
}
