//! The loop: one `poll(2)` over the agent's connections, the containers' streams and dead children.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use super::container::{Container, Pumped, Stream, failure};
use super::setup::Pod;
use super::{exec, sys};
use crate::frame::{self, Inbox};
use crate::protocol::{
    CreateContainer, Exec, Failure, FailureKind, Message, Op, Outcome, Request, Setup, State, VERSION,
};
use crate::step::Step;

pub struct Server {
    setup: Setup,
    pod: Pod,
    listener: UnixListener,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    /// Processes started by `Exec`: name and pid.
    execs: Vec<(String, i32)>,
    /// Ends once the last reply is out.
    leaving: bool,
    #[cfg(feature = "next-protocol")]
    greetings: u32,
}

struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    broken: bool,
}

/// What a ready descriptor means.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Listener,
    Connection(usize),
    Output(usize, usize),
    Taps(usize),
    Input(usize),
}

impl Server {
    pub fn new(setup: Setup, pod: Pod) -> io::Result<Server> {
        fs::create_dir_all(&setup.state_dir)?;
        match fs::remove_file(&setup.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // the lock is ours, so the socket was a dead process's
        }
        let listener = UnixListener::bind(&setup.socket)
            .map_err(|error| sys::context(error, format!("listen on {}", setup.socket.display())))?;
        listener.set_nonblocking(true)?;
        Step::Listen.done();
        Ok(Server {
            setup,
            pod,
            listener,
            connections: vec![],
            containers: vec![],
            execs: vec![],
            leaving: false,
            #[cfg(feature = "next-protocol")]
            greetings: 0,
        })
    }

    pub fn serve(mut self) -> io::Result<()> {
        while !(self.leaving && self.connections.iter().all(|connection| connection.outbox.is_empty())) {
            let (mut fds, sources) = self.interests();
            match sys::poll(&mut fds, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let ready = fds.iter().zip(sources).filter(|(fd, _)| fd.revents != 0).map(|(_, source)| source);
            let mut ended_outputs = Vec::new();
            for source in ready.collect::<Vec<_>>() {
                self.handle(source, &mut ended_outputs);
            }
            ended_outputs.sort_unstable();
            for (container, output) in ended_outputs.into_iter().rev() {
                self.containers[container].close_output(output);
            }
            self.run_requests();
            self.connections.retain(|connection| !connection.broken);
        }
        fs::remove_file(&self.setup.socket)
    }

    fn interests(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut found: Vec<(RawFd, i16, Source)> = vec![
            (self.pod.wake.as_raw_fd(), libc::POLLIN, Source::Wake),
            (self.listener.as_raw_fd(), libc::POLLIN, Source::Listener),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            let out = if connection.outbox.is_empty() { 0 } else { libc::POLLOUT };
            found.push((connection.stream.as_raw_fd(), libc::POLLIN | out, Source::Connection(index)));
        }
        for (index, container) in self.containers.iter().enumerate() {
            let outputs = container.outputs.iter().enumerate();
            found.extend(outputs.map(|(n, (_, fd))| (fd.as_raw_fd(), libc::POLLIN, Source::Output(index, n))));
            found.extend(container.backlogged_taps().map(|fd| (fd, libc::POLLOUT, Source::Taps(index))));
            found.extend(container.input_interest().map(|(fd, events)| (fd, events, Source::Input(index))));
        }
        found.into_iter().map(|(fd, events, source)| (libc::pollfd { fd, events, revents: 0 }, source)).unzip()
    }

    fn handle(&mut self, source: Source, ended_outputs: &mut Vec<(usize, usize)>) {
        match source {
            // In this order: a child that ends once the pipe is empty fills it again, and the next round sees that.
            Source::Wake => {
                self.drain_wake();
                self.reap();
            }
            Source::Listener => self.accept(),
            Source::Connection(index) => self.connections[index].exchange(),
            Source::Output(container, output) => {
                if self.containers[container].pump_output(output) == Pumped::End {
                    ended_outputs.push((container, output));
                }
            }
            Source::Taps(container) => self.containers[container].flush_taps(),
            Source::Input(container) => self.containers[container].pump_input(),
        }
    }

    fn drain_wake(&self) {
        let mut buffer = [0_u8; 256];
        while matches!(sys::read(self.pod.wake.as_raw_fd(), &mut buffer), Ok(count) if count == buffer.len()) {}
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let broken = stream.set_nonblocking(true).is_err();
            self.connections.push(Connection { stream, inbox: Inbox::default(), outbox: Vec::new(), broken });
        }
    }

