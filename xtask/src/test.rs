//! `cargo xtask test`: the whole suite, from a machine that may have nothing installed.

use anyhow::Result;

use crate::{build, ebpf, setup};

pub fn test() -> Result<()> {
    step("setup: install what is missing");
    setup::setup()?;
    step("BPF: the committed object is what the sources give");
    ebpf::check_ebpf()?;
    step("unit and kernel tests");
    build::cargo(&["test", "--workspace", "--exclude", "e2e", "--exclude", "network"])?;
    // One world at a time: each loads the programs and has two seconds for every answer.
    build::cargo(&["test", "--package", "network", "--", "--test-threads=1"])?;
    step("the pod process: containers beside runc's");
    build::cargo(&["test", "--package", "pod", "--features", "process"])?;
    step("killed after every step of a pod's way");
    build::cargo(&["test", "--package", "agent", "--features", "faults", "--test", "faults"])?;
    step("the binary");
    build::build()?;
    step("end to end: real kubectl, real containers, clusters in network namespaces");
    build::cargo(&["test", "--package", "e2e", "--", "--test-threads=1"])
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
