//! The release build that demo, clusters and end-to-end tests run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::workspace_root;

/// Builds `target/release/amphipod`.
pub fn build() -> Result<PathBuf> {
    cargo(&["build", "--release", "--package", "amphipod"])?;
    Ok(binary())
}

/// Builds `target/debug/amphipod` as the release after this one. What it depends on, unit tests have compiled.
pub fn next_release() -> Result<()> {
    cargo(&["build", "--quiet", "--package", "amphipod", "--features", "next-release"])
}

pub fn binary() -> PathBuf {
    workspace_root().join("target/release/amphipod")
}

/// Runs cargo in the workspace, its output shown as it comes.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo told this program about itself: dependencies that look at it would be built anew each time.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    let status = command.args(arguments).current_dir(workspace_root()).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
