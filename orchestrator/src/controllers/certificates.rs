//! Certificates on request: who is given one without asking anybody, what is signed, what is forgotten again.

use api::time::rfc3339;
use client::{Caches, Key};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::runtime::{Action, Queue};
use super::views::{SIGNING_REQUESTS, SigningRequest};

pub mod approving;
pub mod cleaning;
pub mod signing;

mod signers;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

fn watch_requests(caches: &Caches, queue: &Queue) {
    let queue = queue.clone();
    caches.of::<SigningRequest>().on_change(move |_, new| {
        if let Some(request) = new {
            queue.add(Key::of(&request.metadata.meta));
        }
    });
}

/// One condition more, through a part of the object.
fn with_condition(
    request: &SigningRequest,
    part: &'static str,
    (kind, reason, message): (&str, &str, &str),
    now: Timestamp,
) -> Action {
    let time = rfc3339(now);
    let condition: Value = json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": time, "lastTransitionTime": time,
    });
    let conditions: Vec<&Value> = request.status.conditions.iter().chain([&condition]).collect();
    patch(request, part, json!({"status": {"conditions": conditions}}))
}

fn patch(request: &SigningRequest, subresource: &'static str, patch: Value) -> Action {
    let meta = &request.metadata.meta;
    let version = Some(meta.resource_version.clone());
    Action::Patch { resource: SIGNING_REQUESTS, key: Key::of(meta), subresource, version, patch }
}

/// The request of this name, if it is there and stays.
fn find(caches: &Caches, key: &Key) -> Option<std::sync::Arc<SigningRequest>> {
    let request = caches.of::<SigningRequest>().get("", &key.name)?;
    request.metadata.meta.deletion_timestamp.is_none().then_some(request)
}

#[cfg(test)]
pub mod tests;
