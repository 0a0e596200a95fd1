//! One container: create and start through libcontainer, its streams, its end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::Container as Runtime;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::cgroup::{self, Membership};
use super::confine;
use super::diary::{self, Diary};
use super::filter::Confinement;
use super::hierarchies;
use super::log::Log;
use super::sys;
use super::workload::Workload;
use crate::devices;
use crate::protocol::{ContainerState, CreateContainer, Exit, Failure, FailureKind, Setup};
use crate::step::Step;
use causes::chain;

/// A client that reads slower than this many bytes behind is dropped.
const MAX_BACKLOG: usize = 1 << 20;

/// Which of a container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// An attached client's end of one output.
#[derive(Debug)]
pub struct Tap {
    stream: Stream,
    fd: OwnedFd,
    backlog: Vec<u8>,
}

/// A container's standard input and the client that feeds it.
#[derive(Debug, Default)]
pub struct Input {
    /// The writing end; the pty itself when there is one.
    to: Option<OwnedFd>,
    pub from: Option<OwnedFd>,
    backlog: Vec<u8>,
    once: bool,
}

#[derive(Debug)]
pub struct Container {
    pub state: ContainerState,
    pub confinement: Confinement,
    /// Its users are the pod's own, from this id of the host's on.
    pub first_user: Option<u32>,
    pub env: Vec<String>,
    runtime: Runtime,
    /// The folder of the configuration that libcontainer read.
    bundle: PathBuf,
    pidfd: OwnedFd,
    cgroups: Membership,
    /// The cgroup2 folder that this process made for it.
    own_cgroup: Option<PathBuf>,
    cgroup_name: String,
    owns_pid_namespace: bool,
    pub outputs: Vec<(Stream, OwnedFd)>,
    pub pty: Option<OwnedFd>,
    pub input: Input,
    pub taps: Vec<Tap>,
    log: Log,
}

pub fn failure(kind: FailureKind, message: impl std::fmt::Display) -> Failure {
    Failure { kind, message: message.to_string() }
}

fn internal(what: &str) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| failure(FailureKind::Internal, format!("{what}: {error}"))
}

impl Container {
    pub fn create(request: CreateContainer, setup: &Setup) -> Result<Container, Failure> {
        let spec = Spec::load(request.bundle.join("config.json"))
            .map_err(|error| failure(FailureKind::Invalid, format!("config.json: {error}")))?;
        let log = Log::open(request.log.clone()).map_err(internal("open the log"))?;
        Step::OpenLog.done();
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        let confinement =
            Confinement::of(&spec, setup.seccomp_cache.as_deref()).map_err(internal("compile the seccomp profile"))?;
        let making = Making::prepare(&request, setup, &spec, &confinement)
            .map_err(internal("write the container's configuration"))?;
        let mut created = if terminal { create_with_pty(&making)? } else { create_with_pipes(&making)? };
        Step::CreateContainer.done();
        let pid = created.runtime.pid().map_or(0, |pid| pid.as_raw());
        let (pidfd, cgroups) = match settle(pid, &request.container, &spec, setup) {
            Ok(settled) => settled,
            Err(error) => return Err(abandon(&mut created.runtime, &setup.cgroup.join(&request.container), error)),
        };
        if let Some(adjustment) = request.oom_score_adj {
            set_oom_score(pid, adjustment);
        }
        let name = request.container;
        Ok(Container {
            state: ContainerState { container: name.clone(), pid, ..ContainerState::default() },
            confinement,
            first_user: setup.users.filter(|_| has_own_users(&spec)).map(|range| range.first),
            env: spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default(),
            runtime: created.runtime,
            bundle: own_bundle(&setup.state_dir, &name),
            pidfd,
            own_cgroup: own_cgroup(&cgroups, setup),
            cgroups,
            cgroup_name: cgroup_name(&spec),
            owns_pid_namespace: owns_pid_namespace(&spec),
            outputs: created.outputs,
            pty: created.pty,
            input: Input { to: created.input, once: request.stdin_once, ..Input::default() },
            taps: Vec::new(),
            log,
        })
    }

