//! What many changes leave in memory: while they come, and when all has been quiet for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::Server;
use super::resources::on_all;
use crate::http::{Api, Connection, create_all};
use crate::report::{Goal, Report, Row};

/// Changes in all, over this long.
const CHANGES: usize = 100_000;
pub const BUSY: Duration = Duration::from_secs(300);
const QUIET: Duration = Duration::from_secs(360);
/// Objects of each kind.
const OBJECTS: usize = 100;
/// Text in each object, bytes: with its metadata about 400.
const TEXT: usize = 150;
const CONNECTIONS: usize = 8;

pub fn run(report: &mut Report) -> Result<()> {
    let server = Server::start(&[])?;
    let api = server.api()?;
    on_all(prepare(&api))?;
    std::thread::sleep(Duration::from_secs(10));
    let before = server.resident()?;
    let changing = {
        let api = api.clone();
        std::thread::spawn(move || on_all(change(&api, BUSY)))
    };
    let mut most = before;
    while !changing.is_finished() {
        std::thread::sleep(Duration::from_secs(1));
        most = most.max(server.resident()?);
    }
    let made = crate::host::join(changing)?;
    println!("  {made} changes, {} minutes of quiet", QUIET.as_secs() / 60);
    std::thread::sleep(QUIET);
    let after = server.resident()?;
    report.note(format!(
        "{made} changes of 400-byte objects of {} kinds in {} s, then {} s of quiet; memory of the server alone (PSS)",
        KINDS.len(),
        BUSY.as_secs(),
        QUIET.as_secs()
    ));
    report.row(Row::new("resident before the changes", before, "MiB"));
    report.row(Row::new("resident during the changes, most", most, "MiB").goal(Goal::ValueAtMost(120.0)));
    report.row(Row::new("resident after, above before", after - before, "MiB").goal(Goal::ValueAtMost(20.0)));
    Ok(())
}

/// Path of a kind's objects, what they are, and what is in them.
struct Kind {
    path: &'static str,
    version: &'static str,
    kind: &'static str,
    body: fn(String) -> Value,
}

const fn kind(path: &'static str, version: &'static str, kind: &'static str, body: fn(String) -> Value) -> Kind {
    Kind { path, version, kind, body }
}

const KINDS: [Kind; 10] = [
    kind("/api/v1/namespaces/default/configmaps", "v1", "ConfigMap", |text| json!({"data": {"text": text}})),
    kind("/api/v1/namespaces/default/secrets", "v1", "Secret", |text| json!({"stringData": {"text": text}})),
    kind("/api/v1/namespaces/default/serviceaccounts", "v1", "ServiceAccount", annotated),
    kind(
        "/api/v1/namespaces/default/limitranges",
        "v1",
        "LimitRange",
        |text| json!({"metadata": {"annotations": {"text": text}}, "spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}),
    ),
    kind("/api/v1/namespaces/default/podtemplates", "v1", "PodTemplate", |text| {
        json!({"metadata": {"annotations": {"text": text}},
            "template": {"spec": {"containers": [{"name": "main", "image": "busybox"}]}}})
    }),
    kind(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
        "rbac.authorization.k8s.io/v1",
        "Role",
        annotated,
    ),
    kind("/apis/rbac.authorization.k8s.io/v1/clusterroles", "rbac.authorization.k8s.io/v1", "ClusterRole", annotated),
    kind(
        "/api/v1/namespaces/default/resourcequotas",
        "v1",
        "ResourceQuota",
        |text| json!({"metadata": {"annotations": {"text": text}}, "spec": {"hard": {"pods": "1000"}}}),
    ),
    kind(
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        "scheduling.k8s.io/v1",
        "PriorityClass",
        |text| json!({"value": 1, "metadata": {"annotations": {"text": text}}}),
    ),
    kind(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        "discovery.k8s.io/v1",
        "EndpointSlice",
        |text| json!({"metadata": {"annotations": {"text": text}}, "addressType": "IPv4", "endpoints": []}),
    ),
];

fn annotated(text: String) -> Value {
    json!({"metadata": {"annotations": {"text": text}}})
}

fn name(index: usize) -> String {
    format!("object-{index:03}")
}

fn object(kind: &Kind, index: usize, count: usize) -> Value {
    let mut object = (kind.body)(format!("{count:0>TEXT$}"));
    object["apiVersion"] = kind.version.into();
    object["kind"] = kind.kind.into();
    object["metadata"]["name"] = name(index).into();
    object
}

/// Makes the objects that are changed later.
pub async fn prepare(api: &Api) -> Result<()> {
    for kind in &KINDS {
        create_all(api, kind.path, (0..OBJECTS).map(|index| object(kind, index, 0)).collect()).await?;
    }
    Ok(())
}

/// Changes objects at the rate for this long; how many changes were made.
pub async fn change(api: &Api, time: Duration) -> Result<usize> {
    let all = (CHANGES as f64 * time.as_secs_f64() / BUSY.as_secs_f64()) as usize;
    let next = Arc::new(AtomicUsize::new(1));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut connection, next): (Connection, _) = (api.connect().await?, next.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let count = next.fetch_add(1, Ordering::Relaxed);
                if count > all {
                    return anyhow::Ok(());
                }
                let due = began + time.mul_f64(count as f64 / all as f64);
                tokio::time::sleep_until(due.into()).await;
                let (kind, index) = (&KINDS[count % KINDS.len()], count / KINDS.len() % OBJECTS);
                let path = format!("{}/{}", kind.path, name(index));
                connection.call("PUT", &path, object(kind, index, count).to_string().into()).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(all)
}
