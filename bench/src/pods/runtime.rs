//! One container of a real pod's bundle, created and started again: by a pod process, and by runc.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pod::frame::{self, Inbox};
use pod::protocol::{CreateContainer, LogTarget, Message, Op, Outcome, Request, Setup};
use serde_json::Value;
use tempfile::TempDir;

use crate::host;
use crate::processes::command;

/// Parent of the containers' cgroups, in every hierarchy.
const CGROUP: &str = "amphipod-bench-runtime";

/// Milliseconds of create + start, round by round, ours and runc's in turn.
pub fn compare(uid: &str, rounds: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let folder = tempfile::tempdir().context("cannot make a folder for bundles")?;
    let bundle = Bundle::copy(uid, folder)?;
    let mut process = PodProcess::start(bundle.folder.path())?;
    let (mut ours, mut runc) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let mut pair = [0.0; 2];
        for ours_now in if round % 2 == 0 { [true, false] } else { [false, true] } {
            let name = format!("bench-{}-{round}", if ours_now { "ours" } else { "runc" });
            let path = bundle.variant(&name)?;
            pair[usize::from(!ours_now)] =
                if ours_now { process.container(&name, &path)? } else { by_runc(&name, &path)? };
        }
        if round >= 2 {
            ours.push(pair[0]);
            runc.push(pair[1]);
        }
    }
    process.end()?;
    remove_cgroups()?;
    Ok((ours, runc))
}

/// The configuration of a running pod's container.
struct Bundle {
    folder: TempDir,
    config: Value,
}

impl Bundle {
    fn copy(uid: &str, folder: TempDir) -> Result<Self> {
        let runs = host::run_dir().join("pods").join(uid).join("containers");
        let first = fs::read_dir(&runs).with_context(|| format!("cannot read {}", runs.display()))?.next();
        let path = first.context("the pod has no container")??.path().join("config.json");
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { folder, config: serde_json::from_slice(&text)? })
    }

    /// The same with a cgroup of its own.
    fn variant(&self, name: &str) -> Result<PathBuf> {
        let mut config = self.config.clone();
        config["linux"]["cgroupsPath"] = format!("/{CGROUP}/{name}").into();
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path)?;
        fs::write(path.join("config.json"), config.to_string())?;
        Ok(path)
    }
}

fn by_runc(name: &str, bundle: &Path) -> Result<f64> {
    let began = Instant::now();
    // Not captured: the container keeps these streams, and a pipe would be waited for.
    let status = Command::new("runc")
        .args(["create", "--bundle"])
        .arg(bundle)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run runc")?;
    ensure!(status.success(), "runc create failed for {}", bundle.display());
    command("runc", &["start", name])?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    command("runc", &["delete", "--force", name])?;
    Ok(took)
}

/// A pod process as an agent starts it.
struct PodProcess {
    stream: UnixStream,
    inbox: Inbox,
    next: u64,
    folder: PathBuf,
    cgroup: PathBuf,
}

impl PodProcess {
    fn start(folder: &Path) -> Result<Self> {
        let path = |file: &str| folder.join(file);
        let cgroup = cgroup2_mount()?.join(CGROUP).join("pod");
        let setup = Setup {
            uid: "bench".into(),
            socket: path("socket"),
            lock: path("lock"),
            state_dir: path("state"),
            cgroup: cgroup.clone(),
            seccomp_cache: Some(path("seccomp")),
            ..Setup::default()
        };
        fs::write(path("setup.json"), serde_json::to_vec(&setup)?)?;
        let mut command = Command::new(executable()?);
        command.arg("bench/pod").stdin(File::open(path("setup.json"))?).stderr(File::create(path("stderr"))?);
        let output = command.output().context("cannot run the pod process")?;
        ensure!(output.stdout == b"ready\n", "the pod process did not start: {}", fs::read_to_string(path("stderr"))?);
        let stream = UnixStream::connect(path("socket"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, inbox: Inbox::default(), next: 1, folder: folder.to_owned(), cgroup })
    }

    fn container(&mut self, name: &str, bundle: &Path) -> Result<f64> {
        let log = LogTarget { path: self.folder.join(format!("{name}.log")), max_bytes: 1 << 20, max_files: 2 };
        let create = CreateContainer { container: name.into(), bundle: bundle.into(), log, ..Default::default() };
        let began = Instant::now();
        self.call(Op::Create(create))?;
        self.call(Op::Start { container: name.into() })?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        self.call(Op::Delete { container: name.into() })?;
        Ok(took)
    }

    fn call(&mut self, op: Op) -> Result<()> {
        let shown = format!("{op:?}");
        let id = self.next;
        self.next += 1;
        let bytes = frame::encode(&serde_json::to_vec(&Request { id, fds: 0, op })?);
        ensure!(frame::send(self.stream.as_raw_fd(), &bytes, &[])? == bytes.len(), "the pod process takes no request");
        loop {
            while let Some(frame) = self.inbox.next_frame()? {
                match serde_json::from_slice(&frame)? {
                    Message::Reply { id: replied, outcome: Outcome::Failed(failure) } if replied == id => {
                        bail!("{shown}: {}", failure.message)
                    }
                    Message::Reply { id: replied, .. } if replied == id => return Ok(()),
                    _ => {}
                }
            }
            ensure!(self.inbox.receive(self.stream.as_raw_fd())? > 0, "the pod process ended");
        }
    }

    fn end(mut self) -> Result<()> {
        self.call(Op::Exit)
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        // After an orderly end there is nothing left to kill.
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
    }
}

/// The one that the release build embeds.
fn executable() -> Result<PathBuf> {
    let builds = e2e::workspace().join("target/pod-process");
    let mut folders = fs::read_dir(&builds).with_context(|| format!("cannot read {}", builds.display()))?.flatten();
    let found = folders.find_map(|folder| {
        let path = folder.path().join("release/amphipod-pod");
        path.exists().then_some(path)
    });
    found.with_context(|| format!("no pod process below {}: cargo xtask build", builds.display()))
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let line =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).context("no cgroup2 is mounted")?;
    Ok(line.split(' ').nth(1).unwrap_or_default().into())
}

/// The bench's own parent folder, in every hierarchy; its containers are gone by now.
fn remove_cgroups() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))) {
            remove_empty(&Path::new(fields[1]).join(CGROUP))?;
        }
    }
    Ok(())
}

fn remove_empty(folder: &Path) -> Result<()> {
    let Ok(items) = fs::read_dir(folder) else { return Ok(()) };
    for item in items.flatten().filter(|item| item.path().is_dir()) {
        remove_empty(&item.path())?;
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    // A process that has just ended is counted in its cgroup for a moment more.
    while let Err(error) = fs::remove_dir(folder) {
        ensure!(Instant::now() < deadline, "cannot remove {}: {error}", folder.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
