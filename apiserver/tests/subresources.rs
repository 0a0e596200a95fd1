//! Every subresource, by every way to write it: its own slice may change, and all else stands whatever the body says.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::Path;

use api::kind::{Kind, Part, Registry};
use serde_json::{Value, json};

#[path = "replay/world.rs"]
#[expect(dead_code, reason = "a replay asks without a certificate too")]
mod world;

use world::{Answer, World, send_as};

/// What is sent, beside what the object holds, and what of it may arrive.
struct Row {
    plural: &'static str,
    subresource: &'static str,
    hostile: Value,
    /// Pointers below which anything may change.
    may: Vec<&'static str>,
    /// Of these, what has to.
    must: Vec<&'static str>,
}

/// What every object's metadata may be changed in through `/status`, as upstream has it.
const METADATA: [&str; 2] = ["/metadata/labels", "/metadata/annotations"];

fn rows() -> Vec<Row> {
    let pod = |extra: Value| {
        let mut hostile = json!({
            "metadata": {"labels": {"hostile": "1"}, "annotations": {"hostile": "1"}, "finalizers": ["a.b/c"],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y"}]},
            "spec": {"hostPID": true, "hostNetwork": true, "nodeName": "elsewhere", "serviceAccountName": "other", "priority": 7,
                "containers": [{"name": "c", "image": "hostile", "securityContext": {"privileged": true}}]},
            "status": {"phase": "Running"},
        });
        for (key, value) in extra.as_object().unwrap() {
            hostile["spec"][key] = value.clone();
        }
        hostile
    };
    let container = json!({"name": "c", "image": "hostile", "resources": {"requests": {"cpu": "2"}}});
    let request = json!({
        "metadata": {"labels": {"hostile": "1"}},
        "spec": {"username": "mallory", "groups": ["system:masters"], "request": "QQ==", "signerName": "a.b/c"},
        "status": {"certificate": CERTIFICATE, "conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]},
    });
    // A signature that comes with a decision is refused.
    let mut signed = request.clone();
    signed["status"] = json!({"certificate": CERTIFICATE});
    let mut rows = vec![
        Row {
            plural: "pods",
            subresource: "ephemeralcontainers",
            hostile: pod(json!({"ephemeralContainers": [{"name": "debug", "image": "i"}]})),
            may: vec!["/spec/ephemeralContainers"],
            must: vec!["/spec/ephemeralContainers"],
        },
        Row {
            plural: "pods",
            subresource: "resize",
            hostile: pod(json!({"containers": [container]})),
            may: vec!["/spec/containers/0/resources", "/spec/containers/0/resizePolicy"],
            must: vec!["/spec/containers/0/resources"],
        },
        Row {
            plural: "pods",
            subresource: "status",
            hostile: pod(json!({})),
            may: [&METADATA[..], &["/metadata/finalizers", "/status"]].concat(),
            must: vec!["/status/phase"],
        },
        Row {
            plural: "namespaces",
            subresource: "finalize",
            hostile: json!({"metadata": {"labels": {"hostile": "1"}}, "spec": {"finalizers": ["a.b/c"]}, "status": {"phase": "Terminating"}}),
            may: [&METADATA[..], &["/spec/finalizers"]].concat(),
            must: vec!["/spec/finalizers"],
        },
        Row {
            plural: "certificatesigningrequests",
            subresource: "approval",
            hostile: request.clone(),
            may: [&METADATA[..], &["/status/conditions"]].concat(),
            must: vec!["/status/conditions"],
        },
        Row {
            plural: "certificatesigningrequests",
            subresource: "status",
            hostile: signed,
            may: [&METADATA[..], &["/status/certificate"]].concat(),
            must: vec!["/status/certificate"],
        },
    ];
    for plural in ["deployments", "replicasets", "statefulsets", "replicationcontrollers"] {
        rows.push(Row {
            plural,
            subresource: "scale",
            hostile: json!({"metadata": {"labels": {"hostile": "1"}}, "spec": {"replicas": 5}, "status": {"replicas": 9}}),
            may: vec!["/spec/replicas"],
            must: vec!["/spec/replicas"],
        });
    }
    rows
}

/// Without a row of its own: a status from which the spec was left out.
fn of_status(kind: &Kind) -> Row {
    Row {
        plural: Box::leak(kind.plural.to_string().into_boxed_str()),
        subresource: "status",
        hostile: json!({"metadata": {"labels": {"hostile": "1"}}, "spec": null}),
        may: [&METADATA[..], &["/status"]].concat(),
        must: Vec::new(),
    }
}

/// Streams and requests to elsewhere: no part of the object.
/// What has the form of a certificate.
const CERTIFICATE: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";

fn is_slice(name: &str) -> bool {
    name != "proxy"
}

fn base(kind: &Kind) -> Value {
    let bases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tape/cases/bases.json");
    let text = std::fs::read_to_string(bases).unwrap().replace("${x}", "t").replace("${ns}", "default");
    let bases: Value = serde_json::from_str(&text).unwrap();
    let found = bases.as_object().unwrap().values().find(|base| base["kind"] == *kind.kind).cloned();
    let mut object = found.unwrap_or_else(|| panic!("no example of {}", kind.kind));
    if &*kind.kind == "Pod" {
        object["spec"]["containers"] = json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]);
    }
    object
}