    fn reap(&mut self) {
        while let Some(ended) = sys::reap() {
            if let Some(container) = self.containers.iter_mut().find(|c| c.running() && c.state.pid == ended.pid) {
                container.ended(ended);
                Step::NoteEnd.done();
                let event = Message::ContainerExited(container.state.clone());
                self.broadcast(&event);
            } else if let Some(index) = self.execs.iter().position(|(_, pid)| *pid == ended.pid) {
                let (exec, _) = self.execs.swap_remove(index);
                self.broadcast(&Message::ExecExited { exec, exit_code: ended.code });
            } else if self.pod.init == Some(ended.pid) {
                eprintln!("the first process of the pod's PID namespace ended with {}", ended.code);
                self.leaving = true; // the kernel has ended every container; the agent builds a new pod
            }
        }
    }

    fn broadcast(&mut self, message: &Message) {
        for connection in &mut self.connections {
            connection.send(message);
        }
    }

    fn run_requests(&mut self) {
        for index in 0..self.connections.len() {
            loop {
                let connection = &mut self.connections[index];
                let Ok(frame) = connection.inbox.next_frame() else {
                    connection.broken = true;
                    break;
                };
                let Some(frame) = frame else { break };
                let (id, outcome) = self.run_frame(index, &frame);
                // What the operation caused goes out before its reply only when it happened before.
                self.connections[index].send(&Message::Reply { id, outcome });
            }
            self.connections[index].flush();
        }
    }

    fn run_frame(&mut self, connection: usize, frame: &[u8]) -> (u64, Outcome) {
        let value: serde_json::Value = serde_json::from_slice(frame).unwrap_or_default();
        let id = value["id"].as_u64().unwrap_or(0);
        let fds = self.connections[connection].inbox.take_fds(value["fds"].as_u64().unwrap_or(0) as usize);
        let outcome = match serde_json::from_value::<Request>(value) {
            Ok(request) => self.run(request.op, fds).unwrap_or_else(Outcome::Failed),
            Err(error) => Outcome::Failed(failure(FailureKind::Unsupported, error)),
        };
        (id, outcome)
    }

