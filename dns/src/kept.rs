//! Sockets that outlive the server's process.
//!
//! A resolver whose question is refused fails at once; one whose question waits has its answer late. So while a process is away,
//! killed or being replaced, its sockets stay open and questions queue in them. Nothing but a process can hold a socket: a small
//! one keeps copies of the descriptors and does nothing else. The next server gets them from it, and with them the same port and
//! what was asked meanwhile. When none comes for a while it ends, and questions are refused as they should be.
//!
//! The two speak by a Unix socket that only root reaches, in messages of one byte with descriptors. Who connects is sent what is
//! kept; who is connected sends what to keep from then on, and nothing to have the keeper end. The order of descriptors is the
//! listener's, then one for each thread; a keeper that just began is first sent the Unix socket itself. It may be of an older
//! release than the server: this stays as it is.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::AsyncReadExt;

use crate::sockets::{Sockets, wanted};
use crate::udp;

/// How long a keeper waits for the next server. An upgrade takes less; and whoever stays away longer is gone.
const GRACE: Duration = Duration::from_secs(60);
/// How long a keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Until a keeper that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// Descriptors in one message.
const MOST: usize = 16;

/// How the keeper is reached, and the program that becomes one: it calls [`keep_sockets`].
#[derive(Debug, Clone)]
pub struct Keeper {
    pub path: PathBuf,
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// What a server listens on, and how long that is open: as long as the server, or until the next process has it.
#[derive(Debug)]
pub struct Listening {
    pub(crate) sockets: Sockets,
    pub(crate) kept: Option<Kept>,
}

impl From<Sockets> for Listening {
    fn from(sockets: Sockets) -> Self {
        Self { sockets, kept: None }
    }
}

/// Kept sockets, seen from the server.
#[derive(Debug)]
pub(crate) struct Kept {
    keeper: Keeper,
    line: UnixStream,
    copies: Vec<OwnedFd>,
    /// Where this process started the keeper.
    child: Option<Child>,
}

impl Listening {
    /// What an earlier process left at this address, else new sockets; kept for the next process in any case.
    ///
    /// # Errors
    /// What `open` gives, and what stands in the way of a keeper: its socket cannot be made, its program not be started, or it
    /// takes nothing. That an earlier keeper's sockets cannot be had is no error: new ones are opened.
    pub fn keep(address: IpAddr, open: impl FnOnce() -> io::Result<Sockets>, keeper: Keeper) -> io::Result<Self> {
        let (sockets, line) = match taken_over(&keeper.path, address) {
            Ok(Some((sockets, line))) => (sockets, Some(line)),
            Ok(None) => (open()?, None),
            Err(error) => {
                tracing::warn!(%error, "DNS makes new sockets: what was kept cannot be had");
                (open()?, None)
            }
        };
        let copies = copies(&sockets)?;
        let (line, child) = match line {
            Some(line) => (line, None),
            None => start(&keeper).map(|(line, child)| (line, Some(child)))?,
        };
        send(&line, &copies)?;
        Ok(Self { sockets, kept: Some(Kept { keeper, line, copies, child }) })
    }

    /// Where the sockets are bound.
    ///
    /// # Errors
    /// The kernel's, which an open socket does not meet.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.address()
    }
}

fn copies(sockets: &Sockets) -> io::Result<Vec<OwnedFd>> {
    let datagrams = sockets.datagrams.iter().map(|socket| socket.as_fd().try_clone_to_owned());
    std::iter::once(sockets.listener.as_fd().try_clone_to_owned()).chain(datagrams).collect()
}

impl Kept {
    /// Starts the keeper again when it ends.
    pub async fn watch(mut self) {
        loop {
            let ended = ended(&self.line).await;
            if let Some(Err(error)) = self.child.as_mut().map(Child::wait) {
                tracing::warn!(%error, "the keeper of DNS' sockets cannot be waited for");
            }
            tracing::warn!(error = ?ended.err(), "the keeper of DNS' sockets ended: another one is started");
            tokio::time::sleep(PAUSE).await;
            let again = start(&self.keeper).and_then(|(line, child)| {
                send(&line, &self.copies)?;
                Ok((line, Some(child)))
            });
            match again {
                Ok((line, child)) => (self.line, self.child) = (line, child),
                Err(error) => {
                    return tracing::error!(%error, "DNS' sockets are kept no more: a restart will lose questions");
                }
            }
        }
    }
}

