//! `cargo xtask deny`: licences, sources and bans by cargo-deny, and the crates that strangers can reach.
//!
//! Advisories need RustSec's database, which no package registry carries. Where a machine has a copy it is used; everywhere
//! else a list of the crates that read strangers' bytes stands for it: one of them changes only by somebody's decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{find_command, run, tools_folder, workspace_root};

const SURFACE: &str = include_str!("../attack-surface.tsv");

/// Checks everything; fails with all that is wrong.
pub fn deny() -> Result<()> {
    let lock = fs::read_to_string(workspace_root().join("Cargo.lock")).context("reading Cargo.lock")?;
    let differences = differences(SURFACE, &lock)?;
    if !differences.is_empty() {
        bail!(
            "crates that strangers can reach changed (see xtask/attack-surface.tsv):\n  {}",
            differences.join("\n  ")
        );
    }
    let mut checks = vec!["bans", "licenses", "sources"];
    if advisories().is_some_and(|folder| folder.exists()) {
        checks.push("advisories");
    } else {
        println!("no RustSec data here: crates that strangers can reach are held to their listed versions instead");
    }
    // cargo-deny reads the manifests of every crate in Cargo.lock, also of those that no build here downloads.
    run(Command::new("cargo").args(["fetch", "--locked"]).current_dir(workspace_root()))
        .context("downloading every crate")?;
    let mut deny = Command::new(cargo_deny()?);
    deny.args(["--offline", "check"]).args(checks).current_dir(workspace_root());
    run(&mut deny)
}

/// Where cargo-deny keeps RustSec's database.
fn advisories() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    cargo.map(|folder| folder.join("advisory-dbs"))
}

fn cargo_deny() -> Result<PathBuf> {
    let own = tools_folder().join("bin/cargo-deny");
    if own.exists() {
        return Ok(own);
    }
    if let Some(found) = find_command("cargo-deny") {
        return Ok(found);
    }
    println!("setup: cargo-deny is missing: checks licences and sources of dependencies (some minutes)");
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "cargo-deny", "--version", "^0.20", "--locked", "--root"]).arg(tools_folder());
    run(&mut cargo).context("installing cargo-deny")?;
    Ok(own)
}

/// Where the list and the lock file disagree, a sentence each.
fn differences(list: &str, lock: &str) -> Result<Vec<String>> {
    let locked = locked(lock);
    let none = BTreeSet::new();
    let mut all = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let (Some(name), Some(versions), Some(_)) = (fields.next(), fields.next(), fields.next()) else {
            bail!("attack-surface.tsv: {line:?} is not name, versions and what it reads");
        };
        let listed: BTreeSet<&str> = versions.split(',').collect();
        let found = locked.get(name).unwrap_or(&none);
        if listed != *found {
            let found = found.iter().copied().collect::<Vec<_>>().join(",");
            all.push(format!(
                "{name}: listed {versions}, locked {}",
                if found.is_empty() { "nowhere" } else { &found }
            ));
        }
    }
    Ok(all)
}

/// Versions by name, from lines `name = "x"` and `version = "y"`.
fn locked(lock: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for (key, value) in lock.lines().filter_map(|line| line.split_once(" = ")) {
        match key {
            "name" => name = value.trim_matches('"'),
            "version" => drop(all.entry(name).or_default().insert(value.trim_matches('"'))),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_strangers_reach_changes_only_by_decision() {
        let lock =
            "[[package]]\nname = \"tar\"\nversion = \"0.4.1\"\n\n[[package]]\nname = \"url\"\nversion = \"2.0.0\"\n";
        assert_eq!(differences("# x\ntar\t0.4.1\tlayers\n", lock).unwrap(), [""; 0]);
        assert_eq!(differences("tar\t0.4.0\tlayers\n", lock).unwrap(), ["tar: listed 0.4.0, locked 0.4.1"]);
        assert_eq!(differences("gone\t1\tlayers\n", lock).unwrap(), ["gone: listed 1, locked nowhere"]);
        assert!(differences("tar 0.4.1 layers\n", lock).is_err());
    }

    #[test]
    fn the_list_is_the_lock_files() {
        let lock = fs::read_to_string(workspace_root().join("Cargo.lock")).unwrap();
        assert_eq!(differences(SURFACE, &lock).unwrap(), [""; 0]);
    }
}
