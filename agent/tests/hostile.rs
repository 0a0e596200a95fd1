//! Containers that try to reach through the agent to the host, and what must go on working beside. Needs root.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use agent::{LogError, LogOptions};
use api::uid::Uid;
use serde_json::{Value, json};
use support::{TestNode, pod, uid_of};

fn waiting(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]["waiting"]
}

fn ready(status: &Value) -> bool {
    support::condition(status, "Ready") == "True"
}

async fn gone(node: &TestNode, pod: &Value) {
    node.delete(pod, 1);
    node.wait_removed(uid_of(pod)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sub_path_that_is_a_link_to_the_host_is_refused() {
    let node = TestNode::start("subpath").await;
    let host = tempfile::tempdir().unwrap();
    let path = host.path().display();
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = pod(
        "link",
        json!({"command": ["sleep", "1000"], "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "x/canary"}]}),
    );
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    pod["spec"]["initContainers"] = json!([{"name": "set", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["ln", "-s", path.to_string(), "/v/x"], "volumeMounts": mount}]);
    node.agent().sync(Arc::new(pod.clone()));
    let refused = |status: &Value| {
        waiting(status)["reason"] == "CreateContainerConfigError" && !waiting(status)["message"].is_null()
    };
    let status = node.wait_status(uid_of(&pod), "refused", refused).await;
    let message = "failed to prepare subPath for volumeMount \"v\" of container \"main\"";
    assert_eq!(waiting(&status)["message"], message);
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0, "nothing was made on the host");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_paths_by_links_inside_the_volume_work() {
    let node = TestNode::start("inside").await;
    let mount = |to: &str, path: &str| json!({"name": "v", "mountPath": to, "subPath": path});
    let mut pod = pod(
        "inside",
        json!({"command": ["sleep", "1000"], "volumeMounts": [mount("/link", "link"), mount("/new", "new/deep"), mount("/file", "file")]}),
    );
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    pod["spec"]["initContainers"] = json!([{"name": "set", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "mkdir /v/dir; ln -s ./dir/../dir /v/link; echo text > /v/dir/file; ln -s link/file /v/file"],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(uid_of(&pod)).await;
    let (code, out, err) =
        node.exec(uid_of(&pod), "main", &["sh", "-c", "cat /link/file /file; touch /new/x; stat -c %a /new"]).await;
    assert_eq!((code, out.as_str()), (0, "text\ntext\n777\n"), "{err}");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_the_api_cannot_be_written() {
    let node = TestNode::start("readonly").await;
    let set = |value: &str| {
        let mut api = node.upstream.api.lock().unwrap();
        api.config_maps.insert("c".into(), Arc::new(json!({"data": {"key": value}})));
    };
    set("one");
    let mounts = json!([{"name": "c", "mountPath": "/c"}, {"name": "p", "mountPath": "/p"}, {"name": "c", "mountPath": "/k", "subPath": "key"}]);
    let mut pod = pod("readonly", json!({"command": ["sleep", "1000"], "volumeMounts": mounts}));
    let projected = json!({"sources": [{"serviceAccountToken": {"path": "token"}}]});
    pod["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "c"}}, {"name": "p", "projected": projected}]);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    for refused in ["rm /c/..data", "ln -s /srv /c/x", "echo x > /k", "echo x > /c/key", "rm /p/token"] {
        let (code, _, err) = node.exec(&uid, "main", &["sh", "-c", refused]).await;
        assert!(code != 0 && err.contains("Read-only file system"), "{refused:?}: {code} {err}");
    }
    assert_eq!(node.exec(&uid, "main", &["cat", "/c/key", "/k"]).await.1, "oneone");
    gone(&node, &pod).await;
}

/// A container of an earlier release had such a volume writable, and may have one today by mounting it anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_link_does_not_lead_the_agent_away() {
    let node = TestNode::start("flipped").await;
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("kept"), "").unwrap();
    let set = |value: &str| {
        let mut api = node.upstream.api.lock().unwrap();
        api.config_maps.insert("c".into(), Arc::new(json!({"data": {"key": value}})));
    };
    set("one");
    let mut pod = pod(
        "flip",
        json!({"command": ["sleep", "1000"], "securityContext": {"privileged": true},
            "volumeMounts": [{"name": "c", "mountPath": "/c"}]}),
    );
    pod["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "c"}}]);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let script = format!("mount -o remount,bind,rw /c && rm /c/..data && ln -s {} /c/..data", host.path().display());
    let (code, _, err) = node.exec(&uid, "main", &["sh", "-c", &script]).await;
    assert_eq!(code, 0, "{err}");
    set("two");
    node.agent().content_changed(&Uid::of(&pod));
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while node.exec(&uid, "main", &["cat", "/c/key"]).await.1 != "two" {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(host.path().join("kept").exists());
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_termination_message_is_kept() {
    let node = TestNode::start("message").await;
    let ended = |pod: Value| {
        let node = &node;
        async move {
            node.agent().sync(Arc::new(pod.clone()));
            let status = node.wait_status(uid_of(&pod), "failed", |status| status["phase"] == "Failed").await;
            gone(node, &pod).await;
            status["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default().to_owned()
        }
    };
    let once = |name: &str, script: &str, policy: &str| {
        let mut pod = pod(name, json!({"command": ["sh", "-c", script], "terminationMessagePolicy": policy}));
        pod["spec"]["restartPolicy"] = json!("Never");
        pod
    };
    let huge =
        once("huge", "truncate -s 22G /dev/termination-log; echo the end >> /dev/termination-log; exit 1", "File");
    let message = ended(huge).await;
    assert!(message.len() == 4096 && message.ends_with("the end\n"), "{} bytes", message.len());
    let talks = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done; exit 1";
    let message = ended(once("talks", talks, "FallbackToLogsOnError")).await;
    assert!(message.starts_with("line 121\n") && message.ends_with("line 200\n"), "{message}");
    let wide = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); printf '%0100d\\n' $i; done; exit 1";
    let message = ended(once("wide", wide, "FallbackToLogsOnError")).await;
    assert!(message.len() == 2048 && message.ends_with("0200\n"), "{} bytes", message.len());
    assert_eq!(ended(once("quiet", "echo x; exit 1", "File")).await, "");
}

/// What is kept of a pod lies in folders named by its UID.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uid_that_leads_elsewhere_is_not_followed() {
    let node = TestNode::start("uid").await;
    let mut pod = pod("astray", json!({"command": ["true"]}));
    pod["metadata"]["uid"] = json!("../elsewhere");
    for folder in ["logs", "elsewhere/main"] {
        fs::create_dir_all(node.config.data_dir.join(folder)).unwrap();
    }
    fs::write(node.config.data_dir.join("elsewhere/main/0.log"), "2026-01-01T00:00:00Z stdout F x\n").unwrap();
    node.agent().sync(Arc::new(pod.clone()));
    node.agent().resync(vec![Arc::new(pod.clone())]);
    assert!(node.agent().pods().is_empty());
    let read = node.agent().logs(&Uid::of(&pod), "main", LogOptions::default());
    assert!(matches!(read, Err(LogError::NotStarted { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_small_file_takes_no_room_from_the_host() {
    let node = TestNode::start("small").await;
    let script = "for f in /dev/termination-log /etc/hosts /etc/hostname; do head -c 50000000 /dev/zero >> $f || echo full; done";
    let mut pod = pod("fills", json!({"command": ["sh", "-c", script]}));
    pod["spec"]["restartPolicy"] = json!("Never");
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_status(uid_of(&pod), "ended", |status| status["phase"] == "Succeeded").await;
    let log = node.logs(uid_of(&pod), "main", LogOptions::default()).await;
    assert_eq!(log.matches("full").count(), 3, "{log}");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_fills_its_small_files_takes_no_room_from_its_siblings() {
    let node = TestNode::start("siblings").await;
    let fill = "for f in /dev/termination-log /etc/hosts; do head -c 50000000 /dev/zero >> $f; done; touch /v/full; sleep 1000";
    let says = "while [ ! -e /v/full ]; do sleep 0.05; done; echo well > /dev/termination-log && echo x >> /etc/hosts";
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = pod("siblings", json!({"command": ["sh", "-c", fill], "volumeMounts": mount}));
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let other = json!({"name": "other", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", says], "volumeMounts": mount});
    pod["spec"]["containers"].as_array_mut().unwrap().push(other);
    node.agent().sync(Arc::new(pod.clone()));
    let ended = |status: &Value| status["containerStatuses"][1]["state"]["terminated"].is_object();
    let status = node.wait_status(uid_of(&pod), "ended", ended).await;
    let end = &status["containerStatuses"][1]["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["message"]), (&json!(0), &json!("well\n")));
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_machine_are_not_a_pods_to_change() {
    let node = TestNode::start("sysctl").await;
    let with = |name: &str, sysctl: &str, value: &str| {
        let mut pod = pod(name, json!({"command": ["sleep", "1000"]}));
        pod["spec"]["securityContext"] = json!({"sysctls": [{"name": sysctl, "value": value}]});
        pod
    };
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let bad = with("bad", "kernel.core_pattern", "x");
    node.agent().sync(Arc::new(bad.clone()));
    let status = node.wait_status(uid_of(&bad), "refused", |status| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "SysctlForbidden");
    assert_eq!(status["message"], "Pod was rejected: forbidden sysctl: \"kernel.core_pattern\" not allowlisted");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    assert!(support::warnings(&node.upstream.api.lock().unwrap()).contains(&"SysctlForbidden"));
    gone(&node, &bad).await;
    for (sysctl, value) in [("net.ipv4.tcp_syncookies", "0"), ("kernel.msgmax", "4242")] {
        let good = with("good", sysctl, value);
        node.agent().sync(Arc::new(good.clone()));
        node.wait_ready(uid_of(&good)).await;
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        assert_eq!(node.exec(uid_of(&good), "main", &["cat", &path]).await.1.trim(), value);
        gone(&node, &good).await;
    }
    let mut unmasked = pod("unmasked", json!({"securityContext": {"procMount": "Unmasked"}}));
    unmasked["spec"]["hostUsers"] = json!(true);
    node.agent().sync(Arc::new(unmasked.clone()));
    let status = node.wait_status(uid_of(&unmasked), "refused", |status| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "ProcMountForbidden");
    gone(&node, &unmasked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_only_so_many_processes() {
    let node = TestNode::start("pids").await;
    let pod = pod("forks", json!({"command": ["sleep", "1000"]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); sleep 5 & done; true";
    let (_, _, err) = node.exec(&uid, "main", &["sh", "-c", script]).await;
    assert!(err.contains("can't fork"), "{err}");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_of_the_machine_reaches_layers_and_logs() {
    let node = TestNode::start("closed").await;
    let mode = fs::metadata(&node.config.data_dir).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_mount_points_and_working_folders() {
    let node = TestNode::start("odd").await;
    let mut pod = pod(
        "odd",
        json!({"command": ["sleep", "1000"], "workingDir": "/no/such/folder", "securityContext": {"runAsUser": 4321},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let inside = json!({"name": "inside", "image": "busybox", "imagePullPolicy": "IfNotPresent", "workingDir": "/v/made",
        "command": ["sleep", "1000"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(inside);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    assert_eq!(node.exec(&uid, "main", &["sh", "-c", "pwd; echo $HOME"]).await.1, "/no/such/folder\n/\n");
    assert_eq!(node.exec(&uid, "inside", &["sh", "-c", "pwd; echo $HOME"]).await.1, "/v/made\n/root\n");
    let serve = "nc -l -p 80 -e true >/tmp/nc 2>&1 & sleep 0.3; kill $! || { cat /tmp/nc; exit 1; }";
    let (code, _, err) = node.exec(&uid, "main", &["sh", "-c", serve]).await;
    assert_eq!(code, 0, "a low port: {err}");
    gone(&node, &pod).await;
}

/// So many levels that a call for each would need more stack than a thread has.
fn deepen(folder: &std::path::Path) -> rustix::io::Result<()> {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let mut folder = openat(CWD, folder, OFlags::PATH, Mode::empty())?;
    for _ in 0..10_000 {
        mkdirat(&folder, "d", Mode::RWXU)?;
        folder = openat(&folder, "d", OFlags::PATH, Mode::empty())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_any_depth_go_with_their_container_and_their_pod() {
    let node = TestNode::start("deep").await;
    let until_told = ["sh", "-c", "while [ ! -e /stop ]; do sleep 0.1; done"];
    let mut pod = pod("deep", json!({"command": until_told, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let (data, layers) = (&node.config.data_dir, node.config.data_dir.join("containers").join(&uid));
    let upper = |run: &str| layers.join(run).join("upper");
    assert_eq!(node.exec(&uid, "main", &["mkdir", "/root-of-it"]).await.0, 0);
    deepen(&upper("main-0").join("root-of-it")).unwrap();
    deepen(&data.join("volumes").join(&uid).join("v")).unwrap();
    assert_eq!(node.exec(&uid, "main", &["touch", "/stop"]).await.0, 0);
    let again = |status: &Value| status["containerStatuses"][0]["restartCount"] == 1 && ready(status);
    node.wait_status(&uid, "another run", again).await;
    assert!(!layers.join("main-0").exists() && layers.join("main-1").exists());
    gone(&node, &pod).await;
}
