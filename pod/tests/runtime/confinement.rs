//! What a hostile container must not get: the host through an exec's first steps, or a device of the host.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pod::protocol::{Exec, FailureKind, Op, Outcome};
use serde_json::{Value, json};

use crate::world::{TestPod, cgroup2_mount, null};

fn shell(config: &Value, script: &str) -> Value {
    let mut process = config["process"].clone();
    process["args"] = json!(["sh", "-c", script]);
    process
}

/// The process id of the pod process itself.
fn pod_process(pod: &mut TestPod) -> i32 {
    match pod.call(Op::Hello { version: 1 }, &[]) {
        Outcome::State(state) => state.pid,
        other => panic!("{other:?}"),
    }
}

/// A command's working folder was an ordinary one when the container began; now it is a link out of the container,
/// through a descriptor that the command is given.
#[test]
fn a_working_folder_that_became_a_way_out_is_refused() {
    let mut pod = TestPod::start("cwd", |_| {});
    let rootfs = pod.path("rootfs");
    fs::create_dir(rootfs.join("work")).unwrap();
    let mut config = pod.config("c", "sleep 1000");
    config["process"]["cwd"] = json!("/work");
    pod.run("c", &config);
    assert_eq!(pod.exec("c", shell(&config, "readlink /proc/self/cwd")), (0, "/work\n".into()));

    fs::remove_dir(rootfs.join("work")).unwrap();
    for way in ["/proc/self/fd/0", "/proc/self/fd/0/..", "/proc/self/fd/3", "/proc/self/fd/7", "/proc/thread-self/fd/0"]
    {
        let _ = fs::remove_file(rootfs.join("work"));
        std::os::unix::fs::symlink(way, rootfs.join("work")).unwrap();
        let host: OwnedFd = File::open("/").unwrap().into();
        let exec = Exec { exec: "e".into(), container: "c".into(), process: shell(&config, "cat etc/hostname") };
        let outcome = pod.call(Op::Exec(exec), &[host, null(), null()]);
        let Outcome::Failed(failure) = outcome else { panic!("{way}: ran") };
        assert_eq!(failure.kind, FailureKind::CannotRun, "{way}: {failure}");
        assert!(failure.message.starts_with("chdir to ") && failure.message.contains("/work"), "{way}: {failure}");
    }
}

/// The same for a container's first process, whose working folder may lie in a volume that an earlier run wrote to.
#[test]
fn a_first_process_finds_no_way_out_either() {
    let mut pod = TestPod::start("start-cwd", |_| {});
    let link = pod.path("rootfs").join("work");
    let ways =
        (0..32).map(|number| format!("/proc/self/fd/{number}")).chain(["/proc/self/cwd".into(), "/proc/1/cwd".into()]);
    for (number, way) in ways.enumerate() {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&way, &link).unwrap();
        let name = format!("c{number}");
        let mut config = pod.config(&name, "sleep 1000");
        config["process"]["cwd"] = json!("/work");
        if let Outcome::Started(pid) = pod.create(&name, &config) {
            assert!(is_inside(pid), "{way}");
            pod.call(Op::Delete { container: name }, &[]);
        }
    }
}

/// Whether the way up from a process's working folder leads to its root.
fn is_inside(pid: i32) -> bool {
    let identity = |path: String| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).unwrap();
    let root = identity(format!("/proc/{pid}/root"));
    (0..16).any(|up| identity(format!("/proc/{pid}/cwd{}", "/..".repeat(up))) == root)
}

/// As with the container's own start, an image's folder that is closed to the user is still a place to work in.
#[test]
fn a_working_folder_closed_to_its_user_is_entered() {
    let mut pod = TestPod::start("closed", |_| {});
    let home = pod.path("rootfs").join("closed");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut config = pod.config("c", "sleep 1000");
    config["process"]["cwd"] = json!("/closed");
    config["process"]["user"]["uid"] = json!(1000);
    pod.run("c", &config);
    assert_eq!(pod.exec("c", shell(&config, "readlink /proc/self/cwd")), (0, "/closed\n".into()));
}

