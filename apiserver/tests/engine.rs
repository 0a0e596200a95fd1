//! What the engine does beyond storing objects, over HTTPS as clients see it.
#![expect(clippy::unwrap_used, reason = "a test")]

use serde_json::{Value, json};

#[path = "replay/world.rs"]
mod world;

use world::client::Identity;
use world::{Answer, World, send};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Creates below a collection of the namespace `default`, or of the cluster.
async fn make(world: &mut World, path: &str, object: Value) -> Value {
    let made = world.admin("POST", path, object).await;
    assert_eq!(made.code, 201, "{path}: {}", made.message());
    made.body
}

async fn get(world: &mut World, path: &str) -> Answer {
    world.admin("GET", path, Value::Null).await
}

#[tokio::test]
async fn a_request_for_a_certificate_says_who_makes_it() {
    let mut world = World::new().await;
    let all = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let request = json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": "r"},
        "spec": {"signerName": "a.b/c", "usages": ["client auth"], "request": pem,
            "username": "system:admin", "uid": "1", "groups": ["system:masters"], "extra": {"a": ["b"]}}});
    let mut user = world.server.client("mallory", "crew");
    assert_eq!(send(&mut user, "POST", all, request.clone()).await.code, 403);
    let made = make(&mut world, all, request).await;
    let spec = &made["spec"];
    assert_eq!(
        (&spec["username"], &spec["groups"]),
        (&json!("admin"), &json!(["system:masters", "system:authenticated"]))
    );
    let extra: Vec<&String> = spec["extra"].as_object().unwrap().keys().collect();
    assert!(spec.get("uid").is_none() && extra == ["authentication.kubernetes.io/credential-id"], "{spec}");
    let change = json!({"spec": {"username": "other", "groups": ["x"], "request": "Qg=="}});
    let changed = world.admin("PATCH", &format!("{all}/r"), change).await;
    assert_eq!((changed.code, &changed.body["spec"]), (200, spec));
}

