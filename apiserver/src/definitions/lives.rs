//! The lives of definitions: what a definition's status says, and that its objects go before it does.
//!
//! A task sleeps until a definition changes; several servers may do it at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::custom::status;
use api::custom::{self, CLEANUP};
use api::kind::Part;
use api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{Context, DeleteOptions, Draft, Engine, ListOptions, Target, WriteOptions, deleting};
use crate::identity::{MASTERS, User};

/// As upstream's controllers of definitions are named.
const MANAGER: &str = "kube-apiserver";
/// Before a definition's objects are looked at again where something stood in the way.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the status of definitions, and ends those that are deleted, until told to stop.
pub async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let Some(kind) = engine.registry().find(custom::GROUP, "v1", custom::PLURAL) else { return };
    let mut changes = engine.objects(&kind).subscribe();
    let (mut ending, mut names) = (JoinSet::new(), HashSet::new());
    loop {
        changes.borrow_and_update();
        let mut again = false;
        let all: Vec<Value> = engine.all(&kind, "").iter().map(|object| object.value()).collect();
        for definition in &all {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            let target = Target { part: Some(Part::Status), ..Target::new(kind.clone(), "", name) };
            let outcome = match is_ending(definition) {
                true if names.insert(name.to_owned()) => {
                    let (engine, name) = (engine.clone(), name.to_owned());
                    ending.spawn(async move {
                        end(&engine, &target).await;
                        name
                    });
                    Ok(())
                }
                true => Ok(()),
                false => settle(&engine, &target, &all).await,
            };
            if let Err(status) = outcome {
                tracing::warn!(name, %status, "the status of a definition is not up to date");
                again |= status.code != 404;
            }
        }
        let news = async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                Some(ended) = ending.join_next() => {
                    // One that panicked is over too, and is begun again.
                    match ended {
                        Ok(name) => drop(names.remove(&name)),
                        Err(_) => names.clear(),
                    }
                    true
                }
                () = tokio::time::sleep(RETRY), if again => true,
            }
        };
        match stop.run_until_cancelled(news).await {
            Some(true) => {}
            _ => return,
        }
    }
}

fn is_ending(definition: &Value) -> bool {
    let finalizers = definition["metadata"]["finalizers"].as_array();
    deleting(definition) && finalizers.is_some_and(|list| list.iter().any(|own| own == CLEANUP))
}

fn context() -> Context {
    Context { user: User::new("system:apiserver", &[MASTERS]), now: Timestamp::now() }
}

async fn write(engine: &Engine, target: &Target, change: impl Fn(&Value) -> Value + Send + Sync) -> Result<(), Status> {
    let options = WriteOptions { manager: MANAGER.into(), dry_run: false };
    let change = |current: Option<&Value>| Ok(Draft::Own(change(current.ok_or_else(|| target.not_found())?)));
    engine.update(&context(), target, &options, &change).await.map(drop)
}

/// Gives a definition the status that it should have beside the others.
async fn settle(engine: &Engine, target: &Target, all: &[Value]) -> Result<(), Status> {
    let others: Vec<&Value> = all.iter().filter(|other| other["metadata"]["name"] != *target.name).collect();
    let wanted = all.iter().find(|one| one["metadata"]["name"] == *target.name);
    if wanted.is_none_or(|definition| status::settled(definition, &others, Timestamp::now()) == *definition) {
        return Ok(());
    }
    write(engine, target, |current| status::settled(current, &others, Timestamp::now())).await
}

/// Deletes the objects of a definition, and lets it go when they are gone.
async fn end(engine: &Engine, target: &Target) {
    loop {
        match empty(engine, target).await {
            Ok(()) => return,
            Err(status) if status.code == 404 => return,
            Err(status) => {
                tracing::warn!(name = target.name, %status, "cannot delete the objects of a definition yet");
                let said = write(engine, target, |current| {
                    let mut next = current.clone();
                    status::say(&mut next, status::not_deleted(&status.message), Timestamp::now());
                    next
                });
                if let Err(status) = said.await {
                    tracing::debug!(%status, "and its status does not say so");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn empty(engine: &Engine, target: &Target) -> Result<(), Status> {
    write(engine, target, |current| {
        let mut next = current.clone();
        status::say(&mut next, status::terminating(), Timestamp::now());
        next
    })
    .await?;
    let defined = engine.registry().iter().find(|kind| kind.is_defined_by(&target.name)).cloned();
    if let Some(kind) = defined {
        let everything = Target::new(kind, "", "");
        loop {
            let objects = engine.objects(&everything.kind);
            let mut changes = objects.subscribe();
            engine
                .delete_collection(&context(), &everything, &ListOptions::default(), &DeleteOptions::default())
                .await?;
            if objects.len() == 0 {
                break;
            }
            // Some wait for their finalizers.
            if changes.changed().await.is_err() {
                break;
            }
        }
    }
    write(engine, target, |current| {
        let mut next = current.clone();
        status::say(&mut next, status::deleted(current), Timestamp::now());
        let left = next["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        next["metadata"]["finalizers"] = left.into_iter().filter(|own| own != CLEANUP).collect();
        if next["metadata"]["finalizers"] == json!([]) {
            next["metadata"].as_object_mut().map(|metadata| metadata.remove("finalizers"));
        }
        next
    })
    .await
}