/// The account file is read before the command runs, and may be anything by then.
#[test]
fn an_account_file_that_became_a_pipe_holds_nobody_up() {
    let mut pod = TestPod::start("passwd", |_| {});
    let config = pod.config("c", "sleep 1000");
    pod.run("c", &config);
    let passwd = pod.path("rootfs").join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&passwd).status().unwrap();
    assert!(made.success());
    assert_eq!(pod.exec("c", shell(&config, "echo $HOME")), (0, "/\n".into()));
}

/// A descriptor that somebody forgot to close in the agent reaches neither the pod process nor a container.
#[test]
fn forgotten_descriptors_end_at_the_pod_process() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let stray = forget_to_close(&reader);
    let mut pod = TestPod::start("stray", |_| {});
    let config = pod.config("c", "sleep 1000");
    pod.run("c", &config);
    let own = pod_process(&mut pod);
    let target = |pid: &str| fs::read_link(format!("/proc/{pid}/fd/{}", stray.as_raw_fd()));
    let pipe = target("self").unwrap();
    assert_ne!(target(&own.to_string()).ok(), Some(pipe));
    for entry in fs::read_dir(format!("/proc/{own}/fdinfo")).unwrap().flatten() {
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        assert!(number < 3 || closes_on_exec(&text), "{number}: {text}");
    }
    // The shell's own pattern lists the folder that it reads, too.
    let (_, open) = pod.exec("c", shell(&config, "for fd in /proc/self/fd/*; do readlink $fd; done"));
    assert_eq!(open.lines().count(), 3, "{open}");
}

fn closes_on_exec(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    u32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC as u32 != 0
}

#[expect(unsafe_code, reason = "std makes no descriptor that outlives exec")]
fn forget_to_close(fd: &impl std::os::fd::AsRawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: a duplicate is ours.
    unsafe { OwnedFd::from_raw_fd(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, 251)) }
}

/// Programs open their streams by name, also those that are no longer root.
#[test]
fn streams_belong_to_the_user() {
    let mut pod = TestPod::start("streams", |_| {});
    let mut config = pod.config("c", "echo again > /dev/stderr; sleep 1000");
    config["process"]["user"]["uid"] = json!(1000);
    pod.run("c", &config);
    assert_eq!(pod.exec("c", shell(&config, "echo again > /dev/stdout")), (0, "again\n".into()));
    crate::wait_for(|| pod.log("c").contains("stderr F again\n"));
    config["process"]["terminal"] = json!(true);
    config["process"]["args"] = json!(["sh", "-c", "echo again > $(readlink /proc/self/fd/0); sleep 1000"]);
    config["linux"]["cgroupsPath"] = json!(format!("/{}/t", pod.name));
    pod.run("t", &config);
    crate::wait_for(|| pod.log("t").contains("again"));
}

/// Those who list processes see whose they are.
#[test]
fn a_pod_process_says_whose_it_is() {
    let mut pod = TestPod::start("named", |_| {});
    let own = pod_process(&mut pod);
    let read = |file: &str| fs::read_to_string(format!("/proc/{own}/{file}")).unwrap();
    assert_eq!(read("comm"), "amphipod-pod\n");
    let line = read("cmdline");
    assert_eq!(line.split('\0').nth(1), Some(format!("test/{}", pod.name).as_str()), "{line:?}");
}