    pub fn start(&mut self) -> Result<(), Failure> {
        self.runtime.start().map_err(|error| failure(FailureKind::Internal, chain(&error)))?;
        Step::StartContainer.done();
        self.state.started_at = Some(sys::now_nanos());
        Step::NoteStart.done();
        Ok(())
    }

    pub fn running(&self) -> bool {
        self.state.exit.is_none()
    }

    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub fn cgroups(&self) -> &Membership {
        &self.cgroups
    }

    pub fn signal(&self, signal: i32) -> Result<(), Failure> {
        match sys::pidfd_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(internal("signal")(error)),
            _ => {
                if signal == libc::SIGKILL {
                    self.kill_stragglers();
                }
                Ok(())
            }
        }
    }

    /// In a PID namespace of its own the kernel ends everything with process 1; elsewhere that is ours to do.
    fn kill_stragglers(&self) {
        if self.owns_pid_namespace {
            return;
        }
        for _ in 0..16 {
            let processes = self.cgroups.processes(&self.cgroup_name);
            if processes.is_empty() {
                return;
            }
            for pid in processes {
                let _ = sys::kill(pid, libc::SIGKILL); // gone already is as good
            }
        }
    }

    /// Its first process ended.
    pub fn ended(&mut self, ended: sys::Ended) {
        self.kill_stragglers();
        for index in 0..self.outputs.len() {
            while self.pump_output(index) == Pumped::Some {}
        }
        let oom_killed = ended.signal == Some(libc::SIGKILL) && self.cgroups.oom_kills() > 0;
        let finished_at = sys::now_nanos();
        self.log.end("stdout", finished_at);
        self.log.end("stderr", finished_at);
        self.state.exit = Some(Exit { code: ended.code, signal: ended.signal, oom_killed, finished_at });
        self.state.log_bytes_lost = self.log.bytes_lost;
        self.input = Input::default();
        self.taps.retain(|tap| !tap.backlog.is_empty());
    }

    /// Removes what libcontainer keeps about it, killing what is left.
    pub fn delete(&mut self) -> Result<(), Failure> {
        self.kill_stragglers();
        if let Some(folder) = self.cgroups.unified()
            && let Err(error) = devices::let_go(folder)
        {
            eprintln!("take the device rules off {}: {error}", folder.display()); // they go with the folder, if later
        }
        self.runtime.delete(true).map_err(|error| failure(FailureKind::Internal, chain(&error)))?;
        if let Some(folder) = &self.own_cgroup {
            cgroup::remove(folder).map_err(internal("remove the container's cgroup"))?;
        }
        match fs::remove_dir_all(&self.bundle) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(internal("remove the bundle")(error)),
            _ => Ok(()),
        }
    }

    // ---- streams ----

    /// Moves what one output has to the log and the attached clients.
    pub fn pump_output(&mut self, index: usize) -> Pumped {
        let mut buffer = [0_u8; 64 << 10];
        let Some((stream, fd)) = self.outputs.get(index).map(|(stream, fd)| (*stream, fd.as_raw_fd())) else {
            return Pumped::Nothing;
        };
        match sys::read(fd, &mut buffer) {
            Ok(0) => Pumped::End,
            Ok(count) => {
                self.log.write(stream.name(), &buffer[..count], sys::now_nanos());
                self.tee(stream, &buffer[..count]);
                Pumped::Some
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Pumped::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Pumped::Some,
            Err(_) => Pumped::End, // EIO: the last user of a pty is gone
        }
    }

    /// An output reached its end: its log line is completed and attached clients see the end too.
    pub fn close_output(&mut self, index: usize) {
        let (stream, _) = self.outputs.swap_remove(index);
        self.log.end(stream.name(), sys::now_nanos());
        self.taps.retain(|tap| tap.stream != stream || !tap.backlog.is_empty());
    }

    pub fn tap(&mut self, stream: Stream, fd: OwnedFd) -> io::Result<()> {
        sys::set_nonblocking(fd.as_raw_fd())?;
        if self.running() {
            self.taps.push(Tap { stream, fd, backlog: Vec::new() });
        }
        Ok(())
    }

    fn tee(&mut self, stream: Stream, bytes: &[u8]) {
        self.taps.retain_mut(|tap| tap.stream != stream || tap.take(bytes));
    }

    /// Descriptors of clients that have bytes waiting.
    pub fn backlogged_taps(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.taps.iter().filter(|tap| !tap.backlog.is_empty()).map(|tap| tap.fd.as_raw_fd())
    }

    pub fn flush_taps(&mut self) {
        let running = self.running();
        self.taps.retain_mut(|tap| tap.take(&[]) && (running || !tap.backlog.is_empty()));
    }

    /// Lets a client feed the standard input. A container without one refuses.
    pub fn feed_from(&mut self, fd: OwnedFd) -> Result<(), Failure> {
        if self.input.to.is_none() && self.pty.is_none() {
            return Err(failure(FailureKind::Invalid, "the container has no standard input (stdin: false)"));
        }
        sys::set_nonblocking(fd.as_raw_fd()).map_err(internal("attach stdin"))?;
        self.input.from = Some(fd);
        Ok(())
    }

    fn input_fd(&self) -> Option<RawFd> {
        self.input.to.as_ref().or(self.pty.as_ref()).map(|fd| fd.as_raw_fd())
    }

    /// Which descriptor the input waits for: the client's for reading, or the container's for writing.
    pub fn input_interest(&self) -> Option<(RawFd, i16)> {
        if !self.input.backlog.is_empty() {
            return self.input_fd().map(|fd| (fd, libc::POLLOUT));
        }
        self.input.from.as_ref().map(|fd| (fd.as_raw_fd(), libc::POLLIN))
    }

    pub fn pump_input(&mut self) {
        if self.input.backlog.is_empty() {
            self.read_client();
        }
        let Some(fd) = self.input_fd() else { return };
        match sys::write(fd, &self.input.backlog) {
            Ok(count) => drop(self.input.backlog.drain(..count)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.input = Input::default(), // the container closed its standard input
        }
    }

    fn read_client(&mut self) {
        let Some(from) = self.input.from.as_ref().map(|fd| fd.as_raw_fd()) else { return };
        let mut buffer = [0_u8; 16 << 10];
        match sys::read(from, &mut buffer) {
            Ok(0) => {
                self.input.from = None;
                if self.input.once {
                    self.input.to = None;
                }
            }
            Ok(count) => self.input.backlog.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.input.from = None,
        }
    }
}

impl Tap {
    /// Sends what fits; false when the client is gone or too far behind.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.backlog.extend_from_slice(bytes);
        while !self.backlog.is_empty() {
            match sys::write(self.fd.as_raw_fd(), &self.backlog) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        self.backlog.len() <= MAX_BACKLOG
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    Some,
    Nothing,
    End,
}

/// Puts a created container, which does not run yet, where it belongs and under the rules for its devices.
fn settle(pid: i32, name: &str, spec: &Spec, setup: &Setup) -> Result<(OwnedFd, Membership), Failure> {
    let pidfd = sys::pidfd_open(pid).map_err(internal("pidfd"))?;
    let mut cgroups = Membership::of(pid).map_err(internal("find the container's cgroups"))?;
    if cgroups.unified() == Some(setup.cgroup.as_path()) {
        // v1 controllers hold its limits, and no cgroup2 folder is its own yet.
        cgroups.move_down(name, pid).map_err(internal("make the container's cgroup"))?;
    }
    let folder = cgroups.unified().ok_or_else(|| failure(FailureKind::Internal, "the container is in no cgroup2"))?;
    confine::restrict_devices(spec, folder).map_err(internal("restrict the container's devices"))?;
    Ok((pidfd, cgroups))
}

/// A folder of the pod process's own tree.
fn own_cgroup(cgroups: &Membership, setup: &Setup) -> Option<PathBuf> {
    cgroups.unified().filter(|folder| folder.parent() == Some(setup.cgroup.as_path())).map(Path::to_owned)
}

/// Takes back a container that cannot be kept to its rules.
fn abandon(runtime: &mut Runtime, own_cgroup: &Path, failure: Failure) -> Failure {
    if let Err(error) = runtime.delete(true) {
        eprintln!("take back a container: {}", chain(&error));
    }
    if let Err(error) = cgroup::remove(own_cgroup) {
        eprintln!("remove {}: {error}", own_cgroup.display());
    }
    failure
}

/// What libcontainer is asked to make.
struct Making<'a> {
    request: &'a CreateContainer,
    state_dir: &'a Path,
    bundle: PathBuf,
    workload: Workload,
    /// Where its program is to work.
    cwd: PathBuf,
    /// The user of its program, as the host counts.
    user: u32,
    /// Open as long as the configuration names it.
    _namespace: Option<File>,
}

impl<'a> Making<'a> {
    /// A filter that is compiled already is loaded by our executor, and left out of the configuration that libcontainer
    /// reads: a bundle of our own, beside its state.
    fn prepare(
        request: &'a CreateContainer,
        setup: &'a Setup,
        spec: &Spec,
        confinement: &Confinement,
    ) -> io::Result<Making<'a>> {
        let state_dir = setup.state_dir.as_path();
        if let Some(path) = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref()) {
            cgroup::make_parents(path)?;
        }
        let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
        let user = if has_own_users(spec) { setup.host_id(user) } else { user };
        let cwd = spec.process().as_ref().map(|process| process.cwd().clone()).unwrap_or_default();
        let mut own = spec.clone();
        let (workload, confined) = match confinement {
            Confinement::Filter(filter) => (Workload::confined(&mut own, filter.clone()), true),
            Confinement::None | Confinement::Profile(_) => (Workload::default(), false),
        };
        let namespace = if has_own_users(spec) { pin_pid_namespace(&mut own)? } else { None };
        let replaced = hierarchies::show_own(&mut own)?;
        if !confined && namespace.is_none() && !replaced {
            let bundle = request.bundle.clone();
            return Ok(Making { request, state_dir, bundle, workload, cwd, user, _namespace: namespace });
        }
        if let Some(root) = own.root_mut() {
            root.set_path(request.bundle.join(root.path()));
        }
        let bundle = own_bundle(state_dir, &request.container);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec(&own)?)?;
        Ok(Making { request, state_dir, bundle, workload, cwd, user, _namespace: namespace })
    }

    fn builder(&self) -> Result<ContainerBuilder, Failure> {
        ContainerBuilder::new(self.request.container.clone(), SyscallType::Linux)
            .with_executor(self.workload.clone())
            .with_root_path(self.state_dir)
            .and_then(ContainerBuilder::validate_id)
            .map_err(|error| failure(FailureKind::Invalid, chain(&error)))
    }

    fn build(&self, builder: ContainerBuilder) -> Result<Runtime, Failure> {
        let diary = Diary::open().map_err(internal("listen to the container's first steps"))?;
        let built = builder
            .as_init(&self.bundle)
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(false) // with true its first process would be our parent's child
            .build();
        built.map_err(|error| cannot_create(&error, &diary, &self.cwd))
    }
}

