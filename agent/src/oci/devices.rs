//! The host's devices, which a privileged container has in its /dev.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What each container has of its own, and what is no device of the machine's.
const LEFT_OUT: [&str; 9] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".lxd-mounts", ".udev"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    pub kind: &'static str,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Device {
    /// As the runtime specification writes it.
    pub fn config(&self) -> Value {
        json!({
            "path": self.path, "type": self.kind, "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }
}

/// All devices below /dev, by path.
pub fn of_host() -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found)?;
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<Device>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let meta = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // unplugged meanwhile
            meta => meta?,
        };
        let kind = match meta.file_type() {
            kind if kind.is_dir() => {
                collect(&entry.path(), found)?;
                continue;
            }
            kind if kind.is_block_device() => "b",
            kind if kind.is_char_device() => "c",
            _ => continue,
        };
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let mode = meta.mode() & 0o7777;
        found.push(Device { path: entry.path(), kind, major, minor, mode, uid: meta.uid(), gid: meta.gid() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_this_machine() {
        let found = of_host().unwrap();
        let null = found.iter().find(|device| device.path == Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), ("c", 1, 3));
        assert!(found.iter().all(|device| !device.path.ends_with("ptmx") && !device.path.starts_with("/dev/pts")));
        assert_eq!(null.config()["type"], "c");
    }
}
