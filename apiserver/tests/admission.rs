//! What admission refuses, changes and warns about, over HTTPS as clients see it.
#![expect(clippy::unwrap_used, reason = "a test")]

use serde_json::{Value, json};

#[path = "replay/world.rs"]
mod world;

use world::client::Identity;
use world::{World, send, send_as};

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

#[tokio::test]
async fn who_only_reads_pods_has_no_way_into_them() {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let mut world = World::new().await;
    assert_eq!(world.admin("POST", PODS, pod("p", json!({"nodeName": "a"}))).await.code, 201);
    let role = |verbs: Value| {
        json!({"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward", "pods/log"], "verbs": verbs}]})
    };
    let binding = json!({"kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    assert_eq!(world.admin("POST", &format!("{RBAC}/roles"), role(json!(["get"]))).await.code, 201);
    assert_eq!(world.admin("POST", &format!("{RBAC}/rolebindings"), binding).await.code, 201);
    let mut ann = world.server.client("ann", "people");
    let ways = ["exec?command=id&container=c", "attach", "portforward?port=80"];
    for way in ways {
        let refused = send(&mut ann, "GET", &format!("{PODS}/p/{way}"), Value::Null).await;
        let part = way.split('?').next().unwrap();
        let want = format!(
            "pods \"p\" is forbidden: User \"ann\" cannot create resource \"pods/{part}\" in API group \"\" in the namespace \"default\""
        );
        assert_eq!((refused.code, refused.message()), (403, &*want));
    }
    assert_ne!(send(&mut ann, "GET", &format!("{PODS}/p/log?container=c"), Value::Null).await.code, 403);
    assert_eq!(world.admin("PUT", &format!("{RBAC}/roles/r"), role(json!(["get", "create"]))).await.code, 200);
    for way in ways {
        assert_ne!(send(&mut ann, "GET", &format!("{PODS}/p/{way}"), Value::Null).await.code, 403, "{way}");
    }
}

#[tokio::test]
async fn some_namespaces_stay_and_those_that_go_take_nothing_in() {
    let mut world = World::new().await;
    for name in ["default", "kube-system", "kube-public"] {
        let refused = world.admin("DELETE", &format!("{NAMESPACES}/{name}"), Value::Null).await;
        let want = format!("namespaces {name:?} is forbidden: this namespace may not be deleted");
        assert_eq!((refused.code, refused.message()), (403, &*want));
    }
    let going = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "going"}});
    assert_eq!(world.admin("POST", NAMESPACES, going).await.code, 201);
    let accounts = format!("{NAMESPACES}/going/serviceaccounts");
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "robot"}});
    assert_eq!(world.admin("POST", &accounts, account).await.code, 201);
    assert_eq!(world.admin("DELETE", &format!("{NAMESPACES}/going"), Value::Null).await.code, 200);
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"generateName": "x-"}});
    let token = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
    let why = "unable to create new content in namespace going because it is being terminated";
    for (path, object, what) in [
        (format!("{NAMESPACES}/going/configmaps"), map.clone(), "configmaps \"x-\""),
        (format!("{accounts}/robot/token"), token, "serviceaccounts \"robot\""),
    ] {
        let refused = world.admin("POST", &path, object).await;
        assert_eq!((refused.code, refused.message()), (403, &*format!("{what} is forbidden: {why}")));
        assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    }
    let nowhere = world.admin("POST", &format!("{NAMESPACES}/nowhere/configmaps"), map).await;
    assert_eq!((nowhere.code, nowhere.message()), (404, "namespaces \"nowhere\" not found"));
    let access = json!({"kind": "LocalSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {"namespace": "nowhere"},
        "spec": {"user": "u", "resourceAttributes": {"namespace": "nowhere", "verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/namespaces/nowhere/localsubjectaccessreviews";
    assert_eq!(
        world.admin("POST", path, access).await.code,
        201,
        "who asks what they may do learns nothing of namespaces"
    );
}

#[tokio::test]
async fn a_node_ends_and_creates_its_own_only() {
    let mut world = World::new().await;
    let mut node = world.server.client("system:node:a", "system:nodes");
    // A role that nodes do not have, so that what is refused is refused by admission.
    let role = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "wide"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]});
    assert_eq!(world.admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", role).await.code, 201);
    for (name, on) in [("mine", "a"), ("theirs", "b")] {
        assert_eq!(world.admin("POST", PODS, pod(name, json!({"nodeName": on}))).await.code, 201);
    }
    let own = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a"}});
    let own = send(&mut node, "POST", "/api/v1/nodes", own).await;
    assert_eq!(own.code, 201, "{}", own.message());
    let uid = own.body["metadata"]["uid"].clone();
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid, "controller": true}]);
    let mirror = |owners: Value, spec: Value| {
        let mut pod = pod("mirror", spec);
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        pod["metadata"]["ownerReferences"] = owners;
        pod
    };
    let here = json!({"nodeName": "a"});
    let lease =
        |name: &str| json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name}});
    let token = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces";
    let secret = json!({"nodeName": "a", "volumes": [{"name": "v", "secret": {"secretName": "s"}}]});
    for (method, path, body, what, why) in [
        (
            "DELETE",
            format!("{PODS}/theirs"),
            Value::Null,
            "pods \"theirs\"",
            "node \"a\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            "DELETE",
            PODS.to_owned(),
            Value::Null,
            "pods \"theirs\"",
            "node \"a\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            pod("x", here.clone()),
            "pods \"x\"",
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(owner.clone(), json!({"nodeName": "b"})),
            "pods \"mirror\"",
            "node \"a\" can only create pods with spec.nodeName set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(Value::Null, here.clone()),
            "pods \"mirror\"",
            "node \"a\" can only create pods with an owner reference set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(owner.clone(), secret),
            "pods \"mirror\"",
            "a mirror pod may not reference secrets",
        ),
        (
            "PATCH",
            format!("{PODS}/theirs"),
            labels(json!({"a": "b"})),
            "pods \"theirs\"",
            "unexpected operation \"UPDATE\", node \"a\" can only create and delete mirror pods",
        ),
        (
            "PATCH",
            format!("{PODS}/theirs/status"),
            json!({"status": {"phase": "Failed"}}),
            "pods \"theirs\"",
            "node \"a\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        (
            "POST",
            format!("{PODS}/mine/binding"),
            json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "mine"}, "target": {"name": "b"}}),
            "pods \"mine\"",
            "unexpected pod subresource \"binding\", only 'status' and 'eviction' are allowed",
        ),
        (
            "POST",
            format!("{leases}/default/leases"),
            lease("a"),
            "leases.coordination.k8s.io \"a\"",
            "can only access leases in the \"kube-node-lease\" system namespace",
        ),
        (
            "POST",
            format!("{leases}/kube-node-lease/leases"),
            lease("b"),
            "leases.coordination.k8s.io \"b\"",
            "can only access node lease with the same name as the requesting node",
        ),
        ("DELETE", "/api/v1/nodes/b".into(), Value::Null, "", ""),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token".into(),
            token,
            "serviceaccounts \"default\"",
            "node requested token not bound to a pod",
        ),
    ] {
        let answer = send(&mut node, method, &path, body).await;
        let want = if why.is_empty() { (404, String::new()) } else { (403, format!("{what} is forbidden: {why}")) };
        let message = if why.is_empty() { String::new() } else { answer.message().to_owned() };
        assert_eq!((answer.code, message), want, "{method} {path}");
    }
    let made = send(&mut node, "POST", PODS, mirror(owner, here)).await;
    assert_eq!(made.code, 201, "{}", made.message());
    assert!(made.body["spec"].get("serviceAccountName").is_none(), "a mirror is what it shows: {}", made.body["spec"]);
    assert_eq!(send(&mut node, "DELETE", &format!("{PODS}/mine"), Value::Null).await.code, 200);
}

