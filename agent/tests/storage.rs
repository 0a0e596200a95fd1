//! What pods write is measured, and whoever writes too much is evicted. Needs root.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;

use api::uid::Uid;
use serde_json::{Value, json};
use support::{TestNode, condition, pod, uid_of};

async fn evicted(node: &TestNode, pod: &Value) -> (String, Value) {
    node.agent().sync(Arc::new(pod.clone()));
    let status = node.wait_status(uid_of(pod), "evicted", |status| status["reason"] == "Evicted").await;
    assert_eq!(status["phase"], "Failed");
    let message = status["message"].as_str().unwrap().to_owned();
    let told = node
        .upstream
        .api
        .lock()
        .unwrap()
        .events
        .iter()
        .any(|event| event.pod.uid == Uid::of(pod) && event.reason == "Evicted" && event.message == message);
    assert!(told, "no event says {message:?}");
    (message, status)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn gone(node: &TestNode, pod: &Value) {
    node.delete(pod, 1);
    node.wait_removed(uid_of(pod)).await;
}

fn writes(name: &str, path: &str, mebibytes: u32) -> Value {
    let script = format!("head -c {} /dev/zero > {path}; sleep 1000", u64::from(mebibytes) << 20);
    pod(name, json!({"command": ["sh", "-c", script], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_writes_more_than_it_may_is_evicted() {
    let node = TestNode::start("limits").await;
    let mut volume = writes("volume", "/v/much", 2);
    volume["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
    assert_eq!(evicted(&node, &volume).await.0, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
    let left = node.config.data_dir.join("volumes").join(uid_of(&volume));
    until("the volume is gone", || !left.exists()).await;
    let mut layer = writes("layer", "/much", 3);
    layer["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    layer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
    let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
    assert_eq!(evicted(&node, &layer).await.0, whole);
    let mut one = layer.clone();
    one["metadata"]["uid"] = json!(support::uid());
    one["metadata"]["name"] = json!("one");
    one["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "modest", "image": "busybox",
        "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"],
        "resources": {"limits": {"ephemeral-storage": "1Gi"}}}));
    let message = evicted(&node, &one).await.0;
    assert_eq!(message, "Container main exceeded its local ephemeral storage limit \"2Mi\". ");
    let mut within = writes("within", "/v/some", 1);
    within["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "2Mi"}}]);
    node.agent().sync(Arc::new(within.clone()));
    node.wait_ready(uid_of(&within)).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await; // two measurements
    assert!(node.exec(uid_of(&within), "main", &["true"]).await.0 == 0);
    for pod in [&volume, &layer, &one, &within] {
        gone(&node, pod).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_goes_when_the_reserve_is_touched() {
    let node = TestNode::on_disk("reserve", "120m").await;
    let mut modest = writes("modest", "/v/some", 8);
    let mut greedy = writes("greedy", "/v/much", 1000);
    for pod in [&mut modest, &mut greedy] {
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    }
    node.agent().sync(Arc::new(modest.clone()));
    node.wait_ready(uid_of(&modest)).await;
    let (message, status) = evicted(&node, &greedy).await;
    assert!(
        message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 6Mi, "),
        "{message}"
    );
    assert_eq!(condition(&status, "DisruptionTarget"), "True");
    assert_eq!(node.exec(uid_of(&modest), "main", &["true"]).await.0, 0, "the modest one runs on");
    let probe = node.config.data_dir.join("probe");
    until("there is room again", || std::fs::write(&probe, vec![0; 40 << 20]).is_ok()).await;
    std::fs::remove_file(probe).unwrap();
    for pod in [&modest, &greedy] {
        gone(&node, pod).await;
    }
}
