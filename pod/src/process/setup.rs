//! The pod's lock, cgroup and namespaces, made before any container exists.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use super::{cgroup, sys};
use crate::protocol::Setup;
use crate::step::Step;

/// What lives as long as the pod process.
#[derive(Debug)]
pub struct Pod {
    /// Its exclusive lock says that this process lives.
    _lock: File,
    /// The first process of the PID namespace that the containers share.
    pub init: Option<i32>,
    /// A dead child makes this readable.
    pub wake: OwnedFd,
}

impl Pod {
    pub fn pid_namespace(&self) -> Option<PathBuf> {
        self.init.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid")))
    }
}

pub fn prepare(setup: &Setup) -> io::Result<Pod> {
    let lock = lock(setup)?;
    Step::TakeLock.done();
    let wake = sys::install_signals()?;
    cgroup::join(&setup.cgroup).map_err(|error| sys::context(error, format!("join {}", setup.cgroup.display())))?;
    Step::JoinCgroup.done();
    sys::become_subreaper()?;
    make_namespaces(setup).map_err(|error| sys::context(error, "make the pod's namespaces"))?;
    Step::MakeNamespaces.done();
    let init = if setup.share_pid { Some(start_init(setup)?) } else { None };
    Step::StartInit.done();
    Ok(Pod { _lock: lock, init, wake })
}

/// Taking the lock fails when another pod process of this pod lives.
fn lock(setup: &Setup) -> io::Result<File> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&setup.lock);
    let file = open.map_err(|error| sys::context(error, format!("open {}", setup.lock.display())))?;
    sys::try_lock(&file).map_err(|error| sys::context(error, format!("lock {}", setup.lock.display())))?;
    Ok(file)
}

fn make_namespaces(setup: &Setup) -> io::Result<()> {
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
    sys::unshare(flags)?;
    if let Some(hostname) = &setup.hostname {
        sys::set_hostname(hostname)?;
    }
    if !setup.host_network {
        loopback_up()?;
    }
    setup.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))
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
fn start_init(setup: &Setup) -> io::Result<i32> {
    let root = setup.state_dir.join("init-root");
    fs::create_dir_all(&root)?;
    let root = sys::c_path(&root)?;
    if let Some(pid) = sys::fork_with(libc::CLONE_NEWPID | libc::CLONE_NEWNS)? {
        return Ok(pid);
    }
    let confined = confine_init(&root);
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
