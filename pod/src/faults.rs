//! Test builds (feature `faults`) that die right after a chosen step; in every other build this is nothing.
//!
//! The folder named by `AMPHIPOD_FAULTS` holds one empty file per armed step: `agent.NoteRun`, `pod.Listen`. The process
//! that reaches such a step removes the file, so it dies there once, and kills itself as nothing can be caught or tidied.

use std::fmt::Debug;

#[cfg(feature = "faults")]
const FOLDER: &str = "AMPHIPOD_FAULTS";

/// Ends this process if the step is armed.
#[cfg(feature = "faults")]
#[expect(unsafe_code, reason = "kill has no safe form in std")]
pub fn reached(who: &str, step: impl Debug) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let armed = std::path::Path::new(&folder).join(format!("{who}.{step:?}"));
    if std::fs::remove_file(armed).is_ok() {
        // SAFETY: no pointers; a process may kill itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn reached(_who: &str, _step: impl Debug) {}

/// What a child must be given so that its steps can be armed too.
pub fn environment() -> Option<(&'static str, std::ffi::OsString)> {
    #[cfg(feature = "faults")]
    return std::env::var_os(FOLDER).map(|folder| (FOLDER, folder));
    #[cfg(not(feature = "faults"))]
    None
}
