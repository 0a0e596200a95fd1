//! Pods from their JSON to processes and back, on the real kernel with real images. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::{ExecRequest, LogOptions};
use api::uid::Uid;
use serde_json::json;
use support::{TestNode, condition, pod, uid_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_serves_and_goes_without_a_trace() {
    let node = TestNode::start("nginx").await;
    let pod = pod("web", json!({"image": "nginx:1.10"}));
    let uid = uid_of(&pod);
    node.agent().sync(Arc::new(pod.clone()));
    let status = node.wait_ready(uid).await;
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.244.0.2")));
    let container = &status["containerStatuses"][0];
    assert!(container["containerID"].as_str().unwrap().starts_with("amphipod://"), "{container}");
    assert!(container["imageID"].as_str().unwrap().starts_with("docker.io/library/nginx@sha256:"), "{container}");
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while !node.get_inside(uid).contains("nginx 1.10") {
        assert!(tokio::time::Instant::now() < deadline, "{}", node.get_inside(uid));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    read_until(&node, uid, "GET / HTTP").await;
    let (code, hostname, _) = node.exec(uid, "main", &["hostname"]).await;
    assert_eq!((code, hostname.as_str()), (0, "web\n"));
    node.delete(&pod, 5);
    node.wait_removed(uid).await;
    let ended = node
        .wait_status(uid, "last word", |status| status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0);
    assert_eq!(condition(&ended.await, "Ready"), "False");
    assert_eq!(node.leftovers(), Vec::<String>::new());
    let api = node.upstream.api.lock().unwrap();
    let reasons: Vec<_> = api.events.iter().map(|event| event.reason).collect();
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started", "Killing"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_volumes_and_files() {
    let node = TestNode::start("env").await;
    {
        let mut api = node.upstream.api.lock().unwrap();
        let config = json!({"data": {"colour": "red", "shape": "round"}});
        api.config_maps.insert("settings".into(), Arc::new(config));
        api.config_maps.insert("kube-root-ca.crt".into(), Arc::new(json!({"data": {"ca.crt": "CA"}})));
        api.secrets.insert("password".into(), Arc::new(json!({"data": {"word": "aHVzaA=="}})));
    }
    let script = "echo $COLOUR $NAME $SERVICE $EXPANDED $SHAPE_shape $IP; cat /etc/token/token /etc/token/ca.crt /etc/token/namespace; echo; \
        cat /secret/word; echo; echo x > /shared/x; cat /shared/x; id -u; id -G; cat /etc/resolv.conf; ls -ld /memory; sleep 1000";
    let mut pod = pod(
        "env",
        json!({
            "command": ["sh", "-c", script],
            "env": [
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "SERVICE", "value": "$(KUBERNETES_SERVICE_HOST)"},
                {"name": "EXPANDED", "value": "is-$(COLOUR)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "envFrom": [{"prefix": "SHAPE_", "configMapRef": {"name": "settings"}}],
            "volumeMounts": [
                {"name": "token", "mountPath": "/etc/token", "readOnly": true},
                {"name": "secret", "mountPath": "/secret"},
                {"name": "shared", "mountPath": "/shared"},
                {"name": "memory", "mountPath": "/memory"},
            ],
        }),
    );
    pod["spec"]["volumes"] = json!([
        {"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}},
        {"name": "secret", "secret": {"secretName": "password", "defaultMode": 256}},
        {"name": "shared", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]);
    pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let log = read_until(&node, &uid, "/memory").await;
    for line in [
        "red env 10.96.0.1 is-red round 10.244.0.2",
        "token-of-defaultCAdefault",
        "hush",
        "\nx\n0\n0 2000\n",
        "ndots:5",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

/// Follows a container's log until it has the text.
async fn read_until(node: &TestNode, uid: &str, text: &str) -> String {
    use futures::StreamExt as _;
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut stream = Box::pin(node.agent().logs(&Uid::new(uid), "main", options).unwrap());
    let mut log = String::new();
    let mut seen = 0;
    while !log[seen..].contains(text) {
        seen = log.len().saturating_sub(text.len());
        let chunk = tokio::time::timeout(support::PATIENCE, stream.next()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("no {text:?} in {log}")).unwrap().unwrap();
        log.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_with_input_terminal_and_exit_code() {
    let node = TestNode::start("exec").await;
    let pod =
        pod("exec", json!({"command": ["sleep", "1000"], "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let (code, out, err) = node.exec(&uid, "main", &["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (3, "out\n", "err\n"));

    let command = vec!["cat".to_owned()];
    let request = ExecRequest { command, stdin: true, stdout: true, ..ExecRequest::default() };
    let session = node.agent().exec(&Uid::of(&pod), "main", &request).await.unwrap();
    let mut stdin = session.stdin.unwrap();
    stdin.write_all(b"through").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), session.exit.unwrap().await.unwrap()), ("through", 0));

    let command = ["sh", "-c", "tty; stty size; echo $TERM"].map(str::to_owned).to_vec();
    let request = ExecRequest { command, stdin: true, stdout: true, tty: true, ..ExecRequest::default() };
    let session = node.agent().exec(&Uid::of(&pod), "main", &request).await.unwrap();
    session.resize.as_ref().unwrap().resize(80, 24).await.unwrap();
    let mut text = String::new();
    session.stdout.unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("/dev/pts/0\r\n") && text.ends_with("xterm\r\n"), "{text:?}");

    let status = ["grep", "-E", "^(Seccomp|CapEff|NoNewPrivs)", "/proc/self/status"];
    let (_, text, _) = node.exec(&uid, "main", &status).await;
    assert!(text.contains("Seccomp:\t2") && text.contains("CapEff:\t00000000a80425fb"), "{text}");
    let (_, cgroups, _) = node.exec(&uid, "main", &["cat", "/proc/self/cgroup"]).await;
    assert!(cgroups.contains(&format!("kubepods/besteffort/pod{uid}/main-0")), "{cgroups}");
    let cgroup2 = cgroups.lines().find(|line| line.starts_with("0::")).unwrap();
    assert!(cgroup2.contains(&uid), "the exec'd process is in the pod's cgroup2 folder: {cgroup2}");
    for refused in ["unshare -U true", "mount -t tmpfs none /tmp"] {
        let (code, _, err) = node.exec(&uid, "main", &["sh", "-c", refused]).await;
        assert!(code != 0 && (err.contains("not permitted") || err.contains("denied")), "{refused:?} {code} {err}");
    }
    let missing = ExecRequest { command: vec!["nope".into()], stdout: true, ..ExecRequest::default() };
    let error = node.agent().exec(&Uid::of(&pod), "main", &missing).await.err().unwrap();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "exec: \"nope\": executable file not found in $PATH");
    assert!(error.to_string().starts_with("failed to exec in container: failed to start exec \""), "{error}");
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_backs_off_and_keeps_the_previous_log() {
    let node = TestNode::start("crash").await;
    let script = "echo run; echo because > /dev/termination-log; exit 4";
    let pod = pod("crash", json!({"command": ["sh", "-c", script]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    let status = node
        .wait_status(&uid, "crash loop", |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let container = &status["containerStatuses"][0];
    assert_eq!((&container["restartCount"], &status["phase"]), (&json!(1), &json!("Running")));
    let said = format!("back-off 10s restarting failed container=main pod=crash_default({uid})");
    assert_eq!(container["state"]["waiting"]["message"], said);
    let last = &container["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], &last["reason"], &last["message"]),
        (&json!(4), &json!("Error"), &json!("because\n"))
    );
    assert_eq!(node.logs(&uid, "main", LogOptions { previous: true, ..LogOptions::default() }).await, "run\n");
    assert!(support::warnings(&node.upstream.api.lock().unwrap()).contains(&"BackOff"));
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_then_success() {
    let node = TestNode::start("init").await;
    let mut pod = pod(
        "job",
        json!({"command": ["sh", "-c", "cat /scratch/made"],
        "volumeMounts": [{"name": "work", "mountPath": "/scratch"}]}),
    );
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    pod["spec"]["initContainers"] = json!([{"name": "make", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "echo made > /scratch/made"], "volumeMounts": [{"name": "work", "mountPath": "/scratch"}]}]);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    let status = node.wait_status(&uid, "succeeded", |status| status["phase"] == "Succeeded").await;
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    let reasons = status["conditions"].as_array().unwrap().iter();
    assert!(reasons.clone().any(|condition| condition["reason"] == "PodCompleted"), "{status}");
    assert_eq!(node.logs(&uid, "main", LogOptions::default()).await, "made\n", "logs outlive the sandbox");
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_share_what_they_should() {
    let node = TestNode::start("share").await;
    let mut pod = pod("two", json!({"command": ["sleep", "1000"]}));
    let second =
        json!({"name": "second", "image": "busybox", "command": ["sleep", "1001"], "imagePullPolicy": "IfNotPresent"});
    pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let namespaces = ["sh", "-c", "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done"];
    let (_, first, _) = node.exec(&uid, "main", &namespaces).await;
    let (_, second, _) = node.exec(&uid, "second", &namespaces).await;
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    assert_eq!(first[..4], second[..4]);
    assert_ne!(first[4], second[4], "each has its own mounts");
    let (_, processes, _) = node.exec(&uid, "main", &["ps"]).await;
    assert!(processes.contains("sleep 1001"), "{processes}");
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_not_there_and_a_program_that_is_not() {
    let node = TestNode::start("missing").await;
    let bad_image = pod("bad-image", json!({"image": "no-such-image:1"}));
    let bad_name = pod("bad-name", json!({"image": "Not A Name"}));
    let never = pod("never", json!({"image": "nginx:1.11", "imagePullPolicy": "Never"}));
    let bad_program = pod("bad-program", json!({"command": ["/no/such/program"]}));
    let reason = |status: &serde_json::Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    for (pod, expected) in [
        (&bad_image, "ImagePullBackOff"),
        (&bad_name, "InvalidImageName"),
        (&never, "ErrImageNeverPull"),
        (&bad_program, "CrashLoopBackOff"),
    ] {
        node.agent().sync(Arc::new(pod.clone()));
        node.wait_status(uid_of(pod), expected, |status| reason(status) == expected).await;
    }
    let message = {
        let api = node.upstream.api.lock().unwrap();
        let failed = api.events.iter().find(|event| event.pod.name == "bad-image" && event.reason == "Failed");
        failed.unwrap().message.clone()
    };
    assert!(message.contains("no-such-image:1") && message.contains("not found"), "{message}");
    for pod in [&bad_image, &bad_name, &never, &bad_program] {
        node.delete(pod, 1);
        node.wait_removed(uid_of(pod)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_and_comes_back() {
    let listen = support::free_address();
    let node = TestNode::with_registry("down", &listen).await;
    let pod = pod("later", json!({"command": ["sleep", "1000"]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    let waiting = |status: &serde_json::Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let status = node.wait_status(&uid, "back-off", |status| waiting(status) == "ImagePullBackOff").await;
    assert!(status.to_string().contains("onnection refused"), "{status}");
    let folder = tempfile::tempdir().unwrap();
    let _registry = images::start_registry(&listen, None, &folder.path().join("registry")).unwrap();
    images::images(&listen, None, &folder.path().join("layouts")).unwrap();
    node.wait_ready(&uid).await;
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_and_liveness() {
    let node = TestNode::start("probes").await;
    let pod = pod(
        "probed",
        json!({
            "command": ["sh", "-c", "touch /tmp/alive; sleep 1000"],
            "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1},
        }),
    );
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_status(&uid, "running", |status| status["phase"] == "Running").await;
    assert_eq!(condition(&node.upstream.api.lock().unwrap().statuses[&uid], "Ready"), "False");
    node.exec(&uid, "main", &["touch", "/tmp/ready"]).await;
    node.wait_ready(&uid).await;
    node.exec(&uid, "main", &["rm", "/tmp/alive"]).await;
    node.wait_status(&uid, "restarted", |status| {
        let container = &status["containerStatuses"][0];
        container["restartCount"] == 1 && container["state"]["running"].is_object()
    })
    .await;
    let killed =
        node.upstream.api.lock().unwrap().events.iter().any(|event| event.message.contains("failed liveness probe"));
    assert!(killed);
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_with_other_bytes_than_its_digest_is_refused() {
    let listen = support::free_address();
    let folder = tempfile::tempdir().unwrap();
    let _registry = images::start_registry(&listen, None, &folder.path().join("registry")).unwrap();
    images::images(&listen, None, &folder.path().join("layouts")).unwrap();
    let node = TestNode::with_registry("digest", &listen).await;
    for blob in blobs_larger_than(folder.path(), 100_000) {
        let mut bytes = std::fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&blob, bytes).unwrap();
    }
    let pod = pod("forged", json!({"command": ["sleep", "1000"]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    let waiting = |status: &serde_json::Value| status["containerStatuses"][0]["state"]["waiting"].clone();
    let status = node.wait_status(&uid, "refused", |status| waiting(status)["reason"] == "ImagePullBackOff").await;
    assert!(waiting(&status)["message"].as_str().unwrap().to_lowercase().contains("digest"), "{status}");
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

fn blobs_larger_than(folder: &std::path::Path, size: u64) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(folder).unwrap().flatten() {
        let path = item.path();
        if path.is_dir() {
            found.extend(blobs_larger_than(&path, size));
        } else if path.ends_with("data") && path.metadata().unwrap().len() > size {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_a_log_over_its_rotations_loses_nothing() {
    let node = TestNode::start("rotate").await;
    // About 25 MB: the log is rotated at least twice.
    let script = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -n 250000 | cat -n; sleep 1000";
    let pod = pod("talker", json!({"command": ["sh", "-c", script]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let log = read_until(&node, &uid, "250000").await;
    let numbers: Vec<u32> = log.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert!(numbers.iter().enumerate().all(|(index, number)| *number == index as u32 + 1), "{} lines", numbers.len());
    let files = std::fs::read_dir(node.config.data_dir.join("logs").join(&uid).join("main")).unwrap().count();
    assert!(files >= 3, "{files} files");
    let tail = node.logs(&uid, "main", LogOptions { tail: Some(2), ..LogOptions::default() }).await;
    assert_eq!(tail.lines().count(), 2);
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_config_maps_reach_running_containers() {
    let node = TestNode::start("content").await;
    let set = |value: &str| {
        let mut api = node.upstream.api.lock().unwrap();
        api.config_maps.insert("c".into(), Arc::new(json!({"data": {"key": value}})));
    };
    let mut pod =
        pod("config", json!({"command": ["sleep", "1000"], "volumeMounts": [{"name": "c", "mountPath": "/c"}]}));
    pod["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "c"}}]);
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait("mount fails", |api| support::warnings(api).contains(&"FailedMount").then_some(())).await;
    set("one");
    node.agent().content_changed(&Uid::of(&pod));
    node.wait_ready(&uid).await;
    assert_eq!(node.exec(&uid, "main", &["cat", "/c/key"]).await.1, "one");
    set("two");
    node.agent().content_changed(&Uid::of(&pod));
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while node.exec(&uid, "main", &["cat", "/c/key"]).await.1 != "two" {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_with_a_terminal_is_attached_to() {
    let node = TestNode::start("tty").await;
    let pod = pod("tty", json!({"command": ["sh"], "stdin": true, "tty": true}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let request = agent::AttachRequest { stdin: true, stdout: true, stderr: false };
    let session = node.agent().attach(&Uid::of(&pod), "main", request).await.unwrap();
    session.resize.as_ref().unwrap().resize(101, 31).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.unwrap(), session.stdout.unwrap());
    stdin.write_all(b"stty size; tty; exit 5\n").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(support::PATIENCE, stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.contains("31 101\r\n/dev/"), "{text:?}");
    node.wait_status(&uid, "ended", |status| {
        status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 5
    })
    .await;
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_process_is_small_and_has_one_thread() {
    let node = TestNode::start("small").await;
    let pods = ["a", "b"].map(|name| pod(name, json!({"command": ["sleep", "1000"]})));
    for pod in &pods {
        let began = tokio::time::Instant::now();
        node.agent().sync(Arc::new(pod.clone()));
        node.wait_ready(uid_of(pod)).await;
        println!("ready after {:?}", began.elapsed());
        node.exec(uid_of(pod), "main", &["true"]).await;
    }
    for pod in &pods {
        let netns = node.network.attached.lock().unwrap()[uid_of(pod)].1.clone();
        let process = netns.parent().unwrap().parent().unwrap();
        let memory = std::fs::read_to_string(process.join("smaps_rollup")).unwrap();
        // Not Private_Dirty: pages of the shared memfd that only one process has touched yet would count.
        let own = memory.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap().trim().to_owned();
        let kilobytes: u32 = own.trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes <= 1024, "{own} of its own");
        println!("memory of its own: {own}");
        assert_eq!(std::fs::read_dir(process.join("task")).unwrap().count(), 1);
    }
    for pod in &pods {
        node.delete(pod, 1);
        node.wait_removed(uid_of(pod)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_somebody_overwrote_is_repeated() {
    let node = TestNode::start("overwrite").await;
    let mut pod = pod("steady", json!({"command": ["sleep", "1000"]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    let ready = node.wait_ready(&uid).await;
    // A node controller that had lost sight of the node did this.
    let mut other = ready.clone();
    for condition in other["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
        }
    }
    node.upstream.api.lock().unwrap().statuses.insert(uid.clone(), other.clone());
    pod["status"] = other;
    node.agent().sync(Arc::new(pod.clone()));
    assert_eq!(node.wait_ready(&uid).await["conditions"], ready["conditions"]);
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}
