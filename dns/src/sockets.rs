//! What the server listens on: one port for connections and datagrams.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use crate::udp;

/// Outside the ranges from which node ports, connections and translations take theirs: so it is free again after any restart.
const PORT: u16 = 10_053;
/// Threads for datagrams, where there are as many CPUs: one answers more than a node's pods ask.
const THREADS: usize = 4;
/// Ports chosen by the kernel for datagrams that may be taken for connections.
const ATTEMPTS: usize = 16;

/// Bound sockets, one for each thread that takes datagrams.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) datagrams: Vec<UdpSocket>,
    pub(crate) listener: TcpListener,
}

impl Sockets {
    /// At the usual port of this address, or at another one where somebody has that.
    ///
    /// # Errors
    /// As for [`Sockets::bind`], but for a port that is in use.
    pub fn open(address: IpAddr) -> io::Result<Self> {
        match Self::bind(SocketAddr::new(address, PORT)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(port = PORT, "DNS takes another port: this one is in use");
                Self::bind(SocketAddr::new(address, 0))
            }
            other => other,
        }
    }

    /// With port 0 the kernel's choice for datagrams may be taken for connections: then another is tried.
    ///
    /// # Errors
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) where somebody has the port, with port 0 after 16 of the kernel's choices;
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) where no device carries the address.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut attempts = if address.port() == 0 { ATTEMPTS } else { 1 };
        loop {
            let datagrams = udp::listen(address, wanted())?;
            attempts -= 1;
            match TcpListener::bind(datagrams[0].local_addr()?) {
                Ok(listener) => return Ok(Self { datagrams, listener }),
                Err(error) if attempts == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Where connections and datagrams come in.
    ///
    /// # Errors
    /// The kernel's, which an open socket does not meet.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Sockets for datagrams.
pub(crate) fn wanted() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREADS)
}
