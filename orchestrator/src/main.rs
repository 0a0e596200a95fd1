//! The `amphipod` binary: an API server, its controllers and scheduler, and a node's agent, in one process or apart.
//!
//! Entry points: [`cli`] (arguments, validated), [`control_plane`] (server, controllers, scheduler),
//! [`node`] (agent, network, service path, DNS), [`up`] (both in one process).

mod claim;
mod cli;
mod conditions;
mod control_plane;
mod controllers;
mod doctor;
mod heartbeat;
mod inherited;
mod leader;
mod node;
mod reset;
mod scheduler;
mod servers;
mod store_command;
mod store_full;
mod system_objects;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("amphipod: {error:#}");
            ExitCode::FAILURE
        }
    }
}
