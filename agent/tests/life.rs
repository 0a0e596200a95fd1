//! A pod's life beyond starting and stopping: changes while it runs, hooks, probes, the way it ends. Needs root.

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::LogOptions;
use api::uid::Uid;
use serde_json::{Value, json};
use support::{TestNode, condition, pod, uid_of};

const SLEEP: &str = "trap 'exit 0' TERM; while true; do sleep 0.05; done";

async fn start(node: &TestNode, pod: &Value) -> Value {
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(uid_of(pod)).await
}

async fn gone(node: &TestNode, pod: &Value) {
    node.delete(pod, 1);
    node.wait_removed(uid_of(pod)).await;
}

async fn until(what: &str, mut test: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while !test().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_change_show_in_volumes() {
    let node = TestNode::start("labels").await;
    let mut pod =
        pod("labels", json!({"command": ["sh", "-c", SLEEP], "volumeMounts": [{"name": "d", "mountPath": "/d"}]}));
    pod["spec"]["volumes"] = json!([{"name": "d", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
    pod["metadata"]["labels"] = json!({"a": "1"});
    start(&node, &pod).await;
    assert_eq!(node.exec(uid_of(&pod), "main", &["cat", "/d/labels"]).await.1, "a=\"1\"");
    pod["metadata"]["labels"] = json!({"a": "2"});
    node.agent().sync(Arc::new(pod.clone()));
    until("new label", async || node.exec(uid_of(&pod), "main", &["cat", "/d/labels"]).await.1 == "a=\"2\"").await;
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_image_restarts_the_container() {
    let node = TestNode::start("image").await;
    let mut pod = pod("image", json!({"command": ["sh", "-c", SLEEP], "imagePullPolicy": "Always"}));
    pod["spec"]["restartPolicy"] = json!("Never");
    let first = start(&node, &pod).await;
    pod["spec"]["containers"][0]["image"] = json!("docker.io/library/busybox:latest");
    node.agent().sync(Arc::new(pod.clone()));
    let status = node
        .wait_status(uid_of(&pod), "restarted", |status| {
            status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True"
        })
        .await;
    assert_ne!(status["containerStatuses"][0]["containerID"], first["containerStatuses"][0]["containerID"]);
    let killed = |message: &str| {
        let api = node.upstream.api.lock().unwrap();
        api.events.iter().filter(|event| event.reason == "Killing" && event.message == message).count()
    };
    assert_eq!(killed("Container main definition changed, will be restarted"), 1);
    let reasons: Vec<String> = {
        let api = node.upstream.api.lock().unwrap();
        api.events.iter().map(|event| event.reason.to_owned()).collect()
    };
    let place = |reason: &str, after: usize| after + reasons[after..].iter().position(|r| r == reason).unwrap();
    let pulled = place("Pulled", place("Started", 0));
    assert!(pulled < place("Killing", 0), "it is ended before its successor's image is there: {reasons:?}");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_that_talk_or_hang_leave_nothing() {
    let node = TestNode::start("probing").await;
    let talks = "yes 0123456789 | head -n 20000; echo $(cat /ready)";
    let pod = pod(
        "probing",
        json!({"command": ["sh", "-c", "touch /ready; sleep 1000"],
            "readinessProbe": {"exec": {"command": ["sh", "-c", talks]}, "periodSeconds": 1, "timeoutSeconds": 5},
            "livenessProbe": {"exec": {"command": ["sh", "-c", "sleep 4242; true"]}, "periodSeconds": 1, "failureThreshold": 100}}),
    );
    start(&node, &pod).await;
    let timed_out = "Liveness probe failed: command timed out: \"sh -c sleep 4242; true\" timed out after 1s";
    let count = |api: &support::Api| api.events.iter().filter(|event| event.message == timed_out).count();
    node.wait("three time-outs", |api| (count(api) >= 3).then_some(())).await;
    let (_, processes, _) = node.exec(uid_of(&pod), "main", &["ps"]).await;
    assert!(processes.matches("sleep 4242").count() <= 2, "{processes}");
    gone(&node, &pod).await;
}

/// The process that runs a pod's containers.
fn pod_process(name: &str) -> String {
    let words = format!("default/{name}");
    let is_it = |pid: &String| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&words)
    };
    let items = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = items.filter_map(|item| item.file_name().into_string().ok());
    pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find(is_it).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_whose_process_is_never_started_fails_in_time() {
    let node = TestNode::start("stuck").await;
    let name = format!("stuck-{}", std::process::id());
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 100});
    let pod = pod(&name, json!({"command": ["sh", "-c", SLEEP], "livenessProbe": probe}));
    start(&node, &pod).await;
    let signal = |signal: &str| {
        let sent = std::process::Command::new("kill").args([signal, &pod_process(&name)]).status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    let timed_out = "Liveness probe failed: command timed out: \"true\" timed out after 1s";
    let count = |api: &support::Api| api.events.iter().filter(|event| event.message == timed_out).count();
    node.wait("two time-outs", |api| (count(api) >= 2).then_some(())).await;
    signal("-CONT");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_takes_long_does_not_keep_a_pod_from_going() {
    let node = TestNode::start("hook").await;
    let hook = json!({"postStart": {"exec": {"command": ["sleep", "600"]}}});
    let pod = pod("hook", json!({"command": ["sh", "-c", SLEEP], "lifecycle": hook}));
    node.agent().sync(Arc::new(pod.clone()));
    node.wait("started", |api| api.events.iter().any(|event| event.reason == "Started").then_some(())).await;
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_hook_runs_the_rest_of_the_pod_is_told() {
    let node = TestNode::start("told").await;
    let hook = json!({"postStart": {"exec": {"command": ["sleep", "600"]}}});
    let brief = "while [ ! -e /v/go ]; do sleep 0.05; done; exit 3";
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = pod("told", json!({"command": ["sh", "-c", brief], "volumeMounts": mount}));
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let hooked = json!({"name": "hooked", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", SLEEP], "lifecycle": hook, "volumeMounts": mount});
    pod["spec"]["containers"].as_array_mut().unwrap().push(hooked);
    node.agent().sync(Arc::new(pod.clone()));
    let state = |status: &Value, index: usize, name: &str| status["containerStatuses"][index]["state"][name].clone();
    let status = node.wait_status(uid_of(&pod), "first runs", |status| state(status, 0, "running").is_object()).await;
    assert_eq!(state(&status, 1, "waiting")["reason"], "ContainerCreating");
    until("exec", async || node.agent().exec(&Uid::of(&pod), "hooked", &sh("touch /v/go")).await.is_ok()).await;
    let status =
        node.wait_status(uid_of(&pod), "first ended", |status| state(status, 0, "terminated").is_object()).await;
    assert_eq!(state(&status, 0, "terminated")["exitCode"], 3);
    assert_eq!(state(&status, 1, "waiting")["reason"], "ContainerCreating");
    gone(&node, &pod).await;
}

fn sh(script: &str) -> agent::ExecRequest {
    agent::ExecRequest { command: ["sh", "-c", script].map(str::to_owned).into(), ..agent::ExecRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_cannot_start_is_over_when_nothing_restarts_it() {
    let node = TestNode::start("unfit").await;
    let missing = |policy: &str| {
        let mut pod = pod("unfit", json!({"command": ["nope"]}));
        pod["spec"]["restartPolicy"] = json!(policy);
        pod
    };
    let text = "failed to create task: OCI runtime create failed: unable to start container process: error during \
        container init: exec: \"nope\": executable file not found in $PATH";
    let mut two = missing("Never");
    let other =
        json!({"name": "other", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]});
    two["spec"]["containers"].as_array_mut().unwrap().push(other);
    node.agent().sync(Arc::new(two.clone()));
    let runs = |status: &Value| status["containerStatuses"][1]["state"]["running"].is_object();
    let status = node.wait_status(uid_of(&two), "the other runs", runs).await;
    let end = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("StartError"), &json!(128)), "{status:#}");
    assert_eq!((&end["message"], &end["startedAt"]), (&json!(text), &json!("1970-01-01T00:00:00Z")));
    assert_eq!(status["phase"], "Running");
    let events: Vec<_> = {
        let api = node.upstream.api.lock().unwrap();
        api.events
            .iter()
            .filter(|event| event.field_path.as_deref() == Some("spec.containers{main}"))
            .cloned()
            .collect()
    };
    let told: Vec<_> = events.iter().map(|event| event.reason).filter(|reason| !reason.starts_with("Pull")).collect();
    assert_eq!(told, ["Created", "Failed"]);
    assert_eq!(events.last().unwrap().message, format!("Error: {text}"));
    gone(&node, &two).await;

    let one = missing("Never");
    node.agent().sync(Arc::new(one.clone()));
    let status = node.wait_status(uid_of(&one), "failed", |status| status["phase"] == "Failed").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "StartError");
    gone(&node, &one).await;

    let again = missing("OnFailure");
    node.agent().sync(Arc::new(again.clone()));
    let status = node
        .wait_status(uid_of(&again), "waits", |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["message"], text);
    gone(&node, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_is_no_answer_about_the_container() {
    let node = TestNode::start("noprobe").await;
    let probe = json!({"exec": {"command": ["nope"]}, "periodSeconds": 1, "failureThreshold": 1});
    let pod = pod("noprobe", json!({"command": ["sh", "-c", SLEEP], "livenessProbe": probe}));
    start(&node, &pod).await;
    let said = |api: &support::Api| {
        let mut unhealthy = api.events.iter().filter(|event| event.reason == "Unhealthy");
        unhealthy.nth(2).map(|event| event.message.clone())
    };
    let message = node.wait("three answers", said).await;
    assert!(
        message.starts_with(
            "Liveness probe errored and resulted in unknown state: rpc error: code = Unknown desc = \
        failed to exec in container: failed to start exec "
        ),
        "{message}"
    );
    assert!(message.ends_with(r#"exec: "nope": executable file not found in $PATH"#), "{message}");
    let killed = node.upstream.api.lock().unwrap().events.iter().any(|event| event.reason == "Killing");
    assert!(!killed, "a probe that could not be run ended the container");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_takes_all_the_grace_leaves_two_seconds() {
    let node = TestNode::start("grace").await;
    let script = "trap 'sleep 1; echo saved; exit 0' TERM; while true; do sleep 0.05; done";
    let hook = json!({"preStop": {"exec": {"command": ["sleep", "600"]}}});
    let pod = pod("grace", json!({"command": ["sh", "-c", script], "lifecycle": hook}));
    start(&node, &pod).await;
    let reader =
        node.agent().logs(&Uid::of(&pod), "main", LogOptions { follow: true, ..LogOptions::default() }).unwrap();
    let log = tokio::spawn(futures::StreamExt::collect::<Vec<_>>(reader));
    gone(&node, &pod).await;
    let log: Vec<u8> = log.await.unwrap().into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
    assert_eq!(String::from_utf8(log).unwrap(), "saved\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_told_until_the_end_and_sidecars_go_last_to_first() {
    let node = TestNode::start("ending").await;
    let script =
        "touch /tmp/ready; trap 'sleep 2; rm /tmp/ready; sleep 4; exit 0' TERM; while true; do sleep 0.05; done";
    let probe = json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut pod = pod("ending", json!({"command": ["sh", "-c", script], "readinessProbe": probe}));
    let sidecar = |name: &str| {
        let script = format!("trap 'sleep 1; date +%s%N; exit 0' TERM; echo {name}; while true; do sleep 0.05; done");
        json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "restartPolicy": "Always", "command": ["sh", "-c", script]})
    };
    pod["spec"]["initContainers"] = json!([sidecar("first"), sidecar("second")]);
    start(&node, &pod).await;
    node.delete(&pod, 30);
    let unready = |status: &Value| {
        let running = status["containerStatuses"][0]["state"]["running"].is_object();
        running && condition(status, "Ready") == "False"
    };
    node.wait_status(uid_of(&pod), "unready while it ends", unready).await;
    node.wait_removed(uid_of(&pod)).await;
    let api = node.upstream.api.lock().unwrap();
    let killed: Vec<_> =
        api.events.iter().filter(|event| event.reason == "Killing").map(|event| &event.message).collect();
    assert_eq!(killed, ["Stopping container main", "Stopping container second", "Stopping container first"]);
    let ended = |index: usize| {
        let end = &api.statuses[uid_of(&pod)]["initContainerStatuses"][index]["state"]["terminated"];
        assert_eq!(end["exitCode"], 0, "{end}");
        end["finishedAt"].as_str().unwrap().to_owned()
    };
    assert!(ended(1) < ended(0), "the second has ended before the first is asked to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_begin_together_and_hold_up_their_own_container_alone() {
    let node = TestNode::start("together").await;
    let container = |name: &str, hook: Value| {
        let script = format!("trap 'touch /shared/{name}; exit 0' TERM; while true; do sleep 0.05; done");
        json!({
            "name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}], "lifecycle": hook,
        })
    };
    let hook = |script: &str| json!({"preStop": {"exec": {"command": ["sh", "-c", script]}}});
    // Through when the sidecar's hook has run and the other container has ended.
    let slow = hook("until [ -e /shared/hook ] && [ -e /shared/quick ]; do sleep 0.1; done");
    let mut sidecar = container("sidecar", hook("touch /shared/hook"));
    sidecar["restartPolicy"] = json!("Always");
    let mut pod = pod("together", json!({}));
    pod["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    pod["spec"]["initContainers"] = json!([sidecar]);
    pod["spec"]["containers"] = json!([container("slow", slow), container("quick", json!({}))]);
    start(&node, &pod).await;
    let began = std::time::Instant::now();
    node.delete(&pod, 40);
    node.wait_removed(uid_of(&pod)).await;
    assert!(began.elapsed().as_secs() < 30, "a hook waited in vain: {:?}", began.elapsed());
    let api = node.upstream.api.lock().unwrap();
    let status = &api.statuses[uid_of(&pod)];
    for part in ["containerStatuses", "initContainerStatuses"] {
        for container in status[part].as_array().unwrap() {
            assert_eq!(container["state"]["terminated"]["exitCode"], 0, "{container}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_gone_does_not_keep_a_container_from_restarting() {
    let mut node = TestNode::start("kept").await;
    let set = |node: &TestNode| {
        node.upstream.api.lock().unwrap().config_maps.insert("c".into(), Arc::new(json!({"data": {"k": "v"}})))
    };
    set(&node);
    let mut pod = pod(
        "kept",
        json!({"command": ["sh", "-c", "cat /c/k; while [ ! -e /tmp/end ]; do sleep 0.05; done"],
            "volumeMounts": [{"name": "c", "mountPath": "/c"}, {"name": "t", "mountPath": "/t"}]}),
    );
    pod["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "c"}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]);
    start(&node, &pod).await;
    let uid = uid_of(&pod).to_owned();
    node.upstream.api.lock().unwrap().config_maps.clear();
    node.agent().content_changed(&Uid::of(&pod));
    node.wait("told", |api| support::warnings(api).contains(&"FailedMount").then_some(())).await;
    // Nor after the agent itself is another.
    node.kill_agent().await;
    node.start_agent().await;
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    node.exec(&uid, "main", &["touch", "/tmp/end"]).await;
    let restarted =
        |status: &Value| status["containerStatuses"][0]["restartCount"] == 1 && condition(status, "Ready") == "True";
    node.wait_status(&uid, "restarted", restarted).await;
    assert_eq!(node.exec(&uid, "main", &["cat", "/c/k"]).await.1, "v");
    assert!(node.upstream.api.lock().unwrap().tokens <= 2, "a token is asked for once by each agent");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_containers_join_a_running_pod() {
    let node = TestNode::start("debug").await;
    let mut pod = pod("debugged", json!({"command": ["sh", "-c", SLEEP]}));
    start(&node, &pod).await;
    let uid = uid_of(&pod).to_owned();
    pod["spec"]["ephemeralContainers"] = json!([
        {"name": "debug", "image": "busybox", "imagePullPolicy": "IfNotPresent", "stdin": true, "tty": true,
            "command": ["sh"], "targetContainerName": "main"},
        {"name": "lost", "image": "busybox", "imagePullPolicy": "IfNotPresent", "targetContainerName": "nobody"}]);
    node.agent().sync(Arc::new(pod.clone()));
    let running = |status: &Value| status["ephemeralContainerStatuses"][0]["state"]["running"].is_object();
    let status = node.wait_status(&uid, "debugging", running).await;
    assert_eq!(condition(&status, "Ready"), "True");
    let lost = |status: &Value| {
        let waiting = &status["ephemeralContainerStatuses"][1]["state"]["waiting"];
        waiting["message"] == "unable to find target container nobody"
    };
    node.wait_status(&uid, "no target", lost).await;
    let (_, processes, _) = node.exec(&uid, "debug", &["ps"]).await;
    assert!(processes.contains("trap 'exit 0' TERM"), "the target's processes: {processes}");
    let request = agent::AttachRequest { stdin: true, stdout: true, stderr: false };
    let session = node.agent().attach(&Uid::of(&pod), "debug", request).await.unwrap();
    let mut stdin = session.stdin.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"exit 7\n").await.unwrap();
    let ended = |status: &Value| status["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7;
    let status = node.wait_status(&uid, "ended", ended).await;
    assert_eq!(condition(&status, "Ready"), "True", "the pod goes on");
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_node_does_not_have_is_said() {
    let node = TestNode::start("absent").await;
    let mut pod = pod("claims", json!({"command": ["true"], "volumeMounts": [{"name": "p", "mountPath": "/p"}]}));
    pod["spec"]["volumes"] = json!([{"name": "p", "persistentVolumeClaim": {"claimName": "x"}}]);
    node.agent().sync(Arc::new(pod.clone()));
    let said = |status: &Value| {
        let waiting = &status["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|message| message.contains("persistentVolumeClaim"))
    };
    node.wait_status(uid_of(&pod), "said", said).await;
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_is_not_here_runs_no_pod() {
    let node = TestNode::start("runtime").await;
    for (handler, runs) in [("gvisor", false), ("runc", true)] {
        let mut pod = pod(handler, json!({"command": ["sh", "-c", SLEEP]}));
        pod["spec"]["runtimeClassName"] = json!(handler);
        if runs {
            start(&node, &pod).await;
        } else {
            node.agent().sync(Arc::new(pod.clone()));
            let message =
                "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"gvisor\" is configured";
            let told = |api: &support::Api| api.events.iter().any(|event| event.message == message).then_some(());
            node.wait("refused", told).await;
        }
        gone(&node, &pod).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_refused_in_words_until_it_is_taken_back() {
    let node = TestNode::start("resize").await;
    let mut pod = pod("resize", json!({"command": ["sh", "-c", SLEEP], "resources": {"requests": {"cpu": "100m"}}}));
    start(&node, &pod).await;
    let before = pod["spec"].clone();
    pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("200m");
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_status(uid_of(&pod), "pending", |status| condition(status, "PodResizePending") == "True").await;
    assert!(support::warnings(&node.upstream.api.lock().unwrap()).contains(&"ResizeInfeasible"));
    pod["spec"] = before;
    node.agent().sync(Arc::new(pod.clone()));
    let status =
        node.wait_status(uid_of(&pod), "over", |status| condition(status, "PodResizePending").is_empty()).await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    gone(&node, &pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_secret_that_is_missing_is_told_and_does_not_stop_the_pod() {
    let node = TestNode::start("secret").await;
    let mut pod = pod("secret", json!({"command": ["sh", "-c", SLEEP], "imagePullPolicy": "Always"}));
    pod["spec"]["imagePullSecrets"] = json!([{"name": "nowhere"}]);
    start(&node, &pod).await;
    let message = "Unable to retrieve some image pull secrets (nowhere); attempting to pull the image may not succeed.";
    let told = node.upstream.api.lock().unwrap().events.iter().filter(|event| event.message == message).count();
    assert_eq!(told, 1);
    gone(&node, &pod).await;
}
