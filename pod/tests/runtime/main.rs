//! The pod process on the real kernel: containers, exec, logs and signals; and that a container and an exec get
//! exactly what `runc` gives for the same config.json. Needs root, busybox-static and runc.
#![cfg_attr(feature = "process", expect(clippy::unwrap_used, reason = "a test"))]
#![cfg(feature = "process")]

mod confinement;
mod users;
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pod::protocol::{CreateContainer, Exec, FailureKind, LogTarget, Op, Outcome};
use serde_json::{Value, json};
use world::{PATIENCE, TestPod, null, pipe};

/// Prints everything that security and limits depend on.
const PROBE: &str = "grep -E '^(Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups|SigIgn|SigBlk)' /proc/self/status; \
    cat /proc/self/limits /proc/self/cgroup /proc/self/mountinfo; id; echo HOME=$HOME; readlink /proc/self/cwd";

#[test]
fn a_container_runs_logs_and_ends() {
    let mut pod = TestPod::start("run", |_| {});
    let config = pod.config("c", "echo out; echo err >&2; hostname; exit 3");
    pod.run("c", &config);
    let exit = pod.wait_exit("c");
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    let log = pod.log("c");
    for line in ["stdout F out\n", "stderr F err\n", "stdout F test-host\n"] {
        assert!(log.contains(line), "{log}");
    }
    assert!(matches!(pod.call(Op::Delete { container: "c".into() }, &[]), Outcome::Done));
    assert!(matches!(pod.call(Op::Exit, &[]), Outcome::Done));
}

#[test]
fn exit_codes_wait_for_the_next_agent() {
    let mut pod = TestPod::start("wait", |_| {});
    let config = pod.config("c", "exit 7");
    pod.run("c", &config);
    pod.wait_exit("c");
    pod.stream = UnixStream::connect(pod.path("socket")).unwrap();
    let Outcome::State(state) = pod.call(Op::Hello { version: 1 }, &[]) else { panic!() };
    assert_eq!(state.containers[0].exit.as_ref().unwrap().code, 7);
}

#[test]
fn killed_by_a_signal_and_by_want_of_memory() {
    let mut pod = TestPod::start("kill", |_| {});
    let config = pod.config("c", "sleep 1000");
    pod.run("c", &config);
    assert!(matches!(pod.call(Op::Signal { container: "c".into(), signal: 9 }, &[]), Outcome::Done));
    assert_eq!(pod.wait_exit("c").code, 137);
    let config = pod.config("m", "x=xxxxxxxx; while true; do x=$x$x; done");
    pod.run("m", &config);
    let exit = pod.wait_exit("m");
    assert!(exit.oom_killed && exit.code == 137, "{exit:?}");
}

#[test]
fn a_program_that_is_not_there() {
    let mut pod = TestPod::start("missing", |_| {});
    let mut config = pod.config("c", "");
    config["process"]["args"] = json!(["no-such-program"]);
    let Outcome::Failed(failure) = pod.create("c", &config) else { panic!("created") };
    assert_eq!(failure.kind, FailureKind::CannotRun);
    assert!(failure.message.contains("no-such-program"), "{}", failure.message);
    let config = pod.config("d", "sleep 1000");
    pod.run("d", &config);
    let mut process = config["process"].clone();
    process["args"] = json!(["nope"]);
    let stdio = vec![null(), null(), null()];
    let Outcome::Failed(failure) =
        pod.call(Op::Exec(Exec { exec: "e".into(), container: "d".into(), process }), &stdio)
    else {
        panic!("ran")
    };
    assert_eq!(failure.message, "exec: \"nope\": executable file not found in $PATH");
}

