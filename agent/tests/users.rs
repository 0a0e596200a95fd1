//! Pods with users of their own (`hostUsers: false`), whole: what is mounted, who owns it, what comes back. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use agent::LogOptions;
use serde_json::{Value, json};
use support::{TestNode, pod, uid_of};

/// A node whose folders the pods' own root may pass through, as those of a real one.
async fn node(name: &str) -> TestNode {
    let node = TestNode::start(name).await;
    std::fs::set_permissions(node.folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    node
}

async fn sh(node: &TestNode, pod: &Value, script: &str) -> (i32, String) {
    let (code, out, err) = node.exec(uid_of(pod), "main", &["sh", "-c", script]).await;
    (code, out + &err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_with_users_of_its_own_sees_is_its_own() {
    let node = node("own-users").await;
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "from the host").unwrap();
    let words = json!({"data": {"word": "hello"}});
    node.upstream.api.lock().unwrap().config_maps.insert("words".into(), Arc::new(words));
    let container = json!({
        "command": ["sh", "-c", "echo in the log; echo begun > /dev/termination-log; sleep 1000"],
        "workingDir": "/made/for/it",
        "volumeMounts": [
            {"name": "e", "mountPath": "/e"}, {"name": "e", "mountPath": "/part", "subPath": "part"},
            {"name": "c", "mountPath": "/c"}, {"name": "h", "mountPath": "/h"}, {"name": "m", "mountPath": "/m"},
        ],
    });
    let mut pod = pod("own", container);
    pod["spec"]["hostUsers"] = json!(false);
    pod["spec"]["securityContext"] = json!({"fsGroup": 5000});
    pod["spec"]["volumes"] = json!([
        {"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "words"}},
        {"name": "h", "hostPath": {"path": host.path()}}, {"name": "m", "emptyDir": {"medium": "Memory"}},
    ]);
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(uid_of(&pod)).await;

    let (_, map) = sh(&node, &pod, "cat /proc/self/uid_map").await;
    let map: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let first = map[1];
    assert!(map[0] == 0 && first >= 65536 && first.is_multiple_of(65536) && map[2] == 65536, "{map:?}");

    // Inside, root owns what root owned; outside, the disk says so as well.
    let script = "cat /c/word /h/file; echo mine > /e/file; echo > /part/file; echo > /m/file; echo > /h/made; echo > made; \
        stat -Lc '%u:%g' /bin/busybox /etc/hosts /c/word /e/file /part/file /m/file /h/made made /tmp /dev/null; pwd; id -u";
    let (code, text) = sh(&node, &pod, script).await;
    let expected =
        "hellofrom the host0:0\n0:0\n0:5000\n0:5000\n0:0\n0:5000\n0:0\n0:0\n0:0\n65534:65534\n/made/for/it\n0\n";
    assert_eq!((code, text.as_str()), (0, expected));
    let volume = node.config.data_dir.join("volumes").join(uid_of(&pod)).join("e");
    let owner = |path: &std::path::Path| (path.metadata().unwrap().uid(), path.metadata().unwrap().gid());
    assert_eq!(owner(&volume.join("file")), (0, 5000));
    assert_eq!(owner(&host.path().join("made")), (0, 0));
    // What the container writes in its own layer, nobody of the host owns.
    let layers = node.config.data_dir.join("containers").join(uid_of(&pod));
    assert_eq!(owner(&layers.join("main-0/upper/made/for/it/made")), (first, first));

    // The machine's own stays the machine's.
    let (_, text) = sh(&node, &pod, "echo 1 > /proc/sys/vm/swappiness; hostname other; mount -t tmpfs none /tmp").await;
    assert!(!text.is_empty() && std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap().trim() != "1", "{text}");
    // Whoever debugs it joins the same users, and sees what runs there.
    pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox",
        "imagePullPolicy": "IfNotPresent", "command": ["sleep", "2000"], "targetContainerName": "main"}]);
    node.agent().sync(Arc::new(pod.clone()));
    let running = |status: &Value| status["ephemeralContainerStatuses"][0]["state"]["running"].is_object();
    node.wait_status(uid_of(&pod), "debugging", running).await;
    let (_, seen, _) = node.exec(uid_of(&pod), "debug", &["sh", "-c", "ps; cat /proc/self/uid_map"]).await;
    assert!(seen.contains("sleep 1000") && seen.contains(&first.to_string()), "{seen}");
    let log = node.logs(uid_of(&pod), "main", LogOptions::default()).await;
    assert_eq!(log, "in the log\n");
    node.delete(&pod, 1);
    node.wait_removed(uid_of(&pod)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pods_share_no_ids_and_a_restarted_agent_remembers() {
    let mut node = node("two-users").await;
    let mut firsts = Vec::new();
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let mut pod = pod(name, json!({"command": ["sleep", "1000"]}));
        pod["spec"]["hostUsers"] = json!(false);
        pod["spec"]["shareProcessNamespace"] = json!(name == "two");
        node.agent().sync(Arc::new(pod.clone()));
        node.wait_ready(uid_of(&pod)).await;
        firsts.push(sh(&node, &pod, "cat /proc/self/uid_map").await.1);
        pods.push(pod);
        node.kill_agent().await;
        node.start_agent().await;
    }
    assert_ne!(firsts[0], firsts[1]);
    node.wait_ready(uid_of(&pods[0])).await;
    assert_eq!(sh(&node, &pods[0], "cat /proc/self/gid_map").await.1, firsts[0]);
    for pod in &pods {
        node.delete(pod, 1);
        node.wait_removed(uid_of(pod)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_this_node_cannot_confine_fails_with_the_kubelets_words() {
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|enabled| enabled.starts_with('Y'))
    {
        return; // this machine can
    }
    let node = node("apparmor").await;
    let mut pod = pod("confined", json!({"command": ["sleep", "1000"]}));
    pod["spec"]["securityContext"] = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    node.agent().sync(Arc::new(pod.clone()));
    let status = node.wait_status(uid_of(&pod), "refused", |status| status["phase"] == "Failed").await;
    let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
    assert_eq!((&status["reason"], &status["message"]), (&json!("AppArmor"), &json!(message)));
    node.delete(&pod, 1);
    node.wait_removed(uid_of(&pod)).await;
}