/// Waits until the other side is gone.
async fn ended(line: &UnixStream) -> io::Result<()> {
    let line = line.try_clone()?;
    line.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(line)?.read(&mut [0]).await.map(drop)
}

/// What is kept at this address, as many as there are threads for, and the line to the keeper.
fn taken_over(path: &Path, address: IpAddr) -> io::Result<Option<(Sockets, UnixStream)>> {
    let Some(line) = connect(path)? else { return Ok(None) };
    let mut kept = receive(&line)?.unwrap_or_default().into_iter();
    let Some(listener) = kept.next().map(TcpListener::from) else { return Ok(None) };
    let mut datagrams: Vec<UdpSocket> = kept.map(UdpSocket::from).collect();
    let at: SocketAddr = listener.local_addr()?;
    if at.ip() != address || datagrams.is_empty() {
        // The node has another address now.
        send(&line, &[])?;
        return Ok(None);
    }
    datagrams.truncate(wanted());
    while datagrams.len() < wanted() {
        datagrams.push(udp::bind_shared(at)?);
    }
    tracing::info!(address = %at, "DNS goes on with the sockets of the process before");
    Ok(Some((Sockets { datagrams, listener }, line)))
}

/// The line to a keeper, if there is one.
fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path) {
        Ok(line) => {
            line.set_read_timeout(Some(PATIENCE))?;
            Ok(Some(line))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

fn start(keeper: &Keeper) -> io::Result<(UnixStream, Child)> {
    gone(std::fs::remove_file(&keeper.path))?;
    let listener = UnixListener::bind(&keeper.path)?;
    std::fs::set_permissions(&keeper.path, std::fs::Permissions::from_mode(0o600))?;
    let (line, theirs) = UnixStream::pair()?;
    let mut command = Command::new(&keeper.program);
    command.args(&keeper.arguments).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    // What a terminal sends to the server's group is not for it.
    let child = command.process_group(0).spawn()?;
    drop(command);
    send(&line, &[OwnedFd::from(listener)])?;
    Ok((line, child))
}

/// Has the sockets of a folder closed: nobody will come for them.
///
/// # Errors
/// [`WouldBlock`](io::ErrorKind::WouldBlock) where the keeper says nothing for two seconds; else what connecting to its socket or
/// removing it gives. That there is no keeper is no error.
pub fn let_go(path: &Path) -> io::Result<()> {
    if let Some(line) = connect(path)? {
        receive(&line)?;
        send(&line, &[])?;
        // Its end is that of the line.
        receive(&line)?;
    }
    gone(std::fs::remove_file(path))
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The keeper's whole life; its standard input is the line to the server that started it.
///
/// # Errors
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where standard input brings no socket to listen on, or where nobody can be
/// listened for any more. What is kept is closed with the process.
pub fn keep_sockets() -> io::Result<()> {
    keep_for(GRACE)
}

fn keep_for(grace: Duration) -> io::Result<()> {
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let listener = receive(&line)?.unwrap_or_default().into_iter().next();
    let listener = UnixListener::from(listener.ok_or(io::ErrorKind::UnexpectedEof)?);
    set_socket_timeout(&listener, Timeout::Recv, Some(grace))?;
    let mut kept = Vec::new();
    loop {
        // A server that is killed may leave its line in any state: that is its end, as any other.
        while let Ok(Some(next)) = receive(&line) {
            if next.is_empty() {
                return Ok(());
            }
            kept = next;
        }
        line = match listener.accept() {
            Ok((line, _)) => line,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        // One that left at once is no server.
        drop(send(&line, &kept));
    }
}

fn send(line: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    sendmsg(line, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The descriptors of one message; none when the other side is gone.
fn receive(line: &UnixStream) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message = loop {
        match recvmsg(line, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if message.bytes == 0 {
        return Ok(None);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(Some(rights.flatten().collect()))
}

#[cfg(test)]
mod tests;
