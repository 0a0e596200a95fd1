//! Another process in a running container, and joining a container's own streams.
#![expect(unsafe_code, reason = "pty ioctls have no safe form in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api::uid::Uid;
use pod::protocol::{Exec, Failure, FailureKind, Op};
use rustix::fs::{FileType, Mode, OFlags};
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

mod user;

use crate::door::{Folder, path_of};
use crate::node::{LiveContainer, LivePod, Node};
use crate::process_link::{LinkError, ProcessLink};

pub use user::{ExecUser, ExecUserError, asked as asked_user};

#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    /// The container's own where nobody is named.
    pub user: Option<ExecUser>,
}

/// Which streams of a running container to join.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The agent's ends. Dropping `stdin` closes the process's standard input.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// With a terminal only.
    pub resize: Option<Resizer>,
    /// The exit code; `None` from an attach, which ends with its streams.
    pub exit: Option<oneshot::Receiver<i32>>,
    /// The process itself; `None` from an attach.
    pub process: Option<Process>,
}

/// A process that was started in a container.
#[derive(Clone)]
pub struct Process {
    link: Arc<ProcessLink>,
    exec: String,
}

impl Process {
    /// Ends it at once; one that has ended by itself is as good.
    pub async fn kill(&self) {
        let signal = Op::SignalExec { exec: self.exec.clone(), signal: libc::SIGKILL };
        if let Err(error) = self.link.tell(signal).await {
            tracing::debug!(exec = self.exec, error = %causes::chain(&error), "process not killed");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("container {container:?} of pod {uid} is not running")]
    NotRunning { uid: Uid, container: String },
    #[error("pod {uid} is not running")]
    NoPod { uid: Uid },
    #[error("prepare the process's streams")]
    Streams(#[from] io::Error),
    /// The container is fine, and its owner asked for what cannot be run there.
    #[error(
        "failed to exec in container: failed to start exec {exec:?}: OCI runtime exec failed: exec failed: unable to start container process"
    )]
    CannotRun { exec: String, source: Failure },
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl ExecError {
    fn of_start(exec: String, error: LinkError) -> ExecError {
        match error {
            LinkError::Failed(source) if source.kind == FailureKind::CannotRun => ExecError::CannotRun { exec, source },
            other => ExecError::Link(other),
        }
    }
}

/// Sets a terminal's size.
#[derive(Clone)]
pub enum Resizer {
    Pty(Arc<Pty>),
    Container { link: Arc<ProcessLink>, run: String },
}

impl Resizer {
    /// # Errors
    /// [`ExecError::Streams`] for the terminal of an exec, [`ExecError::Link`] for that of the container itself.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), ExecError> {
        match self {
            Resizer::Pty(pty) => Ok(pty.resize(width, height)?),
            Resizer::Container { link, run } => {
                Ok(link.tell(Op::Resize { container: run.clone(), width, height }).await?)
            }
        }
    }
}

/// How long a pod of an earlier agent is waited for; taking one over takes milliseconds.
const ADOPTION: Duration = Duration::from_secs(10);

async fn find(node: &Node, uid: &Uid, container: &str) -> Result<(LivePod, LiveContainer), ExecError> {
    let look = |pod: &LivePod| Some((pod.clone(), pod.containers.get(container)?.clone()));
    let missing = || ExecError::NotRunning { uid: uid.clone(), container: container.to_owned() };
    settled(node, uid, look).await.ok_or_else(missing)
}

/// A pod that runs.
pub(crate) async fn live_pod(node: &Node, uid: &Uid) -> Result<LivePod, ExecError> {
    settled(node, uid, |pod| Some(pod.clone())).await.ok_or_else(|| ExecError::NoPod { uid: uid.clone() })
}

/// What is wanted of a pod, once it is known whether it runs.
async fn settled<T>(node: &Node, uid: &Uid, look: impl Fn(&LivePod) -> Option<T>) -> Option<T> {
    let (mut changes, deadline) = (node.changes.subscribe(), tokio::time::Instant::now() + ADOPTION);
    loop {
        let adopting = {
            let live = node.live();
            if let Some(found) = live.pods.get(uid).and_then(&look) {
                return Some(found);
            }
            live.adopting.contains(uid)
        };
        if !adopting || !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return None;
        }
    }
}

pub async fn exec(node: &Node, uid: &Uid, container: &str, request: &ExecRequest) -> Result<ExecSession, ExecError> {
    let (pod, container) = find(node, uid, container).await?;
    let mut process = (*container.process).clone();
    process["args"] = json!(request.command);
    process["terminal"] = json!(request.tty);
    if request.tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|pair| pair.as_str().is_some_and(|pair| pair.starts_with("TERM=")))
    {
        env.push(json!("TERM=xterm"));
    }
    if let Some(user) = request.user {
        user.enter(&mut process);
    }
    let exec = Exec { exec: uuid::Uuid::new_v4().to_string(), container: container.run.clone(), process };
    let mut streams = if request.tty { pty_streams(container.pid, request)? } else { pipe_streams(request)? };
    let given: Vec<BorrowedFd<'_>> = streams.theirs.iter().map(|fd| fd.as_fd()).collect();
    streams.session.process = Some(Process { link: pod.link.clone(), exec: exec.exec.clone() });
    let name = exec.exec.clone();
    let started = pod.link.exec(exec, &given).await;
    streams.session.exit = Some(started.map_err(|error| ExecError::of_start(name, error))?);
    Ok(streams.session)
}

