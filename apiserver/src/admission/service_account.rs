//! The account that a pod acts under: it has to be there, and the pod gets its token and the secrets that its images are
//! pulled with.

use std::sync::Arc;
use std::time::Duration;

use api::references::{self, Referent};
use api::status::Status;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Cluster, Member, Review};
use crate::object::{Collection, Object, ObjectKey, suffix};

/// How long a pod waits for the account that every namespace gets a moment after it was made.
const PATIENCE: Duration = Duration::from_millis(1500);
const DEFAULT: &str = "default";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// On pods that are copies of what a node runs by itself.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Debug)]
pub(super) struct ServiceAccount;

#[async_trait]
impl Member for ServiceAccount {
    async fn mutate(&self, cluster: Cluster<'_>, review: &mut Review<'_>) -> Result<(), Status> {
        if review.object["metadata"]["annotations"].get(MIRROR).is_some() {
            return check_mirror(review);
        }
        let spec = &mut review.object["spec"];
        if spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
            spec["serviceAccountName"] = json!(DEFAULT);
        }
        // The field's old name says the same.
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
        let name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
        let Some(account) = account(cluster, review.namespace(), &name).await? else {
            let place = review.namespace();
            let why = format!("error looking up service account {place}/{name}: serviceaccount {name:?} not found");
            return Err(review.forbidden(&why));
        };
        mount(&mut review.object["spec"], &account.value(), &suffix());
        Ok(())
    }
}

/// What runs by itself cannot be given anything.
fn check_mirror(review: &Review<'_>) -> Result<(), Status> {
    let spec = &review.object["spec"];
    if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return Err(review.forbidden("a mirror pod may not reference service accounts"));
    }
    if references::any(spec, Referent::Secret) {
        return Err(review.forbidden("a mirror pod may not reference secrets"));
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let mut sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    match sources.any(|source| !source["serviceAccountToken"].is_null()) {
        true => Err(review.forbidden("a mirror pod may not use ServiceAccountToken volume projections")),
        false => Ok(()),
    }
}

/// The account; the default one is waited for.
async fn account(cluster: Cluster<'_>, namespace: &str, name: &str) -> Result<Option<Arc<Object>>, Status> {
    let (accounts, key) = (Collection::new("", "serviceaccounts"), ObjectKey::new(namespace, name));
    cluster.reader.look(&accounts, &key).await?;
    let accounts = cluster.reader.cache().collection(&accounts);
    // Before the look, so that nothing is missed between the two.
    let mut changes = accounts.subscribe();
    let wanted = async {
        loop {
            changes.borrow_and_update();
            match accounts.get(&key) {
                None if changes.changed().await.is_ok() => {}
                found => return found,
            }
        }
    };
    match name {
        DEFAULT => Ok(tokio::time::timeout(PATIENCE, wanted).await.unwrap_or(None)),
        _ => Ok(accounts.get(&key)),
    }
}

/// Adds the token volume and its mounts, and the account's image pull secrets; `suffix` ends the volume's name.
fn mount(spec: &mut Value, account: &Value, suffix: &str) {
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) && !account["imagePullSecrets"].is_null() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = [spec, account].into_iter().find_map(|object| object["automountServiceAccountToken"].as_bool());
    if wanted == Some(false) {
        return;
    }
    let mut volumes = spec["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
    let known = volumes.find(|name| name.starts_with("kube-api-access-")).map(str::to_owned);
    let (name, is_new) = match known {
        Some(name) => (name, false),
        None => (format!("kube-api-access-{suffix}"), true),
    };
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            mounted |= mount_in(container, &name);
        }
    }
    if mounted && is_new {
        push(&mut spec["volumes"], token_volume(&name));
    }
}

/// False when the container mounts something there itself.
fn mount_in(container: &mut Value, volume: &str) -> bool {
    let mut mounts = container["volumeMounts"].as_array().into_iter().flatten();
    if mounts.any(|mount| mount["mountPath"] == TOKEN_PATH) {
        return false;
    }
    push(&mut container["volumeMounts"], json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
    true
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once() {
        let mut spec =
            json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": TOKEN_PATH}]}]});
        mount(&mut spec, &json!({}), "abcde");
        let once = spec.clone();
        mount(&mut spec, &json!({}), "fghij");
        assert_eq!(spec, once);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let mut without = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": true});
        mount(&mut without, &json!({"automountServiceAccountToken": false}), "abcde");
        assert!(without["volumes"].is_array(), "the pod has the last word");
    }
}