#[tokio::test]
async fn a_pod_waits_for_the_account_that_comes_with_its_namespace() {
    let mut world = World::new().await;
    let new = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "new"}});
    assert_eq!(world.admin("POST", NAMESPACES, new).await.code, 201);
    let mut other = world.server.client("other", "system:masters");
    let waiting =
        tokio::spawn(
            async move { send(&mut other, "POST", "/api/v1/namespaces/new/pods", pod("early", json!({}))).await },
        );
    tokio::task::yield_now().await;
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    assert_eq!(world.admin("POST", "/api/v1/namespaces/new/serviceaccounts", account).await.code, 201);
    let early = waiting.await.unwrap();
    assert_eq!(early.code, 201, "{}", early.message());
    let none = pod("late", json!({"serviceAccountName": "nobody"}));
    let none = world.admin("POST", "/api/v1/namespaces/new/pods", none).await;
    let want =
        "pods \"late\" is forbidden: error looking up service account new/nobody: serviceaccount \"nobody\" not found";
    assert_eq!((none.code, none.message()), (403, want));
}

#[tokio::test]
async fn defaults_come_from_marked_classes() {
    let mut world = World::new().await;
    let class = |name: &str, default: &str| {
        json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "provisioner": "a.b/c",
            "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}})
    };
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, class: Value| {
        json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": name}, "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let before = world.admin("POST", claims, claim("before", Value::Null)).await;
    assert_eq!((before.code, &before.body["spec"]["storageClassName"]), (201, &Value::Null));
    for (name, default) in [("slow", "true"), ("fast", "true"), ("other", "false")] {
        let made = world.admin("POST", "/apis/storage.k8s.io/v1/storageclasses", class(name, default)).await;
        assert_eq!(made.code, 201, "{}", made.message());
    }
    // Made within the same second, or a later one: the newest, then the first by name.
    let made = world.admin("POST", claims, claim("unset", Value::Null)).await;
    assert!(["fast", "slow"].contains(&made.body["spec"]["storageClassName"].as_str().unwrap()), "{}", made.body);
    let made = world.admin("POST", claims, claim("none", json!(""))).await;
    assert_eq!(made.body["spec"]["storageClassName"], "", "an empty class is a choice");
    let priority = |name: &str, value: u32| json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name}, "value": value, "globalDefault": true});
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    assert_eq!(world.admin("POST", classes, priority("one", 7)).await.code, 201);
    let second = world.admin("POST", classes, priority("two", 8)).await;
    let want = "priorityclasses.scheduling.k8s.io \"two\" is forbidden: PriorityClass one is already marked as default. Only one default can exist";
    assert_eq!((second.code, second.message()), (403, want));
    let again = world.admin("PATCH", &format!("{classes}/one"), json!({"description": "d"})).await;
    assert_eq!(again.code, 200, "{}", again.message());
    let made = world.admin("POST", PODS, pod("p", json!({}))).await;
    assert_eq!(made.body["spec"]["priority"], 7);
    let kept = world.admin("PUT", &format!("{PODS}/p"), pod("p", json!({"tolerations": made.body["spec"]["tolerations"], "serviceAccountName": "default",
        "volumes": made.body["spec"]["volumes"], "containers": made.body["spec"]["containers"], "priorityClassName": "one"}))).await;
    assert_eq!((kept.code, &kept.body["spec"]["priority"]), (200, &json!(7)), "{}", kept.message());
}

