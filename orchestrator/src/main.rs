//! The `amphipod` binary: an API server, its controllers and scheduler, and a node's agent, in one process or apart.
//!
//! Entry points: [`cli`] (arguments, validated), [`control_plane`] (server, controllers, scheduler),
//! [`up`] (the same and the machine as a [`node`], in one process), [`agent_command`] (a node whose server is elsewhere).

mod agent_command;
mod claim;
mod cli;
mod cluster;
mod control_plane;
mod controllers;
mod doctor;
#[cfg(test)]
mod fleet;
mod inherited;
mod join;
mod kubeconfig;
mod leader;
mod machine;
mod names;
mod pod_ranges;
mod reset;
mod scheduler;
mod servers;
mod store_command;
mod store_full;
mod streams;
mod system_objects;
mod token;
mod token_command;
mod tunnel;
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
