//! Settings of the network namespace that the calling thread is in.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::{NetworkError, Result};

const ROOT: &str = "/proc/sys/net";
pub(crate) const RESERVED_PORTS: &str = "ipv4/ip_local_reserved_ports";

/// More than the longest setting has: every other port of all.
const LONGEST: usize = 256 << 10;

pub(crate) fn read(name: &str) -> Result<String> {
    let path = path(name);
    text(&path).map_err(|source| NetworkError::File { path, source })
}

/// In one read: of a list of ports the kernel gives nothing to a second one.
fn text(path: &Path) -> io::Result<String> {
    let mut bytes = vec![0; LONGEST];
    let length = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Writes only what differs, so that a read-only /proc with the right values will do.
pub(crate) fn write(name: &str, value: &str) -> Result<()> {
    let path = path(name);
    if text(&path).is_ok_and(|found| found.trim() == value.trim()) {
        return Ok(());
    }
    // An empty list of ports is written as an empty line.
    fs::write(&path, format!("{}\n", value.trim())).map_err(|source| NetworkError::File { path, source })
}

/// The same for a setting that a kernel without that protocol does not have.
pub(crate) fn write_if_present(name: &str, value: &str) -> Result<()> {
    if path(name).exists() { write(name, value) } else { Ok(()) }
}

/// Makes a device of ours one whose neighbours and routes are all known: nothing is asked of its link, and nothing believed. It has
/// no address but what it is given. Has to come before the device is set up.
pub(crate) fn settle_v6(device: &str) -> Result<()> {
    const SETTINGS: [(&str, &str); 5] = [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("accept_redirects", "0"),
        ("disable_ipv6", "0"),
    ];
    SETTINGS.iter().try_for_each(|(name, value)| write(&format!("ipv6/conf/{device}/{name}"), value))
}

/// Packets that come in by this device may go on by another. Kernels before 6.17 ask the setting of the whole host, too, which stays
/// as it is: then only what programs here send on themselves gets anywhere.
pub(crate) fn forward_v6(device: &str) -> Result<()> {
    write(&format!("ipv6/conf/{device}/forwarding"), "1")?;
    write_if_present(&format!("ipv6/conf/{device}/force_forwarding"), "1")
}

fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
