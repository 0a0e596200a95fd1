//! The pod's lock, cgroup and namespaces, made before any container exists.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use super::{cgroup, sys, users};
use crate::protocol::Setup;
use crate::step::Step;

/// What lives as long as the pod process.
#[derive(Debug)]
pub struct Pod {
    /// Its exclusive lock says that this process lives.
    _lock: File,
    /// The first process of the PID namespace that the containers share.
    pub init: Option<i32>,
    /// The user namespace that the containers share, when it is not the host's.
    pub users: Option<OwnedFd>,
    /// A dead child makes this readable.
    pub wake: OwnedFd,
}

impl Pod {
    pub fn pid_namespace(&self) -> Option<PathBuf> {
        self.init.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid")))
    }

    pub fn user_namespace(&self) -> Option<PathBuf> {
        let number = self.users.as_ref()?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id())))
    }
}

pub fn prepare(setup: &Setup) -> io::Result<Pod> {
    let lock = lock(setup)?;
    Step::TakeLock.done();
    let wake = sys::install_signals()?;
    cgroup::join(&setup.cgroup).map_err(|error| sys::context(error, format!("join {}", setup.cgroup.display())))?;
    Step::JoinCgroup.done();
    sys::become_subreaper()?;
    let users = make_namespaces(setup).map_err(|error| sys::context(error, "make the pod's namespaces"))?;
    Step::MakeNamespaces.done();
    let init = if setup.share_pid { Some(start_init(setup, users.as_ref())?) } else { None };
    Step::StartInit.done();
    Ok(Pod { _lock: lock, init, users, wake })
}

/// Taking the lock fails when another pod process of this pod lives.
fn lock(setup: &Setup) -> io::Result<File> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&setup.lock);
    let file = open.map_err(|error| sys::context(error, format!("open {}", setup.lock.display())))?;
    sys::try_lock(&file).map_err(|error| sys::context(error, format!("lock {}", setup.lock.display())))?;
    Ok(file)
}

fn make_namespaces(setup: &Setup) -> io::Result<Option<OwnedFd>> {
    let mut flags = 0;
    if !setup.host_network {
        flags |= libc::CLONE_NEWNET;
    }
    if !setup.host_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    if setup.hostname.is_some() {
        flags |= libc::CLONE_NEWUTS;
    }
    let users = setup.users.map(|range| users::unshare(range, flags)).transpose()?;
    if users.is_none() {
        sys::unshare(flags)?;
    }
    if let Some(hostname) = &setup.hostname {
        sys::set_hostname(hostname)?;
    }
    if !setup.host_network {
        loopback_up()?;
    }
    setup.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
    Ok(users)
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).map_err(|error| sys::context(error, path))
}

fn loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    sys::interface_up(socket.as_raw_fd(), "lo")
}

/// Forks process 1 of the shared PID namespace. It is not this process, whose `/proc/1/root` would be the host: it sits
/// in an empty read-only root without any capability and reaps.
fn start_init(setup: &Setup, users: Option<&OwnedFd>) -> io::Result<i32> {
    let root = setup.state_dir.join("init-root");
    fs::create_dir_all(&root)?;
    let root = sys::c_path(&root)?;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    let Some(users) = users else {
        return Ok(sys::fork_with(flags)?.unwrap_or_else(|| be_init(&root)));
    };
    // Of the pod's users, it owns the PID namespace; a child of ours, though a helper forks it.
    let (reader, writer) = sys::pipe()?;
    let Some(helper) = sys::fork()? else {
        let forked = users::become_root_of(users.as_fd()).and_then(|()| sys::fork_with(flags | libc::CLONE_PARENT));
        let said = match forked {
            Ok(None) => be_init(&root),
            Ok(Some(pid)) => format!("{pid}"),
            Err(error) => format!("{error}"),
        };
        sys::exit_now(i32::from(File::from(writer).write_all(said.as_bytes()).is_err()));
    };
    drop(writer);
    let mut said = String::new();
    let heard = File::from(reader).read_to_string(&mut said);
    sys::wait_for(helper)?;
    heard?;
    said.parse().map_err(|_| io::Error::other(format!("start the pod's first process: {said}")))
}

fn be_init(root: &std::ffi::CStr) -> ! {
    let confined = confine_init(root);
    if let Err(error) = confined {
        eprintln!("init of the pod: {error}");
        sys::exit_now(1);
    }
    sys::reap_forever()
}

fn confine_init(root: &std::ffi::CStr) -> io::Result<()> {
    sys::die_with_parent()?;
    sys::close_from(0)?;
    sys::mount(c"", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    sys::mount(c"none", root, c"tmpfs", flags, c"size=4k,mode=555")?;
    sys::change_dir(root)?;
    sys::pivot_root_here()?;
    sys::limit_bounding(0)?;
    sys::no_new_privileges()?;
    sys::set_capabilities(0, 0, 0)
}
