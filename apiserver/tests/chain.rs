//! The admission chain as a member sees it: every request once, with what is and what is to be.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::{Arc, Mutex};

use api::status::Status;
use apiserver::admission::{Acts, Cluster, Member, Operation, Options, Pass, Resources, Review, Row};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Notify;

#[path = "replay/world.rs"]
#[expect(dead_code, reason = "a replay asks without a certificate too")]
mod world;

use world::{Answer, World, send, send_as};

const EVERY: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];
/// Whose requests are looked at: nobody else's get in between.
const WATCHED: &str = "alice";

fn row(acts: Acts, member: impl Member + 'static) -> Row {
    Row { name: "Test", operations: EVERY, resources: Resources::All, acts, member: Box::leak(Box::new(member)) }
}

async fn world(rows: Vec<Row>) -> (World, world::client::Client) {
    let world = World::with(|config| config.admission.members = rows).await;
    let alice = world.server.client(WATCHED, "system:masters");
    (world, alice)
}

fn watched(review: &Review<'_>) -> bool {
    review.context.user.name == WATCHED
}

/// Writes down what it is told.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, phase: &str, review: &Review<'_>) {
        let of = |object: Option<&Value>| {
            object.map_or("-".to_owned(), |object| object["kind"].as_str().unwrap_or("?").to_owned())
        };
        let target = review.target;
        let part = target.part.map_or(String::new(), |part| format!("/{}", part.name()));
        let options = match review.options {
            Options::Write(options) => format!("write by {:?}", options.manager),
            Options::Delete(options) => format!("delete after {:?}", options.grace_seconds),
            Options::None => "none".into(),
        };
        self.0.lock().unwrap().push(format!(
            "{phase} {} {}{part} {} {}/{} old={} new={} options={options}{}",
            review.operation.name(),
            target.kind.plural,
            review.kind().kind,
            review.namespace(),
            review.name(),
            of(review.old),
            of(Some(&review.object).filter(|object| !object.is_null())),
            if review.dry_run() { " dry run" } else { "" },
        ));
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Member for Recorder {
    fn concerns(&self, review: &Review<'_>) -> bool {
        watched(review)
    }

    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        self.note("mutate", review);
        Ok(())
    }

    async fn validate(&self, _: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        self.note("validate", review);
        Ok(vec![format!("seen: {}", review.operation.name())])
    }
}

fn config_map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn every_request_is_seen_once_with_what_is_and_what_is_to_be() {
    let recorder = Recorder::default();
    let (mut world, mut alice) = world(vec![row(Acts::Both, recorder.clone())]).await;
    let deployment = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    for (path, object) in [(deployments, deployment), (PODS, pod("p")), (MAPS, config_map("b"))] {
        assert_eq!(world.admin("POST", path, object).await.code, 201);
    }
    let mut changed = config_map("a");
    changed["data"]["a"] = json!("c");
    let mut generated = config_map("");
    generated["metadata"] = json!({"generateName": "x-"});
    let access = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let token = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "m"}});
    let write = "options=write by \"unknown\"";
    let (a, p) = (format!("{MAPS}/a"), format!("{PODS}/p"));
    for (method, path, body, code, seen) in [
        (
            "POST",
            MAPS.to_owned(),
            config_map("a"),
            201,
            format!("CREATE configmaps ConfigMap default/a old=- new=ConfigMap {write}"),
        ),
        (
            "POST",
            format!("{MAPS}?dryRun=All"),
            config_map("z"),
            201,
            format!("CREATE configmaps ConfigMap default/z old=- new=ConfigMap {write} dry run"),
        ),
        ("GET", a.clone(), Value::Null, 200, String::new()),
        (
            "PUT",
            a.clone(),
            changed,
            200,
            format!("UPDATE configmaps ConfigMap default/a old=ConfigMap new=ConfigMap {write}"),
        ),
        (
            "PATCH",
            a.clone(),
            json!({"data": {"a": "d"}}),
            200,
            format!("UPDATE configmaps ConfigMap default/a old=ConfigMap new=ConfigMap {write}"),
        ),
        (
            "DELETE",
            a,
            Value::Null,
            200,
            "DELETE configmaps ConfigMap default/a old=ConfigMap new=- options=delete after None".into(),
        ),
        (
            "PATCH",
            format!("{deployments}/d/scale"),
            json!({"spec": {"replicas": 3}}),
            200,
            format!("UPDATE deployments/scale Scale default/d old=Scale new=Scale {write}"),
        ),
        (
            "PATCH",
            format!("{p}/status"),
            json!({"status": {"phase": "Running"}}),
            200,
            format!("UPDATE pods/status Pod default/p old=Pod new=Pod {write}"),
        ),
        (
            "POST",
            format!("{p}/binding"),
            binding,
            409,
            format!("CREATE pods/binding Binding default/p old=- new=Binding {write}"),
        ),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token".into(),
            token,
            201,
            format!("CREATE serviceaccounts/token TokenRequest default/default old=- new=TokenRequest {write}"),
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".into(),
            access,
            201,
            format!(
                "CREATE selfsubjectaccessreviews SelfSubjectAccessReview / old=- new=SelfSubjectAccessReview {write}"
            ),
        ),
        ("GET", format!("{p}/log"), Value::Null, 500, String::new()),
        (
            "GET",
            format!("{p}/exec?command=id&container=c&stdout=true"),
            Value::Null,
            400,
            "CONNECT pods/exec PodExecOptions default/p old=- new=PodExecOptions options=none".into(),
        ),
        (
            "POST",
            format!("{p}/attach?container=c"),
            Value::Null,
            400,
            "CONNECT pods/attach PodAttachOptions default/p old=- new=PodAttachOptions options=none".into(),
        ),
        (
            "GET",
            format!("{p}/portforward?ports=80"),
            Value::Null,
            400,
            "CONNECT pods/portforward PodPortForwardOptions default/p old=- new=PodPortForwardOptions options=none"
                .into(),
        ),
        (
            "GET",
            format!("{PODS}/p:80/proxy/x"),
            Value::Null,
            400,
            "CONNECT pods/proxy PodProxyOptions default/p:80 old=- new=PodProxyOptions options=none".into(),
        ),
        (
            "GET",
            "/api/v1/namespaces/default/services/s:80/proxy/".into(),
            Value::Null,
            404,
            "CONNECT services/proxy ServiceProxyOptions default/s:80 old=- new=ServiceProxyOptions options=none".into(),
        ),
        (
            "POST",
            format!("{p}/eviction"),
            eviction,
            201,
            format!("CREATE pods/eviction Eviction default/p old=- new=Eviction {write}"),
        ),
        (
            "DELETE",
            format!("{MAPS}?fieldSelector=metadata.name%3Db"),
            Value::Null,
            200,
            "DELETE configmaps ConfigMap default/ old=ConfigMap new=- options=delete after None".into(),
        ),
    ] {
        let answer = send(&mut alice, method, &path, body).await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.message());
        let want: Vec<String> = match &*seen {
            "" => Vec::new(),
            seen => ["mutate", "validate"].map(|phase| format!("{phase} {seen}")).into(),
        };
        assert_eq!(recorder.taken(), want, "{method} {path}");
        if code < 300 && !seen.is_empty() && !path.contains("fieldSelector") && !path.contains("scale") {
            assert!(
                answer.warnings.iter().any(|text| text.starts_with("seen: ")),
                "{method} {path}: {:?}",
                answer.warnings
            );
        }
    }
    assert_eq!(send(&mut alice, "POST", MAPS, generated).await.code, 201);
    let seen = recorder.taken();
    assert!(seen[0].contains(" default/ old") && seen[1].contains(" default/x-"), "named between: {seen:?}");
    let apply = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "applied"}});
    let applied = format!("{MAPS}/applied?fieldManager=m");
    for want in ["CREATE", "UPDATE"] {
        let answer = send_as(&mut alice, "PATCH", &applied, "application/apply-patch+yaml", apply.clone()).await;
        assert!(answer.code < 300, "{}", answer.message());
        let seen = recorder.taken();
        assert!(seen.len() == 2 && seen.iter().all(|line| line.contains(want)), "{seen:?}");
    }
}

