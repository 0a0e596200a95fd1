//! What a fresh cluster holds: namespaces, priority classes, the default roles and bindings of Kubernetes v1.34, its
//! flow schemas and priority levels, and the range of the Services' addresses.
//!
//! `data/bootstrap.jsonl` holds one object a line, as a v1.34.3 server shows them after its first start (without what
//! it generates); `data/own.jsonl` what Amphipod adds. To renew the first, list those kinds from a fresh server of the newer version and drop the generated fields.

use api::conditions::{self, Condition};
use api::kind::Part;
use api::status::Status;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use crate::engine::{Context, Draft, Engine, Target, WriteOptions};

const OBJECTS: &str = concat!(include_str!("../data/bootstrap.jsonl"), include_str!("../data/own.jsonl"));
/// Who is annotated `true` gets what the server wants back: roles as a whole, flow control's objects their spec.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AUTO_UPDATE_SPEC: &str = "apf.kubernetes.io/autoupdate-spec";

/// Objects on their way at a time: the store commits in one go what waits for it.
const AT_ONCE: usize = 64;

/// Creates what is missing and brings default roles back to their rules; safe at every start.
pub async fn run(engine: &Engine) -> Result<(), Status> {
    let context = Context::of_server();
    let options = WriteOptions { manager: "kube-apiserver".into(), dry_run: false };
    let parsed = |line| serde_json::from_str(line).map_err(|why| Status::internal(format!("built-in object: {why}")));
    let objects: Vec<Value> = OBJECTS.lines().map(parsed).collect::<Result<_, _>>()?;
    // Others live in them.
    let (namespaces, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object["kind"] == "Namespace");
    for objects in [namespaces, others] {
        let kept = objects.into_iter().map(|object| keep(engine, &context, &options, object));
        futures::stream::iter(kept).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    keep(engine, &context, &options, service_range(engine)).await?;
    crate::aggregation::aggregate(engine).await
}

/// An object is there, and has what the server wants of it.
async fn keep(engine: &Engine, context: &Context, options: &WriteOptions, object: Value) -> Result<(), Status> {
    let target = target(engine, &object)?;
    match engine.find(&target) {
        Err(_) => match engine.create(context, &target, options, object.clone()).await {
            // Another server starts too.
            Err(status) if status.reason == "AlreadyExists" => {}
            created => drop(created?),
        },
        Ok(found) => reconcile(engine, context, &target, options, &found.value(), &object).await?,
    }
    report(engine, context, &target, options, &object).await
}

fn service_range(engine: &Engine) -> Value {
    let ranges: Vec<String> = engine.services.ranges().map(|range| range.network().to_string()).collect();
    let ready = json!({"type": "Ready", "status": "True", "message": "Kubernetes default Service CIDR is ready"});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ranges}, "status": {"conditions": [ready]}})
}

/// Says how an object stands that nobody has said it of, where that is known from the start.
async fn report(
    engine: &Engine,
    context: &Context,
    target: &Target,
    options: &WriteOptions,
    object: &Value,
) -> Result<(), Status> {
    let Some(said) = object.pointer("/status/conditions").and_then(Value::as_array) else { return Ok(()) };
    let said: Vec<Condition> = said.iter().map(Condition::said_by).collect();
    let conditions = conditions::stamped(&Value::Null, &said, conditions::PLAIN, &api::time::rfc3339(context.now));
    let place = Target { part: Some(Part::Status), ..target.clone() };
    if engine.find(target).is_ok_and(|found| !found.value()["status"]["conditions"].is_null()) {
        return Ok(());
    }
    let tell = |current: Option<&Value>| {
        let mut next = current.cloned().unwrap_or_default();
        next["status"] = json!({"conditions": conditions});
        Ok(Draft::Update(next))
    };
    engine.update(context, &place, options, &tell).await.map(drop)
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

/// A default role that was changed gets its rules and subjects back, and flow control its spec, unless an owner opted
/// out.
async fn reconcile(
    engine: &Engine,
    context: &Context,
    target: &Target,
    options: &WriteOptions,
    found: &Value,
    wanted: &Value,
) -> Result<(), Status> {
    let kept = |annotation: &str| found["metadata"]["annotations"][annotation] == json!("true");
    // The rules of an aggregated role are those of others.
    let aggregated = wanted.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    let fields: &[&str] = match (kept(AUTO_UPDATE), aggregated) {
        (true, true) => &["aggregationRule"],
        (true, false) => &["rules", "subjects", "aggregationRule"],
        (false, _) if kept(AUTO_UPDATE_SPEC) => &["spec"],
        (false, _) => return Ok(()),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Config;
    use crate::store::local;
    use api::kind::Registry;

    fn find(engine: &Engine, api_version: &str, kind: &str, name: &str) -> (Target, Value) {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
        let target = target(engine, &object).unwrap();
        let found = engine.find(&target).unwrap().value();
        (target, found)
    }

    #[tokio::test]
    async fn a_second_start_writes_only_what_was_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let config = Config::on_loopback(path.clone());
        let engine =
            Engine::open(local::open(&path).unwrap(), Registry::builtin(), config.services, config.admission).unwrap();
        run(&engine).await.unwrap();
        let (_, range) = find(&engine, "networking.k8s.io/v1", "ServiceCIDR", "kubernetes");
        let ready = &range["status"]["conditions"][0];
        assert_eq!((&range["spec"]["cidrs"], &ready["type"]), (&json!(["10.96.0.0/12"]), &json!("Ready")));

        let first = engine.revision();
        run(&engine).await.unwrap();
        assert_eq!(engine.revision(), first);

        let (schema, probes) = find(&engine, "flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "probes");
        let context = Context::of_server();
        let options = WriteOptions { manager: "m".into(), dry_run: false };
        let change = |current: Option<&Value>| {
            let mut next = current.cloned().unwrap_or_default();
            next["spec"]["matchingPrecedence"] = json!(77);
            Ok(Draft::Update(next))
        };
        engine.update(&context, &schema, &options, &change).await.unwrap();
        run(&engine).await.unwrap();
        let (_, again) = find(&engine, "flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "probes");
        assert_eq!((&again["spec"], &again["status"]), (&probes["spec"], &probes["status"]));
        assert_eq!(probes["status"]["conditions"][0]["reason"], "Found");
    }
}