fn collection(kind: &Kind, api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let namespace = if kind.namespaced() { "/namespaces/default" } else { "" };
    format!("/{root}/{api_version}{namespace}/{}", kind.plural)
}

/// The pointers of all leaves that differ.
fn differences(old: &Value, new: &Value, at: &str, out: &mut BTreeSet<String>) {
    let ignored = ["/metadata/resourceVersion", "/metadata/managedFields", "/metadata/generation"];
    if old == new || ignored.contains(&at) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                differences(&old[key], &new[key], &format!("{at}/{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for index in 0..a.len() {
                differences(&a[index], &b[index], &format!("{at}/{index}"), out);
            }
        }
        _ => drop(out.insert(at.to_owned())),
    }
}

/// A list of operations that does what a merge patch does.
fn operations(patch: &Value, current: &Value, at: &str, out: &mut Vec<Value>) {
    for (key, value) in patch.as_object().into_iter().flatten() {
        let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        match value {
            Value::Null if current[key].is_null() => {}
            Value::Null => out.push(json!({"op": "remove", "path": path})),
            Value::Object(_) if current[key].is_object() => operations(value, &current[key], &path, out),
            other => out.push(json!({"op": "add", "path": path, "value": other})),
        }
    }
}

/// The ways to send a row's body, each with its media type.
fn ways(row: &Row, kind: &Kind, current: &Value) -> Vec<(&'static str, &'static str, Value)> {
    let whole = api::patch::merge(current, &row.hostile);
    let mut list = Vec::new();
    operations(&row.hostile, current, "", &mut list);
    let mut applied = row.hostile.clone();
    if let Some(map) = applied.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    for field in ["apiVersion", "kind"] {
        applied[field] = current[field].clone();
    }
    applied["metadata"]["name"] = current["metadata"]["name"].clone();
    let all = vec![
        ("PUT", "application/json", whole),
        ("PATCH", "application/json-patch+json", list.into()),
        ("PATCH", "application/merge-patch+json", row.hostile.clone()),
        ("PATCH", "application/strategic-merge-patch+json", row.hostile.clone()),
        ("PATCH", "application/apply-patch+yaml", applied),
    ];
    let sub = kind.subresource(Part::parse(row.subresource).unwrap()).unwrap();
    let has = |verb: &str| sub.verbs.iter().any(|own| own == verb);
    all.into_iter().filter(|(method, ..)| has(if *method == "PUT" { "update" } else { "patch" })).collect()
}

/// Tries one row; gives what is wrong.
async fn check(world: &mut World, kind: &Kind, row: &Row) -> Vec<String> {
    let mut wrong = Vec::new();
    let example = base(kind);
    let version = example["apiVersion"].as_str().unwrap().to_owned();
    let (all, name) = (collection(kind, &version), example["metadata"]["name"].as_str().unwrap().to_owned());
    let (one, slice) =
        (format!("{all}/{name}"), format!("{}/{name}/{}", collection(kind, &kind.api_version()), row.subresource));
    let methods = ways(row, kind, &json!({"metadata": {}})).len();
    for way in 0..methods {
        let made = world.admin("POST", &all, example.clone()).await;
        assert_eq!(made.code, 201, "{all}: {}", made.message());
        let before = settled(world, kind, &one).await;
        let current = world.admin("GET", &slice, Value::Null).await;
        let current = if current.code == 200 { current.body } else { before.clone() };
        let (method, media, body) = ways(row, kind, &current).swap_remove(way);
        let path = if media.contains("apply") { format!("{slice}?fieldManager=t&force=true") } else { slice.clone() };
        let answer = send_as(&mut world.admin, method, &path, media, body).await;
        let label = format!("{method} {media} {slice}");
        if answer.code >= 500 || (answer.code != 200 && !row.must.is_empty()) {
            wrong.push(format!("{label}: {} {}", answer.code, answer.message()));
        }
        let after = world.admin("GET", &one, Value::Null).await.body;
        let mut found = BTreeSet::new();
        differences(&before, &after, "", &mut found);
        let allowed = |path: &String| row.may.iter().any(|may| path.starts_with(may));
        wrong.extend(found.iter().filter(|path| !allowed(path)).map(|path| format!("{label}: {path} changed")));
        let missing = row.must.iter().filter(|must| !found.iter().any(|path| path.starts_with(*must)));
        wrong.extend(missing.map(|must| format!("{label}: {must} did not change")));
        remove(world, kind, &one).await;
    }
    wrong
}

