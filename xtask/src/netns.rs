//! Network namespaces and the links between them, through `ip`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end; its output is shown only when it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}: `cargo xtask setup` installs it"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip` with words separated by spaces.
pub fn ip(words: &str) -> Result<()> {
    run("ip", &words.split_whitespace().collect::<Vec<_>>()).map(drop)
}

pub fn exists(netns: &str) -> bool {
    Path::new("/run/netns").join(netns).exists()
}

pub fn make(netns: &str) -> Result<()> {
    ip(&format!("netns add {netns}"))?;
    ip(&format!("-n {netns} link set lo up"))
}

pub fn remove(netns: &str) -> Result<()> {
    if exists(netns) { ip(&format!("netns del {netns}")) } else { Ok(()) }
}

/// A bridge with addresses.
pub fn bridge(netns: &str, name: &str, addresses: &[String]) -> Result<()> {
    ip(&format!("-n {netns} link add {name} type bridge"))?;
    addresses.iter().try_for_each(|address| add_address(netns, name, address))?;
    ip(&format!("-n {netns} link set {name} up"))
}

/// In force at once: nobody else can have it.
fn add_address(netns: &str, device: &str, address: &str) -> Result<()> {
    let at_once = if address.contains(':') { "nodad" } else { "" };
    ip(&format!("-n {netns} addr add {address} dev {device} {at_once}"))
}

/// Links a namespace's `eth0` to a bridge elsewhere, with addresses and as many default routes.
pub fn plug(
    netns: &str,
    addresses: &[String],
    gateways: &[String],
    switch: &str,
    bridge: &str,
    port: &str,
) -> Result<()> {
    ip(&format!("-n {netns} link add eth0 type veth peer name {port} netns {switch}"))?;
    ip(&format!("-n {switch} link set {port} master {bridge} up"))?;
    addresses.iter().try_for_each(|address| add_address(netns, "eth0", address))?;
    ip(&format!("-n {netns} link set eth0 up"))?;
    gateways.iter().try_for_each(|gateway| ip(&format!("-n {netns} route add default via {gateway}")))?;
    // Wrong checksums must not pass because a virtual link never computes them.
    for (place, device) in [(netns, "eth0"), (switch, port)] {
        inside(place, "ethtool", &["-K", device, "tx", "off"])?;
    }
    Ok(())
}

/// Runs a command in a namespace. `ip netns exec` would hide /sys; this does not.
pub fn inside(netns: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let enter = format!("--net=/run/netns/{netns}");
    let mut all = vec![enter.as_str(), "--", program];
    all.extend_from_slice(arguments);
    run("nsenter", &all)
}

/// A command that will run in a namespace.
pub fn command(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
    command
}