#[tokio::test]
async fn the_usual_roles_grant_what_their_parts_grant() {
    let mut world = World::new().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    for (name, least) in [("view", 11), ("edit", 12), ("admin", 13)] {
        let rules = get(&mut world, &format!("{roles}/{name}")).await.body["rules"].as_array().unwrap().len();
        assert!(rules >= least, "{name} has {rules} rules");
    }
    let part = json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": "own", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"verbs": ["get"], "apiGroups": ["own.example"], "resources": ["things"]}]});
    make(&mut world, roles, part).await;
    for name in ["view", "edit", "admin"] {
        let has = async |world: &mut World| {
            let rules = get(world, &format!("{roles}/{name}")).await.body["rules"].to_string();
            rules.contains("own.example")
        };
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while !has(&mut world).await {
            assert!(tokio::time::Instant::now() < deadline, "{name} never gets the new rule");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_version_that_is_sent_is_no_matter_in_a_dry_run() {
    let mut world = World::new().await;
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m", "resourceVersion": "5"}});
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(world.admin("POST", &format!("{maps}?dryRun=All"), map.clone()).await.code, 201);
    let refused = world.admin("POST", maps, map).await;
    assert_eq!((refused.code, refused.message()), (500, "resourceVersion should not be set on objects to be created"));
}

#[tokio::test]
async fn events_are_selected_by_the_fields_of_their_version() {
    let mut world = World::new().await;
    let event = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e", "namespace": "default"}, "reason": "R",
        "reportingComponent": "c", "reportingInstance": "i", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    make(&mut world, "/api/v1/namespaces/default/events", event).await;
    for (path, selector, count) in [
        ("/api/v1", "involvedObject.name%3Dp", 1),
        ("/apis/events.k8s.io/v1", "regarding.name%3Dp", 1),
        ("/apis/events.k8s.io/v1", "regarding.name%3Dq", 0),
        ("/apis/events.k8s.io/v1", "reportingController%3Dc,reason%3DR", 1),
    ] {
        let found = get(&mut world, &format!("{path}/namespaces/default/events?fieldSelector={selector}")).await;
        assert_eq!(found.body["items"].as_array().map_or(0, Vec::len), count, "{selector}: {}", found.body);
    }
}

#[tokio::test]
async fn the_end_of_a_pod_is_marked_before_it_is_told() {
    let mut world = World::new().await;
    let made = make(&mut world, PODS, pod("p", json!({}))).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let gone = world.admin("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), Value::Null).await;
    let path = format!("{PODS}?watch=true&timeoutSeconds=1&resourceVersion={version}");
    let watched = world.admin.request(Identity::Admin, "GET", &path, &[], b"").await;
    let text = String::from_utf8(watched.body.to_vec()).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["MODIFIED", "DELETED"]);
    let before = made["metadata"]["generation"].as_i64().unwrap();
    for event in &events {
        let metadata = &event["object"]["metadata"];
        assert!(metadata["deletionTimestamp"].is_string(), "{metadata}");
        assert_eq!((&metadata["deletionGracePeriodSeconds"], &metadata["generation"]), (&json!(0), &json!(before + 1)));
    }
    assert_eq!(gone.body["metadata"]["resourceVersion"], events[1]["object"]["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn reviews_have_no_rows() {
    let mut world = World::new().await;
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io".to_owned()),
    ];
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = world.admin.request(Identity::Admin, "POST", path, &headers, review.to_string().as_bytes()).await;
    assert_eq!(answer.code, 406);
}

#[tokio::test]
async fn parts_have_rows_only_where_they_have_columns() {
    let mut world = World::new().await;
    make(&mut world, PODS, pod("p", json!({}))).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    make(
        &mut world,
        sets,
        json!({"kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": {"name": "s"}, "spec": spec}),
    )
    .await;
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io".to_owned()),
    ];
    let token = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
    let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    for (path, body) in [
        ("/api/v1/namespaces/default/serviceaccounts/default/token".to_owned(), token),
        (format!("{PODS}/p/binding"), binding),
        (format!("{PODS}/p/eviction"), eviction),
    ] {
        let answer = world.admin.request(Identity::Admin, "POST", &path, &headers, body.to_string().as_bytes()).await;
        assert_eq!(answer.code, 406, "{path}");
    }
    assert!(get(&mut world, &format!("{PODS}/p")).await.body["spec"]["nodeName"].is_null(), "and nothing was done");
    let answer = world.admin.request(Identity::Admin, "GET", &format!("{sets}/s/scale"), &headers, b"").await;
    let table: Value = serde_json::from_slice(&answer.body).unwrap();
    let names: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..3], [json!("s"), json!(3), json!(0)]);
}

#[tokio::test]
async fn old_kinds_leave_their_dependents() {
    let mut world = World::new().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let job =
        json!({"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "j"}, "spec": {"template": template}});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    make(&mut world, jobs, job.clone()).await;
    let deleted = world.admin("DELETE", &format!("{jobs}/j"), Value::Null).await;
    assert!(
        deleted.warnings[0].starts_with("child pods are preserved by default when jobs are deleted"),
        "{:?}",
        deleted.warnings
    );
    assert_eq!(get(&mut world, &format!("{jobs}/j")).await.body["metadata"]["finalizers"], json!(["orphan"]));
    let background = world.admin("DELETE", &format!("{jobs}/j?propagationPolicy=Background"), Value::Null).await;
    assert!(background.warnings.is_empty());
    assert_eq!(get(&mut world, &format!("{jobs}/j")).await.code, 404);
}

#[tokio::test]
async fn an_eviction_takes_a_disruption() {
    let mut world = World::new().await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    make(&mut world, budgets, budget).await;
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}});
    assert_eq!(world.admin("PATCH", &format!("{budgets}/b/status"), status).await.code, 200);
    for name in ["p", "q"] {
        make(&mut world, PODS, pod(name, json!({"nodeName": "n"}))).await;
        let running = json!({"status": {"phase": "Running"}});
        assert_eq!(world.admin("PATCH", &format!("{PODS}/{name}/status"), running).await.code, 200);
    }
    let evict = |name: &str| json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": name}});
    let mut dry = evict("p");
    dry["deleteOptions"] = json!({"dryRun": ["All"]});
    assert_eq!(world.admin("POST", &format!("{PODS}/p/eviction"), dry).await.code, 201);
    assert_eq!(world.admin("POST", &format!("{PODS}/p/eviction"), evict("p")).await.code, 201);
    let status = get(&mut world, &format!("{budgets}/b")).await.body["status"].clone();
    assert_eq!(status["disruptionsAllowed"], 0);
    assert!(status["disruptedPods"]["p"].is_string(), "{status}");
    assert_eq!(world.admin("POST", &format!("{PODS}/q/eviction"), evict("q")).await.code, 429);
}

