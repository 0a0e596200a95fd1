//! A pod process under test, with a root file system to run things in.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pod::frame::{self, Inbox};
use pod::protocol::{CreateContainer, Exec, Exit, LogTarget, Message, Op, Outcome, Request, Setup};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// One pod process and everything it made; dropped, nothing of it is left.
pub struct TestPod {
    folder: tempfile::TempDir,
    pub name: String,
    pub cgroup: PathBuf,
    pub stream: UnixStream,
    inbox: Inbox,
    events: Vec<Message>,
    next_id: u64,
}

impl TestPod {
    pub fn start(name: &str, change: impl FnOnce(&mut Setup)) -> TestPod {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("amphipod-test-{}-{name}", std::process::id());
        let path = |file: &str| folder.path().join(file);
        let cgroup = cgroup2_mount().join(&name).join("pod");
        let mut setup = Setup {
            uid: name.clone(),
            socket: path("socket"),
            lock: path("lock"),
            state_dir: path("state"),
            cgroup: cgroup.clone(),
            hostname: Some("test-host".into()),
            seccomp_cache: Some(path("seccomp")),
            ..Setup::default()
        };
        change(&mut setup);
        fs::write(path("setup.json"), serde_json::to_vec(&setup).unwrap()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_amphipod-pod"))
            .arg(format!("test/{name}"))
            .stdin(Stdio::from(File::open(path("setup.json")).unwrap()))
            .stderr(File::create(path("stderr")).unwrap())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\n");
        let stream = UnixStream::connect(path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        make_rootfs(&path("rootfs"));
        TestPod { folder, name, cgroup, stream, inbox: Inbox::default(), events: Vec::new(), next_id: 1 }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn call(&mut self, op: Op, fds: &[OwnedFd]) -> Outcome {
        let id = self.next_id;
        self.next_id += 1;
        let body = serde_json::to_vec(&Request { id, fds: fds.len(), op }).unwrap();
        let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let bytes = frame::encode(&body);
        assert_eq!(frame::send(self.stream.as_raw_fd(), &bytes, &raw).unwrap(), bytes.len());
        loop {
            match self.message() {
                Message::Reply { id: replied, outcome } if replied == id => return outcome,
                event => self.events.push(event),
            }
        }
    }

    fn message(&mut self) -> Message {
        loop {
            if let Some(frame) = self.inbox.next_frame().unwrap() {
                return serde_json::from_slice(&frame).unwrap();
            }
            assert_ne!(
                self.inbox.receive(self.stream.as_raw_fd()).expect("no message in time"),
                0,
                "pod process ended"
            );
        }
    }

    fn event(&mut self) -> Message {
        if self.events.is_empty() { self.message() } else { self.events.remove(0) }
    }

    pub fn bundle(&self, container: &str, config: &Value) -> PathBuf {
        let bundle = self.path(&format!("bundle-{container}"));
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    pub fn create(&mut self, container: &str, config: &Value) -> Outcome {
        let bundle = self.bundle(container, config);
        let log = LogTarget { path: self.path(&format!("{container}.log")), max_bytes: 1 << 20, max_files: 3 };
        self.call(Op::Create(CreateContainer { container: container.into(), bundle, log, ..Default::default() }), &[])
    }

    pub fn run(&mut self, container: &str, config: &Value) {
        let created = self.create(container, config);
        assert!(matches!(created, Outcome::Started(pid) if pid > 0), "{created:?}");
        let started = self.call(Op::Start { container: container.into() }, &[]);
        assert!(matches!(started, Outcome::Done), "{started:?}");
    }

    /// Runs a command to its end: exit code and output.
    pub fn exec(&mut self, container: &str, process: Value) -> (i32, String) {
        let (mut reader, writer) = pipe();
        let stdio: Vec<OwnedFd> = vec![null(), writer.try_clone().unwrap(), writer];
        let op = Op::Exec(Exec { exec: "e".into(), container: container.into(), process });
        let started = self.call(op, &stdio);
        drop(stdio);
        assert!(matches!(started, Outcome::Started(_)), "{started:?}");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        match self.event() {
            Message::ExecExited { exec, exit_code } if exec == "e" => (exit_code, text),
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_exit(&mut self, container: &str) -> Exit {
        match self.event() {
            Message::ContainerExited(state) if state.container == container => state.exit.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn log(&self, container: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{container}.log"))).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned() + "\n").collect()
    }

    pub fn config(&self, container: &str, script: &str) -> Value {
        config(&self.path("rootfs"), &format!("/{}/{container}", self.name), script)
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.path("stderr")).unwrap_or_default());
        }
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + PATIENCE;
        while self.cgroup.exists() && Instant::now() < deadline {
            remove_cgroups(&self.cgroup);
            std::thread::sleep(Duration::from_millis(5));
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove_cgroups(&hierarchy.path().join(&self.name));
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(&self.name));
    }
}

fn remove_cgroups(folder: &Path) {
    for child in fs::read_dir(folder).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove_cgroups(&child.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

pub fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
    line.split(' ').nth(1).unwrap().into()
}

pub fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), writer.into())
}

pub fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn make_rootfs(root: &Path) {
    for folder in ["bin", "dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n").unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "grep", "sleep", "echo", "id", "kill", "true", "hostname", "ps", "readlink", "mknod", "head", "rm",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

pub fn config(rootfs: &Path, cgroup: &str, script: &str) -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/tmp",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2048, "hard": 2048}],
        },
        "root": {"path": rootfs},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 100}},
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
            },
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
