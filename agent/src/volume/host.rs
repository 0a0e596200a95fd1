//! hostPath: a file or folder of the machine, as its type asks for it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use super::ContentError;
use crate::model::HostPath;

pub(super) fn check(host_path: &HostPath) -> Result<PathBuf, ContentError> {
    let path = PathBuf::from(&host_path.path);
    let kind = host_path.kind.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(&path)?,
        "FileOrCreate" if !path.exists() => drop(
            fs::OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).mode(0o644).open(&path)?,
        ),
        // Docker made missing ones folders, and so does every runtime since.
        "" if !path.exists() => fs::create_dir_all(&path)?,
        _ => {}
    }
    let wrong = |wanted| ContentError::HostPath { path: host_path.path.clone(), wanted };
    let meta = fs::metadata(&path);
    let is = |test: &dyn Fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    match kind {
        "Directory" | "DirectoryOrCreate" if !is(&fs::Metadata::is_dir) => Err(wrong("directory")),
        "File" | "FileOrCreate" if !is(&fs::Metadata::is_file) => Err(wrong("file")),
        "Socket" if !is(&|meta| meta.file_type().is_socket()) => Err(wrong("socket")),
        "CharDevice" if !is(&|meta| meta.file_type().is_char_device()) => Err(wrong("character device")),
        "BlockDevice" if !is(&|meta| meta.file_type().is_block_device()) => Err(wrong("block device")),
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| {
            let path = folder.path().join(name).to_str().unwrap().to_owned();
            super::check(&HostPath { path, kind: Some(kind.into()) })
        };
        assert!(check("new", "DirectoryOrCreate").is_ok());
        assert!(check("new", "File").is_err());
        assert!(check("missing", "Directory").is_err());
        assert!(check("file", "FileOrCreate").is_ok() && check("file", "Socket").is_err());
    }
}
