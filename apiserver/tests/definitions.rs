//! Kinds that are defined while the server runs, over HTTPS as clients see them: made, changed and ended under running
//! watches, and there again after a restart.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::decode::{MediaType, untyped};
use apiserver::nodes::NoNodes;
use apiserver::server::{Config, Server};
use axum::body::Body;
use hyper::http::Request;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

#[path = "replay/client.rs"]
mod client;

use client::{Client, Credentials, Identity};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/crontabs.stable.example.com";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";
const LIMIT: Duration = Duration::from_secs(30);

struct World {
    credentials: Arc<Credentials>,
    client: Client,
    _stop: DropGuard,
}

struct Answer {
    code: u16,
    text: String,
    body: Value,
    warnings: Vec<String>,
}

impl World {
    async fn start(folder: &Path) -> Self {
        let server = Server::open(&Config::on_loopback(folder.join("store.redb")), Arc::new(NoNodes)).await.unwrap();
        let (address, authority) = (server.address(), server.authority().clone());
        let admin = authority.client("admin", &["system:masters"]).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(stop.clone()));
        let (certificate, key) = (&admin.certificate, &admin.key);
        let credentials = Arc::new(Credentials::new(address, &authority.ca_certificate, certificate, key));
        Self { client: Client::new(credentials.clone()), credentials, _stop: stop.drop_guard() }
    }

    async fn send(&mut self, method: &str, path: &str, headers: &[(&'static str, &str)], body: &Value) -> Answer {
        send(&mut self.client, method, path, headers, body).await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], &Value::Null).await
    }

    async fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body).await
    }

    async fn patch(&mut self, path: &str, form: &str, body: &Value) -> Answer {
        self.send("PATCH", path, &[("content-type", &format!("application/{form}"))], body).await
    }

    async fn merge(&mut self, path: &str, body: &Value) -> Answer {
        self.patch(path, "merge-patch+json", body).await
    }

    /// Asks until the answer is what is waited for.
    async fn wait(&mut self, path: &str, is: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let answer = self.get(path).await;
            if is(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path}: {} {}", answer.code, answer.text);
            tokio::task::yield_now().await;
        }
    }

    async fn define(&mut self) {
        let made = self.post(DEFINITIONS, &definition()).await;
        assert_eq!((made.code, made.warnings.len()), (201, 0), "{}", made.text);
        self.wait(TABS, |answer| answer.code == 200).await;
        // Served first, and said then.
        self.wait(DEFINITION, |answer| condition(&answer.body, "Established")["status"] == "True").await;
    }

    async fn make(&mut self, name: &str, spec: Value) -> Value {
        let made = self.post(TABS, &crontab(name, spec)).await;
        assert_eq!(made.code, 201, "{}", made.text);
        made.body
    }

    /// The lines of a watch that has begun, once it has ended.
    async fn watch(&self) -> tokio::task::JoinHandle<Vec<Value>> {
        let mut connection = self.credentials.connect(Identity::Admin).await;
        let asked = Request::get(format!("{TABS}?watch=1&timeoutSeconds=30")).header("host", "localhost");
        let answer = connection.send_request(asked.body(Body::empty()).unwrap()).await.unwrap();
        tokio::spawn(async move {
            let text = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await.unwrap();
            let text = std::str::from_utf8(&text).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        })
    }
}

