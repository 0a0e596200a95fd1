//! The machine's devices, which a privileged container gets as they are.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::{Value, json};

/// What a container has of its own, or must not have of the host's.
const OWN: [&str; 15] = [
    "null",
    "zero",
    "full",
    "tty",
    "urandom",
    "random",
    "ptmx",
    "console",
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
];

/// Every device file below a folder such as `/dev`, in the words of the OCI.
pub fn below(folder: &Path) -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder)? {
        let item = item?;
        if OWN.iter().any(|own| item.file_name() == *own) {
            continue;
        }
        match item.metadata() {
            Ok(meta) if meta.is_dir() => found.extend(below(&item.path())?),
            Ok(meta) => found.extend(device(&item.path(), &meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // unplugged just now
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn device(path: &Path, meta: &fs::Metadata) -> Option<Value> {
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None, // links and sockets are the host's own
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Some(json!({"path": path, "type": kind, "major": major, "minor": minor,
        "fileMode": meta.mode() & 0o7777, "uid": meta.uid(), "gid": meta.gid()}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, makedev};

    #[test]
    fn devices_only_and_not_the_containers_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let node = |name: &str, kind| {
            rustix::fs::mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o640), makedev(7, 300)).unwrap();
        };
        for folder in ["net", "pts", "shm"] {
            fs::create_dir(path(folder)).unwrap();
        }
        for name in ["null", "loop", "net/tun", "pts/0", "shm/x"] {
            node(name, FileType::CharacterDevice);
        }
        node("disk", FileType::BlockDevice);
        node("pipe", FileType::Fifo);
        std::os::unix::fs::symlink("loop", path("link")).unwrap();
        fs::write(path("file"), "").unwrap();
        let mut found = below(folder.path()).unwrap();
        found.sort_by_key(|device| device["path"].to_string());
        let names: Vec<_> = found.iter().map(|device| device["path"].as_str().unwrap().rsplit('/').next()).collect();
        assert_eq!(names, [Some("disk"), Some("loop"), Some("tun")]);
        let disk = &found[0];
        assert_eq!((&disk["type"], &disk["major"], &disk["minor"]), (&json!("b"), &json!(7), &json!(300)));
    }
}
