//! Connected datagram sockets of a network namespace as sock_diag(7) shows them, and their end.
//!
//! Of datagram sockets it does not show what programs keep beside them, only their cookies.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use proxy_common::UDP;

use super::Plain;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The state of a datagram socket that is connected, as a set of states.
const CONNECTED: u32 = 1 << 1;
const HEADER: usize = size_of::<libc::nlmsghdr>();
const PATIENCE: libc::timeval = libc::timeval { tv_sec: 2, tv_usec: 0 };

/// Which socket it is: ports and addresses in the order of the wire, device and cookie.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    sport: u16,
    dport: u16,
    src: [u32; 4],
    dst: [u32; 4],
    device: u32,
    cookie: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Shown {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: Id,
    counts: [u32; 5],
}

// SAFETY: `repr(C)` of integers without padding, see the sizes below.
unsafe impl Plain for Request {}
// SAFETY: as above.
unsafe impl Plain for Shown {}

const _: () = assert!(size_of::<Id>() == 48 && size_of::<Request>() == 56 && size_of::<Shown>() == 72);

/// A connected datagram socket.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    family: u8,
    id: Id,
}

impl Datagrams {
    /// What tells it from every other socket that there ever was.
    pub fn cookie(&self) -> u64 {
        let [low, high] = self.id.cookie;
        u64::from(low) | u64::from(high) << 32
    }
}

/// The sockets of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Diag(OwnedFd);

impl Diag {
    /// # Errors
    /// `EPROTONOSUPPORT` where the kernel has no sock_diag.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the descriptor is new and owned at once.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let size = size_of::<libc::timeval>() as u32;
        // SAFETY: the option is of the stated size.
        let set = unsafe {
            let option = std::ptr::from_ref(&PATIENCE).cast();
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, size)
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    /// Every connected datagram socket.
    ///
    /// # Errors
    /// `ENOENT` where the kernel does not show them (CONFIG_INET_UDP_DIAG), `EAGAIN` when it does not answer.
    pub fn connected(&self) -> io::Result<Vec<Datagrams>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.send(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, &request(family as u8, Id::NONE))?;
            self.receive(|kind, body| {
                if kind == SOCK_DIAG_BY_FAMILY
                    && let Some(shown) = front::<Shown>(body)
                {
                    all.push(Datagrams { family: shown.family, id: shown.id });
                }
            })?;
        }
        Ok(all)
    }

    /// Ends a socket's connection: its program hears `ECONNABORTED` and may connect anew. One that is gone is no error.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the kernel cannot (CONFIG_INET_DIAG_DESTROY), `EPERM` without the right to.
    pub fn end(&self, socket: &Datagrams) -> io::Result<()> {
        self.send(SOCK_DESTROY, libc::NLM_F_ACK as u16, &request(socket.family, socket.id))?;
        match self.receive(|_, _| {}) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(()),
            ended => ended,
        }
    }

    fn send(&self, kind: u16, flags: u16, request: &Request) -> io::Result<()> {
        let length = HEADER + size_of::<Request>();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend_from_slice(bytes(request));
        // SAFETY: the message outlives the call, which gets its size.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the messages of one answer, up to the one that ends it.
    fn receive(&self, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0u64; 8192];
        loop {
            // SAFETY: the buffer outlives the call, which gets its size.
            let length = unsafe {
                libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len() * 8, libc::MSG_TRUNC)
            };
            if length < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: so many bytes of the buffer, which any bytes may be.
            let mut rest = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), buffer.len() * 8) };
            rest = rest.get(..length as usize).ok_or(io::ErrorKind::InvalidData)?;
            while let Some((kind, body, behind)) = message(rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let number = body.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
                        return if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) };
                    }
                    _ => take(kind, body),
                }
                rest = behind;
            }
        }
    }
}

impl Id {
    const NONE: Self = Self { sport: 0, dport: 0, src: [0; 4], dst: [0; 4], device: 0, cookie: [u32::MAX; 2] };
}

fn request(family: u8, id: Id) -> Request {
    Request { family, protocol: UDP, extensions: 0, pad: 0, states: CONNECTED, id }
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a plain value is its bytes.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value at the front of some bytes.
fn front<T: Plain>(from: &[u8]) -> Option<T> {
    let front = from.get(..size_of::<T>())?;
    // SAFETY: any bytes are a plain value, and there are enough.
    Some(unsafe { std::ptr::read_unaligned(front.as_ptr().cast()) })
}

/// Kind and body of the message at the front, and what is behind.
fn message(from: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*from.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*from.get(4)?, *from.get(5)?]);
    let body = from.get(HEADER..length)?;
    Some((kind, body, from.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn messages_are_taken_one_by_one_and_what_is_cut_short_is_none() {
        let one = |kind: u8, body: &[u8]| {
            let length = HEADER + body.len();
            let mut message = vec![length as u8, 0, 0, 0, kind, 0];
            message.resize(HEADER, 0);
            message.extend_from_slice(body);
            message.resize(length.next_multiple_of(4), 0);
            message
        };
        let both = [one(20, &[1, 2, 3]), one(3, &[])].concat();
        let (kind, body, rest) = message(&both).unwrap();
        assert_eq!((kind, body), (20, &[1, 2, 3][..]));
        assert_eq!(message(rest), Some((3, &[][..], &[][..])));
        assert!((0..19).all(|length| message(&both[..length]).is_none()));
    }

    /// In this namespace: sockets of its own, and nobody else's.
    #[test]
    fn a_connected_socket_is_shown_and_one_that_is_ended_hears_of_it() {
        let diag = Diag::open().unwrap();
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (own, other) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            own.connect(other.local_addr().unwrap()).unwrap();
            let port = own.local_addr().unwrap().port().to_be();
            let shown = |diag: &Diag| diag.connected().unwrap().into_iter().find(|socket| socket.id.sport == port);
            let socket = shown(&diag).expect("it is connected");
            assert_ne!(socket.cookie(), 0);
            diag.end(&socket).unwrap();
            assert_eq!(own.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert!(shown(&diag).is_none());
            // It is gone already.
            diag.end(&socket).unwrap();
        }
    }
}
