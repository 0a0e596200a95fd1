//! One more process in a running container: `kubectl exec`, exec probes and hooks.
//!
//! libcontainer's own way to do this drops the seccomp filter, so this is ours. The order follows the rules of the
//! kernel: cgroups while the host's mounts are visible; namespaces; a second fork to be inside the PID namespace (as
//! this process's child, CLONE_PARENT); limits before the user changes; the filter before capabilities go when
//! no_new_privs is off, after them when it is on.
//!
//! Everything after the namespaces happens in a place that the container has shaped: it may have put any link where the
//! working folder was, and may look at this process before execve. So nothing of the host is left open by then but the
//! streams and the pipe that tells of failures, links of /proc that lead out are not followed, the kernel is asked where
//! one has arrived, and the process shows nothing of itself.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use oci_spec::runtime::{PosixRlimitType, Process};

use super::capabilities::bits;
use super::confine;
use super::container::{Container, failure};
use super::filter::Confinement;
use super::{program, sys};
use crate::protocol::{Failure, FailureKind};

/// Getting from fork to execve takes milliseconds; a dead file server may make it never.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts `process` in `container` with the given stdin, stdout and stderr (or one pty); returns its host pid.
pub fn exec(container: &Container, process: &Process, stdio: &[OwnedFd]) -> Result<i32, Failure> {
    let prepared = Prepared::new(container, process, stdio).map_err(|error| failure(FailureKind::Internal, error))?;
    let (reader, writer) = sys::pipe().map_err(|error| failure(FailureKind::Internal, error))?;
    let helper = sys::fork().map_err(|error| failure(FailureKind::Internal, format!("fork: {error}")))?;
    let Some(helper) = helper else { enter(&prepared, File::from(writer)) };
    drop(writer);
    let heard = hear(File::from(reader));
    if heard.is_err() {
        let _ = sys::kill(helper, libc::SIGKILL); // it may have ended by itself
    }
    sys::wait_for(helper).map_err(|error| failure(FailureKind::Internal, format!("wait: {error}")))?;
    let heard = heard.map_err(|error| failure(FailureKind::Internal, format!("exec: {error}")))?;
    interpret(&heard)
}

/// All that the new process needs, gathered where errors can still be told in words.
struct Prepared<'a> {
    cgroups: Vec<File>,
    init: BorrowedFd<'a>,
    process: &'a Process,
    confinement: &'a Confinement,
    own_users: bool,
    args: Vec<CString>,
    env: BTreeMap<String, String>,
    stdio: Vec<i32>,
    terminal: bool,
}

impl<'a> Prepared<'a> {
    fn new(container: &'a Container, process: &'a Process, stdio: &[OwnedFd]) -> io::Result<Prepared<'a>> {
        for stream in stdio {
            confine::hand_over(stream.as_fd(), container.first_user.unwrap_or(0) + process.user().uid())
                .map_err(|error| sys::context(error, "give the streams to their user"))?;
        }
        let terminal = process.terminal().unwrap_or(false);
        let stdio: Vec<i32> = stdio.iter().map(|fd| fd.as_raw_fd()).collect();
        let stdio = match (terminal, stdio.as_slice()) {
            (true, [pty, ..]) => vec![*pty; 3],
            (false, [_, _, _]) => stdio,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "wrong number of descriptors")),
        };
        let args = process.args().iter().flatten().map(|arg| sys::c_string(arg)).collect::<io::Result<Vec<_>>>()?;
        if args.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command"));
        }
        let env = process.env().iter().flatten().chain(container.env.iter().filter(|_| process.env().is_none()));
        Ok(Prepared {
            cgroups: container.cgroups().join_files()?,
            init: container.pidfd(),
            process,
            confinement: &container.confinement,
            own_users: container.first_user.is_some(),
            args,
            env: env.filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            stdio,
            terminal,
        })
    }
}

