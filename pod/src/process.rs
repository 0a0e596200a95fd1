//! The pod process itself: set-up, then one `poll(2)` loop until the agent says `Exit`.
//!
//! `setup` makes the namespaces; `server` is the loop and the table of operations; `container` one container from
//! create to exit, `workload` its first process, `diary` why it could not begin; `exec` one more process in it; `log` the CRI log; `cgroup` and `sys` what they lean on.

mod capabilities;
mod cgroup;
mod confine;
mod container;
mod diary;
mod exec;
mod filter;
mod hierarchies;
mod log;
mod program;
mod server;
mod setup;
mod sys;
mod users;
mod workload;

use std::io::{self, Read as _, Write as _};

use crate::protocol::Setup;
use crate::step::Step;

/// Runs a pod process as the setup on its standard input says. It daemonises: the caller's child ends as soon as the
/// fork is done, and the pod process writes `ready` (or what went wrong) on its standard output and closes it. Its
/// arguments say nothing but whose it is, for those who list processes.
pub fn run() -> i32 {
    let setup = match begin() {
        Ok(setup) => setup,
        Err(error) => {
            eprintln!("amphipod-pod is started by the amphipod agent, which writes its setup to it: {error}");
            return 2;
        }
    };
    match sys::daemonise() {
        Ok(sys::Fork::Parent) => return 0,
        Ok(sys::Fork::Child) => {}
        Err(error) => return report(&format!("fork: {error}")),
    }
    let started = setup::prepare(&setup).map(|pod| (setup, pod));
    let (setup, pod) = match started {
        Ok(started) => started,
        Err(error) => return report(&error.to_string()),
    };
    let server = match server::Server::new(setup, pod) {
        Ok(server) => server,
        Err(error) => return report(&error.to_string()),
    };
    report("ready");
    Step::SayReady.done();
    sys::close_stdout();
    match server.serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("pod process: {error}");
            1
        }
    }
}

/// Whatever descriptors the caller left open would reach every container's first steps: nothing but the three standard
/// ones is kept, and of those the first only until the setup is read.
fn begin() -> io::Result<Setup> {
    sys::close_from(3)?;
    sys::set_name(c"amphipod-pod")?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    let setup = serde_json::from_slice(&text)?;
    sys::forget_stdin()?;
    Ok(setup)
}

/// One line to the agent that started us. There is nobody else to tell, so a failed write ends with the exit code.
fn report(line: &str) -> i32 {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    1
}
