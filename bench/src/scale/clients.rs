//! Updates a second by ever more clients, each on a connection of its own.

use anyhow::Result;

use super::{Server, many_files, on_all};
use crate::api::{Writer, race};
use crate::report::{Goal, Report, Row};
use crate::stats::{median, paired};

const FEW: usize = 32;
const MANY: [usize; 2] = [500, 5000];
const ROUNDS: usize = 6;
/// Connections made at a time: a handshake costs more than an update.
const AT_ONCE: usize = 64;

pub fn run(report: &mut Report) -> Result<()> {
    many_files()?;
    let server = Server::start(&[])?;
    let api = server.api()?;
    let few = on_all(async {
        let all = MANY[1];
        let mut writers = Vec::new();
        for from in (0..all).step_by(AT_ONCE) {
            let made =
                (from..all.min(from + AT_ONCE)).map(async |index| Writer::new(&api, &format!("c-{index}")).await);
            writers.extend(futures::future::try_join_all(made).await?);
        }
        let mut rates: [Vec<f64>; 1 + MANY.len()] = Default::default();
        // The first round warms up; who comes first changes.
        for round in 0..=ROUNDS {
            let mut order = [0, 1, 2];
            order.rotate_left(round % 3);
            for place in order {
                let count = if place == 0 { FEW } else { MANY[place - 1] };
                let rest = writers.split_off(count);
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
    let [few, rest @ ..] = few;
    report.row(Row::new(format!("updates, {FEW} clients"), median(&few), "1/s"));
    for (count, rates) in MANY.into_iter().zip(rest) {
        let row = Row::new(format!("updates, {count} clients"), median(&rates), "1/s");
        let beside = row.beside(format!("{FEW} clients"), median(&few), paired(&rates, &few));
        report.row(beside.goal(Goal::RatioAtLeast(0.8)));
    }
    Ok(())
}
