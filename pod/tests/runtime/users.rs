//! A pod with users of its own: root inside, nobody on the host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use pod::protocol::{IdRange, Op, Outcome, Setup, State};
use serde_json::{Value, json};

use crate::wait_for;
use crate::world::TestPod;

const RANGE: IdRange = IdRange { first: 1_900_000, count: 65_536 };

fn start(name: &str, change: impl FnOnce(&mut Setup)) -> (TestPod, State) {
    let mut pod = TestPod::start(name, |setup| {
        setup.users = Some(RANGE);
        // What the pod's root makes and walks through must be open to it.
        for folder in [setup.state_dir.parent().unwrap(), &setup.state_dir] {
            fs::create_dir_all(folder).unwrap();
            fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        }
        change(setup);
    });
    let given = Command::new("chown").args(["-R", "1900000:1900000"]).arg(pod.path("rootfs")).status().unwrap();
    assert!(given.success());
    let Outcome::State(state) = pod.call(Op::Hello { version: 2 }, &[]) else { panic!() };
    (pod, state)
}

fn config(pod: &TestPod, state: &State, name: &str, script: &str) -> Value {
    let mut config = pod.config(name, script);
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user", "path": state.user_namespace.as_ref().unwrap()}));
    config
}

#[test]
fn root_of_a_pod_is_nobody_on_the_host() {
    let (mut pod, state) = start("users", |_| {});
    let script =
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; echo mine > /tmp/file; hostname; echo done; sleep 1000";
    let config = config(&pod, &state, "c", script);
    pod.run("c", &config);
    wait_for(|| pod.log("c").contains("done\n"));
    let words: Vec<String> = pod.log("c").split_whitespace().map(str::to_owned).collect();
    let map = "stdout F 0 1900000 65536 ";
    let expected = format!("{map}{map}stdout F 0 stdout F test-host stdout F done");
    assert_eq!(words.join(" "), expected);
    let file = fs::metadata(pod.path("rootfs").join("tmp/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (RANGE.first, RANGE.first));

    let mut process = config["process"].clone();
    process["args"] = json!([
        "sh",
        "-c",
        "id -u; grep CapEff /proc/self/status; cat /proc/self/uid_map; echo x > /dev/stderr; kill -0 1 && echo reached"
    ]);
    let (code, text) = pod.exec("c", process.clone());
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("0\n") && text.contains("1900000      65536\nx\nreached"), "{text}");
    let container: i32 = match pod.call(Op::Hello { version: 2 }, &[]) {
        Outcome::State(state) => state.containers[0].pid,
        other => panic!("{other:?}"),
    };
    assert_eq!(fs::metadata(format!("/proc/{container}")).unwrap().uid(), RANGE.first);
    // The pod's other namespaces belong to its users: its root may change what is in them.
    for namespace in ["net", "ipc", "uts"] {
        let own = fs::read_link(format!("/proc/{}/ns/{namespace}", state.pid)).unwrap();
        assert_eq!(own, fs::read_link(format!("/proc/{container}/ns/{namespace}")).unwrap());
        assert_ne!(own, fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap());
    }
    process["user"]["uid"] = json!(1000);
    process["args"] = json!(["sh", "-c", "id -u; echo again > /dev/stdout"]);
    assert_eq!(pod.exec("c", process), (0, "1000\nagain\n".into()));
}

/// Even with every capability and an open /proc, what belongs to the machine stays closed.
#[test]
fn an_unmasked_proc_shows_nothing_of_the_hosts_to_write() {
    let (mut pod, state) = start("unmasked", |_| {});
    let mut config = config(&pod, &state, "c", "sleep 1000");
    for paths in ["maskedPaths", "readonlyPaths"] {
        config["linux"].as_object_mut().unwrap().remove(paths);
    }
    pod.run("c", &config);
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut process = config["process"].clone();
    process["args"] = json!([
        "sh",
        "-c",
        "echo '|/x' > /proc/sys/kernel/core_pattern; echo 1 > /proc/sys/kernel/panic; \
        hostname renamed && hostname"
    ]);
    process["capabilities"]["effective"].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    process["capabilities"]["permitted"].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    process["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    let (_, text) = pod.exec("c", process);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    assert_eq!(text.matches("Permission denied").count(), 2, "{text}");
    assert!(text.ends_with("renamed\n"), "its own host name is its own: {text}");
}

#[test]
fn containers_with_users_of_their_own_share_a_pid_namespace() {
    let (mut pod, state) = start("users-pid", |setup| setup.share_pid = true);
    let mut config = config(&pod, &state, "c", "sleep 1000");
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    namespaces.push(json!({"type": "pid", "path": state.pid_namespace.unwrap()}));
    pod.run("c", &config);
    let mut process = config["process"].clone();
    process["args"] = json!(["sh", "-c", "ps; grep Uid /proc/1/status"]);
    let (code, text) = pod.exec("c", process);
    assert!(code == 0 && text.contains("sleep 1000") && text.contains("Uid:\t0\t0\t0\t0"), "{text}");
    assert!(matches!(pod.call(Op::Signal { container: "c".into(), signal: 9 }, &[]), Outcome::Done));
    assert_eq!(pod.wait_exit("c").code, 137);
}

#[test]
fn a_terminal_belongs_to_the_pods_user() {
    let (mut pod, state) = start("users-tty", |_| {});
    let mut config = config(&pod, &state, "c", "echo again > $(readlink /proc/self/fd/0); echo done; sleep 1000");
    config["process"]["terminal"] = json!(true);
    pod.run("c", &config);
    wait_for(|| pod.log("c").contains("done"));
    assert!(pod.log("c").contains("again"), "{}", pod.log("c"));
}

/// A second container, and one that joins the first one's processes, as a debugger does.
#[test]
fn several_containers_share_the_pods_users() {
    let (mut pod, state) = start("users-two", |_| {});
    let first = config(&pod, &state, "a", "sleep 1000");
    pod.run("a", &first);
    let second = config(&pod, &state, "b", "sleep 2000");
    pod.run("b", &second);
    let Outcome::State(now) = pod.call(Op::Hello { version: 2 }, &[]) else { panic!() };
    let mut debugger = config(&pod, &state, "d", "sleep 3000");
    let namespaces = debugger["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    namespaces.push(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", now.containers[0].pid)}));
    pod.run("d", &debugger);
    let mut process = debugger["process"].clone();
    process["args"] = json!(["ps"]);
    let (_, text) = pod.exec("d", process);
    assert!(text.contains("sleep 1000") && !text.contains("sleep 2000"), "{text}");
}
