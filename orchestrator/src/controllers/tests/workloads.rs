//! Jobs, CronJobs, DaemonSets and StatefulSets against a real server: somebody plays the nodes.

use super::*;
use crate::controllers::job::JOBS;
use crate::controllers::revisions::REVISIONS;
use crate::controllers::views::NODES;

const CRON_JOBS: Resource = Resource::new("batch", "cronjobs");
const DAEMON_SETS: Resource = Resource::new("apps", "daemonsets");
const STATEFUL_SETS: Resource = Resource::new("apps", "statefulsets");
const CLAIMS: Resource = Resource::core("persistentvolumeclaims");

/// What becomes of pods that nobody looked at yet.
type Fate = fn(&Value) -> &'static str;

impl World {
    /// Plays the nodes: each new pod runs and is ready, or has ended, as it says.
    fn play_nodes(&self, fate: Fate) -> tokio::task::JoinHandle<()> {
        let client = self.client.clone();
        tokio::spawn(async move {
            loop {
                let pods = client.list(&PODS, "", &Selector::default()).await.unwrap();
                for pod in pods.items.iter().map(client::Item::value) {
                    if pod["status"]["phase"] != "Pending" {
                        continue;
                    }
                    let text = |field: &str| pod["metadata"][field].as_str().unwrap().to_owned();
                    let phase = fate(&pod);
                    let ready = json!([{"type": "Ready", "status": if phase == "Running" { "True" } else { "False" },
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
                    let ended = json!({"terminated": {"exitCode": i32::from(phase == "Failed"), "finishedAt": api::time::rfc3339(Timestamp::now())}});
                    let state = if phase == "Running" { json!({"running": {}}) } else { ended };
                    let statuses = json!([{"name": "c", "image": "i", "imageID": "", "ready": phase == "Running", "restartCount": 0, "state": state}]);
                    let status = json!({"phase": phase, "conditions": ready, "containerStatuses": statuses});
                    let patch = json!({"status": status});
                    match client.patch(&PODS, &text("namespace"), &text("name"), "status", &patch).await {
                        Err(status) if status.code != 404 => panic!("{status}"),
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    async fn all(&self, resource: &Resource, labels: &str) -> Vec<Value> {
        let selector = Selector { labels: labels.into(), ..Selector::default() };
        let all = self.client.list(resource, "default", &selector).await.unwrap();
        all.items.iter().map(client::Item::value).collect()
    }

    async fn names(&self, resource: &Resource, labels: &str) -> Vec<String> {
        self.all(resource, labels)
            .await
            .iter()
            .map(|one| one["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn reasons(&self, name: &str) -> Vec<String> {
        let events = self.all(&Resource::core("events"), "").await;
        let about = events.iter().filter(|event| event["involvedObject"]["name"] == name);
        about
            .map(|event| format!("{}: {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect()
    }
}

fn pods(labels: &Value, policy: &str) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}})
}

fn job(name: &str, more: Value) -> Value {
    let mut spec = json!({"template": pods(&json!({"job": name}), "Never")});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn holds(object: &Value, type_: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().any(|condition| condition["type"] == type_ && condition["status"] == "True")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_to_its_end_and_counts_each_pod_once() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Succeeded");
    world.make(JOBS, "default", job("plain", json!({"completions": 7, "parallelism": 3}))).await;
    let indexed = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"});
    world.make(JOBS, "default", job("indexed", indexed)).await;
    let plain = world.becomes(JOBS, ("default", "plain"), |job| holds(job, "Complete")).await;
    let status = &plain["status"];
    assert_eq!((&status["succeeded"], &status["active"], &status["failed"]), (&json!(7), &Value::Null, &Value::Null));
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    assert!(status["completionTime"].is_string() && status["startTime"].is_string(), "{status}");
    let why: Vec<_> =
        status["conditions"].as_array().unwrap().iter().map(|one| (&one["type"], &one["reason"])).collect();
    let (met, complete, reason) = (json!("SuccessCriteriaMet"), json!("Complete"), json!("CompletionsReached"));
    assert_eq!(why, [(&met, &reason), (&complete, &reason)]);
    let indexed = world.becomes(JOBS, ("default", "indexed"), |job| holds(job, "Complete")).await;
    assert_eq!((&indexed["status"]["completedIndexes"], &indexed["status"]["succeeded"]), (&json!("0-3"), &json!(4)));
    let left = world.all(&PODS, "").await;
    assert_eq!(left.len(), 11);
    assert!(left.iter().all(|pod| pod["metadata"]["finalizers"].is_null()), "{left:?}");
    let hosts: Vec<_> =
        world.all(&PODS, "job=indexed").await.iter().map(|pod| pod["spec"]["hostname"].clone()).collect();
    assert!((0..4).all(|index| hosts.contains(&json!(format!("indexed-{index}")))), "{hosts:?}");
    let reasons = world.reasons("plain").await;
    assert!(reasons.contains(&"Completed: Job completed".to_owned()), "{reasons:?}");
    nodes.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_says_why_and_goes_when_its_time_is_over() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Failed");
    world.make(JOBS, "default", job("bad", json!({"backoffLimit": 1, "parallelism": 2, "completions": 2}))).await;
    let bad = world.becomes(JOBS, ("default", "bad"), |job| holds(job, "Failed")).await;
    assert_eq!(
        (&bad["status"]["failed"], &bad["status"]["conditions"][1]["reason"]),
        (&json!(2), &json!("BackoffLimitExceeded"))
    );
    let patch = json!({"spec": {"ttlSecondsAfterFinished": 0}});
    world.client.patch(&JOBS, "default", "bad", "", &patch).await.unwrap();
    world.gone(JOBS, ("default", "bad")).await;
    assert!(world.all(&PODS, "job=bad").await.is_empty(), "its pods went before it");
    nodes.abort();
}

/// Its pods wait for it to be counted, and it is gone: they go all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_job_that_is_gone_are_let_go() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Running");
    world.make(JOBS, "default", job("long", json!({"parallelism": 2, "completions": 2}))).await;
    world.becomes(JOBS, ("default", "long"), |job| job["status"]["ready"] == 2).await;
    let held = world.all(&PODS, "job=long").await;
    assert!(held.iter().all(|pod| pod["metadata"]["finalizers"] == json!(["batch.kubernetes.io/job-tracking"])));
    let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    world.client.delete(&JOBS, "default", "long", &background).await.unwrap();
    let empty = || async {
        if world.all(&PODS, "job=long").await.is_empty() { Ok(()) } else { Err(Status::internal("not yet")) }
    };
    world.until("the end of its pods", empty).await;
    // Orphans stay, and wait for nobody.
    world.make(JOBS, "default", job("left", json!({}))).await;
    world.becomes(JOBS, ("default", "left"), |job| job["status"]["ready"] == 1).await;
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    world.client.delete(&JOBS, "default", "left", &orphan).await.unwrap();
    let free = || async {
        let left = world.all(&PODS, "job=left").await;
        let free = left.len() == 1 && left[0]["metadata"]["finalizers"].is_null();
        if free { Ok(()) } else { Err(Status::internal("not yet")) }
    };
    world.until("its orphan is free", free).await;
    nodes.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_has_no_pods_and_goes_on_later() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Running");
    world.make(JOBS, "default", job("later", json!({"suspend": true, "parallelism": 2, "completions": 2}))).await;
    let held = world.becomes(JOBS, ("default", "later"), |job| holds(job, "Suspended")).await;
    assert!(held["status"]["startTime"].is_null());
    let suspend = async |yes: bool| {
        world.client.patch(&JOBS, "default", "later", "", &json!({"spec": {"suspend": yes}})).await.unwrap();
    };
    suspend(false).await;
    world.becomes(JOBS, ("default", "later"), |job| job["status"]["ready"] == 2 && !holds(job, "Suspended")).await;
    suspend(true).await;
    let again = world
        .becomes(JOBS, ("default", "later"), |job| {
            holds(job, "Suspended") && job["status"]["active"].is_null() && job["status"]["terminating"] == 0
        })
        .await;
    assert!(again["status"]["failed"].is_null(), "nobody failed: {again}");
    nodes.abort();
}

/// Short Jobs, twenty at a time: nothing of them is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_short_jobs_leave_nothing_behind() {
    const JOBS_AT_ALL: usize = 500;
    const AT_A_TIME: usize = 20;
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Succeeded");
    let one = |index: usize| {
        let world = &world;
        async move {
            let name = format!("short-{index}");
            world.make(JOBS, "default", job(&name, json!({"ttlSecondsAfterFinished": 0}))).await;
            world.gone(JOBS, ("default", &name)).await;
        }
    };
    let all = futures::stream::iter((0..JOBS_AT_ALL).map(one));
    futures::StreamExt::for_each_concurrent(all, AT_A_TIME, |job| job).await;
    assert!(world.all(&PODS, "").await.is_empty() && world.all(&JOBS, "").await.is_empty());
    nodes.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_follows_its_jobs() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Succeeded");
    let template = json!({"spec": {"template": pods(&json!({"cron": "a"}), "Never")}});
    let spec = json!({"schedule": "0 0 1 1 *", "jobTemplate": template, "successfulJobsHistoryLimit": 1});
    let cron = world.make(CRON_JOBS, "default", json!({"metadata": {"name": "tick"}, "spec": spec})).await;
    // As `kubectl create job --from` makes them.
    let owner = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": cron["metadata"]["uid"], "controller": true}]);
    for name in ["first", "second"] {
        let metadata = json!({"name": name, "ownerReferences": owner, "annotations": {"cronjob.kubernetes.io/instantiate": "manual"}});
        world.make(JOBS, "default", json!({"metadata": metadata, "spec": template["spec"]})).await;
    }
    let one = || async {
        let left = world.names(&JOBS, "").await;
        if left.len() == 1 { Ok(left) } else { Err(Status::internal("not yet")) }
    };
    world.until("one of them is kept", one).await;
    let seen =
        world.becomes(CRON_JOBS, ("default", "tick"), |cron| cron["status"]["lastSuccessfulTime"].is_string()).await;
    assert!(seen["status"]["lastScheduleTime"].is_null(), "its own time has not come");
    let reasons = world.reasons("tick").await;
    assert!(reasons.iter().any(|reason| reason.starts_with("SuccessfulDelete: Deleted job ")), "{reasons:?}");
    nodes.abort();
}

/// The template's patch that a revision holds, applied as `kubectl rollout undo` does.
async fn undo(world: &World, resource: &Resource, name: &str, number: i64) {
    let all = world.all(&REVISIONS, "").await;
    let found = all.iter().find(|revision| revision["revision"] == number).unwrap_or_else(|| panic!("{all:?}"));
    let data = found["data"].clone();
    let change = |current: &Value| {
        let mut next = current.clone();
        next["spec"]["template"] = data["spec"]["template"].clone();
        next["spec"]["template"].as_object_mut().unwrap().remove("$patch");
        Ok(next)
    };
    world.client.update(resource, "default", name, "", change).await.unwrap();
}

async fn change_image(world: &World, resource: &Resource, name: &str) {
    let change = |current: &Value| {
        let mut next = current.clone();
        next["spec"]["template"]["spec"]["containers"][0]["image"] = json!("j");
        Ok(next)
    };
    world.client.update(resource, "default", name, "", change).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_is_on_each_node_and_rolls() {
    // Nobody renews these nodes.
    let world = World::of(&["*", "-scheduler", "-node-lifecycle-controller"]).await;
    let nodes = world.play_nodes(|_| "Running");
    for name in ["a", "b"] {
        world.make(NODES, "", json!({"metadata": {"name": name}})).await;
        world.client.patch(&NODES, "", name, "", &json!({"spec": {"taints": null}})).await.unwrap();
    }
    let labels = json!({"app": "agent"});
    let spec = json!({"selector": {"matchLabels": labels}, "template": pods(&labels, "Always")});
    world.make(DAEMON_SETS, "default", json!({"metadata": {"name": "agent"}, "spec": spec})).await;
    let rolled = |set: &Value| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && (&status["updatedNumberScheduled"], &status["numberAvailable"]) == (&json!(2), &json!(2))
    };
    world.becomes(DAEMON_SETS, ("default", "agent"), rolled).await;
    let first: Vec<_> = world.all(&PODS, "app=agent").await;
    let tolerated = first[0]["spec"]["tolerations"].to_string();
    assert!(tolerated.contains("node.kubernetes.io/unschedulable"), "{tolerated}");
    change_image(&world, &DAEMON_SETS, "agent").await;
    world.becomes(DAEMON_SETS, ("default", "agent"), rolled).await;
    let images: Vec<_> =
        world.all(&PODS, "app=agent").await.iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert_eq!(images, [json!("j"), json!("j")]);
    undo(&world, &DAEMON_SETS, "agent", 1).await;
    world.becomes(DAEMON_SETS, ("default", "agent"), rolled).await;
    let mut numbers: Vec<_> =
        world.all(&REVISIONS, "").await.iter().map(|revision| revision["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "the first is the third again");
    world.client.delete(&NODES, "", "b", &DeleteOptions::default()).await.unwrap();
    world.becomes(DAEMON_SETS, ("default", "agent"), |set| set["status"]["desiredNumberScheduled"] == 1).await;
    nodes.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_names_and_claims_and_rolls_from_its_end() {
    let world = World::new().await;
    let nodes = world.play_nodes(|_| "Running");
    let labels = json!({"app": "web"});
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]);
    let spec = json!({"replicas": 3, "serviceName": "peers", "selector": {"matchLabels": labels}, "template": pods(&labels, "Always"),
        "volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"}});
    world.make(STATEFUL_SETS, "default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let settled = |set: &Value| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["currentRevision"] == status["updateRevision"]
            && ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"]
                .iter()
                .all(|field| status[*field] == set["spec"]["replicas"])
    };
    let first = world.becomes(STATEFUL_SETS, ("default", "web"), settled).await;
    assert_eq!(world.names(&PODS, "app=web").await, ["web-0", "web-1", "web-2"]);
    assert_eq!(world.names(&CLAIMS, "app=web").await, ["data-web-0", "data-web-1", "data-web-2"]);
    change_image(&world, &STATEFUL_SETS, "web").await;
    let second = world.becomes(STATEFUL_SETS, ("default", "web"), settled).await;
    assert_ne!(first["status"]["currentRevision"], second["status"]["currentRevision"]);
    assert!(world.all(&PODS, "app=web").await.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "j"));
    undo(&world, &STATEFUL_SETS, "web", 1).await;
    let third = world.becomes(STATEFUL_SETS, ("default", "web"), settled).await;
    assert_eq!(first["status"]["currentRevision"], third["status"]["currentRevision"]);
    world.client.patch(&STATEFUL_SETS, "default", "web", "", &json!({"spec": {"replicas": 1}})).await.unwrap();
    world.becomes(STATEFUL_SETS, ("default", "web"), settled).await;
    let claims = || async {
        let left = world.names(&CLAIMS, "").await;
        if left == ["data-web-0"] { Ok(()) } else { Err(Status::internal(format!("{left:?}"))) }
    };
    world.until("claims of the pods that went", claims).await;
    nodes.abort();
}
