//! A pod's own users: a user namespace that owns the pod's other namespaces, so that its root is nobody on the host.
//!
//! The pod process itself stays one of the host's: it moves containers between cgroups, writes logs, signals. It enters
//! the network, IPC and UTS namespaces that the new user namespace owns, and keeps the user namespace by a descriptor;
//! containers enter that one, and own what they make there.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::sys;
use crate::protocol::IdRange;

/// Makes the namespaces named by `flags` below a new user namespace and enters them all but that, which is returned.
pub fn unshare(range: IdRange, flags: libc::c_int) -> io::Result<OwnedFd> {
    let (made, says_made) = sys::pipe()?;
    let Some(maker) = sys::fork()? else {
        let outcome = sys::die_with_parent().and_then(|()| sys::unshare(libc::CLONE_NEWUSER | flags));
        let word = outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        let told = File::from(says_made).write_all(&word.to_ne_bytes());
        if word != 0 || told.is_err() {
            sys::exit_now(1);
        }
        sys::sleep_forever()
    };
    drop(says_made);
    let users = enter(maker, File::from(made), range, flags);
    let _ = sys::kill(maker, libc::SIGKILL); // it may have ended by itself
    sys::wait_for(maker)?;
    users
}

fn enter(maker: i32, mut made: File, range: IdRange, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut word = [0; size_of::<libc::c_int>()];
    made.read_exact(&mut word)?;
    match libc::c_int::from_ne_bytes(word) {
        0 => {}
        error => return Err(sys::context(io::Error::from_raw_os_error(error), "make a user namespace")),
    }
    for map in ["uid_map", "gid_map"] {
        let line = format!("0 {} {}\n", range.first, range.count);
        fs::write(format!("/proc/{maker}/{map}"), line).map_err(|error| sys::context(error, map))?;
    }
    let users = File::open(format!("/proc/{maker}/ns/user"))?;
    if flags != 0 {
        sys::setns(sys::pidfd_open(maker)?.as_fd(), flags)?;
    }
    Ok(users.into())
}

/// Becomes root of a pod's users; for a child on its way into a container.
pub fn become_root_of(users: BorrowedFd<'_>) -> io::Result<()> {
    sys::setns(users, libc::CLONE_NEWUSER)?;
    sys::set_ids(0, 0, &[])
}
