//! What a pod may and may not do, and pods of unusual shape: sidecars, hooks, the host's network. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;

use agent::LogOptions;
use api::uid::Uid;
use serde_json::{Value, json};
use support::{TestNode, pod, uid_of};

/// Starts a pod that sleeps, and returns its UID.
async fn running(node: &TestNode, name: &str, container: Value, change: impl FnOnce(&mut Value)) -> Value {
    let mut whole = json!({"command": ["sleep", "1000"]});
    whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    let mut pod = pod(name, whole);
    change(&mut pod);
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(uid_of(&pod)).await;
    pod
}

async fn sh(node: &TestNode, pod: &Value, script: &str) -> (i32, String) {
    let (code, out, err) = node.exec(uid_of(pod), "main", &["sh", "-c", script]).await;
    (code, out + &err)
}

async fn gone(node: &TestNode, pod: &Value) {
    node.delete(pod, 1);
    node.wait_removed(uid_of(pod)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_capabilities_and_the_root_file_system() {
    let node = TestNode::start("users").await;
    let strict = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "runAsNonRoot": true,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}});
    let pod = running(&node, "strict", strict, |pod| {
        pod["spec"]["securityContext"] = json!({"supplementalGroups": [4000], "fsGroup": 5000});
    })
    .await;
    let (_, text) = sh(
        &node,
        &pod,
        "id -u; id -g; id -G; grep -E '^(NoNewPrivs|CapBnd|CapEff|Seccomp):' /proc/self/status; touch /x",
    )
    .await;
    let expected = "1000\n3000\n3000 4000 5000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    gone(&node, &pod).await;

    let adds = json!({"securityContext": {"capabilities": {"add": ["SYS_TIME"], "drop": ["CHOWN"]}}});
    let pod = running(&node, "adds", adds, |_| {}).await;
    let (_, text) = sh(
        &node,
        &pod,
        "grep CapEff /proc/self/status; chown 1 /tmp; cat /proc/kcore | head -c 1; echo 1 > /proc/sys/kernel/hostname",
    )
    .await;
    assert!(text.contains("CapEff:\t00000000aa0425fa") && text.contains("not permitted"), "{text}");
    assert!(text.contains("Read-only"), "{text}");
    gone(&node, &pod).await;

    let pod = running(&node, "privileged", json!({"securityContext": {"privileged": true}}), |_| {}).await;
    let (code, text) = sh(
        &node,
        &pod,
        "grep Seccomp: /proc/self/status; mount -t tmpfs none /mnt || mkdir /mnt && mount -t tmpfs none /mnt",
    )
    .await;
    assert!(code == 0 && text.contains("Seccomp:\t0"), "{code} {text}");
    let list = "cd /dev; for f in *; do if [ -c $f ] || [ -b $f ]; then echo $f; fi; done | sort";
    let hosts = std::process::Command::new("sh").args(["-c", list]).output().unwrap();
    let (_, inside) = sh(&node, &pod, list).await;
    for device in String::from_utf8(hosts.stdout).unwrap().lines().filter(|name| *name != "console") {
        assert!(inside.lines().any(|name| name == device), "{device} is not in the container: {inside}");
    }
    gone(&node, &pod).await;
}

/// What this process opens ends with it: what a pod process inherits, its containers could reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_an_agent_opens_closes_on_exec() {
    let inherited = left_open();
    let node = TestNode::start("cloexec").await;
    let pod = running(&node, "open", json!({"stdin": true}), |_| {}).await;
    sh(&node, &pod, "true").await;
    assert_eq!(left_open(), inherited);
    gone(&node, &pod).await;
}

