//! Network namespaces for tests: each is held by one parked thread, so that nothing is left when the test ends, however it ends.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::family::Family;

type Job = Box<dyn FnOnce() + Send>;

/// A namespace of its own with its loopback up.
pub struct Namespace {
    jobs: Sender<Job>,
    tid: i32,
    pub family: Family,
}

impl Namespace {
    pub fn of(family: Family) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (ready, entered) = channel();
        std::thread::spawn(move || {
            // SAFETY: moves only this thread, which does nothing but run the namespace's jobs.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "network namespaces need root");
            // SAFETY: no preconditions.
            ready.send(unsafe { libc::gettid() }).unwrap();
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let namespace = Self { jobs, tid: entered.recv_timeout(Duration::from_secs(10)).unwrap(), family };
        namespace.command("ip link set lo up");
        // Addresses are good at once: nobody else has them.
        namespace.command("sysctl -qw net/ipv6/conf/default/accept_dad=0");
        namespace
    }

    /// Runs `work` inside. A panic there is a panic here.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = channel();
        let job = move || drop(give.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))));
        self.jobs.send(Box::new(job)).unwrap();
        let outcome = take.recv_timeout(Duration::from_secs(60)).expect("the job ends within a minute");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The address and port that this name has here.
    pub fn at(&self, name: &str) -> SocketAddr {
        self.family.at(name)
    }

    /// Runs a command line inside, which must succeed; gives its output.
    pub fn command(&self, line: &str) -> String {
        self.run_line(self.family.line(line))
    }

    /// The same in each family that there is here.
    pub fn in_each(&self, line: &str) {
        self.family.each().iter().for_each(|family| drop(self.run_line(family.line(line))));
    }

    fn run_line(&self, line: String) -> String {
        self.run(move || {
            let mut words = line.split_whitespace();
            let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
            text
        })
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/task/{}/ns/net", self.tid).into()
    }

    pub fn file(&self) -> File {
        File::open(self.path()).unwrap()
    }

    /// A thread of the namespace, which `ip link ... netns` takes as its name.
    pub fn tid(&self) -> i32 {
        self.tid
    }
}
