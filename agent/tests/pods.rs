//! Pods from their JSON to processes and back, on the real kernel with real images. Needs root.

mod support;

use std::sync::Arc;
use std::time::Duration;

use agent::{ExecRequest, LogOptions};
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
    let log = node.logs(uid, "main", LogOptions::default()).await;
    assert!(log.contains("GET / HTTP"), "{log}");
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
