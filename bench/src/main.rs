//! `cargo xtask bench`: measurements beside the references, each pair in alternating rounds of one run.
//!
//! Every bench fills a [`report::Report`]: rows with goals, paired ratios with their 95 % bound, and bars for the plot.
//! It is written to `target/bench/` as Markdown, JSON and SVG.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod api;
mod before;
mod dns;
mod footprint;
mod host;
mod http;
mod objects;
mod pods;
mod processes;
mod report;
mod scale;
mod service;
mod stats;

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measure, beside the references")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand, Clone)]
enum Bench {
    /// Another release beside this one: starts, memory, pods, services, the API
    Before {
        /// The other release's binary
        #[arg(long)]
        binary: PathBuf,
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// Only these parts
        parts: Vec<before::Part>,
    },
    /// Latency through services: a plain bridge, kube-proxy's layouts in iptables and nftables, changes
    Service {
        /// The most services: scales are 1, 1000 and this
        #[arg(long, default_value_t = 10_000)]
        services: usize,
        /// Alternating rounds for each figure
        #[arg(long, default_value_t = 24)]
        rounds: usize,
    },
    /// From the API write to running containers; one container beside runc
    Pods {
        /// Pods created one after the other
        #[arg(long, default_value_t = 50)]
        pods: usize,
    },
    /// Updates beside etcd, reads under load, a list of 5,000 pods
    Api {
        /// Rounds of a few seconds each
        #[arg(long, default_value_t = 6)]
        rounds: usize,
    },
    /// Time to ready, memory, idle CPU
    Footprint {
        /// How long idleness is watched
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// How far one server goes: many changes, objects, watchers, nodes
    Scale {
        /// Only these parts
        parts: Vec<scale::Part>,
        /// Simulated nodes; fewer of them have their share of pods and changes
        #[arg(long, default_value_t = scale::ALL_NODES)]
        nodes: usize,
    },
    /// Cluster names beside unbound, dnsmasq and, where found, CoreDNS
    Dns {
        #[arg(long, default_value_t = 10_000)]
        services: usize,
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> Result<()> {
    let report = match bench {
        Bench::Before { binary, rounds, parts } => before::run(&binary.canonicalize()?, rounds, &parts)?,
        Bench::Service { services, rounds } => service::run(services, rounds)?,
        Bench::Pods { pods } => pods::run(pods)?,
        Bench::Api { rounds } => api::run(rounds)?,
        Bench::Footprint { seconds } => footprint::run(seconds)?,
        Bench::Scale { parts, nodes } => scale::run(&parts, nodes)?,
        Bench::Dns { services, rounds } => dns::run(services, rounds)?,
    };
    report.write(&e2e::workspace().join("target/bench"))
}
