//! `cargo xtask bench`: installs the peers, builds the binary and the measuring program, and hands over to it.

use anyhow::{Result, ensure};

use crate::{build, setup};

/// In the order of the README.
const NAMES: [&str; 5] = ["service", "pods", "api", "footprint", "dns"];
/// Run by their names only: one needs another release, the other most of an hour.
const BY_NAME: [&str; 2] = ["before", "scale"];

/// Runs one bench, or all in the order of the README without words.
pub fn bench(words: &[String]) -> Result<()> {
    if let Some(name) = words.first().filter(|word| !word.starts_with('-')) {
        let known = NAMES.iter().chain(&BY_NAME).any(|known| known == name);
        ensure!(known, "there is no bench {name:?}; there are: {}, {}", NAMES.join(", "), BY_NAME.join(", "));
    }
    setup::setup()?;
    setup::setup_bench()?;
    build::build()?;
    if !words.is_empty() {
        return run(words);
    }
    NAMES.iter().try_for_each(|name| run(&[(*name).to_owned()]))
}

fn run(words: &[String]) -> Result<()> {
    let mut arguments = vec!["run", "--quiet", "--release", "--package", "bench", "--"];
    arguments.extend(words.iter().map(String::as_str));
    build::cargo(&arguments)
}
