//! The pod process itself: set-up, then one `poll(2)` loop until the agent says `Exit`.
//!
//! `setup` makes the namespaces; `server` is the loop and the table of operations; `container` one container from
//! create to exit; `exec` one more process in it; `log` the CRI log; `cgroup` and `sys` what they lean on.

mod cgroup;
mod container;
mod exec;
mod filter;
mod log;
mod server;
mod setup;
mod sys;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::protocol::Setup;
use crate::step::Step;

/// Runs a pod process as its setup file says. It daemonises: the caller's child ends as soon as the fork is done, and
/// the pod process writes `ready` (or what went wrong) on its standard output and closes it.
pub fn run(setup_file: &Path) -> i32 {
    match sys::daemonise() {
        Ok(sys::Fork::Parent) => return 0,
        Ok(sys::Fork::Child) => {}
        Err(error) => return report(&format!("fork: {error}")),
    }
    let started = read_setup(setup_file).and_then(|setup| setup::prepare(&setup).map(|pod| (setup, pod)));
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

fn read_setup(path: &Path) -> io::Result<Setup> {
    let text = fs::read(path).map_err(|error| sys::context(error, format!("read {}", path.display())))?;
    Ok(serde_json::from_slice(&text)?)
}

/// One line to the agent that started us. There is nobody else to tell, so a failed write ends with the exit code.
fn report(line: &str) -> i32 {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    1
}