#[tokio::test]
async fn defaults_come_from_other_objects() {
    let mut world = World::new().await;
    let class = json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": "usual"},
        "value": 7, "globalDefault": true, "preemptionPolicy": "Never"});
    make(&mut world, "/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    let spec = make(&mut world, PODS, pod("p", json!({}))).await["spec"].clone();
    assert_eq!(
        (&spec["priorityClassName"], &spec["priority"], &spec["preemptionPolicy"]),
        (&json!("usual"), &json!(7), &json!("Never"))
    );
    let other = pod("q", json!({"priorityClassName": "usual", "preemptionPolicy": "PreemptLowerPriority"}));
    let other = world.admin("POST", PODS, other).await;
    assert!(
        other.code == 403 && other.message().contains("computed Never from the given PriorityClass name"),
        "{}",
        other.message()
    );
    let class = json!({"kind": "IngressClass", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "front", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": "a.b/c"}});
    make(&mut world, "/apis/networking.k8s.io/v1/ingressclasses", class).await;
    let ingress = json!({"kind": "Ingress", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "i"},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    let made = make(&mut world, "/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress).await;
    assert_eq!(made["spec"]["ingressClassName"], "front");
}

#[tokio::test]
async fn no_token_lives_for_ever() {
    let mut world = World::new().await;
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"expirationSeconds": 4_294_967_296_i64}});
    let made = make(&mut world, "/api/v1/namespaces/default/serviceaccounts/default/token", request).await;
    assert_eq!(made["spec"]["expirationSeconds"], 365 * 86_400);
}

#[tokio::test]
async fn the_root_and_probes_tell_what_there_is() {
    let mut world = World::new().await;
    let root = get(&mut world, "/").await.body;
    let paths: Vec<&str> = root["paths"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for path in ["/api", "/api/v1", "/apis/apps/v1", "/livez/ping", "/openapi/v3/apis/apps/v1", "/version"] {
        assert!(paths.contains(&path), "{path} is missing in {paths:?}");
    }
    for (path, want) in [
        ("/livez", "ok"),
        ("/readyz?verbose", "[+]ping ok\n[+]store ok\nreadyz check passed\n"),
        ("/livez/store", "ok"),
        ("/livez?verbose&exclude=store", "[+]ping ok\n[+]store excluded: ok\nlivez check passed\n"),
    ] {
        let answer = world.admin.request(Identity::Admin, "GET", path, &[], b"").await;
        assert_eq!((answer.code, &answer.body[..]), (200, want.as_bytes()), "{path}");
    }
    let metrics = world.admin.request(Identity::Admin, "GET", "/metrics", &[], b"").await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for name in [
        "apiserver_flowcontrol_rejected_requests_total",
        "amphipod_watch_history_bytes",
        "amphipod_store_unreadable_objects 0",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
}

#[tokio::test]
async fn people_get_indented_answers() {
    let mut world = World::new().await;
    let (path, agent) = ("/api/v1/namespaces/default", [("user-agent", "curl/8.0".to_owned())]);
    let text = world.admin.request(Identity::Admin, "GET", path, &agent, b"").await.body;
    let start = "{\n  \"kind\": \"Namespace\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n";
    assert!(text.starts_with(start.as_bytes()), "{}", String::from_utf8_lossy(&text));
    let plain = world.admin.request(Identity::Admin, "GET", path, &[], b"").await.body;
    assert!(plain.starts_with(b"{\"kind\":\"Namespace\",\"apiVersion\":\"v1\""));
}

#[tokio::test]
async fn documents_say_what_fields_are_for() {
    let mut world = World::new().await;
    let core = get(&mut world, "/openapi/v3/api/v1").await.body;
    let pod = &core["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["description"],
        "Pod is a collection of containers that can run on a host. This resource is created by clients and scheduled onto hosts."
    );
    assert!(
        pod["properties"]["spec"]["description"]
            .as_str()
            .unwrap()
            .starts_with("Specification of the desired behavior of the pod.")
    );
    let port = &core["components"]["schemas"]["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
    assert_eq!(port["enum"], json!(["SCTP", "TCP", "UDP"]));
    assert_eq!(
        port["description"],
        "Protocol for port. Must be UDP, TCP, or SCTP. Defaults to \"TCP\".\n\nPossible enum values:\n - `\"SCTP\"` is the SCTP protocol.\n - `\"TCP\"` is the TCP protocol.\n - `\"UDP\"` is the UDP protocol."
    );
}

#[tokio::test]
async fn whoever_asks_for_a_deprecated_kind_is_told_so() {
    let mut world = World::new().await;
    let want = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    let all = "/api/v1/namespaces/default/endpoints";
    let one = &format!("{all}/e");
    let object = json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": "e"}, "odd": 1});
    for (method, path, body, code) in [
        ("POST", all, object.clone(), 201),
        ("POST", all, object.clone(), 409),
        ("GET", one, Value::Null, 200),
        ("GET", all, Value::Null, 200),
        ("GET", "/api/v1/endpoints?watch=true&timeoutSeconds=1", Value::Null, 200),
        ("PUT", one, object, 200),
        ("PATCH", one, json!({"metadata": {"labels": {"a": "b"}}}), 200),
        ("DELETE", one, Value::Null, 200),
        ("GET", one, Value::Null, 404),
        ("DELETE", all, Value::Null, 200),
    ] {
        let answer = world.admin(method, path, body).await;
        assert_eq!((answer.code, answer.warnings[0].as_str()), (code, want), "{method} {path}");
        let unknown = usize::from(matches!(method, "PUT" | "POST"));
        assert_eq!(answer.warnings.len(), 1 + unknown, "{method} {path}: {:?}", answer.warnings);
    }
}

#[tokio::test]
async fn components_are_told_from_how_the_server_is() {
    let mut world = World::new().await;
    let list = get(&mut world, "/api/v1/componentstatuses").await;
    assert_eq!(list.warnings, ["v1 ComponentStatus is deprecated in v1.19+"]);
    assert_eq!(get(&mut world, "/api/v1/componentstatuses/none").await.warnings, list.warnings);
    let names: Vec<&Value> =
        list.body["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, ["controller-manager", "etcd-0", "scheduler"]);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io".to_owned())];
    let table = world.admin.request(Identity::Admin, "GET", "/api/v1/componentstatuses/scheduler", &accept, b"").await;
    let table: Value = serde_json::from_slice(&table.body).unwrap();
    assert_eq!(table["rows"][0]["cells"], json!(["scheduler", "Healthy", "ok", ""]));
    assert_eq!(get(&mut world, "/api/v1/componentstatuses/none").await.code, 404);
}

#[tokio::test]
async fn managers_of_fields_have_bounds() {
    let mut world = World::new().await;
    let all = "/api/v1/namespaces/default/configmaps";
    let one = &format!("{all}/c");
    let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}, "data": {"a": "b"}});
    make(&mut world, &format!("{all}?fieldManager=m09"), object).await;
    let managers = |answer: &Answer| -> Vec<String> {
        let entries = answer.body["metadata"]["managedFields"].as_array().unwrap();
        entries.iter().map(|entry| entry["manager"].as_str().unwrap().to_owned()).collect()
    };
    for number in 10..22 {
        let change = json!({"data": {format!("key{number}"): "x"}});
        let answer = world.admin("PATCH", &format!("{one}?fieldManager=m{number}"), change).await;
        assert_eq!(answer.code, 200, "{}", answer.message());
    }
    let full = get(&mut world, one).await;
    let mut named = managers(&full);
    named.sort();
    assert_eq!(named[0], "ancient-changes");
    assert_eq!(named[1..], (13..22).map(|number| format!("m{number}")).collect::<Vec<_>>());
    let ancient = full.body["metadata"]["managedFields"].as_array().unwrap();
    let ancient = ancient.iter().find(|entry| entry["manager"] == "ancient-changes").unwrap();
    assert_eq!(
        ancient["fieldsV1"]["f:data"].as_object().unwrap().keys().collect::<Vec<_>>(),
        [".", "f:a", "f:key10", "f:key11", "f:key12"]
    );

    let entry = |change: Value| {
        let mut entry = json!({"manager": "own", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {"f:key10": {}}}});
        for (key, value) in change.as_object().unwrap() {
            entry[key] = value.clone();
        }
        json!({"metadata": {"managedFields": [entry]}})
    };
    // What cannot be read counts as not sent.
    for change in [
        json!({"operation": "Other"}),
        json!({"fieldsType": "FieldsV2"}),
        json!({"apiVersion": ""}),
        json!({"fieldsV1": {"data": {}}}),
        json!({"fieldsV1": {"f:data": {"i:x": {}}}}),
    ] {
        let answer = world.admin("PATCH", one, entry(change.clone())).await;
        assert_eq!((answer.code, managers(&answer)), (200, managers(&full)), "{change}");
    }
    let long = world.admin("PATCH", one, entry(json!({"manager": "m".repeat(129)}))).await;
    let want = "metadata.managedFields[0].manager: Too long: may not be more than 128 bytes";
    assert!(long.code == 422 && long.message().contains(want), "{}", long.message());
    let deep = world.admin("PATCH", one, entry(json!({"subresource": "s".repeat(257)}))).await;
    let want = "metadata.managedFields[0].subresource: Too long: may not be more than 256 bytes";
    assert!(deep.code == 422 && deep.message().contains(want), "{}", deep.message());
    let unknown = json!({"fieldsV1": {"f:data": {"x:later": {}, "f:key10": {}}}});
    let kept = world.admin("PATCH", one, entry(unknown)).await;
    assert_eq!((kept.code, managers(&kept)), (200, vec!["own".to_owned()]));
    assert_eq!(kept.body["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {"f:key10": {}}}));
}
