//! Frames on the pod socket: four bytes of length (big endian), then JSON. File descriptors travel as SCM_RIGHTS with
//! the first bytes of their frame.
#![expect(unsafe_code, reason = "sendmsg and recvmsg with control messages have no safe form in std")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// No frame is longer; a longer one is a broken peer.
pub const MAX_FRAME: usize = 16 << 20;

/// More descriptors than any operation sends.
const MAX_FDS: usize = 8;

/// The bytes of one frame.
pub fn encode(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Bytes and descriptors that arrived, until they make whole frames.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Inbox {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a frame longer than [`MAX_FRAME`]: where the next one begins
    /// cannot be known any more.
    pub fn next_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too long"));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let rest = self.bytes.split_off(4 + length);
        let mut frame = mem::replace(&mut self.bytes, rest);
        frame.drain(..4);
        Ok(Some(frame))
    }

    /// The descriptors that came with the frame just taken.
    pub fn take_fds(&mut self, count: usize) -> Vec<OwnedFd> {
        let count = count.min(self.fds.len());
        self.fds.drain(..count).collect()
    }

    /// Reads once from `socket`. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// The kernel's; after [`WouldBlock`](io::ErrorKind::WouldBlock) and [`Interrupted`](io::ErrorKind::Interrupted) it
    /// may be tried again. What came before stays.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        let mut buffer = [0_u8; 64 << 10];
        let mut control = ControlBuffer::default();
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: msghdr is plain data for which all zeroes is a valid value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control.0) as _;
        // SAFETY: every pointer in `header` refers to a live buffer of the stated size.
        let received = unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: recvmsg filled the control buffer that `header` describes.
        unsafe { self.collect_fds(&header) };
        let received = received as usize;
        self.push(&buffer[..received]);
        Ok(received)
    }

    /// # Safety
    /// `header` must have been filled by a successful recvmsg, and its buffers must still be alive.
    unsafe fn collect_fds(&mut self, header: &libc::msghdr) {
        // SAFETY: the caller vouches for `header`; the CMSG macros stay inside its control buffer.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while !message.is_null() {
                if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                    let data = libc::CMSG_DATA(message).cast::<RawFd>();
                    let bytes = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                    for index in 0..bytes / mem::size_of::<RawFd>() {
                        self.fds.push_back(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                    }
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
    }
}

/// Sends as much of `bytes` as the socket takes now, with `fds` on the first of them. Returns the bytes sent; the
/// descriptors went with them when that is more than 0.
///
/// # Errors
/// [`InvalidInput`](io::ErrorKind::InvalidInput) for more descriptors than a frame may have; else the kernel's, such as
/// [`WouldBlock`](io::ErrorKind::WouldBlock) where the socket takes nothing now. Nothing went then, the descriptors
/// neither.
pub fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one frame"));
    }
    let mut control = ControlBuffer::default();
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let size = mem::size_of_val(fds) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE, CMSG_LEN and CMSG_DATA compute inside the control buffer, which holds MAX_FDS.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(message).cast::<RawFd>(), fds.len());
        }
    }
    // SAFETY: every pointer in `header` refers to a live buffer of the stated size.
    let sent = unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Room for MAX_FDS descriptors, aligned as a cmsghdr must be.
#[derive(Default)]
struct ControlBuffer([u64; 16]);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_come_out_whole_however_they_went_in() {
        let mut inbox = Inbox::default();
        let bytes = [encode(b"one"), encode(b""), encode(b"three")].concat();
        let mut frames = Vec::new();
        for byte in bytes {
            inbox.push(&[byte]);
            frames.extend(inbox.next_frame().unwrap());
        }
        assert_eq!(frames, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn a_broken_length_is_refused() {
        let mut inbox = Inbox::default();
        inbox.push(&[0xff; 8]);
        assert!(inbox.next_frame().is_err());
    }

    #[test]
    fn descriptors_arrive_with_their_frame() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let frame = encode(b"take this");
        assert_eq!(send(left.as_raw_fd(), &frame, &[near.as_raw_fd()]).unwrap(), frame.len());
        drop(near);
        let mut inbox = Inbox::default();
        inbox.receive(right.as_raw_fd()).unwrap();
        assert_eq!(inbox.next_frame().unwrap().unwrap(), b"take this");
        let mut fds = inbox.take_fds(1);
        let mut received = UnixStream::from(fds.pop().unwrap());
        received.write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
