//! What must hold for any layer at all: nothing beside its folder is touched, it takes no more than it was given, and it
//! says nothing to overlayfs that only the kernel and the agent may say.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::image::digest::Digest;
use crate::image::unpack::unpack_layer;
use crate::room::Room;

const ROOM: Room = Room { bytes: 64 << 10, files: 64 };
const BLOCK: usize = 512;

/// A tar, in a folder of its own below `place`.
pub fn layer(place: &Path, bytes: &[u8]) {
    let bytes = with_checksums(bytes);
    let above = tempfile::tempdir_in(place).expect("a temporary folder");
    let [blob, kept, target] = ["blob", "kept", "layer"].map(|name| above.path().join(name));
    fs::write(&blob, &bytes).expect("a blob");
    fs::write(&kept, "kept").expect("a file beside");
    fs::create_dir(&target).expect("a folder");
    let seen = fs::symlink_metadata(&kept).expect("a file beside");
    // Whether it could be read whole or not: what was made until then has to be all right.
    let _outcome = unpack_layer(&blob, "application/vnd.oci.image.layer.v1.tar", &Digest::of(&bytes), &target, ROOM);
    let again = fs::symlink_metadata(&kept).expect("a file beside");
    let told = |meta: &fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.mtime(), meta.ino());
    assert_eq!(told(&again), told(&seen));
    assert_eq!(fs::read(&kept).expect("a file beside"), b"kept");
    assert_eq!(fs::read_dir(above.path()).expect("the temporary folder").count(), 3);
    let mut found = Found::default();
    found.look(&target);
    assert!(found.names <= ROOM.files, "{} files", found.names);
    assert!(found.bytes <= ROOM.bytes, "{} bytes", found.bytes);
}

/// They are no obstacle to whoever writes a layer, so none to mutations either.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while bytes.len() - at >= BLOCK {
        let block = &mut bytes[at..at + BLOCK];
        let mut header = tar::Header::from_byte_slice(block).clone();
        let empty = block.iter().all(|byte| *byte == 0);
        if !empty {
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let content = header.entry_size().ok().filter(|_| !empty).and_then(|size| usize::try_from(size).ok());
        let content = content.and_then(|size| size.checked_next_multiple_of(BLOCK)).unwrap_or(0);
        at = (at + BLOCK).saturating_add(content).min(bytes.len());
    }
    bytes
}

#[derive(Default)]
struct Found {
    names: u64,
    bytes: u64,
    /// Of which the bytes are counted.
    inodes: HashSet<u64>,
}

impl Found {
    /// What lies deeper than a path may say is not looked at.
    fn look(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            self.names += 1;
            if meta.is_file() && self.inodes.insert(meta.ino()) {
                self.bytes += meta.len();
            }
            attributes_are_the_agents(&path, &meta);
            if meta.is_dir() {
                self.look(&path);
                continue;
            }
            let name = entry.file_name();
            assert!(!name.as_encoded_bytes().starts_with(b".wh."), "{path:?} is no whiteout");
        }
    }
}

fn attributes_are_the_agents(path: &Path, meta: &fs::Metadata) {
    for name in xattr::list(path).into_iter().flatten() {
        let name = name.to_string_lossy().into_owned();
        let opaque = meta.is_dir() && name == "trusted.overlay.opaque";
        assert!(opaque || !(name.starts_with("trusted.") || name.starts_with("user.overlay.")), "{path:?}: {name}");
    }
}
