//! The agent killed, the pod process killed, a namesake waiting: nothing is lost, nothing is left. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;

use agent::LogOptions;
use api::uid::Uid;
use futures::StreamExt as _;
use serde_json::json;
use support::{TestNode, pod, uid_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_finds_its_pods_again() {
    let mut node = TestNode::start("adopt").await;
    let script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let pod = pod("kept", json!({"command": ["sh", "-c", script]}));
    let ends =
        support::pod("ends", json!({"command": ["sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 9"]}));
    let (uid, ending) = (uid_of(&pod).to_owned(), uid_of(&ends).to_owned());
    for pod in [&pod, &ends] {
        node.agent().sync(Arc::new(pod.clone()));
        node.wait_ready(uid_of(pod)).await;
    }
    let before = node.wait_ready(&uid).await;
    let pids = node.exec(&uid, "main", &["sh", "-c", "readlink /proc/1/ns/pid"]).await.1;
    node.kill_agent().await;
    // While no agent lives, one container ends: its exit code waits in the pod process.
    touch_in_container(&node, &ending, "main-0", "tmp/end");
    node.start_agent().await;
    // Commands and followed logs need not wait until somebody has seen the pod adopted.
    assert_eq!(node.exec(&uid, "main", &["echo", "at once"]).await.1, "at once\n");
    node.agent().resync(vec![Arc::new(pod.clone()), Arc::new(ends.clone())]);
    let after = node.wait_ready(&uid).await;
    let id = |status: &serde_json::Value| status["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after), "the same container");
    assert_eq!(node.exec(&uid, "main", &["sh", "-c", "readlink /proc/1/ns/pid"]).await.1, pids);
    let status = node
        .wait_status(&ending, "its end was kept", |status| {
            status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 9
        })
        .await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    let log = node.logs(&uid, "main", LogOptions::default()).await;
    let numbers: Vec<u32> = log.lines().map(|line| line[5..].parse().unwrap()).collect();
    assert!(numbers.iter().enumerate().all(|(index, number)| *number == index as u32 + 1), "no line is missing");
    for pod in [&pod, &ends] {
        node.delete(pod, 1);
        node.wait_removed(uid_of(pod)).await;
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_followed_from_the_first_moment() {
    let mut node = TestNode::start("follow").await;
    let pod = pod(
        "talks",
        json!({"command": ["sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"]}),
    );
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    node.kill_agent().await;
    node.start_agent().await;
    let options = LogOptions { follow: true, tail: Some(0), ..LogOptions::default() };
    let mut lines = std::pin::pin!(node.agent().logs(&Uid::of(&pod), "main", options).unwrap());
    let mut text = Vec::new();
    while text.len() < 500 {
        let next = tokio::time::timeout(support::PATIENCE, lines.next()).await.unwrap();
        text.extend_from_slice(&next.expect("the container runs on").unwrap());
    }
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
    // Known for certain by the next agent too.
    let searches = node.network.searches.lock().unwrap().remove(&uid).unwrap();
    let [Some(first), Some(second)] = searches.as_slice() else { panic!("{searches:?}") };
    assert!(first[0] == "default.svc.cluster.local" && first == second, "{searches:?}");
}

fn touch_in_container(node: &TestNode, uid: &str, run: &str, path: &str) {
    let rootfs = node.config.run_dir.join("pods").join(uid).join("containers").join(run).join("rootfs");
    std::fs::write(rootfs.join(path), "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pod_process_is_replaced() {
    let node = TestNode::start("replace").await;
    let pod = pod("shot", json!({"command": ["sleep", "1000"]}));
    let uid = uid_of(&pod).to_owned();
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(&uid).await;
    let netns = node.network.attached.lock().unwrap()[&uid].1.clone();
    let pid: i32 = netns.iter().nth(2).unwrap().to_str().unwrap().parse().unwrap();
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    let status = node
        .wait_status(&uid, "a new run", |status| {
            let container = &status["containerStatuses"][0];
            container["restartCount"] == 1 && container["state"]["running"].is_object()
        })
        .await;
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("ContainerStatusUnknown"), &json!(137)));
    assert_eq!(node.exec(&uid, "main", &["true"]).await.0, 0);
    node.delete(&pod, 1);
    node.wait_removed(&uid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_deleted_while_the_agent_was_away_are_taken_down() {
    let mut node = TestNode::start("away").await;
    let pod = pod("doomed", json!({"command": ["sleep", "1000"]}));
    node.agent().sync(Arc::new(pod.clone()));
    node.wait_ready(uid_of(&pod)).await;
    node.kill_agent().await;
    node.start_agent().await;
    node.agent().resync(Vec::new());
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while !node.leftovers().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", node.leftovers());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namesake_waits_for_the_end_of_the_old() {
    let node = TestNode::start("namesake").await;
    let script = "trap 'sleep 1; exit 0' TERM; while true; do sleep 0.1; done";
    let old = pod("same", json!({"command": ["sh", "-c", script]}));
    let new = pod("same", json!({"command": ["sleep", "1000"]}));
    node.agent().sync(Arc::new(old.clone()));
    node.wait_ready(uid_of(&old)).await;
    node.delete(&old, 30);
    node.agent().sync(Arc::new(new.clone()));
    node.wait_ready(uid_of(&new)).await;
    assert!(node.upstream.api.lock().unwrap().removed.contains(uid_of(&old)));
    node.delete(&new, 1);
    node.wait_removed(uid_of(&new)).await;
}

/// The agent dies at many different moments of a pod's start and of its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_at_any_moment_leaves_nothing_wrong() {
    let mut node = TestNode::start("anytime").await;
    for round in 0..8_u64 {
        let script = "trap 'exit 0' TERM; sleep 1000 & wait";
        let pod = pod(&format!("round-{round}"), json!({"command": ["sh", "-c", script]}));
        let uid = uid_of(&pod).to_owned();
        node.agent().sync(Arc::new(pod.clone()));
        tokio::time::sleep(std::time::Duration::from_millis(round * 12)).await;
        node.kill_agent().await;
        node.start_agent().await;
        node.agent().resync(vec![Arc::new(pod.clone())]);
        let status = node.wait_ready(&uid).await;
        assert_eq!(node.exec(&uid, "main", &["true"]).await.0, 0, "round {round}: {status}");
        node.delete(&pod, 1);
        tokio::time::sleep(std::time::Duration::from_millis(round * 9)).await;
        node.kill_agent().await;
        node.start_agent().await;
        node.delete(&pod, 1);
        node.wait_removed(&uid).await;
        assert_eq!(node.leftovers(), Vec::<String>::new(), "round {round}");
    }
}
