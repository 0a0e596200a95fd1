//! What end-to-end tests share: a cluster made by the project's own command ([`Cluster`], with its [`Node`]s), the real kubectl
//! ([`Kubectl`]), a namespace for each case ([`Space`]) with what cases put there, waiting ([`until`]), and a count of what a
//! machine holds before and after ([`Inventory`]).

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

mod cluster;
mod fixtures;
mod inventory;
mod kubectl;
mod space;

pub use cluster::{Cluster, Node, Place, Wanted};
pub use fixtures::{CLUSTER_IP, NODE_PORT, told_at};
pub use inventory::Inventory;
pub use kubectl::{Kubectl, yaml};
pub use space::Space;

/// How long anything may take that has no limit of its own.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a command of the project's own.
///
/// # Errors
/// When cargo cannot be run or the command fails, which says why itself.
pub fn xtask(arguments: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["xtask"])
        .args(arguments)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo xtask")?;
    ensure!(status.success(), "cargo xtask {} failed", arguments.join(" "));
    Ok(())
}

/// The release after this one: another pod protocol and other map layouts.
///
/// # Errors
/// When it does not build.
pub fn next_release() -> Result<PathBuf> {
    xtask(&["build", "--next-release"])?;
    Ok(workspace().join("target/debug/amphipod"))
}

/// Waits for a condition; the last reason why it did not hold is part of the failure.
///
/// # Errors
/// When [`LIMIT`] has passed: with why it did not hold when it was last tried.
pub fn until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let outcome = holds();
        if matches!(outcome, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return outcome
                .and_then(|_| bail!("it did not happen within {} s", LIMIT.as_secs()))
                .context(format!("waiting until {what}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The standard output of a command that must have succeeded.
///
/// # Errors
/// When it failed: with `what` it was, and what it wrote to standard error.
pub fn succeeded(output: Output, what: &str) -> Result<String> {
    ensure!(output.status.success(), "{what}: {}", text(&output.stderr).trim());
    Ok(text(&output.stdout))
}