/// Descriptors beyond the standard ones that an executed program would inherit, and what they are.
fn left_open() -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let Ok(info) = std::fs::read_to_string(entry.path()) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        if number > 2 && u32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC as u32 == 0 {
            found.push(format!("{number} {:?}", std::fs::read_link(format!("/proc/self/fd/{number}"))));
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_is_refused_where_the_pod_forbids_it() {
    let node = TestNode::start("nonroot").await;
    let pod = pod("nonroot", json!({"command": ["sleep", "1000"], "securityContext": {"runAsNonRoot": true}}));
    node.agent().sync(Arc::new(pod.clone()));
    let status = node
        .wait_status(uid_of(&pod), "refused", |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    let pod_of = format!("(pod: \"nonroot_default({})\", container: main)", uid_of(&pod));
    assert_eq!(message, format!("container has runAsNonRoot and image will run as root {pod_of}"));
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_reach_the_cgroups_and_want_of_memory_is_named() {
    let node = TestNode::start("limits").await;
    let limits = json!({"resources": {"limits": {"memory": "32Mi", "cpu": "250m"}}, "command": ["sh", "-c", "x=xxxxxxxx; while true; do x=$x$x; done"]});
    let pod = pod("hungry", limits);
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_status(uid_of(&pod), "killed", |status| {
        let container = &status["containerStatuses"][0];
        let end = |state: &str| {
            container[state]["terminated"]["reason"] == "OOMKilled" && container[state]["terminated"]["exitCode"] == 137
        };
        end("state") || end("lastState")
    })
    .await;
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_network_and_files() {
    let node = TestNode::start("host").await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/file"), "from the host").unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let mounts = json!({"volumeMounts": [{"name": "h", "mountPath": "/h", "readOnly": true}, {"name": "h", "mountPath": "/s", "subPath": "sub"}]});
    let pod = running(&node, "host", mounts, |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["volumes"] = json!([{"name": "h", "hostPath": {"path": path, "type": "Directory"}}]);
    })
    .await;
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let (_, text) = sh(&node, &pod, "readlink /proc/self/ns/net; cat /s/file; touch /h/x").await;
    assert!(
        text.contains(own.to_str().unwrap()) && text.contains("from the host") && text.contains("Read-only"),
        "{text}"
    );
    let status = node.wait_ready(uid_of(&pod)).await;
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("192.0.2.1"), &json!("192.0.2.1")));
    gone(&node, &pod).await;
    assert_eq!(std::fs::read_to_string(folder.path().join("sub/file")).unwrap(), "from the host");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_and_hooks() {
    let node = TestNode::start("hooks").await;
    let write = |text: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {text} >> /proc/1/fd/1")]}});
    let container = json!({
        "command": ["sh", "-c", "trap 'echo term; exit 0' TERM; while true; do sleep 0.05; done"],
        "lifecycle": {"postStart": write("started"), "preStop": write("stopping")},
    });
    let pod = running(&node, "hooked", container, |pod| {
        pod["spec"]["initContainers"] = json!([
            {"name": "side", "image": "busybox", "imagePullPolicy": "IfNotPresent", "restartPolicy": "Always",
                "command": ["sh", "-c", "trap 'echo side-term; exit 0' TERM; while true; do sleep 0.05; done"],
                "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}},
        ]);
    })
    .await;
    let uid = uid_of(&pod).to_owned();
    let status = node.wait_ready(&uid).await;
    assert_eq!(status["initContainerStatuses"][0]["started"], true);
    let reader =
        node.agent().logs(&Uid::of(&pod), "main", LogOptions { follow: true, ..LogOptions::default() }).unwrap();
    let log = tokio::spawn(futures::StreamExt::collect::<Vec<_>>(reader));
    node.delete(&pod, 20);
    node.wait_removed(&uid).await;
    let log: Vec<u8> = log.await.unwrap().into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
    assert_eq!(String::from_utf8(log).unwrap(), "started\nstopping\nterm\n");
    let api = node.upstream.api.lock().unwrap();
    let killed: Vec<_> =
        api.events.iter().filter(|event| event.reason == "Killing").map(|event| event.message.as_str()).collect();
    assert_eq!(killed, ["Stopping container main", "Stopping container side"]);
}

/// A file system that goes when the test ends, however it ends.
struct Below(std::path::PathBuf);

impl Below {
    fn mount(path: std::path::PathBuf) -> Below {
        std::fs::create_dir(&path).unwrap();
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&path).status().unwrap();
        assert!(mounted.success());
        Below(path)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").args(["--lazy"]).arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_down_to_the_last_mount_where_the_pod_says_so() {
    let node = TestNode::start("recursive").await;
    let folder = tempfile::tempdir().unwrap();
    let _below = Below::mount(folder.path().join("below"));
    let mount =
        |to: &str, mode: &str| json!({"name": "h", "mountPath": to, "readOnly": true, "recursiveReadOnly": mode});
    let mounts =
        json!({"volumeMounts": [mount("/all", "Enabled"), mount("/maybe", "IfPossible"), mount("/top", "Disabled")]});
    let path = folder.path().to_str().unwrap().to_owned();
    let pod = running(&node, "recursive", mounts, |pod| {
        pod["spec"]["volumes"] = json!([{"name": "h", "hostPath": {"path": path}}]);
    })
    .await;
    let (_, text) = sh(&node, &pod, "for m in all maybe top; do touch /$m/below/$m && echo wrote $m; done").await;
    gone(&node, &pod).await;
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.contains("wrote top") && text.matches("wrote").count() == 1, "{text}");
}