#[tokio::test]
async fn limits_hold_for_changes_too() {
    let mut world = World::new().await;
    let range = json!({"kind": "LimitRange", "apiVersion": "v1", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}]}});
    let ranges = "/api/v1/namespaces/default/limitranges";
    assert_eq!(world.admin("POST", ranges, range).await.code, 201);
    let made = world.admin("POST", PODS, pod("p", json!({}))).await;
    assert_eq!(
        made.body["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    let container =
        json!({"name": "c", "image": "i", "resources": {"limits": {"cpu": "3"}, "requests": {"cpu": "100m"}}});
    let path = format!("{PODS}/p/resize");
    let larger = json!({"spec": {"containers": [container]}});
    let media = "application/strategic-merge-patch+json";
    let larger = send_as(&mut world.admin, "PATCH", &path, media, larger).await;
    assert_eq!(
        (larger.code, larger.message()),
        (403, "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 3")
    );
}

#[tokio::test]
async fn certificates_take_a_permission_for_their_signer() {
    let mut world = World::new().await;
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = |name: &str, signer: &str, group: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pem);
        json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": name},
            "spec": {"request": encoded, "signerName": signer, "usages": ["client auth"]}})
    };
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
    let refused = world.admin("POST", requests, request("m", CLIENT, "system:masters")).await;
    let want = format!(
        "certificatesigningrequests.certificates.k8s.io \"m\" is forbidden: use of {CLIENT} signer with system:masters group is not allowed"
    );
    assert_eq!((refused.code, refused.message()), (403, &*want));
    assert_eq!(world.admin("POST", requests, request("r", "example.com/s", "devs")).await.code, 201);
    let rule = |resources: &[&str], verbs: &[&str], names: &[&str]| json!({"apiGroups": ["certificates.k8s.io"], "resources": resources, "verbs": verbs, "resourceNames": names});
    let role = |rules: Value| json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "approver"}, "rules": rules});
    let update = rule(&["certificatesigningrequests/approval", "certificatesigningrequests/status"], &["patch"], &[]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(world.admin("POST", &format!("{rbac}/clusterroles"), role(json!([update]))).await.code, 201);
    let binding = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "approver"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "approver"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]});
    assert_eq!(world.admin("POST", &format!("{rbac}/clusterrolebindings"), binding).await.code, 201);
    let mut ann = world.server.client("ann", "people");
    let approve =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]}});
    let fail = json!({"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "r", "message": "m"}]}});
    for (part, body, verb) in [("approval", &approve, "approve"), ("status", &fail, "sign")] {
        let refused = send(&mut ann, "PATCH", &format!("{requests}/r/{part}"), body.clone()).await;
        let want = format!(
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to {verb} requests with signerName \"example.com/s\""
        );
        assert_eq!((refused.code, refused.message()), (403, &*want));
    }
    let domain = rule(&["signers"], &["approve"], &["example.com/*"]);
    assert_eq!(
        world.admin("PUT", &format!("{rbac}/clusterroles/approver"), role(json!([update, domain]))).await.code,
        200
    );
    let approved = send(&mut ann, "PATCH", &format!("{requests}/r/approval"), approve).await;
    assert_eq!(approved.code, 200, "{}", approved.message());
}

#[tokio::test]
async fn a_node_asks_for_its_own_certificates_and_tells_of_its_own_devices() {
    let mut world = World::new().await;
    let mut node = world.server.client("system:node:a", "system:nodes");
    // A role that nodes do not have, so that what is refused is refused by admission.
    let role = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "wide"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]});
    assert_eq!(world.admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", role).await.code, 201);
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let pem = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    };
    let encode = |text: &str| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text);
    const SERVING: &str = "kubernetes.io/kubelet-serving";
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    let (own, other, nobody) = (pem("system:node:a"), pem("system:node:b"), pem("somebody"));
    let refused = "can only create a CSR with CN=system:node:a";
    for (name, signer, request, code, why) in [
        ("own", CLIENT, &own, 201, ""),
        ("own-serving", SERVING, &own, 201, ""),
        ("other", CLIENT, &other, 403, refused),
        ("other-serving", SERVING, &other, 403, refused),
        ("nobody", CLIENT, &nobody, 201, ""),
        ("elsewhere", "example.com/s", &other, 201, ""),
    ] {
        let body = json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": name},
            "spec": {"request": encode(request), "signerName": signer, "usages": ["client auth"]}});
        let answer = send(&mut node, "POST", requests, body).await;
        let message = if code == 201 { "" } else { answer.message() };
        let want = format!("certificatesigningrequests.certificates.k8s.io {name:?} is forbidden: {why}");
        assert_eq!((answer.code, message), (code, if code == 201 { "" } else { &*want }), "{name}: {}", answer.body);
    }
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let slice = |name: &str, on: Value| {
        let mut slice = json!({"kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1", "metadata": {"name": name},
            "spec": {"driver": "d.example.com", "pool": {"name": "p", "resourceSliceCount": 1}}});
        slice["spec"].as_object_mut().unwrap().extend(on.as_object().unwrap().clone());
        slice
    };
    assert_eq!(world.admin("POST", slices, slice("theirs", json!({"nodeName": "b"}))).await.code, 201);
    for (name, on, code) in [
        ("mine", json!({"nodeName": "a"}), 201),
        ("b", json!({"nodeName": "b"}), 403),
        ("all", json!({"allNodes": true}), 403),
    ] {
        let answer = send(&mut node, "POST", slices, slice(name, on)).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.body);
        if code == 403 {
            let why = "can only create ResourceSlice with the same NodeName as the requesting node";
            assert_eq!(answer.message(), format!("resourceslices.resource.k8s.io {name:?} is forbidden: {why}"));
        }
    }
    let theirs = send(&mut node, "DELETE", &format!("{slices}/theirs"), Value::Null).await;
    let why = "can only delete ResourceSlice with the same NodeName as the requesting node";
    assert_eq!(
        (theirs.code, theirs.message()),
        (403, &*format!("resourceslices.resource.k8s.io \"theirs\" is forbidden: {why}"))
    );
    assert_eq!(send(&mut node, "DELETE", &format!("{slices}/mine"), Value::Null).await.code, 200);
}