/// Counts how often it was asked, in the object itself.
#[derive(Debug)]
struct Counter;

#[async_trait]
impl Member for Counter {
    fn concerns(&self, review: &Review<'_>) -> bool {
        watched(review)
    }

    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        let data = &mut review.object["data"];
        data["counted"] = json!(format!("{}+", data["counted"].as_str().unwrap_or_default()));
        Ok(())
    }
}

/// Changes objects late, and has everybody look again.
#[derive(Debug)]
struct Late;

#[async_trait]
impl Member for Late {
    fn concerns(&self, review: &Review<'_>) -> bool {
        watched(review) && review.pass == Pass::First
    }

    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        if review.name() == "late" {
            review.object["data"]["late"] = json!("1");
            review.ask_again();
        }
        Ok(())
    }
}

#[tokio::test]
async fn who_was_asked_before_a_late_change_is_asked_again_once() {
    let (_world, mut alice) = world(vec![row(Acts::Mutates, Counter), row(Acts::Mutates, Late)]).await;
    let counted = |answer: Answer| answer.body["data"]["counted"].as_str().unwrap_or_default().to_owned();
    assert_eq!(counted(send(&mut alice, "POST", MAPS, config_map("early")).await), "+");
    assert_eq!(counted(send(&mut alice, "POST", MAPS, config_map("late")).await), "++");
}

/// Takes its time over the first update that it sees.
#[derive(Debug, Clone, Default)]
struct Slow {
    olds: Arc<Mutex<Vec<Value>>>,
    waits: Arc<Notify>,
    go: Arc<Notify>,
}

#[async_trait]
impl Member for Slow {
    fn concerns(&self, review: &Review<'_>) -> bool {
        watched(review) && review.operation == Operation::Update
    }

    async fn mutate(&self, _: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        let first = {
            let mut olds = self.olds.lock().unwrap();
            olds.push(review.old.unwrap()["data"].clone());
            olds.len() == 1
        };
        if first {
            self.waits.notify_one();
            self.go.notified().await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_changed_while_a_member_waited_is_patched_again() {
    let slow = Slow::default();
    let (mut world, mut alice) = world(vec![row(Acts::Mutates, slow.clone())]).await;
    assert_eq!(world.admin("POST", MAPS, config_map("a")).await.code, 201);
    let path = format!("{MAPS}/a");
    let patch = tokio::spawn({
        let path = path.clone();
        async move { send(&mut alice, "PATCH", &path, json!({"data": {"mine": "1"}})).await }
    });
    slow.waits.notified().await;
    let between = world.admin("PATCH", &path, json!({"data": {"theirs": "1"}})).await;
    assert_eq!(between.code, 200, "nobody waits for whoever waits");
    slow.go.notify_one();
    let patched = patch.await.unwrap();
    assert_eq!((patched.code, &patched.body["data"]), (200, &json!({"a": "b", "mine": "1", "theirs": "1"})));
    assert_eq!(*slow.olds.lock().unwrap(), [json!({"a": "b"}), json!({"a": "b", "theirs": "1"})]);
}
