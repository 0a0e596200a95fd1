//! System calls that std doesn't have, one thin function each.
#![expect(unsafe_code, reason = "thin wrappers around system calls")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Puts what was being done in front of an error.
pub fn context(error: io::Error, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} holds a zero byte")))
}

pub fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

pub fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    Parent,
    Child,
}

/// Forks into a session of its own, working folder `/`.
pub fn daemonise() -> io::Result<Fork> {
    match fork()? {
        Some(_) => Ok(Fork::Parent),
        None => {
            // SAFETY: plain system calls without pointers except a static string.
            unsafe {
                check(libc::setsid())?;
                check(libc::chdir(c"/".as_ptr()))?;
            }
            Ok(Fork::Child)
        }
    }
}

/// `Some(pid)` in the parent, `None` in the child.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this process has one thread, so the child may run any code.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid > 0).then_some(pid))
}

/// Forks with namespace or parent flags of clone(2).
pub fn fork_with(flags: libc::c_int) -> io::Result<Option<i32>> {
    // SAFETY: without CLONE_VM and with a null stack this is fork; this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) } as libc::c_int;
    Ok((check(pid)? > 0).then_some(pid))
}

/// Ends a forked child without running anything of the parent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and takes no pointer.
    unsafe { libc::_exit(code) }
}

/// Nobody writes to this process's standard input any more.
pub fn forget_stdin() -> io::Result<()> {
    let null = File::open("/dev/null")?;
    dup_to(null.as_raw_fd(), 0)
}

/// The name of this process (not of its program) in lists of processes: at most 15 bytes.
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the kernel copies the C string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Until the next execve no process of a container may look into this one, not even one of the same user.
pub fn hide_from_others() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Frees the agent's pipe: it reads to the end of file.
pub fn close_stdout() {
    // SAFETY: both descriptors are ours; stderr is the log that stdout becomes.
    unsafe { libc::dup2(2, 1) };
}

pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

pub fn setns(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }).map(drop)
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Orphans of containers that share the host's PID namespace come to us.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

pub fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    // SAFETY: all five are valid C strings or plain numbers.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// Makes the current folder the root and drops the old one.
pub fn pivot_root_here() -> io::Result<()> {
    // SAFETY: static C strings.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as libc::c_int)?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr())).map(drop)
    }
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor is ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    check(result as libc::c_int).map(drop)
}

/// Takes a lock that ends with the last copy of this open file.
pub fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// A pipe whose ends close on exec. Reader first.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: pipe2 fills the two descriptors, which are then ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

pub fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `bytes`.
    let count = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

pub fn dup_to(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Makes `kept` descriptor 3, closed on exec, and closes every later one.
pub fn keep_only(kept: File) -> io::Result<File> {
    const KEPT: RawFd = 3;
    let from = kept.into_raw_fd();
    if from != KEPT {
        // SAFETY: no pointers; whatever was descriptor 3 is given up by the caller, as all others are.
        check(unsafe { libc::dup3(from, KEPT, libc::O_CLOEXEC) })?;
    }
    close_from(KEPT as u32 + 1)?;
    // SAFETY: the descriptor is open and nobody else's.
    Ok(unsafe { File::from_raw_fd(KEPT) })
}

/// Opens a folder as a place to go to. A link such as those of /proc/self/fd, which leads to what another path could
/// never name, is not followed.
pub fn open_folder(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: open_how is plain data for which all zeroes is valid.
    let mut how: libc::open_how = unsafe { mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: a valid C string and structure with its size; a new descriptor is ours.
    unsafe {
        let size = size_of::<libc::open_how>();
        let fd = libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), &raw const how, size);
        Ok(OwnedFd::from_raw_fd(check(fd as libc::c_int)?))
    }
}

pub fn go_to(folder: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchdir(folder.as_raw_fd()) }).map(drop)
}

/// Whether the working folder lies below this process's root, as the kernel itself sees it.
pub fn working_folder_is_inside() -> io::Result<bool> {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // The C library's getcwd(3) would walk the tree where the system call gives up.
    // SAFETY: pointer and length describe `path`.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    check(length as libc::c_int)?;
    Ok(path[0] == b'/') // "(unreachable)/…" is outside
}

/// Gives a pipe to the user who shall use it: only then may that user open it again, as /dev/stdout.
pub fn give_to(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    // SAFETY: no pointers; the group stays.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, libc::gid_t::MAX) }).map(drop)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller owns all of them and uses none any more.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    check(result as libc::c_int).map(drop)
}

pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let millis = timeout.map_or(-1, |timeout| timeout.as_millis().min(i32::MAX as u128) as i32);
    // SAFETY: pointer and length describe `fds`.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready as usize) }
}

/// A child that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub pid: i32,
    pub code: i32,
    pub signal: Option<i32>,
}

/// The next ended child, if one waits to be reaped.
pub fn reap() -> Option<Ended> {
    wait(-1, libc::WNOHANG).ok().flatten()
}