/// A child that has become one of the pod's users may not look up a PID namespace to enter by a process any more, but it
/// has what this process holds open.
fn pin_pid_namespace(spec: &mut Spec) -> io::Result<Option<File>> {
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    let pid = namespaces.into_iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
    let Some((path, namespace)) = pid.and_then(|namespace| Some((namespace.path().clone()?, namespace))) else {
        return Ok(None);
    };
    let file = File::open(&path).map_err(|error| sys::context(error, format!("open {}", path.display())))?;
    namespace.set_path(Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))));
    Ok(Some(file))
}

fn own_bundle(state_dir: &Path, container: &str) -> PathBuf {
    state_dir.join("bundles").join(container)
}

struct Created {
    runtime: Runtime,
    outputs: Vec<(Stream, OwnedFd)>,
    input: Option<OwnedFd>,
    pty: Option<OwnedFd>,
}

fn create_with_pipes(making: &Making<'_>) -> Result<Created, Failure> {
    let wire = internal("make the container's pipes");
    let (out_reader, out_writer) = sys::pipe().map_err(&wire)?;
    let (err_reader, err_writer) = sys::pipe().map_err(&wire)?;
    let (stdin, input) = if making.request.stdin {
        let (reader, writer) = sys::pipe().map_err(&wire)?;
        sys::set_nonblocking(writer.as_raw_fd()).map_err(&wire)?;
        (reader, Some(writer))
    } else {
        (OwnedFd::from(File::open("/dev/null").map_err(&wire)?), None)
    };
    for reader in [&out_reader, &err_reader] {
        sys::set_nonblocking(reader.as_raw_fd()).map_err(&wire)?;
    }
    for stream in [&stdin, &out_writer, &err_writer] {
        confine::hand_over(stream.as_fd(), making.user).map_err(&wire)?;
    }
    let builder = making.builder()?.with_stdin(stdin).with_stdout(out_writer).with_stderr(err_writer);
    let runtime = making.build(builder)?;
    Ok(Created { runtime, outputs: vec![(Stream::Stdout, out_reader), (Stream::Stderr, err_reader)], input, pty: None })
}

