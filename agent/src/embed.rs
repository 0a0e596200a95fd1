//! The pod process's executable: embedded in this binary, run from one sealed memfd that all pods share.
#![expect(unsafe_code, reason = "memfd_create and seals have no safe form in std")]

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::PathBuf;

static EXECUTABLE: &[u8] = include_bytes!(env!("AMPHIPOD_POD_EXECUTABLE"));

#[derive(Debug)]
pub struct PodExecutable {
    memory: File,
}

impl PodExecutable {
    pub fn new() -> io::Result<PodExecutable> {
        // SAFETY: a valid C string; a new descriptor is ours.
        let mut memory = unsafe {
            let fd = libc::memfd_create(c"amphipod-pod".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        memory.write_all(EXECUTABLE)?;
        let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: no pointers.
        if unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PodExecutable { memory })
    }

    /// A path that runs it, in this process and its children until they exec.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.memory.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_and_cannot_be_changed() {
        let executable = PodExecutable::new().unwrap();
        let output = std::process::Command::new(executable.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "without a setup");
        assert!(
            std::fs::OpenOptions::new()
                .write(true)
                .open(executable.path())
                .and_then(|mut f| f.write_all(b"x"))
                .is_err()
        );
    }
}
