//! The system call itself, and objects by their pins.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// # Safety
/// `attr` holds what the command reads, and every address in it is valid for the command.
pub unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the attributes; the size is theirs.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

pub fn address<T>(value: &T) -> u64 {
    ptr::from_ref(value) as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens the object under a pin.
///
/// # Errors
/// `ENOENT` where nothing has that path, `EACCES` where it is no BPF object, `EPERM` without the right to open one;
/// [`InvalidInput`](io::ErrorKind::InvalidInput) for a path with a zero byte.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: a terminated path that outlives the call; the result is a new descriptor of ours.
    unsafe { bpf(OBJ_GET, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Gives an object a pin, which keeps it when every descriptor is closed.
///
/// # Errors
/// `EEXIST` where the path is taken, `ENOENT` where its folder is not there, `EPERM` where that lies on no BPF file system;
/// [`InvalidInput`](io::ErrorKind::InvalidInput) for a path with a zero byte.
pub fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: a terminated path that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}