/// What the children say: `P` and the pid from the helper, `E` and words from whoever failed.
fn hear(mut reader: File) -> io::Result<Vec<u8>> {
    sys::set_nonblocking(reader.as_raw_fd())?;
    let mut heard = Vec::new();
    loop {
        let mut fds = [libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        match sys::poll(&mut fds, Some(PATIENCE)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the process did not start in time")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let mut buffer = [0_u8; 4096];
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(heard),
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn interpret(heard: &[u8]) -> Result<i32, Failure> {
    let text = String::from_utf8_lossy(heard);
    if let Some((_, words)) = text.split_once('E') {
        return Err(failure(FailureKind::CannotRun, words));
    }
    let pid = text.strip_prefix('P').and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| failure(FailureKind::Internal, "the process ended before it started"))
}

/// The helper: joins cgroups and namespaces, forks the process proper as its own sibling, and ends.
fn enter(prepared: &Prepared<'_>, mut tell: File) -> ! {
    let forked = join(prepared).and_then(|()| sys::fork_with(libc::CLONE_PARENT));
    let outcome = match forked {
        Ok(Some(pid)) => {
            // In one write: the process may have something to tell at the same time.
            let told = tell.write_all(format!("P{pid}").as_bytes());
            sys::exit_now(i32::from(told.is_err()))
        }
        Ok(None) => become_process(prepared, tell),
        Err(error) => fail(&mut tell, &error),
    };
    sys::exit_now(outcome)
}

/// Says what went wrong; the exit code of a process that never was.
fn fail(tell: &mut File, error: &io::Error) -> i32 {
    let _ = tell.write_all(format!("E{error}").as_bytes()); // nobody else to tell
    127
}

fn join(prepared: &Prepared<'_>) -> io::Result<()> {
    for mut file in &prepared.cgroups {
        file.write_all(b"0").map_err(|error| sys::context(error, "join the container's cgroup"))?;
    }
    if let Some(adjustment) = prepared.process.oom_score_adj()
        && let Err(error) = fs::write("/proc/self/oom_score_adj", adjustment.to_string())
    {
        eprintln!("oom_score_adj {adjustment} for exec: {error}");
    }
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP | libc::CLONE_NEWIPC;
    let flags = flags | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
    if let Some(profile) = prepared.process.apparmor_profile() {
        confine::apparmor(profile)?; // inherited, and in force from execve on
    }
    let flags = flags | if prepared.own_users { libc::CLONE_NEWUSER } else { 0 };
    sys::hide_from_others()?;
    sys::setns(prepared.init, flags).map_err(|error| sys::context(error, "enter the container's namespaces"))?;
    // Until it is root there, this process is a stranger to all files of the container.
    if prepared.own_users { sys::set_ids(0, 0, &[]) } else { Ok(()) }
}

/// Returns only when something failed.
fn become_process(prepared: &Prepared<'_>, tell: File) -> i32 {
    let mut tell = match own_streams(prepared, tell) {
        Ok(tell) => tell,
        Err(_) => return 127, // the pipe is gone with the rest: its reader sees the end
    };
    let error = match confine(prepared) {
        Ok((program, env)) => {
            let error = program::words(&sys::execve(&program, &prepared.args, &env));
            io::Error::other(format!("exec {}: {error}", program.to_string_lossy()))
        }
        Err(error) => error,
    };
    fail(&mut tell, &error)
}

/// Leaves four descriptors open: the three streams, and the pipe that tells of failures until execve closes it.
fn own_streams(prepared: &Prepared<'_>, tell: File) -> io::Result<File> {
    for (target, fd) in prepared.stdio.iter().enumerate() {
        sys::dup_to(*fd, target as i32)?;
    }
    sys::keep_only(tell)
}

/// Becomes what the OCI process object says, up to the moment of execve.
fn confine(prepared: &Prepared<'_>) -> io::Result<(CString, Vec<CString>)> {
    let process = prepared.process;
    if prepared.terminal {
        sys::take_terminal()?
    } else {
        sys::new_session()?
    }
    set_limits(process)?;
    if let Some(mask) = process.user().umask() {
        sys::set_umask(mask);
    }
    let no_new_privileges = process.no_new_privileges();
    if no_new_privileges == Some(true) {
        sys::no_new_privileges()?;
    }
    let arrival = change_dir(process)?;
    if no_new_privileges.is_none() {
        prepared.confinement.load()?;
    }
    set_identity(process)?;
    if arrival == Arrival::Forbidden && change_dir(process)? == Arrival::Forbidden {
        return Err(cwd_refused(process, &io::Error::from_raw_os_error(libc::EACCES)));
    }
    let env = environment(prepared);
    let path = prepared.env.get("PATH").map(String::as_str);
    let program = program::find(&prepared.args[0].to_string_lossy(), path).map_err(io::Error::other)?;
    if no_new_privileges.is_some() {
        prepared.confinement.load()?;
    }
    Ok((program, env))
}

/// Raising a hard limit needs CAP_SYS_RESOURCE; without it the container itself could not have started.
fn set_limits(process: &Process) -> io::Result<()> {
    for limit in process.rlimits().iter().flatten() {
        sys::set_limit(resource(limit.typ()), limit.soft(), limit.hard())
            .map_err(|error| sys::context(error, format!("set limit {:?}", limit.typ())))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// How far the way to the working folder led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    There,
    /// Some file systems refuse root what they give to the user.
    Forbidden,
}

/// Goes to the working folder, as root first: an image's folder may be closed to the user who shall work in it.
fn change_dir(process: &Process) -> io::Result<Arrival> {
    let cwd = process.cwd();
    let gone = sys::c_path(cwd).and_then(|path| sys::open_folder(&path)).and_then(|folder| sys::go_to(folder.as_fd()));
    match gone {
        Ok(()) if sys::working_folder_is_inside()? => Ok(Arrival::There),
        Ok(()) => Err(io::Error::other(format!("chdir to {}: it lies outside the container", cwd.display()))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Arrival::Forbidden),
        Err(error) => Err(cwd_refused(process, &error)),
    }
}

/// In runc's words.
fn cwd_refused(process: &Process, error: &io::Error) -> io::Error {
    let (cwd, why) = (process.cwd().display().to_string(), program::words(error));
    io::Error::new(error.kind(), format!("chdir to cwd ({cwd:?}) set in config.json failed: {why}"))
}

/// Capabilities and user, in the only order that works: bounding set while privileged, ids with the permitted set
/// kept, then the final sets.
fn set_identity(process: &Process) -> io::Result<()> {
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    let Some(sets) = process.capabilities() else {
        return sys::set_ids(user.uid(), user.gid(), &groups);
    };
    sys::limit_bounding(bits(sets.bounding().as_ref()))?;
    sys::keep_capabilities(true)?;
    sys::set_ids(user.uid(), user.gid(), &groups).map_err(|error| sys::context(error, "change the user"))?;
    sys::keep_capabilities(false)?;
    let (effective, permitted) = (bits(sets.effective().as_ref()), bits(sets.permitted().as_ref()));
    sys::set_capabilities(effective, permitted, bits(sets.inheritable().as_ref()))
        .map_err(|error| sys::context(error, "set capabilities"))?;
    let ambient = bits(sets.ambient().as_ref());
    (0..64).filter(|capability| ambient & (1 << capability) != 0).try_for_each(sys::raise_ambient)
}

/// The environment with HOME from the container's passwd file when nobody set it.
fn environment(prepared: &Prepared<'_>) -> Vec<CString> {
    let mut env = prepared.env.clone();
    env.entry("HOME".into())
        .or_insert_with(|| home_of(&passwd(), prepared.process.user().uid()).unwrap_or_else(|| "/".into()));
    env.iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect()
}

/// The container's account file. It may have become anything: a pipe must not be waited for, nor a giant read.
fn passwd() -> String {
    const MOST: u64 = 1 << 20;
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/etc/passwd");
    let mut text = Vec::new();
    let read =
        open.and_then(|file| if file.metadata()?.is_file() { file.take(MOST).read_to_end(&mut text) } else { Ok(0) });
    if read.is_ok() { String::from_utf8_lossy(&text).into_owned() } else { String::new() }
}

fn home_of(passwd: &str, uid: u32) -> Option<String> {
    let entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut homes = entries.filter(|entry| entry.get(2).is_some_and(|id| id.parse() == Ok(uid)));
    homes.next().and_then(|entry| entry.get(5).map(|home| (*home).to_owned())).filter(|home| !home.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n";
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 34), None);
    }

    #[test]
    fn words_of_the_children() {
        assert_eq!(interpret(b"P42").unwrap(), 42);
        assert_eq!(interpret(b"P42Eno such file").unwrap_err().message, "no such file");
        assert_eq!(interpret(b"").unwrap_err().kind, FailureKind::Internal);
    }
}
