//! Prints what a packet costs: `cargo run --release -p proxy-userspace --example packet_cost`, as root, on a quiet machine.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::temp_dir().join(format!("packet-cost-{}", std::process::id()));
    let (costs, sizes) = proxy_userspace::cost::measure(Path::new(&root))?;
    for cost in costs {
        println!("{:>5} ns median, {:>5} ns least  {} ({} runs)", cost.median, cost.least, cost.what, cost.runs);
    }
    for size in sizes {
        println!("{:>7} verified instructions, {:>6} bytes  {}", size.verified, size.machine_code, size.program);
    }
    Ok(())
}
