//! Settings of the network namespace that the calling thread is in.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{NetworkError, Result};

const ROOT: &str = "/proc/sys/net";
pub(crate) const RESERVED_PORTS: &str = "ipv4/ip_local_reserved_ports";

pub(crate) fn read(name: &str) -> Result<String> {
    let path = path(name);
    fs::read_to_string(&path).map_err(|source| NetworkError::File { path, source })
}

/// Writes only what differs, so that a read-only /proc with the right values will do.
pub(crate) fn write(name: &str, value: &str) -> Result<()> {
    let path = path(name);
    if fs::read_to_string(&path).is_ok_and(|found| found.trim() == value.trim()) {
        return Ok(());
    }
    // An empty list of ports is written as an empty line.
    fs::write(&path, format!("{}\n", value.trim())).map_err(|source| NetworkError::File { path, source })
}

/// The same for a setting that a kernel without that protocol does not have.
pub(crate) fn write_if_present(name: &str, value: &str) -> Result<()> {
    if path(name).exists() { write(name, value) } else { Ok(()) }
}

fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