#[tokio::test]
async fn a_claim_grows_where_its_class_lets_volumes_grow() {
    let mut world = World::new().await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    for (name, grows) in [("grows", json!(true)), ("stays", json!(false)), ("silent", Value::Null)] {
        let class = json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "provisioner": "a.b/c",
            "metadata": {"name": name}, "allowVolumeExpansion": grows});
        assert_eq!(world.admin("POST", classes, class).await.code, 201);
    }
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let size = |storage: &str| json!({"spec": {"resources": {"requests": {"storage": storage}}}});
    let refused = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    for (class, name, why) in [
        ("grows", "grows", ""),
        ("stays", "stays", refused),
        ("silent", "silent", refused),
        ("gone", "gone", refused),
        ("", "none", refused),
    ] {
        let claim = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": name}, "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "volumeName": "v", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(world.admin("POST", claims, claim).await.code, 201);
        let path = format!("{claims}/{name}");
        let early = world.admin("PATCH", &path, size("2Gi")).await;
        assert_eq!(early.code, 422, "not bound yet: {}", early.message());
        let bound =
            json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        assert_eq!(world.admin("PATCH", &format!("{path}/status"), bound).await.code, 200);
        let grown = world.admin("PATCH", &path, size("2Gi")).await;
        let message = if why.is_empty() { String::new() } else { grown.message().to_owned() };
        let want = match why {
            "" => (200, String::new()),
            why => (403, format!("persistentvolumeclaims {name:?} is forbidden: {why}")),
        };
        assert_eq!((grown.code, message), want, "{name}: {}", grown.body);
        let shrunk = world.admin("PATCH", &path, size("512Mi")).await;
        let end = "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
        assert!(shrunk.code == 422 && shrunk.message().ends_with(end), "{}", shrunk.message());
    }
}
