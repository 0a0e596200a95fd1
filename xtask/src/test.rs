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
    step("the binary");
    build::build()?;
    step("end to end: real kubectl, real containers, clusters in network namespaces");
    build::cargo(&["test", "--package", "e2e", "--", "--test-threads=1"])
}

fn step(text: &str) {
    println!("\n== {text}");
}