async fn remove(world: &mut World, kind: &Kind, one: &str) {
    let clear = json!({"metadata": {"finalizers": null}});
    world.admin("PATCH", one, clear).await;
    world.admin("DELETE", &format!("{one}?gracePeriodSeconds=0&propagationPolicy=Background"), Value::Null).await;
    if &*kind.kind == "Namespace" {
        let empty =
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": one.rsplit('/').next()}, "spec": {}});
        world.admin("PUT", &format!("{one}/finalize"), empty).await;
    }
    // A definition waits for the objects of its kind.
    until(world, one, |gone| gone.code == 404).await;
}

/// The object once the server itself writes no more to it.
async fn settled(world: &mut World, kind: &Kind, one: &str) -> Value {
    let defined = |answer: &Answer| {
        let conditions = answer.body["status"]["conditions"].as_array().into_iter().flatten();
        &*kind.kind != "CustomResourceDefinition" || conditions.count() >= 2
    };
    until(world, one, defined).await
}

async fn until(world: &mut World, one: &str, is: impl Fn(&Answer) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let answer = world.admin("GET", one, Value::Null).await;
        if is(&answer) {
            return answer.body;
        }
        assert!(tokio::time::Instant::now() < deadline, "{one} stays: {}", answer.body);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_subresource_changes_its_own_slice_and_nothing_else() {
    let mut world = World::new().await;
    let (mut rows, mut wrong) = (rows(), Vec::new());
    for kind in Registry::builtin().iter() {
        let writable = |verbs: &[api::kind::Text]| verbs.iter().any(|verb| *verb == "update" || *verb == "patch");
        for sub in kind.subresources.iter().filter(|sub| is_slice(sub.part.name()) && writable(&sub.verbs)) {
            let at = rows.iter().position(|row| row.plural == kind.plural && row.subresource == sub.part.name());
            let row = match at {
                Some(at) => rows.swap_remove(at),
                None => {
                    assert_eq!(sub.part, Part::Status, "{}/{} has no row", kind.plural, sub.part.name());
                    of_status(kind)
                }
            };
            wrong.extend(check(&mut world, kind, &row).await);
        }
    }
    let unused: Vec<_> = rows.iter().map(|row| (row.plural, row.subresource)).collect();
    assert!(unused.is_empty(), "no such subresources: {unused:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_body_of_nothing_but_the_slice_is_enough() {
    let mut world = World::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(world.admin("POST", pods, pod).await.code, 201);
    let only = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
    let put = world.admin("PUT", &format!("{pods}/p/ephemeralcontainers"), only).await;
    assert_eq!(put.code, 200, "{}", put.message());
    assert_eq!(put.body["spec"]["containers"][0]["name"], "c");
    assert_eq!(put.body["spec"]["serviceAccountName"], "default");
    let cpu = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    let media = "application/strategic-merge-patch+json";
    let resized = send_as(&mut world.admin, "PATCH", &format!("{pods}/p/resize"), media, cpu).await;
    assert_eq!(resized.code, 422);
    let why = "spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing";
    assert!(resized.message().ends_with(why), "{}", resized.message());
    let gate = json!({"spec": {"schedulingGates": [{"name": "a.b/c"}]}});
    let gated = world.admin("PATCH", &format!("{pods}/p"), gate).await;
    let why = "spec.schedulingGates[0]: Forbidden: only deletion is allowed, but found new scheduling gate 'a.b/c'";
    assert!(gated.code == 422 && gated.message().contains(why), "{}", gated.message());
}

#[tokio::test]
async fn replicas_are_owned_through_their_scale() {
    let mut world = World::new().await;
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let deployments = Registry::builtin().find("apps", "v1", "deployments").unwrap();
    let example = base(&deployments);
    let name = example["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(world.admin("POST", all, example).await.code, 201);
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name}, "spec": {"replicas": 4}});
    let media = "application/apply-patch+yaml";
    let path = format!("{all}/{name}/scale?fieldManager=scaler&force=true");
    let applied = send_as(&mut world.admin, "PATCH", &path, media, scale.clone()).await;
    assert_eq!((applied.code, &applied.body["spec"]["replicas"]), (200, &json!(4)), "{}", applied.message());
    let main = world.admin("GET", &format!("{all}/{name}"), Value::Null).await.body;
    let owned = main["metadata"]["managedFields"].as_array().unwrap().iter().find(|entry| entry["manager"] == "scaler");
    let owned = owned.unwrap();
    assert_eq!((&owned["subresource"], &owned["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
    assert_eq!(owned["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let other = format!("{all}/{name}/scale?fieldManager=other");
    let conflict = send_as(
        &mut world.admin,
        "PATCH",
        &other,
        media,
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name}, "spec": {"replicas": 5}}),
    )
    .await;
    assert_eq!(conflict.code, 409, "{}", conflict.message());
    let wrong = send_as(
        &mut world.admin,
        "PATCH",
        &other,
        media,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}}),
    )
    .await;
    assert_eq!(wrong.code, 400);
}