/// Version 1 controllers show a container its own folders, and let it change nothing; also one that joins other
/// containers' processes, where its own number may be nobody's on the host.
#[test]
fn limits_of_v1_controllers_are_not_the_containers_to_lift() {
    let memory = Path::new("/sys/fs/cgroup/memory");
    if !memory.is_dir() {
        return; // this machine has cgroup2 alone
    }
    let mut pod = TestPod::start("v1", |setup| setup.share_pid = true);
    let Outcome::State(state) = pod.call(Op::Hello { version: 1 }, &[]) else { panic!() };
    let mut config = pod.config("c", "sleep 1000");
    config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid", "path": state.pid_namespace.unwrap()}]);
    let wanted = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]});
    config["mounts"].as_array_mut().unwrap().push(wanted);
    pod.run("c", &config);
    // From here on process ids of the pod are none of the host's.
    let used = "i=0; while [ $i -lt 400 ]; do /bin/true; i=$((i+1)); done";
    assert_eq!(pod.exec("c", shell(&config, used)).0, 0);
    let script = "cd /sys/fs/cgroup/memory && cat memory.limit_in_bytes && echo -1 > memory.limit_in_bytes";
    for name in ["c", "d"] {
        if name == "d" {
            config["linux"]["cgroupsPath"] = json!(format!("/{}/d", pod.name));
            pod.run("d", &config);
        }
        let (code, text) = pod.exec(name, shell(&config, script));
        assert!(code != 0 && text.starts_with("67108864\n") && text.contains("Read-only"), "{name}: {text}");
    }
}

// ---- devices ----

/// Block devices 240 are for local use: the kernel has no driver there, so what is not refused is `No such device`.
const DENIED: &str = "Operation not permitted";

fn device_test(pod: &mut TestPod, devices: Value) -> (TestContainer, Value) {
    let mut config = pod.config("c", "sleep 1000");
    let all = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    config["linux"]["resources"]["devices"] = devices;
    pod.run("c", &config);
    let own = pod.cgroup.join("c");
    (TestContainer { cgroup2: if own.exists() { own } else { cgroup2_mount().join(&pod.name).join("c") } }, config)
}

struct TestContainer {
    cgroup2: PathBuf,
}

impl TestContainer {
    /// Leaves the cgroup2 program alone with the question, where a v1 controller would refuse too.
    fn open_v1(&self, pod: &TestPod) {
        let v1 = Path::new("/sys/fs/cgroup/devices").join(&pod.name).join("c");
        if v1.exists() {
            for kind in ["b", "c"] {
                fs::write(v1.join("devices.allow"), format!("{kind} *:* rwm")).unwrap();
            }
        }
    }
}

#[test]
fn devices_of_the_host_are_refused_on_cgroup2() {
    let mut pod = TestPod::start("devices", |_| {});
    let (container, config) = device_test(&mut pod, json!([{"allow": false, "access": "rwm"}]));
    assert_ne!(fs::metadata(&container.cgroup2).unwrap().ino(), fs::metadata(&pod.cgroup).unwrap().ino());
    container.open_v1(&pod);
    for node in ["b 240 0", "b 7 0", "c 1 1", "c 10 200", "c 5 1"] {
        let script = format!("cd /tmp; mknod d {node} && cat d 2>&1 >/dev/null; rm d");
        let (_, text) = pod.exec("c", shell(&config, &script));
        assert!(text.contains(DENIED), "{node}: {text}");
    }
    let usual = "cd /tmp; for n in 3 5 7 8 9; do mknod d c 1 $n; head -c 1 d >/dev/null || exit 1; rm d; done; \
        head -c 1 /dev/zero > /dev/null && echo fine";
    assert_eq!(pod.exec("c", shell(&config, usual)), (0, "fine\n".into()));
}

#[test]
fn a_privileged_container_may_open_every_device() {
    let mut pod = TestPod::start("all-devices", |_| {});
    let (_, config) = device_test(&mut pod, json!([{"allow": true, "access": "rwm"}]));
    let (_, text) = pod.exec("c", shell(&config, "cd /tmp; mknod d b 240 0 && cat d 2>&1; rm d"));
    assert!(!text.contains(DENIED) && text.contains("No such device"), "{text}");
}

#[test]
fn rules_of_a_container_add_to_those_of_all() {
    let mut pod = TestPod::start("some-devices", |_| {});
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 240, "access": "r"}]);
    let (container, config) = device_test(&mut pod, rules);
    container.open_v1(&pod);
    let (_, text) = pod.exec("c", shell(&config, "cd /tmp; mknod d b 240 0; cat d 2>&1; echo x 2>&1 > d; rm d"));
    assert!(text.contains("cat: can't open 'd': No such device"), "{text}");
    assert!(text.contains("can't create d: Operation not permitted"), "{text}");
}
