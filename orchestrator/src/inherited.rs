//! Descriptors that whoever started a daemon left open: they would live as long as it does, and reach what it starts.

use std::io;

/// Closes all but the three standard ones. For a daemon's first moment, before it has opened any of its own.
///
/// # Errors
/// What the kernel says of close_range: ENOSYS before Linux 5.9.
#[expect(unsafe_code, reason = "close_range has no safe form in std")]
pub fn close() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing in this process owns a descriptor yet.
    match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    const IN_CHILD: &str = "AMPHIPOD_TEST_INHERITED";

    /// The test runs itself again, as a process that a careless parent started.
    #[test]
    fn what_was_left_open_is_closed() {
        let stray = Path::new("/proc/self/fd/9");
        if std::env::var_os(IN_CHILD).is_some() {
            assert!(stray.exists());
            super::close().unwrap();
            assert!(!stray.exists());
            return;
        }
        let script = "exec 9</dev/null; exec \"$0\" --exact inherited::tests::what_was_left_open_is_closed";
        let own = std::env::current_exe().unwrap();
        let output = Command::new("sh").args(["-c", script]).arg(own).env(IN_CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
