//! Makes a link's state settle now instead of in its own time.
//!
//! A link that came up has no queue until a worker of the kernel's has seen to it, and drops what is sent before: the first datagram
//! of a new pod. Asking for the state of the link does the pending work at once, which is cheaper than waiting for it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_LINK: u32 = 0x0a;

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether a device of the socket's network namespace has its link, and so its queue.
pub(crate) fn settle_link(socket: &UnixDatagram, device: &str) -> io::Result<bool> {
    let mut value = Value { command: GET_LINK, data: 0 };
    // SAFETY: integers and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, so that the name ends.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names a device and points at a value that the command fills; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data != 0) }
}
