//! Developer commands: `cargo xtask help` lists them.

use std::path::Path;

use clap::{Parser, Subcommand};

mod ebpf;
mod setup;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build and try Amphipod")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing (through apt and cargo), saying what and why
    Setup,
    /// Build the BPF object that is embedded in the binary
    BuildEbpf {
        /// Only compare a fresh build with the committed object
        #[arg(long)]
        check: bool,
    },
    /// Build the test images and push them to a registry
    Images {
        /// Where the registry listens
        registry: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::setup(),
        Command::BuildEbpf { check: true } => ebpf::check_ebpf(),
        Command::BuildEbpf { check: false } => ebpf::build_ebpf(),
        Command::Images { registry } => {
            for reference in images::images(&registry, None, Path::new("target/images"))? {
                println!("{registry}/{reference}");
            }
            Ok(())
        }
    }
}
