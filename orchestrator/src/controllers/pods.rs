//! What others than its node write of a pod: conditions in its status, and its end.

use api::conditions::{self, Condition};
use api::status::Status;
use api::view::Meta;
use client::{Client, DeleteOptions, Key, Wrote};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::views::PODS;

/// Writes a pod's status: what `change` makes of it, with a condition. Another pod of this name is left alone.
///
/// # Errors
/// What the server says; 404 also when another pod has the name by now.
pub async fn tell(
    client: &Client,
    pod: &Meta,
    change: impl Fn(&mut Value) + Send + Sync,
    condition: Option<Condition>,
) -> Result<(), Status> {
    let now = api::time::rfc3339(Timestamp::now());
    let write = |current: &Value| {
        if current["metadata"]["uid"] != pod.uid {
            return Err(Status::not_found("", "pods", &pod.name));
        }
        let mut next = current.clone();
        change(&mut next["status"]);
        if let Some(said) = condition.clone() {
            let said = [said.of_generation(current["metadata"]["generation"].as_i64())];
            let stored = &current["status"]["conditions"];
            let all = conditions::merge(stored, &[], &said, conditions::OF_PODS, &now);
            next["status"]["conditions"] = json!(all);
        }
        Ok(next)
    };
    client.update(&PODS, &pod.namespace, &pod.name, "status", write).await.map(drop)
}

/// Has a pod deleted for others' sake, which is said in its status before. Nothing is written of one that is gone, by itself or for
/// another of its name.
///
/// # Errors
/// What the server says, but for 404 and 409: those mean that it is gone.
pub async fn send_away(client: &Client, pod: &Meta, reason: &str, message: String) -> Result<Option<Wrote>, Status> {
    let condition = Condition::new("DisruptionTarget", true).because(reason, message);
    let options = DeleteOptions { uid: Some(pod.uid.clone()), ..DeleteOptions::default() };
    let deleted = async {
        tell(client, pod, |_| (), Some(condition)).await?;
        client.delete(&PODS, &pod.namespace, &pod.name, &options).await
    };
    match deleted.await {
        Ok(deleted) => Ok(Some(deleted.wrote(Key::new(&pod.namespace, &pod.name)))),
        Err(error) if matches!(error.code, 404 | 409) => Ok(None),
        Err(error) => Err(error),
    }
}
