//! The `amphipod` binary: an API server, its controllers and scheduler, and a node's agent, in one process or apart.
//!
//! Entry points: [`cli`] (arguments, validated), [`control_plane`] (server, controllers, scheduler).

mod cli;
mod control_plane;
mod controllers;
mod events;
mod scheduler;

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
