//! What admission refuses, changes and warns about, over HTTPS as clients see it.
#![expect(clippy::unwrap_used, reason = "a test")]

use serde_json::{Value, json};

#[path = "replay/world.rs"]
mod world;

use world::client::Identity;
use world::{World, send};

const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn labels(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

#[tokio::test]
async fn pods_are_held_against_their_namespaces_labels() {
    let mut world = World::new().await;
    assert_eq!(world.admin("POST", PODS, pod("before", json!({"hostPID": true}))).await.code, 201);
    let default = format!("{NAMESPACES}/default");
    let wrong = world.admin("PATCH", &default, labels(json!({"pod-security.kubernetes.io/enforce": "strict"}))).await;
    assert_eq!(wrong.code, 422);
    assert_eq!(
        wrong.message(),
        "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
    );
    let set = labels(
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}),
    );
    let set = world.admin("PATCH", &default, set).await;
    assert_eq!(
        (set.code, set.warnings),
        (
            200,
            vec![
                "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"baseline:latest\""
                    .into(),
                "before: host namespaces".into()
            ]
        )
    );
    let refused = world.admin("POST", PODS, pod("a", json!({"hostNetwork": true}))).await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message(),
        "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    let warned = world.admin("POST", PODS, pod("b", json!({}))).await;
    assert_eq!(warned.code, 201);
    let start =
        "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set";
    assert!(warned.warnings[0].starts_with(start), "{:?}", warned.warnings);
    let template = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x", json!({"hostPID": true}))["spec"]}}});
    let template = world.admin("POST", "/apis/apps/v1/namespaces/default/deployments", template).await;
    assert_eq!(template.code, 201, "templates are not refused");
    assert!(template.warnings[0].contains("host namespaces (hostPID=true)"), "{:?}", template.warnings);
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "securityContext": {"privileged": true}}]}});
    let debug = world.admin("PATCH", &format!("{PODS}/b/ephemeralcontainers"), debug).await;
    assert!(debug.code == 403 && debug.message().contains("privileged (container \"e\""), "{}", debug.message());
    let labelled = world.admin("PATCH", &format!("{PODS}/before"), labels(json!({"x": "y"}))).await;
    assert_eq!(labelled.code, 200, "what was there may still be changed: {}", labelled.message());
}

#[tokio::test]
async fn what_nothing_acts_on_says_so() {
    let mut world = World::new().await;
    let policy = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "n"}, "spec": {"podSelector": {}}});
    let policy = world.admin("POST", "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", policy).await;
    let want = "amphipod: this NetworkPolicy is stored, and not acted on yet: no traffic is restricted";
    assert_eq!((policy.code, policy.warnings), (201, vec![want.into()]));
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": ["1.2.3.4"]}});
    let service = world.admin("POST", "/api/v1/namespaces/default/services", service).await;
    assert!(
        service.code == 201 && service.warnings[0].starts_with("amphipod: spec.externalIPs is not acted on"),
        "{:?}",
        service.warnings
    );
}

#[tokio::test]
async fn a_node_keeps_to_its_own() {
    let mut world = World::new().await;
    let mut node = world.server.client("system:node:a", "system:nodes");
    let bound = |name: &str, node: &str| pod(name, json!({"nodeName": node}));
    for (name, node) in [("mine", "a"), ("theirs", "b")] {
        assert_eq!(world.admin("POST", PODS, bound(name, node)).await.code, 201);
    }
    for (path, code) in [
        ("/api/v1/pods", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Db", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Da", 200),
        ("/api/v1/pods?watch=true&timeoutSeconds=1", 403),
        ("/api/v1/namespaces/default/pods/mine", 200),
        ("/api/v1/namespaces/default/pods/theirs", 403),
        ("/api/v1/namespaces/default/secrets", 403),
    ] {
        assert_eq!(send(&mut node, "GET", path, Value::Null).await.code, code, "{path}");
    }
    let eviction = |name: &str| json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name}});
    let theirs = send(&mut node, "POST", &format!("{PODS}/theirs/eviction"), eviction("theirs")).await;
    assert_eq!(theirs.code, 403, "{}", theirs.message());
    let mine = send(&mut node, "POST", &format!("{PODS}/mine/eviction"), eviction("mine")).await;
    assert_eq!(mine.code, 201, "{}", mine.message());
    let own = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}});
    assert_eq!(send(&mut node, "POST", "/api/v1/nodes", own).await.code, 201);
    let taints = send(&mut node, "PATCH", "/api/v1/nodes/a", json!({"spec": {"taints": null}})).await;
    assert_eq!(
        (taints.code, taints.message()),
        (403, "nodes \"a\" is forbidden: node \"a\" is not allowed to modify taints")
    );
    let zone =
        send(&mut node, "PATCH", "/api/v1/nodes/a", labels(json!({"node-restriction.kubernetes.io/zone": "x"}))).await;
    assert_eq!(zone.code, 403, "{}", zone.message());
    let status = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"app": "x"}}});
    let through = send(&mut node, "PATCH", &format!("{PODS}/mine/status"), status).await;
    assert_eq!(through.code, 403, "{}", through.message());
}

#[tokio::test]
async fn streams_are_opened_by_their_own_requests_only() {
    let mut world = World::new().await;
    assert_eq!(world.admin("POST", PODS, pod("p", json!({"nodeName": "a"}))).await.code, 201);
    let exec = "pods/p/exec?command=id&container=c";
    for (method, path, code) in [
        ("GET", format!("/api/v1/watch/namespaces/default/{exec}"), 404),
        ("PUT", format!("/api/v1/namespaces/default/{exec}"), 405),
        ("DELETE", format!("/api/v1/namespaces/default/{exec}"), 405),
        ("GET", format!("/api/v1/namespaces/default/{exec}"), 400),
    ] {
        let answer = world.admin(method, &path, Value::Null).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.message());
    }
    let headers = [("origin", "https://elsewhere.example".to_owned()), ("upgrade", "websocket".to_owned())];
    for stream in [exec, "pods/p/attach", "pods/p/portforward?port=80", "pods/p/log"] {
        let path = format!("/api/v1/namespaces/default/{stream}");
        let answer = world.admin.request(Identity::Admin, "GET", &path, &headers, b"").await;
        assert_eq!(answer.code, 403, "{stream}");
    }
    // Clients that are no browsers name the user's own machine.
    let headers = [("origin", "http://localhost".to_owned()), ("upgrade", "websocket".to_owned())];
    let path = format!("/api/v1/namespaces/default/{exec}");
    assert_ne!(world.admin.request(Identity::Admin, "GET", &path, &headers, b"").await.code, 403);
    let forwarded = world.admin("PATCH", "/api/v1/namespaces/default/pods/p/portforward?port=80", json!({})).await;
    assert_eq!(forwarded.code, 405);
}
