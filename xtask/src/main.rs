//! Developer commands: `cargo xtask help` lists them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cluster;
mod demo;
mod deny;
mod ebpf;
mod forward;
mod netns;
mod setup;
mod test;
mod vm;

use cluster::{Cluster, Families};

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
    /// Build the amphipod binary (release)
    Build {
        /// The release after this one instead, for tests of an upgrade (a debug build)
        #[arg(long)]
        next_release: bool,
    },
    /// Build the BPF object that is embedded in the binary
    BuildEbpf {
        /// Only compare a fresh build with the committed object
        #[arg(long)]
        check: bool,
    },
    /// Build the test images and push them to a registry
    Images {
        /// Where the registry listens (host:port, plain HTTP)
        registry: String,
    },
    /// Test clusters in network namespaces
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Show the main job: pods, services, names, an update and a rollback
    Demo {
        /// Leave the cluster up afterwards
        #[arg(long)]
        keep: bool,
    },
    /// Run every test: unit, kernel, end to end
    Test {
        /// The long ones too: power cuts, emulated machines, a disturbed cluster
        #[arg(long)]
        full: bool,
    },
    /// Measure beside the references: service, pods, api, footprint, dns; `cargo xtask bench NAME --help` for its settings
    #[command(disable_help_flag = true)]
    Bench {
        /// Name of the bench, and its settings
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Disturb a working cluster at random and check that nothing acknowledged is lost, nothing broken, nothing left
    Soak {
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Makes the choices of an earlier run again
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Run a command on emulated machines with systemd, cgroup v2 and Debian's kernels
    Vm(vm::Arguments),
    /// Check dependencies: licences, sources, crates that strangers can reach; advisories where RustSec's data is
    Deny,
    /// Carry connections from a listener on standard input
    #[command(hide = true)]
    Forward { to: String },
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Bring a cluster up
    Up {
        #[arg(long, default_value_t = 1)]
        nodes: usize,
        #[arg(long)]
        name: String,
        /// Which addresses nodes, pods and services have
        #[arg(long, value_enum, default_value_t)]
        families: Families,
        /// Another release than `target/release/amphipod`
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Run a command on a node, or on the client outside
    Exec {
        name: String,
        /// node1, node2, … or client
        place: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Kill a node's amphipod (SIGKILL); its pods run on
    Kill { name: String, place: String },
    /// Stop a node's amphipod (SIGTERM); its pods run on
    Stop { name: String, place: String },
    /// Start a node's amphipod again
    Start {
        name: String,
        place: String,
        /// Another release than `target/release/amphipod`
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Take a cluster down
    Down { name: String },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Setup => setup::setup()?,
        Command::Build { next_release: false } => drop(build::build()?),
        Command::Build { next_release: true } => build::next_release()?,
        Command::BuildEbpf { check: true } => ebpf::check_ebpf()?,
        Command::BuildEbpf { check: false } => ebpf::build_ebpf()?,
        Command::Images { registry } => {
            for reference in images::images(&registry, None, Path::new("target/images"))? {
                println!("{registry}/{reference}");
            }
        }
        Command::Cluster { command } => return run_cluster(command),
        Command::Demo { keep: false } => demo::demo(demo::Afterwards::Down)?,
        Command::Demo { keep: true } => demo::demo(demo::Afterwards::Kept)?,
        Command::Test { full: false } => test::test(test::Extent::Usual)?,
        Command::Test { full: true } => test::test(test::Extent::Full)?,
        Command::Soak { minutes, seed } => test::soak(minutes, seed)?,
        Command::Bench { words } => bench::bench(&words)?,
        Command::Vm(arguments) => return vm::run(&arguments),
        Command::Deny => deny::deny()?,
        Command::Forward { to } => forward::forward(&to)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_cluster(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Up { nodes, name, families, binary } => {
            setup::setup()?;
            let cluster = Cluster::new(&name)?;
            let binary = binary.map_or_else(build::build, Ok)?;
            cluster.up(nodes, families, &binary, &|step| println!("• {step}"))?;
            println!("• ready: kubectl --kubeconfig {} get pods", cluster.kubeconfig().display());
        }
        ClusterCommand::Exec { name, place, command } => {
            let status = Cluster::new(&name)?.exec(&place, &command)?;
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from));
        }
        ClusterCommand::Kill { name, place } => Cluster::new(&name)?.signal(&place, "-KILL")?,
        ClusterCommand::Stop { name, place } => Cluster::new(&name)?.signal(&place, "-TERM")?,
        ClusterCommand::Start { name, place, binary } => {
            Cluster::new(&name)?.start(&place, &binary.unwrap_or_else(build::binary))?;
        }
        ClusterCommand::Down { name } => Cluster::new(&name)?.down()?,
    }
    Ok(ExitCode::SUCCESS)
}