/// libcontainer opens the pty inside the container and sends its other side over a console socket.
fn create_with_pty(making: &Making<'_>) -> Result<Created, Failure> {
    let wire = internal("make the container's console");
    let path = making.state_dir.join(format!("{}.tty", making.request.container));
    let listener = UnixListener::bind(&path).map_err(&wire)?;
    let built = making.builder().and_then(|builder| making.build(builder.with_console_socket(Some(&path))));
    fs::remove_file(&path).map_err(&wire)?;
    let runtime = built?;
    listener.set_nonblocking(true).map_err(&wire)?;
    let (connection, _) = listener.accept().map_err(&wire)?;
    let pty = sys::receive_fd(connection.as_raw_fd()).map_err(&wire)?;
    sys::set_nonblocking(pty.as_raw_fd()).map_err(&wire)?;
    let terminal = sys::terminal_of(pty.as_fd()).map_err(&wire)?;
    confine::hand_over(terminal.as_fd(), making.user).map_err(&wire)?;
    let output = pty.try_clone().map_err(&wire)?;
    Ok(Created { runtime, outputs: vec![(Stream::Stdout, output)], input: None, pty: Some(pty) })
}

/// libcontainer's errors have no variant for "the program cannot be run" that survives its process boundary: words are
/// all there is. The kind only decides the container's reason, both ways it has failed to start.
fn cannot_create(error: &LibcontainerError, diary: &Diary, cwd: &Path) -> Failure {
    failure(FailureKind::CannotRun, diary::reason(&chain(error), &diary.read(), cwd))
}

fn owns_pid_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|ns| ns.typ() == LinuxNamespaceType::Pid && ns.path().is_none())
}

fn has_own_users(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn cgroup_name(spec: &Spec) -> String {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    path.and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Lowering it needs CAP_SYS_RESOURCE, which a nested machine may lack: that is a warning, not an end.
fn set_oom_score(pid: i32, adjustment: i32) {
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string()) {
        eprintln!("oom_score_adj {adjustment} for {pid}: {error}");
    }
}