/// Path and cause, in the words that runc has for them.
#[test]
fn what_cannot_start_is_told_as_runc_tells_it() {
    let mut pod = TestPod::start("words", |_| {});
    let cases: [(&str, Change); 5] = [
        ("name", |config| config["process"]["args"] = json!(["no-such-program"])),
        ("path", |config| config["process"]["args"] = json!(["/no/such/program"])),
        ("plain", |config| config["process"]["args"] = json!(["/etc/passwd"])),
        ("file", |config| config["process"]["cwd"] = json!("/etc/passwd")),
        ("mount", |config| {
            let mount = json!({"destination": "/etc/passwd", "source": "/usr", "type": "bind", "options": ["rbind"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
    ];
    for (name, change) in cases {
        let mut config = pod.config(name, "true");
        change(&mut config);
        let Outcome::Failed(failure) = pod.create(name, &config) else { panic!("{name}: created") };
        assert_eq!(failure.kind, FailureKind::CannotRun);
        let ours = failure.message.strip_prefix("error during container init: ").unwrap_or_else(|| panic!("{failure}"));
        config["linux"]["cgroupsPath"] = json!(format!("/{}/{name}-runc", pod.name));
        let theirs = Runc::refusal(&pod, &format!("{name}-runc"), &config);
        if name == "mount" {
            // runc tells its descriptors and flags in between.
            assert!(theirs.contains(ours.split(": mount").next().unwrap()), "{ours} {theirs}");
            assert!(ours.contains("not a directory: ") && theirs.contains("not a directory"), "{ours} {theirs}");
        } else {
            assert!(theirs.ends_with(ours), "{name}: {ours:?}, runc: {theirs:?}");
        }
    }
}

/// What turns out when the program is to begin is in the container's own output.
#[test]
fn a_file_that_is_no_program_says_so_in_the_log() {
    let mut pod = TestPod::start("format", |_| {});
    let file = pod.path("rootfs").join("bin/odd");
    fs::write(&file, "neither a program nor a script's first line\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = pod.config("c", "");
    config["process"]["args"] = json!(["odd"]);
    pod.run("c", &config);
    assert_eq!(pod.wait_exit("c").code, 255);
    assert_eq!(pod.log("c"), "stderr F exec /bin/odd: exec format error\n");
}

/// Libraries ask whether everybody may; the kernel asks whether this user may.
#[test]
fn a_program_needs_to_be_its_users_only() {
    let mut pod = TestPod::start("mine", |_| {});
    let file = pod.path("rootfs").join("mine/true");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::copy("/bin/busybox", &file).unwrap();
    std::os::unix::fs::chown(&file, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
    let mut config = pod.config("c", "");
    config["process"]["args"] = json!(["/mine/true"]);
    config["process"]["user"]["uid"] = json!(1000);
    pod.run("c", &config);
    assert_eq!(pod.wait_exit("c").code, 0, "{}", pod.log("c"));
}

#[test]
fn containers_share_one_pid_namespace_when_asked() {
    let mut pod = TestPod::start("pid", |setup| setup.share_pid = true);
    let Outcome::State(state) = pod.call(Op::Hello { version: 1 }, &[]) else { panic!() };
    let mut first = pod.config("a", "sleep 1000");
    first["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid", "path": state.pid_namespace.unwrap()}]);
    let mut second = first.clone();
    second["linux"]["cgroupsPath"] = json!(format!("/{}/b", pod.name));
    pod.run("a", &first);
    pod.run("b", &second);
    let mut process = second["process"].clone();
    // A container that was told to start is its program a moment later.
    process["args"] = json!(["sh", "-c", "ps; readlink /proc/1/root; grep CapEff /proc/1/status"]);
    let deadline = Instant::now() + PATIENCE;
    let text = loop {
        let (code, text) = pod.exec("b", process.clone());
        if text.matches("sleep 1000").count() == 2 {
            break text;
        }
        assert!(Instant::now() < deadline, "{code} {text}");
    };
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(matches!(pod.call(Op::Signal { container: "a".into(), signal: 9 }, &[]), Outcome::Done));
    assert_eq!(pod.wait_exit("a").code, 137);
    let mut process = second["process"].clone();
    process["args"] = json!(["true"]);
    assert_eq!(pod.exec("b", process).0, 0, "b still runs");
}

/// Nothing else wakes the pod process here: an end that it looked away from would stay unknown.
#[test]
fn the_end_of_a_short_command_is_not_missed() {
    let mut pod = TestPod::start("short", |_| {});
    let config = pod.config("c", "sleep 1000");
    pod.run("c", &config);
    let mut process = config["process"].clone();
    process["args"] = json!(["true"]);
    for _ in 0..1500 {
        assert_eq!(pod.exec("c", process.clone()).0, 0);
    }
}

#[test]
fn standard_input_reaches_the_container() {
    let mut pod = TestPod::start("stdin", |_| {});
    let config = pod.config("c", "cat");
    let bundle = pod.bundle("c", &config);
    let log = LogTarget { path: pod.path("c.log"), max_bytes: 1 << 20, max_files: 3 };
    let create =
        CreateContainer { container: "c".into(), bundle, log, stdin: true, stdin_once: true, oom_score_adj: None };
    assert!(matches!(pod.call(Op::Create(create), &[]), Outcome::Started(_)));
    assert!(matches!(pod.call(Op::Start { container: "c".into() }, &[]), Outcome::Done));
    let (input, to) = std::io::pipe().unwrap();
    let (mut output, from) = pipe();
    let attach = Op::Attach { container: "c".into(), stdin: true, stdout: true, stderr: false };
    assert!(matches!(pod.call(attach, &[input.into(), from]), Outcome::Done));
    std::io::Write::write_all(&mut &to, b"hello\n").unwrap();
    drop(to);
    assert_eq!(pod.wait_exit("c").code, 0);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    assert_eq!(pod.log("c"), "stdout F hello\n");
}

#[test]
#[expect(unsafe_code, reason = "std ignores no signals")]
fn container_and_exec_get_what_runc_gives() {
    // As in a shell's background job.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
    let mut pod = TestPod::start("runc", |_| {});
    for (name, change) in variants() {
        let mut config = pod.config(name, &format!("{PROBE}; echo done; sleep 1000"));
        change(&mut config);
        pod.run(name, &config);
        let ours = wait_for_log(&pod, name);
        let mut process = config["process"].clone();
        process["args"] = json!(["sh", "-c", PROBE]);
        let (code, ours_exec) = pod.exec(name, process);
        assert_eq!(code, 0, "{ours_exec}");

        let theirs_name = format!("{name}-runc");
        config["linux"]["cgroupsPath"] = json!(format!("/{}/{theirs_name}", pod.name));
        let runc = Runc::run(&pod, &theirs_name, &config);
        let theirs = runc.log();
        let theirs_exec = runc.exec(PROBE);
        compare(&format!("{name}: container"), &ours, &theirs);
        compare(&format!("{name}: exec"), &ours_exec, &theirs_exec);
        // On a machine with v1 controllers cgroup2 has a folder of its own for each container, below the pod's.
        let own = pod.cgroup.join(name).exists();
        let joined = format!("0::/{}/{}{name}", pod.name, if own { "pod/" } else { "" });
        assert!(ours.contains(&joined) && ours_exec.contains(&joined), "{ours_exec}");
    }
}

type Change = fn(&mut Value);

fn variants() -> [(&'static str, Change); 4] {
    [
        ("root", |_| {}),
        ("user", |config| {
            config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 20]});
            config["process"]["capabilities"]["ambient"] = json!(["CAP_NET_BIND_SERVICE"]);
            config["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_BIND_SERVICE"]);
        }),
        ("nnp", |config| {
            config["process"]["noNewPrivileges"] = json!(true);
            config["process"]["user"]["uid"] = json!(1000);
            config["root"]["readonly"] = json!(true);
        }),
        ("plain", |config| {
            config["linux"].as_object_mut().unwrap().remove("seccomp");
            config["process"]["capabilities"] = json!({"bounding": [], "effective": [], "permitted": []});
        }),
    ]
}

pub fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_log(pod: &TestPod, container: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = pod.log(container).replace("stdout F ", "").replace("stderr F ", "");
        if log.contains("done\n") {
            return log;
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Runc {
    root: PathBuf,
    output: PathBuf,
    name: String,
}

impl Runc {
    fn run(pod: &TestPod, name: &str, config: &Value) -> Runc {
        let runc = Runc { root: pod.path("runc"), output: pod.path(&format!("{name}.out")), name: name.into() };
        let bundle = pod.bundle(name, config);
        let output = File::create(&runc.output).unwrap();
        let status = Command::new("runc")
            .args([
                "--root",
                runc.root.to_str().unwrap(),
                "run",
                "--detach",
                "--bundle",
                bundle.to_str().unwrap(),
                name,
            ])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        assert!(status.success(), "{}", fs::read_to_string(&runc.output).unwrap());
        runc
    }

    /// The end of what runc says of a configuration that it cannot run.
    fn refusal(pod: &TestPod, name: &str, config: &Value) -> String {
        let (root, bundle) = (pod.path("runc"), pod.bundle(name, config));
        let command = ["--root", root.to_str().unwrap(), "run", "--bundle", bundle.to_str().unwrap(), name];
        let output = Command::new("runc").args(command).stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        // A line of its log, in which the message stands between quotes.
        String::from_utf8(output.stderr).unwrap().trim().trim_end_matches('"').replace("\\\"", "\"")
    }

    fn log(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&self.output).unwrap();
            if text.contains("done\n") {
                return text;
            }
            assert!(Instant::now() < deadline, "{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn exec(&self, script: &str) -> String {
        let root = self.root.to_str().unwrap();
        let args = ["--root", root, "exec", &self.name, "sh", "-c", script];
        let output = Command::new("runc").args(args).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        let args = ["--root", self.root.to_str().unwrap(), "delete", "--force", &self.name];
        let _ = Command::new("runc").args(args).status();
    }
}

/// One fact per line, without what must differ: mount ids, the container's own name, the cgroup2 line, systemd's
/// hierarchy (it limits nothing), and the C library's own signals 32 and 33, which follow the caller.
fn facts(text: &str) -> BTreeMap<String, usize> {
    let mut facts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with("0::") && !line.contains(":name=systemd:")) {
        let line = match line.strip_prefix("SigIgn:\t").map(|bits| u64::from_str_radix(bits, 16).unwrap()) {
            Some(bits) => format!("SigIgn {:x}", bits & 0x7fff_ffff),
            None => line.to_owned(),
        };
        let line = match line.split_once(" - ") {
            Some((head, tail)) => {
                let head: Vec<_> = head.split(' ').collect();
                let source = if head[4] == "/" { "" } else { tail };
                format!("mount {} {} {source}", head[4], head[5])
            }
            None => line.replace("-runc", ""),
        };
        *facts.entry(line).or_insert(0) += 1;
    }
    facts
}

fn compare(what: &str, ours: &str, theirs: &str) {
    let (ours, theirs) = (facts(ours), facts(theirs));
    let only = |left: &BTreeMap<String, usize>, right: &BTreeMap<String, usize>| {
        left.iter()
            .filter(|(line, count)| right.get(*line) != Some(count))
            .map(|(line, _)| line.clone())
            .collect::<Vec<_>>()
    };
    let (more, less) = (only(&ours, &theirs), only(&theirs, &ours));
    assert!(more.is_empty() && less.is_empty(), "{what}:\nonly ours: {more:#?}\nonly runc's: {less:#?}");
}
