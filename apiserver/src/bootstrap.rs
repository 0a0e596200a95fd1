//! What a fresh cluster holds: namespaces, priority classes, the default roles and bindings of Kubernetes v1.34.
//!
//! `data/bootstrap.jsonl` holds one object a line, as a v1.34.3 server shows them after its first start (without what
//! it generates). To renew it, list those kinds from a fresh server of the newer version and drop the generated fields.

use api::status::Status;
use serde_json::{Value, json};

use crate::engine::{Context, Draft, Engine, Target, WriteOptions};
use crate::identity::{MASTERS, User};

const OBJECTS: &str = include_str!("../data/bootstrap.jsonl");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Creates what is missing and brings default roles back to their rules; safe at every start.
pub async fn run(engine: &Engine) -> Result<(), Status> {
    let context = Context { user: User::new("system:apiserver", &[MASTERS]), now: jiff::Timestamp::now() };
    let options = WriteOptions { manager: "kube-apiserver".into(), dry_run: false };
    for line in OBJECTS.lines() {
        let object: Value =
            serde_json::from_str(line).map_err(|error| Status::internal(format!("built-in object: {error}")))?;
        let target = target(engine, &object)?;
        match engine.find(&target) {
            Err(_) => match engine.create(&context, &target, &options, object).await {
                // Another server starts too.
                Err(status) if status.reason == "AlreadyExists" => {}
                created => drop(created?),
            },
            Ok(found) => reconcile(engine, &context, &target, &options, &found.value(), &object).await?,
        }
    }
    crate::aggregation::aggregate(engine).await
}

/// The row and place of a complete object.
pub fn target(engine: &Engine, object: &Value) -> Result<Target, Status> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let row = engine.registry().find_kind(group, version, kind);
    let row = row.ok_or_else(|| Status::internal(format!("no kind {kind} in {api_version}")))?;
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Ok(Target::new(row, text("namespace"), text("name")))
}

/// A default role that was changed gets its rules and subjects back, unless its owner opted out.
async fn reconcile(
    engine: &Engine,
    context: &Context,
    target: &Target,
    options: &WriteOptions,
    found: &Value,
    wanted: &Value,
) -> Result<(), Status> {
    if found["metadata"]["annotations"][AUTO_UPDATE] != json!("true") {
        return Ok(());
    }
    // The rules of an aggregated role are those of others.
    let aggregated = wanted.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    let fields: &[&str] = if aggregated { &["aggregationRule"] } else { &["rules", "subjects", "aggregationRule"] };
    if fields.iter().all(|field| found.get(*field) == wanted.get(*field)) {
        return Ok(());
    }
    let restore = |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        for field in fields.iter().copied() {
            if let Some(value) = wanted.get(field) {
                next[field] = value.clone();
            }
        }
        Ok(Draft::Update(next))
    };
    engine.update(context, target, options, &restore).await.map(drop)
}