pub async fn attach(node: &Node, uid: &Uid, container: &str, request: AttachRequest) -> Result<ExecSession, ExecError> {
    let (pod, container) = find(node, uid, container).await?;
    let (AttachRequest { stdin, stdout, stderr }, tty) = (request, container.tty);
    let stderr = stderr && !tty; // a terminal has one output
    let wanted = ExecRequest { command: Vec::new(), stdin, stdout, stderr, tty: false, user: None };
    let mut streams = pipe_streams(&wanted)?;
    let chosen = streams.theirs.iter().zip([stdin, stdout, stderr]).filter(|(_, wanted)| *wanted);
    let given: Vec<BorrowedFd<'_>> = chosen.map(|(fd, _)| fd.as_fd()).collect();
    pod.link.call(Op::Attach { container: container.run.clone(), stdin, stdout, stderr }, &given).await?;
    if tty {
        streams.session.resize = Some(Resizer::Container { link: pod.link.clone(), run: container.run });
    }
    Ok(streams.session)
}

struct Streams {
    session: ExecSession,
    theirs: Vec<OwnedFd>,
}

fn pipe_streams(request: &ExecRequest) -> io::Result<Streams> {
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let mut session = ExecSession { stdin: None, stdout: None, stderr: None, resize: None, exit: None, process: None };
    let mut theirs = Vec::new();
    if request.stdin {
        let (reader, writer) = io::pipe()?;
        session.stdin = Some(Box::new(pipe::Sender::from_owned_fd(OwnedFd::from(writer))?));
        theirs.push(reader.into());
    } else {
        theirs.push(null()?);
    }
    for (wanted, ours) in [(request.stdout, &mut session.stdout), (request.stderr, &mut session.stderr)] {
        if wanted {
            let (reader, writer) = io::pipe()?;
            *ours = Some(Box::new(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?));
            theirs.push(writer.into());
        } else {
            theirs.push(null()?);
        }
    }
    Ok(Streams { session, theirs })
}

fn pty_streams(pid: i32, request: &ExecRequest) -> io::Result<Streams> {
    let (pty, terminal) = Pty::open(pid)?;
    let pty = Arc::new(pty);
    let session = ExecSession {
        stdin: request.stdin.then(|| Box::new(PtyStream(pty.clone())) as _),
        stdout: Some(Box::new(PtyStream(pty.clone()))),
        stderr: None,
        resize: Some(Resizer::Pty(pty)),
        exit: None,
        process: None,
    };
    Ok(Streams { session, theirs: vec![terminal] })
}

/// The controlling side of a pseudo terminal that belongs to the container's own devpts, so that `tty` works there.
pub struct Pty(AsyncFd<OwnedFd>);

impl Pty {
    fn open(pid: i32) -> io::Result<(Pty, OwnedFd)> {
        let root = Folder::open(Path::new(&format!("/proc/{pid}/root")))?;
        let controller = open_ptmx(&root)?;
        let mut unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads an int; TIOCGPTPEER returns a new descriptor, which is ours.
        let terminal = unsafe {
            if libc::ioctl(controller.as_raw_fd(), libc::TIOCSPTLCK, &raw mut unlock) < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd =
                libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: the AsyncFd owns the descriptor, which nothing else closes or replaces.
        let controller = unsafe { AsyncFd::register(controller)? };
        Ok((Pty(controller), terminal))
    }

    fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize.
        let result = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The container could have put anything at that path, which would act when it is opened: it must be the kernel's device
/// 5:2, and what was looked at is what is opened.
fn open_ptmx(root: &Folder) -> io::Result<OwnedFd> {
    let found = root.open_inside(Path::new("dev/pts/ptmx"), OFlags::PATH | OFlags::NOFOLLOW)?;
    let stat = rustix::fs::fstat(&found)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "/dev/pts/ptmx is no terminal device"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path_of(found.as_fd()), flags, Mode::empty())?)
}

struct PtyStream(Arc<Pty>);

impl AsyncRead for PtyStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let read = guard.try_io(|fd| {
                // SAFETY: pointer and length describe `space`.
                let count = unsafe { libc::read(fd.as_raw_fd(), space.as_mut_ptr().cast(), space.len()) };
                if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
            });
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // EIO: the last process on the terminal is gone.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for PtyStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.0.poll_write_ready(context))?;
            let written = guard.try_io(|fd| {
                // SAFETY: pointer and length describe `bytes`.
                let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
                if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
            });
            if let Ok(result) = written {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A FIFO waits for whoever writes, or gives the one who waits to write its reader: it is not to be opened at all.
    #[test]
    fn what_is_no_terminal_device_is_not_opened() {
        use rustix::fs::{CWD, makedev, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let pts = folder.path().join("dev/pts");
        std::fs::create_dir_all(&pts).unwrap();
        let (ptmx, root) = (pts.join("ptmx"), Folder::open(folder.path()).unwrap());
        for (kind, device) in
            [(FileType::Fifo, 0), (FileType::CharacterDevice, makedev(1, 3)), (FileType::RegularFile, 0)]
        {
            mknodat(CWD, &ptmx, kind, Mode::RUSR | Mode::WUSR, device).unwrap();
            let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
            rustix::fs::inotify::add_watch(&watch, &ptmx, rustix::fs::inotify::WatchFlags::OPEN).unwrap();
            let refused = open_ptmx(&root).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{kind:?}: {refused}");
            let opened = rustix::io::read(&watch, &mut [0_u8; 1024]);
            assert_eq!(opened, Err(rustix::io::Errno::AGAIN), "{kind:?} was opened");
            std::fs::remove_file(&ptmx).unwrap();
        }
        symlink("/dev/ptmx", &ptmx).unwrap();
        assert!(open_ptmx(&root).is_err(), "a link that leads out");
    }
}
