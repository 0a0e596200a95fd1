//! One agent per network namespace: the claim that `up` holds while it runs, and `reset` while it removes.
//!
//! A lock on a file that only root can make or open, named by the namespace. An abstract socket, which namespaces scope by
//! themselves, could be taken by any local user, and by any pod on the host's network.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Where the locks are: one place for all data and run folders, on a file system that a reboot empties.
const FOLDER: &str = "/run";
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// Held as long as this lives. The file goes with it; one that a killed agent left is taken over.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, Error)]
pub enum ClaimError {
    #[error("another amphipod agent runs in this network namespace: stop it first")]
    Held,
    #[error("cannot lock {path}")]
    Lock { path: PathBuf, source: io::Error },
}

/// Claims this process's network namespace.
///
/// # Errors
/// When another agent holds it, or the lock cannot be made.
pub fn claim_namespace() -> Result<Claim, ClaimError> {
    claim_in(Path::new(FOLDER))
}

fn claim_in(folder: &Path) -> Result<Claim, ClaimError> {
    let failed = |path: &Path, source| ClaimError::Lock { path: path.to_owned(), source };
    let namespace = fs::metadata(OWN_NAMESPACE).map_err(|source| failed(Path::new(OWN_NAMESPACE), source))?.ino();
    let path = folder.join(format!("amphipod-netns-{namespace}.lock"));
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    loop {
        match lock(&path) {
            Ok(Some(lock)) => return Ok(Claim { path, _lock: lock }),
            // Whoever held it before has just removed the file: there is a new one to be made.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(ClaimError::Held),
            Err(source) => return Err(failed(&path, source)),
        }
    }
}

/// The locked file, if it is still the one in place.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(in_place(&file, path)?.then_some(file))
}

fn in_place(file: &File, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(there) => Ok(there.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a lock file stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_agent_and_then_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim_in(folder.path()).unwrap();
        let refused = claim_in(folder.path()).unwrap_err().to_string();
        assert!(refused.starts_with("another amphipod agent runs"), "{refused}");
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
        let next = claim_in(folder.path()).unwrap();
        assert_eq!(fs::metadata(&next.path).unwrap().mode() & 0o777, 0o600, "nobody else may open it");
    }

    #[test]
    fn a_killed_agents_file_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = claim_in(folder.path()).unwrap().path.clone();
        fs::write(&path, "").unwrap();
        assert!(claim_in(folder.path()).is_ok());
    }
}