async fn send(client: &mut Client, method: &str, path: &str, headers: &[(&'static str, &str)], body: &Value) -> Answer {
    let headers: Vec<(&'static str, String)> =
        headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(Identity::Admin, method, path, &headers, text.as_bytes()).await;
    let warnings =
        answer.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().replace('\\', "")).collect();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    Answer { code: answer.code, body: serde_json::from_str(&text).unwrap_or_default(), text, warnings }
}

fn definition() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/data/crontab.yaml");
    untyped(MediaType::Yaml, &std::fs::read(path).unwrap()).unwrap()
}

fn crontab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

fn condition<'a>(definition: &'a Value, name: &str) -> &'a Value {
    let mut conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_defined_kind_is_served_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path()).await;
    assert_eq!(world.get(TABS).await.code, 404);
    let before = world.get("/openapi/v3").await.text;
    world.define().await;
    let defined = world.get(DEFINITION).await.body;
    assert_eq!(condition(&defined, "NamesAccepted")["reason"], "NoConflicts");
    assert_eq!(condition(&defined, "Established")["reason"], "InitialNamesAccepted");
    assert_eq!(defined["status"]["acceptedNames"], defined["spec"]["names"]);
    assert_eq!(defined["status"]["storedVersions"], json!(["v1"]));

    let resources = world.get("/apis/stable.example.com/v1").await.body;
    let names: Vec<&Value> = resources["resources"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["crontabs", "crontabs/status", "crontabs/scale"]);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["ct"]));
    assert!(world.get("/apis").await.text.contains("stable.example.com"));
    assert_ne!(world.get("/openapi/v3").await.text, before, "documents are made anew");
    let document = world.get("/openapi/v3/apis/stable.example.com/v1").await.body;
    assert!(document["components"]["schemas"]["com.example.stable.v1.CronTab"].is_object());

    let made = world.make("one", json!({"cronSpec": "*", "color": "blue", "gone": 1})).await;
    assert_eq!(made["spec"], json!({"cronSpec": "*", "color": "blue", "replicas": 1, "note": "none"}));
    assert_eq!(made["metadata"]["generation"], 1);
    let strict =
        world.post(&format!("{TABS}?fieldValidation=Strict"), &crontab("x", json!({"cronSpec": "*", "gone": 1}))).await;
    assert!(strict.code == 400 && strict.text.contains("unknown field"), "{}", strict.text);
    let warned = world
        .post(&format!("{TABS}?fieldValidation=Warn&dryRun=All"), &crontab("x", json!({"cronSpec": "*", "gone": 1})))
        .await;
    assert_eq!((warned.code, &*warned.warnings[0]), (201, r#"299 - "unknown field "spec.gone"""#));
    let wrong = world.post(TABS, &crontab("x", json!({"cronSpec": "a b", "replicas": "many"}))).await;
    assert_eq!((wrong.code, &wrong.body["details"]["kind"]), (422, &json!("CronTab")), "{}", wrong.text);

    world.make("two", json!({"cronSpec": "*", "color": "red"})).await;
    let blue = world.get(&format!("{TABS}?fieldSelector=spec.color%3Dblue")).await.body;
    assert_eq!(blue["items"].as_array().unwrap().len(), 1);
    let table =
        world.send("GET", TABS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], &Value::Null).await.body;
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..3], [json!("one"), json!("*"), json!(1)]);

    let one = format!("{TABS}/one");
    let strategic = world.patch(&one, "strategic-merge-patch+json", &json!({})).await;
    assert!(strategic.code == 415 && strategic.text.contains("application/apply-patch+yaml"), "{}", strategic.text);
    let applied = json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": "one"}, "spec": {"tags": ["a"]}});
    let applied = world.patch(&format!("{one}?fieldManager=me"), "apply-patch+yaml", &applied).await;
    assert_eq!((applied.code, &applied.body["metadata"]["generation"]), (200, &json!(2)), "{}", applied.text);
    let removed = world.patch(&one, "json-patch+json", &json!([{"op": "remove", "path": "/spec/color"}])).await;
    assert!(removed.code == 200 && removed.body["spec"].get("color").is_none());
    let mut put = removed.body.clone();
    put["metadata"]["resourceVersion"] = Value::Null;
    let unversioned = world.send("PUT", &one, &[("content-type", "application/json")], &put).await;
    assert!(unversioned.text.contains("must be specified for an update"), "{}", unversioned.text);

    let status = json!({"spec": {"cronSpec": "+"}, "status": {"replicas": 4, "labelSelector": "a=b"}});
    let status = world.merge(&format!("{one}/status"), &status).await.body;
    assert_eq!((&status["spec"]["cronSpec"], &status["status"]["replicas"]), (&json!("*"), &json!(4)));
    let scale = world.get(&format!("{one}/scale")).await.body;
    assert_eq!((&scale["kind"], &scale["status"]), (&json!("Scale"), &json!({"replicas": 4, "selector": "a=b"})));
    let scaled = world.merge(&format!("{one}/scale"), &json!({"spec": {"replicas": 7}})).await.body;
    assert_eq!(scaled["spec"]["replicas"], 7);
    assert_eq!(world.get(&one).await.body["spec"]["replicas"], 7);
}

