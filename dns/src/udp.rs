//! Datagrams in batches: one call takes all that wait, one call sends all their answers.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};

/// Datagrams of one call.
const BATCH: usize = 32;
/// No question is longer.
const LONGEST: usize = 2048;
/// Longest datagram sent: what passes every path unfragmented.
pub(crate) const PAYLOAD: u16 = 1232;

/// Several sockets on one address, among which the kernel spreads the clients. Port 0 lets it choose one for all.
pub(crate) fn listen(address: SocketAddr, sockets: usize) -> io::Result<Vec<UdpSocket>> {
    // The first has the port to itself until it shares it: so no other server's shared port is joined by chance.
    let first = UdpSocket::bind(address)?;
    share(&first)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    while all.len() < sockets {
        all.push(bind_shared(address)?);
    }
    Ok(all)
}

fn share(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: an open descriptor, and an option of the stated size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, (&raw const on).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One more socket at an address whose sockets share it.
pub(crate) fn bind_shared(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: integers only; the descriptor is owned at once.
    let socket = unsafe {
        let fd = libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        UdpSocket::from_raw_fd(fd)
    };
    share(&socket)?;
    let (name, length) = to_raw(address);
    // SAFETY: an address of the stated length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Wakes a thread that waits for datagrams, for good.
pub(crate) fn stop(socket: &UdpSocket) {
    // SAFETY: an open descriptor. An unconnected socket is shut down all the same, and the error says so.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RD) };
}

/// Sends one datagram without waiting for room.
pub(crate) fn send_now(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    let (name, length) = to_raw(to);
    // SAFETY: buffer and address are of the stated lengths.
    let result = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
            (&raw const name).cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Buffers for one thread's questions and answers.
pub(crate) struct Batch {
    questions: Vec<[u8; LONGEST]>,
    names: Vec<libc::sockaddr_storage>,
    /// Lengths of question and name of what was received last.
    received: Vec<(usize, libc::socklen_t)>,
    answers: Vec<Vec<u8>>,
    /// To whom the answers go: an index among the questions.
    targets: Vec<usize>,
}

impl Batch {
    pub fn new() -> Self {
        Self {
            questions: vec![[0; LONGEST]; BATCH],
            // SAFETY: integers only.
            names: vec![unsafe { zeroed() }; BATCH],
            received: Vec::with_capacity(BATCH),
            answers: vec![Vec::new(); BATCH],
            targets: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for datagrams and takes all there are; their number.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        self.targets.clear();
        // SAFETY: integers and null pointers.
        let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { (zeroed(), zeroed()) };
        for index in 0..BATCH {
            parts[index] = libc::iovec { iov_base: self.questions[index].as_mut_ptr().cast(), iov_len: LONGEST };
            let header = &mut messages[index].msg_hdr;
            header.msg_iov = &mut parts[index];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        // SAFETY: every message points at buffers of the stated lengths that outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let received = messages.iter().take(count as usize);
        self.received.extend(received.map(|message| (message.msg_len as usize, message.msg_hdr.msg_namelen)));
        Ok(self.received.len())
    }

    pub fn question(&self, index: usize) -> &[u8] {
        &self.questions[index][..self.received[index].0]
    }

    pub fn client(&self, index: usize) -> Option<SocketAddr> {
        from_raw(&self.names[index])
    }

    /// Answers a question: `write` fills the buffer, or gives nothing because there is no answer yet.
    pub fn answer<T>(&mut self, index: usize, write: impl FnOnce(&[u8], &mut Vec<u8>) -> Option<T>) -> Option<T> {
        let question = &self.questions[index][..self.received[index].0];
        let written = write(question, &mut self.answers[self.targets.len()])?;
        self.targets.push(index);
        Some(written)
    }

    /// Sends all answers. One that cannot be sent is its client's loss alone.
    pub fn send(&mut self, socket: &UdpSocket) {
        // SAFETY: integers and null pointers.
        let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { (zeroed(), zeroed()) };
        for (slot, &index) in self.targets.iter().enumerate() {
            let answer = &mut self.answers[slot];
            parts[slot] = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: answer.len() };
            let header = &mut messages[slot].msg_hdr;
            header.msg_iov = &mut parts[slot];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = self.received[index].1;
        }
        let mut sent = 0;
        while sent < self.targets.len() {
            let rest = (self.targets.len() - sent) as libc::c_uint;
            // SAFETY: as for receiving; the messages from `sent` on are filled.
            let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr().add(sent), rest, 0) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                tracing::debug!(client = ?self.client(self.targets[sent]), %error, "sending an answer failed");
            }
            sent += count.max(1) as usize;
        }
        self.targets.clear();
    }
}

fn to_raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: integers only.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage holds any address, and is aligned for it.
            let raw = unsafe { &mut *(&raw mut name).cast::<libc::sockaddr_in>() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let raw = unsafe { &mut *(&raw mut name).cast::<libc::sockaddr_in6>() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (name, length as libc::socklen_t)
}

fn from_raw(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what the storage holds.
            let raw = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for address in ["192.0.2.7:53", "[fe80::1%3]:5353"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(from_raw(&to_raw(address).0), Some(address));
        }
    }

    #[test]
    fn sockets_share_a_port_that_the_kernel_chose() {
        let sockets = listen("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert!(ports.len() == 3 && ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    }
}
