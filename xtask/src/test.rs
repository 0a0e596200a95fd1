//! `cargo xtask test`: the whole suite, from a machine that may have nothing installed.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{build, ebpf, setup};

/// How much is run: one of each kind, or the whole matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    Usual,
    Full,
}

/// Some tests under one name, and what they need to be worth running.
struct Group {
    name: &'static str,
    extent: Extent,
    run: fn() -> Result<()>,
}

const fn group(name: &'static str, run: fn() -> Result<()>) -> Group {
    Group { name, extent: Extent::Usual, run }
}

const fn only_in_full(name: &'static str, run: fn() -> Result<()>) -> Group {
    Group { name, extent: Extent::Full, run }
}

const GROUPS: &[Group] = &[
    group("setup: install what is missing", setup::setup),
    group("BPF: the committed object is what the sources give", ebpf::check_ebpf),
    group("unit and kernel tests", || {
        build::cargo(&["test", "--workspace", "--exclude", "e2e", "--exclude", "network", "--no-fail-fast"])
    }),
    // One world at a time: each loads the programs and has two seconds for every answer.
    group("service path and pod network", || build::cargo(&["test", "--package", "network", "--", "--test-threads=1"])),
    group("the pod process: containers beside runc's", || {
        build::cargo(&["test", "--package", "pod", "--features", "process"])
    }),
    group("killed after every step of a pod's way", || {
        build::cargo(&["test", "--package", "agent", "--features", "faults", "--test", "faults"])
    }),
    group("the binary", || build::build().map(drop)),
    group("end to end: real kubectl, real containers, clusters in network namespaces", || {
        build::cargo(&["test", "--package", "e2e"])
    }),
    only_in_full("store: the power cut at every operation of the disk", || {
        build::cargo(&["test", "--package", "apiserver", "--lib", "--", "--ignored", "power_cut"])
    }),
    only_in_full("service path and pod network: each family with socket hooks and without", || {
        build::cargo(&["test", "--package", "network", "--features", "every-world", "--", "--test-threads=1"])
    }),
    only_in_full("machines with systemd, cgroup v2 alone and Debian's kernel", crate::vm::cases),
    only_in_full("a cluster disturbed at random", || soak(10, None)),
];

/// Runs the groups of this extent, and tells how long each took.
pub fn test(extent: Extent) -> Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for group in GROUPS.iter().filter(|group| group.extent <= extent) {
        step(group.name);
        let started = Instant::now();
        (group.run)()?;
        times.push((group.name, started.elapsed()));
    }
    step("seconds by group");
    for (name, time) in &times {
        println!("{:>6}  {name}", time.as_secs());
    }
    println!("{:>6}  in all", times.iter().map(|(_, time)| time.as_secs()).sum::<u64>());
    Ok(())
}

/// The long form of what the suite does in short: the store killed in the midst of commits, then a whole cluster
/// disturbed.
pub fn soak(minutes: u64, seed: Option<u64>) -> Result<()> {
    setup::setup()?;
    build::build()?;
    let (store, cluster) = ((minutes / 4).max(1), (minutes - minutes / 4).max(1));
    step("store: killed in the midst of commits");
    let store = store.to_string();
    build::cargo(&["test", "--package", "apiserver", "--test", "durability", "--", "--minutes", &store])?;
    step("store: the power cut at every operation of the disk");
    build::cargo(&["test", "--package", "apiserver", "--lib", "--", "--ignored", "power_cut"])?;
    step("cluster: killed, stopped, rolled, scaled");
    let cluster = cluster.to_string();
    let mut arguments = vec!["test", "--package", "e2e", "--", "--soak-minutes", &cluster];
    let seed = seed.map(|seed| seed.to_string());
    arguments.extend(seed.iter().flat_map(|seed| ["--seed", seed.as_str()]));
    build::cargo(&arguments)
}

fn step(text: &str) {
    println!("\n== {text}");
}