#[tokio::test]
async fn a_changed_definition_shows_its_objects_anew_and_ends_their_watches() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path()).await;
    world.define().await;
    let made = world.make("one", json!({"cronSpec": "*", "color": "blue"})).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let watch = world.watch().await;
    world.wait(&format!("{TABS}?resourceVersion=0"), |answer| answer.code == 200).await;
    let mut changed = world.get(DEFINITION).await.body;
    let schema = changed.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    schema["more"] = json!({"type": "string", "default": "filled in"});
    schema.as_object_mut().unwrap().remove("color");
    changed["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.more"}]);
    let put = world.send("PUT", DEFINITION, &[("content-type", "application/json")], &changed).await;
    assert_eq!(put.code, 200, "{}", put.text);
    let shown = world.get(&format!("{TABS}/one")).await.body;
    assert_eq!((&shown["spec"]["more"], shown["spec"].get("color")), (&json!("filled in"), None));
    assert_eq!(shown["metadata"]["resourceVersion"], json!(version), "it was not written");
    let found = world.get(&format!("{TABS}?fieldSelector=spec.more%3Dfilled+in")).await;
    assert_eq!(found.body["items"].as_array().map(Vec::len), Some(1), "{}", found.text);
    let old = world.get(&format!("{TABS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(old.code, 400, "{}", old.text);
    let lines = tokio::time::timeout(LIMIT, watch).await.expect("the watch ends").unwrap();
    assert!(lines.iter().all(|line| line["type"] == "ADDED"), "it ends without an error: {lines:?}");
    let late = world.get(&format!("{TABS}?watch=1&timeoutSeconds=1&resourceVersion={version}")).await;
    assert!(late.text.contains("too old resource version"), "{}", late.text);
}

#[tokio::test]
async fn a_deleted_definition_goes_when_its_objects_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path()).await;
    world.define().await;
    world.make("free", json!({"cronSpec": "*"})).await;
    let mut held = crontab("held", json!({"cronSpec": "*"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(world.post(TABS, &held).await.code, 201);
    let watch = world.watch().await;
    let going = world.send("DELETE", DEFINITION, &[], &Value::Null).await;
    assert_eq!(going.body["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert_eq!(condition(&going.body, "Terminating")["reason"], "InstanceDeletionPending");
    world
        .wait(DEFINITION, |answer| condition(&answer.body, "Terminating")["reason"] == "InstanceDeletionInProgress")
        .await;
    world.wait(&format!("{TABS}/free"), |answer| answer.code == 404).await;
    world.wait(&format!("{TABS}/held"), |answer| answer.body["metadata"]["deletionTimestamp"].is_string()).await;
    world
        .wait(DEFINITION, |answer| condition(&answer.body, "Terminating")["reason"] == "InstanceDeletionInProgress")
        .await;
    let late = world.post(TABS, &crontab("late", json!({"cronSpec": "*"}))).await;
    assert!(
        late.code == 403 && late.text.contains("create not allowed while custom resource definition is terminating"),
        "{}",
        late.text
    );
    let verbs = world.get("/apis/stable.example.com/v1").await.body["resources"][0]["verbs"].clone();
    assert_eq!(verbs, json!(["delete", "deletecollection", "get", "list", "watch"]));
    let freed = world.merge(&format!("{TABS}/held"), &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{}", freed.text);
    world.wait(DEFINITION, |answer| answer.code == 404).await;
    assert_eq!(world.get(TABS).await.code, 404);
    assert!(!world.get("/apis").await.text.contains("stable.example.com"));
    let lines = tokio::time::timeout(LIMIT, watch).await.expect("the watch ends").unwrap();
    assert_eq!(lines.iter().filter(|line| line["type"] == "DELETED").count(), 2, "{lines:?}");
    world.define().await;
    assert_eq!(world.get(TABS).await.body["items"], json!([]));
}

#[tokio::test]
async fn a_defined_kind_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path()).await;
    world.define().await;
    world.make("one", json!({"cronSpec": "*", "color": "blue"})).await;
    drop(world);
    let mut world = loop {
        // The store is let go with the last connection.
        match tokio::time::timeout(
            LIMIT,
            tokio::spawn({
                let path = folder.path().to_owned();
                async move { World::start(&path).await }
            }),
        )
        .await
        .unwrap()
        {
            Ok(world) => break world,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let found = world.get(&format!("{TABS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!((found.code, found.body["items"].as_array().map(Vec::len)), (200, Some(1)), "{}", found.text);
    let table =
        world.send("GET", TABS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], &Value::Null).await.body;
    assert_eq!(table["columnDefinitions"][1]["name"], "Spec");
    world.make("two", json!({"cronSpec": "*"})).await;
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path()).await;
    let mut with_rules = definition();
    with_rules["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.replicas > 0"}]);
    let made = world.post(&format!("{DEFINITIONS}?dryRun=All"), &with_rules).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert!(
        made.warnings.iter().any(|text| text.contains("x-kubernetes-validations are not acted on yet")),
        "{:?}",
        made.warnings
    );
    let mut selects = definition();
    selects["spec"]["versions"][0]["selectableFields"] =
        json!([{"jsonPath": ".spec.rules"}, {"jsonPath": ".spec.none"}]);
    let refused = world.post(DEFINITIONS, &selects).await;
    assert!(refused.text.contains("must point to a field of type string, boolean or integer"), "{}", refused.text);
}