    fn run(&mut self, op: Op, fds: Vec<OwnedFd>) -> Result<Outcome, Failure> {
        match op {
            Op::Hello { .. } => return Ok(Outcome::State(self.state())),
            Op::Create(request) => return self.create(request),
            Op::Exec(request) => return self.exec(&request, &fds),
            Op::Start { container } => self.container(&container)?.start()?,
            Op::Signal { container, signal } => self.container(&container)?.signal(signal)?,
            Op::Delete { container } => self.delete(&container)?,
            Op::SignalExec { exec, signal } => self.signal_exec(&exec, signal)?,
            Op::Attach { container, stdin, stdout, stderr } => {
                self.attach(&container, [stdin, stdout, stderr], fds)?;
            }
            Op::Resize { container, width, height } => self.resize(&container, width, height)?,
            Op::Exit => self.leave()?,
            #[cfg(feature = "next-protocol")]
            Op::Greet => {
                self.greetings += 1;
                self.broadcast(&Message::Greeted { greetings: self.greetings });
            }
        }
        Ok(Outcome::Done)
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            pid: std::process::id() as i32,
            pid_namespace: self.pod.pid_namespace(),
            user_namespace: self.pod.user_namespace(),
            containers: self.containers.iter().map(|container| container.state.clone()).collect(),
            #[cfg(feature = "next-protocol")]
            greetings: self.greetings,
        }
    }

    fn container(&mut self, name: &str) -> Result<&mut Container, Failure> {
        let found = self.containers.iter_mut().find(|container| container.state.container == name);
        found.ok_or_else(|| failure(FailureKind::NotFound, format!("no container {name:?}")))
    }

    fn running(&mut self, name: &str) -> Result<&mut Container, Failure> {
        let container = self.container(name)?;
        if !container.running() {
            return Err(failure(FailureKind::NotFound, format!("container {name:?} has ended")));
        }
        Ok(container)
    }

    fn create(&mut self, request: CreateContainer) -> Result<Outcome, Failure> {
        if self.container(&request.container).is_ok() {
            return Err(failure(FailureKind::Exists, format!("container {:?} exists", request.container)));
        }
        let container = Container::create(request, &self.setup)?;
        let pid = container.state.pid;
        self.containers.push(container);
        Step::KeepContainer.done();
        Ok(Outcome::Started(pid))
    }

    fn delete(&mut self, name: &str) -> Result<(), Failure> {
        self.container(name)?.delete()?;
        self.containers.retain(|container| container.state.container != name);
        Step::DeleteContainer.done();
        Ok(())
    }

    fn exec(&mut self, request: &Exec, fds: &[OwnedFd]) -> Result<Outcome, Failure> {
        let process = serde_json::from_value(request.process.clone())
            .map_err(|error| failure(FailureKind::Invalid, format!("process: {error}")))?;
        let container = self.running(&request.container)?;
        if container.state.started_at.is_none() {
            return Err(failure(FailureKind::NotFound, format!("container {:?} is not started", request.container)));
        }
        let pid = exec::exec(container, &process, fds)?;
        self.execs.push((request.exec.clone(), pid));
        Step::StartExec.done();
        Ok(Outcome::Started(pid))
    }

    fn signal_exec(&mut self, name: &str, signal: i32) -> Result<(), Failure> {
        let found = self.execs.iter().find(|(exec, _)| exec == name);
        let (_, pid) = found.ok_or_else(|| failure(FailureKind::NotFound, format!("no exec {name:?}")))?;
        // The pid is our unreaped child's, so it cannot have been given to another process. It leads a session of its own
        // once it runs: with it goes what it has started.
        let group = if signal == libc::SIGKILL { sys::kill(-*pid, signal) } else { sys::kill(*pid, signal) };
        match group {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => sys::kill(*pid, signal),
            sent => sent,
        }
        .map_err(|error| failure(FailureKind::Internal, error))
    }

    fn attach(&mut self, name: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let container = self.running(name)?;
        if wanted.iter().filter(|wanted| **wanted).count() != fds.len() {
            return Err(failure(FailureKind::Invalid, "wrong number of descriptors"));
        }
        let roles = (0..3).filter(|role| wanted[*role]);
        for (role, fd) in roles.zip(fds) {
            let tapped = match role {
                0 => {
                    container.feed_from(fd)?;
                    Ok(())
                }
                1 => container.tap(Stream::Stdout, fd),
                _ => container.tap(Stream::Stderr, fd),
            };
            tapped.map_err(|error| failure(FailureKind::Internal, error))?;
        }
        Ok(())
    }

    fn resize(&mut self, name: &str, width: u16, height: u16) -> Result<(), Failure> {
        let container = self.running(name)?;
        let pty =
            container.pty.as_ref().ok_or_else(|| failure(FailureKind::Invalid, "the container has no terminal"))?;
        sys::set_window(pty.as_raw_fd(), width, height).map_err(|error| failure(FailureKind::Internal, error))
    }

    fn leave(&mut self) -> Result<(), Failure> {
        if let Some(container) = self.containers.iter().find(|container| container.running()) {
            let message = format!("container {:?} still runs", container.state.container);
            return Err(failure(FailureKind::Invalid, message));
        }
        self.leaving = true;
        Ok(())
    }
}

impl Connection {
    /// Reads what came and writes what waits.
    fn exchange(&mut self) {
        match self.inbox.receive(self.stream.as_raw_fd()) {
            Ok(0) => self.broken = true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
        self.flush();
    }

    fn send(&mut self, message: &Message) {
        match serde_json::to_vec(message) {
            Ok(body) => self.outbox.extend(frame::encode(&body)),
            Err(error) => {
                eprintln!("encode a message: {error}");
                self.broken = true;
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.outbox.is_empty() && !self.broken {
            match frame::send(self.stream.as_raw_fd(), &self.outbox, &[]) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    self.outbox.clear();
                }
            }
        }
    }
}