/// Waits for one child.
pub fn wait_for(pid: i32) -> io::Result<Option<Ended>> {
    loop {
        match wait(pid, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn wait(pid: i32, flags: libc::c_int) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: `status` is written by the kernel.
    let pid = check(unsafe { libc::waitpid(pid, &raw mut status, flags) })?;
    if pid == 0 {
        return Ok(None);
    }
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    let code = signal.map_or_else(|| libc::WEXITSTATUS(status), |signal| 128 + signal);
    Ok(Some(Ended { pid, code, signal }))
}

pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub fn set_window(fd: RawFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The other end of a pseudo terminal, which it need not be able to name.
pub fn terminal_of(controller: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor, which is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER, flags))?)) }
}

/// Makes a terminal on descriptor 0 the controlling one of this new session.
pub fn take_terminal() -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        check(libc::setsid())?;
        check(libc::ioctl(0, libc::TIOCSCTTY, 0)).map(drop)
    }
}

pub fn new_session() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() }).map(drop)
}

// ---- signals ----

static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_signal: libc::c_int) {
    // SAFETY: write is async-signal-safe; the pipe is non-blocking, and a full pipe wakes the loop all the same.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(WAKE.load(Ordering::Relaxed), c"c".as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Handlers, not masks and not SIG_IGN: exec resets handlers, so containers start with default signals. What whoever started
/// us ignores (a shell's background job SIGQUIT, with which nginx is stopped) would outlast exec, so it is not ignored here.
/// Returns the reading end of the pipe that a dead child wakes.
pub fn install_signals() -> io::Result<OwnedFd> {
    let (reader, writer) = pipe()?;
    set_nonblocking(reader.as_raw_fd())?;
    set_nonblocking(writer.as_raw_fd())?;
    WAKE.store(writer.as_raw_fd(), Ordering::Relaxed);
    mem::forget(writer); // lives as long as the process
    for signal in (1..32).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)) {
        // SAFETY: no handler is installed, the number is a signal's.
        let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    handle(libc::SIGCHLD, on_child)?;
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        handle(signal, ignore)?;
    }
    Ok(reader)
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: sigaction is plain data for which all zeroes is valid; the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        check(libc::sigaction(signal, &raw const action, std::ptr::null_mut())).map(drop)
    }
}

// ---- identity and privileges, for exec ----

pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe `groups`; the rest are plain numbers.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid)).map(drop)
    }
}

pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }).map(drop)
}

pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Confines this process and its children by a classic BPF program.
pub fn load_filter(program: &[u8]) -> io::Result<()> {
    let instruction = |bytes: &[u8; 8]| libc::sock_filter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    let (instructions, rest) = program.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a whole number of instructions"));
    }
    let mut instructions: Vec<_> = instructions.iter().map(instruction).collect();
    let len = u16::try_from(instructions.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "too many instructions"))?;
    let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: the program describes `instructions`, which outlive the call; the kernel copies them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
    check(done as libc::c_int).map(drop)
}

/// A file without a place in any file system.
pub fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: a valid C string; the new descriptor is ours.
    unsafe {
        let fd = check(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) }).map(drop)
}

/// Drops every capability that is not in `keep`, the kernel's bits, from the bounding set.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    let mut surplus = (0..64).filter(|capability| keep & (1 << capability) == 0 && bounding_holds(*capability));
    surplus.try_for_each(drop_bounding)
}

fn bounding_holds(capability: u32) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) == 1 }
}

pub fn raise_ambient(capability: u32) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(capability), 0, 0) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the three sets, one bit per capability.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: header and data have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } as libc::c_int).map(drop)
}

pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit reads one rlimit.
    check(unsafe { libc::setrlimit(resource as _, &raw const limit) }).map(drop)
}

pub fn set_umask(mask: u32) {
    // SAFETY: no pointers; cannot fail.
    unsafe { libc::umask(mask as libc::mode_t) };
}

/// Replaces this process. Only returns when that failed.
pub fn execve(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Whether the calling process, as whom it acts, may run a file.
pub fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: a valid C string.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) }).map(drop)
}

/// Takes one descriptor sent over a connected Unix socket.
pub fn receive_fd(socket: RawFd) -> io::Result<OwnedFd> {
    let mut inbox = crate::frame::Inbox::default();
    inbox.receive(socket)?;
    inbox.take_fds(1).pop().ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor came"))
}

// ---- set-up ----

/// Sets IFF_UP on an interface of this network namespace.
pub fn interface_up(socket: RawFd, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data; the name is shorter than IFNAMSIZ and stays zero-terminated.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        check(libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request)).map(drop)
    }
}

pub fn change_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: a valid C string.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Waits for a signal that ends the process.
pub fn sleep_forever() -> ! {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::pause() };
    }
}

/// The whole life of the first process of a shared PID namespace.
pub fn reap_forever() -> ! {
    loop {
        if wait_for(-1).is_err() {
            // No child: the next orphan's SIGCHLD ends the pause.
            // SAFETY: no pointers.
            unsafe { libc::pause() };
        }
    }
}
