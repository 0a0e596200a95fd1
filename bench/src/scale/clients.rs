//! Updates a second by ever more clients, each somebody of its own on a connection of its own.

use anyhow::Result;

use super::Server;
use super::resources::{many_files, on_all};
use crate::api::{NAMESPACE, Writer, race};
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired};

/// Rising; the first is what the others are held against.
const COUNTS: [usize; 3] = [32, 500, 5000];
const ROUNDS: usize = 15;
/// Connections made at a time: a handshake costs more than an update.
const AT_ONCE: usize = 64;

pub fn run(report: &mut Report) -> Result<()> {
    many_files()?;
    let mut server = Server::start(&[])?;
    let identities = server.identities(COUNTS[2], |index| format!("client-{index}"), "system:masters")?;
    let api = server.api()?;
    let rates = on_all(async {
        let mut writers = Vec::new();
        for (chunk, some) in identities.chunks(AT_ONCE).enumerate() {
            let made = some.iter().enumerate().map(async |(index, identity)| {
                Writer::new(&api.of(identity)?, NAMESPACE, &format!("c-{}", chunk * AT_ONCE + index)).await
            });
            writers.extend(futures::future::try_join_all(made).await?);
        }
        let mut rates: [Vec<f64>; COUNTS.len()] = Default::default();
        // The first round warms up; who comes first changes.
        for round in 0..=ROUNDS {
            let mut order = [0, 1, 2];
            order.rotate_left(round % 3);
            for place in order {
                let rest = writers.split_off(COUNTS[place]);
                let (back, rate) = race(std::mem::take(&mut writers), Writer::write).await?;
                writers = back;
                writers.extend(rest);
                if round > 0 {
                    rates[place].push(rate);
                }
            }
        }
        Ok(rates)
    })?;
    let [few, rest @ ..] = rates;
    report.row(Row::new(format!("updates, {} clients", COUNTS[0]), median(&few), "1/s"));
    for (count, rates) in COUNTS[1..].iter().zip(rest) {
        let row = Row::new(format!("updates, {count} clients"), median(&rates), "1/s");
        let beside = row.beside(format!("{} clients", COUNTS[0]), median(&few), paired(&rates, &few));
        report.row(beside.goal(Goal::RatioAtLeast(0.8)));
    }
    Ok(())
}
