//! What a machine holds that a cluster could leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Namespaces, mounts, cgroups, processes, programs, addresses and firewall rules, as lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// What there is now.
    ///
    /// # Errors
    /// When the mounts cannot be read, or `ip`, `nft` or `bpftool` not be run.
    pub fn take() -> Result<Self> {
        let mut all = BTreeSet::new();
        list(Path::new("/run/netns"), "network namespace", &mut all);
        mounts(&mut all)?;
        cgroups(&mut all)?;
        processes(&mut all);
        tool("addresses", "ip", &["-brief", "address"], &mut all)?;
        tool("routes", "ip", &["route", "show", "table", "all"], &mut all)?;
        tool("firewall", "nft", &["list", "ruleset"], &mut all)?;
        programs(&mut all)?;
        Ok(Self(all))
    }

    /// What is there now and was not before, and the other way round.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let left = self.0.difference(&before.0).map(|line| format!("left behind: {line}"));
        left.chain(before.0.difference(&self.0).map(|line| format!("gone: {line}"))).collect()
    }
}

fn list(dir: &Path, what: &str, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        all.insert(format!("{what} {}", entry.file_name().to_string_lossy()));
    }
}

fn mounts(all: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    all.extend(table.lines().filter_map(|line| line.split(' ').nth(1)).map(|place| format!("mount {place}")));
    Ok(())
}

fn cgroups(all: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))) {
            for entry in fs::read_dir(fields[1]).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                all.insert(format!("cgroup {}", entry.path().display()));
            }
        }
    }
    Ok(())
}

/// Processes that belong to a cluster, by what they run.
fn processes(all: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let ours = line.starts_with("amphipod-pod ")
            || ["amphipod up", "docker-registry serve", "xtask forward"].iter().any(|what| line.contains(what));
        if ours {
            all.insert(format!("process {} {line}", entry.file_name().to_string_lossy()));
        }
    }
}

fn tool(what: &str, program: &str, arguments: &[&str], all: &mut BTreeSet<String>) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    all.extend(String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("{what}: {}", line.trim())));
    Ok(())
}

fn programs(all: &mut BTreeSet<String>) -> Result<()> {
    let output = Command::new("bpftool").args(["prog", "list"]).output().context("cannot run bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The first line of each program: id, type, name.
    all.extend(
        text.lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .map(|line| format!("program {}", line.split("  tag").next().unwrap_or_default())),
    );
    Ok(())
}
