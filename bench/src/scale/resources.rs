//! What this process may use of the machine: all processors, many files.

use anyhow::{Context, Result};

/// Runs asynchronous work on all processors.
pub fn on_all<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Lets this process have as many connections open as the system allows.
pub fn many_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).context("cannot raise the limit of open files")
}
