//! Whether a folder is this program's to fill and to close: a mistyped `--data-dir /tmp` must not lock everybody else out.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// What a folder of ours has in it from its first moments.
const DATA_MARKS: [&str; 3] = ["store.redb", "agent.lock", "places.json"];
const RUN_MARKS: [&str; 4] = ["boot_id", "pods", "bpf", "seccomp"];
/// What a new file system has in it.
const NOBODYS: &str = "lost+found";
const WRITABLE_BY_OTHERS: u32 = 0o002;

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("prepare {path}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path} holds files of others and nothing of amphipod's: name a folder of its own, such as {path}/amphipod"
    )]
    Foreign { path: String },
    #[error("{path} can be written by everybody: name a folder of its own, such as {path}/amphipod")]
    Shared { path: String },
}

/// Makes the data folder, readable by root alone: layers hold set-uid programs, and logs and volumes are their pods'.
///
/// # Errors
/// [`ClaimError::Foreign`] and [`ClaimError::Shared`] for a folder that is not ours alone, which is left as it is;
/// [`ClaimError::Io`] when it cannot be made, read or closed to others.
pub fn data_dir(path: &Path) -> Result<(), ClaimError> {
    claim(path, 0o700, &DATA_MARKS)
}

/// Makes the run folder.
///
/// # Errors
/// Those of [`data_dir`].
pub fn run_dir(path: &Path) -> Result<(), ClaimError> {
    claim(path, 0o711, &RUN_MARKS)
}

fn claim(path: &Path, mode: u32, marks: &[&str]) -> Result<(), ClaimError> {
    let name = || path.display().to_string();
    let failed = |source| ClaimError::Io { path: name(), source };
    fs::create_dir_all(path).map_err(failed)?;
    let meta = fs::metadata(path).map_err(failed)?;
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()).map_err(failed)?;
    let mut names = entries.iter().map(fs::DirEntry::file_name);
    let empty = entries.iter().all(|entry| entry.file_name() == NOBODYS);
    // Whoever may write there may also put our marks there.
    if meta.mode() & WRITABLE_BY_OTHERS != 0 && !(empty && meta.mode() & 0o1000 == 0) {
        return Err(ClaimError::Shared { path: name() });
    }
    if !empty && !names.any(|name| marks.iter().any(|mark| name == *mark)) {
        return Err(ClaimError::Foreign { path: name() });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, mode: u32, files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        files.iter().for_each(|file| fs::write(folder.path().join(file), "").unwrap());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        folder
    }

    #[test]
    fn a_folder_of_others_is_left_as_it_is() {
        for (mode, files, ours) in [
            (0o755, &[][..], true),
            (0o777, &[], true),
            (0o755, &["lost+found"], true),
            (0o755, &["store.redb", "more"], true),
            (0o755, &["agent.lock"], true),
            (0o755, &["places.json"], true),
            (0o1777, &[], false),
            (0o1777, &["store.redb"], false),
            (0o777, &["agent.lock"], false),
            (0o755, &["letters"], false),
            (0o755, &["lost+found", "letters"], false),
        ] {
            let folder = folder("claim", mode, files);
            let claimed = data_dir(folder.path());
            let after = fs::metadata(folder.path()).unwrap().mode() & 0o7777;
            assert_eq!((claimed.is_ok(), after), (ours, if ours { 0o700 } else { mode }), "{mode:o} {files:?}");
        }
    }

    #[test]
    fn a_new_one_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        data_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }
}
