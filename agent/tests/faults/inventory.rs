//! Everything a pod could leave behind, as lines: in its node's network namespace, in the kernel, and in folders.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What there is now for this folder, cgroup and network namespace.
pub fn take(folder: &Path, cgroup: &str, netns: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (what, words) in
        [("link", "-o link"), ("route", "route show table all"), ("neighbour", "neigh show nud permanent")]
    {
        let inside = format!("--net={}", netns.display());
        let output = Command::new("nsenter").arg(inside).arg("ip").args(words.split(' ')).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Links by name: their counters and states are their own affair.
        let line = |line: &str| {
            if what == "link" { line.split(' ').nth(1).unwrap_or_default().to_owned() } else { line.to_owned() }
        };
        all.extend(text.lines().map(|text| format!("{what} {}", line(text))));
    }
    for place in ["bpf", "run", "data/pods", "data/volumes", "data/containers", "data/logs"] {
        files(&folder.join(place), &mut all);
    }
    for map in ["PODS", "LOCAL_NETNS"] {
        all.insert(format!("{map}: {} entries", entries(&folder.join("bpf/maps"), map)));
    }
    let text = folder.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(text));
    all.extend(points.map(|point| format!("mount {point}")));
    // The parents of pods stay for the next.
    let pods = |folder: &PathBuf| folder.to_str().is_some_and(|path| path.contains("/pod") && !path.ends_with("/pods"));
    let folders = cgroup_folders(cgroup).into_iter().filter(pods);
    all.extend(folders.map(|folder| format!("cgroup {}", folder.display())));
    processes(text, cgroup, &mut all);
    all
}

fn files(folder: &Path, all: &mut BTreeSet<String>) {
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        all.insert(format!("file {}", item.path().display()));
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&item.path(), all);
        }
    }
}

/// Pods and their namespaces, as the programs know them.
fn entries(maps: &Path, name: &str) -> usize {
    let pins = fs::read_dir(maps).into_iter().flatten().flatten().map(|item| item.path());
    let pin = pins.into_iter().find(|path| path.to_str().is_some_and(|path| path.ends_with(&format!("_{name}"))));
    let Some(pin) = pin else { return 0 };
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin).output().unwrap();
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    dump.as_array().map_or(0, Vec::len)
}

/// Every cgroup below the one of this name in each hierarchy, parents first.
pub fn cgroup_folders(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let kinds = ["cgroup", "cgroup2"];
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let points = mounts.filter(|fields| fields.get(2).is_some_and(|kind| kinds.contains(kind)));
    let mut all = Vec::new();
    points.for_each(|fields| folders(&Path::new(fields[1]).join(name), &mut all));
    all
}

fn folders(folder: &Path, all: &mut Vec<PathBuf>) {
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.push(item.path());
            folders(&item.path(), all);
        }
    }
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let items = fs::read_dir(folder).into_iter().flatten().flatten();
    items.filter_map(|item| item.file_name().into_string().ok()).collect()
}

/// Each holds a network namespace, and perhaps more. The agent itself is not counted.
fn processes(folder: &str, cgroup: &str, all: &mut BTreeSet<String>) {
    for item in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |name: &str| fs::read(item.path().join(name)).unwrap_or_default();
        let (line, groups) = (read("cmdline"), read("cgroup"));
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let zombie = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        if !zombie && (line.contains(folder) || String::from_utf8_lossy(&groups).contains(cgroup)) {
            all.insert(format!("process {} {line}", item.file_name().to_string_lossy()));
        }
    }
}
