//! Connections into a pod, as from inside it: what `kubectl port-forward` carries.
//!
//! A socket belongs to the network namespace of the thread that makes it. So a thread of its own enters the pod's, makes
//! the socket and ends. The namespace is that of the process at the other end of the pod's link, which the kernel names by
//! a pidfd: no number that another process may have by now.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use api::uid::Uid;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tokio::net::{TcpSocket, TcpStream};

use crate::exec::{ExecError, live_pod};
use crate::node::Node;

/// Since Linux 6.5; not in the libc crate.
const SO_PEERPIDFD: libc::c_int = 77;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Pod(#[from] ExecError),
    #[error("enter the pod's network")]
    Enter(#[source] io::Error),
    #[error("failed to connect to localhost:{port} inside the pod, IPv4: {v4} IPv6: {v6}")]
    Refused { port: u16, v4: io::Error, v6: io::Error },
}

/// Connects to a port of the pod's own loopback address.
pub async fn dial(node: &Node, uid: &Uid, port: u16) -> Result<TcpStream, DialError> {
    let pod = live_pod(node, uid).await?;
    let process = peer(pod.link.socket()).map_err(DialError::Enter)?;
    let [v4, v6] = sockets_in(process).await.map_err(DialError::Enter)?;
    let v4 = match connect(v4, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    connect(v6, Ipv6Addr::LOCALHOST.into(), port).await.map_err(|v6| DialError::Refused { port, v4, v6 })
}

async fn connect(socket: OwnedFd, ip: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    let connected = tokio::time::timeout(PATIENCE, socket.connect(SocketAddr::new(ip, port))).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The process that listens at the other end.
fn peer(stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "a socket option that no safe wrapper has")]
    // SAFETY: an open descriptor and an integer of the stated size; what comes back is new and owned at once.
    unsafe {
        let got =
            libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut size);
        if got == 0 { Ok(OwnedFd::from_raw_fd(fd)) } else { Err(io::Error::last_os_error()) }
    }
}

/// An IPv4 and an IPv6 socket of a process's network namespace.
async fn sockets_in(process: OwnedFd) -> io::Result<[OwnedFd; 2]> {
    let (done, made) = tokio::sync::oneshot::channel();
    // Not a thread of the runtime's: those are used again, and this one stays where it went.
    std::thread::Builder::new().name("dial".into()).spawn(move || {
        // Whoever asked may be gone; the sockets go with the message then.
        let _ = done.send(make_sockets(process.as_fd()));
    })?;
    made.await.unwrap_or_else(|_| Err(io::Error::other("the thread that makes sockets died")))
}

fn make_sockets(process: BorrowedFd<'_>) -> io::Result<[OwnedFd; 2]> {
    move_into_thread_name_spaces(process, ThreadNameSpaceType::NETWORK)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = |family| socket_with(family, SocketType::STREAM, flags, None);
    Ok([socket(AddressFamily::INET)?, socket(AddressFamily::INET6)?])
}
