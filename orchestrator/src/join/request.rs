//! A certificate for this node: asked for, waited for.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::status::Status;
use apiserver::identity::{NODE, NODES};
use apiserver::pki::request::KUBELET_CLIENT;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use client::{Client, Event, Resource, Selector};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

const REQUESTS: Resource = Resource::new("certificates.k8s.io", "certificatesigningrequests");
/// Somebody may have to approve it; who is asked to by nobody does so within this or not at all.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// A certificate for this key as the node of this name, PEM.
///
/// # Errors
/// In words: the token does not hold, the name is another machine's, nobody approves, or the server does not answer.
pub async fn certificate(client: &Client, key: &KeyPair, node: &str) -> Result<String> {
    let made = client.create(&REQUESTS, "", request(key, node)?).await.map_err(|status| refused(status, node))?;
    let name = made["metadata"]["name"].as_str().context("the request has no name")?;
    match tokio::time::timeout(PATIENCE, answer(client, name)).await {
        Ok(answered) => answered.with_context(|| format!("this machine is not given the certificate of node {node}")),
        Err(_) => bail!(
            "nobody has approved the request {name} of node {node} within {} s: `kubectl certificate approve {name}`, and start again",
            PATIENCE.as_secs()
        ),
    }
}

fn request(key: &KeyPair, node: &str) -> Result<Value> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, format!("{NODE}{node}"));
    let signed = params.serialize_request(key).and_then(|request| request.pem()).context("cannot sign a request")?;
    Ok(json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {
            "request": BASE64_STANDARD.encode(signed),
            "signerName": KUBELET_CLIENT,
            "usages": ["digital signature", "client auth"],
        },
    }))
}

fn refused(status: Status, node: &str) -> anyhow::Error {
    match status.code {
        401 => anyhow::anyhow!(
            "the server does not accept the token: it has ended, was deleted, or its secret is another (`amphipod token create` makes a new one)"
        ),
        _ => anyhow::Error::from(status).context(format!("cannot ask for the certificate of node {node}")),
    }
}

/// What becomes of a request. A watch that breaks off is begun again.
async fn answer(client: &Client, name: &str) -> Result<String> {
    loop {
        match follow(client, name).await {
            Ok(Decided::Signed(pem)) => return Ok(pem),
            Ok(Decided::Refused(why)) => bail!("{why}"),
            Err(status) if matches!(status.code, 401 | 403) => return Err(status.into()),
            Err(error) => tracing::debug!(%error, request = name, "not followed, will retry"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Decided {
    Signed(String),
    Refused(String),
}

async fn follow(client: &Client, name: &str) -> Result<Decided, Status> {
    let mut changes = client.watch(&REQUESTS, "", &Selector::fields(format!("metadata.name={name}"))).await?;
    loop {
        for event in changes.next().await? {
            match event {
                Event::Applied(item) => {
                    if let Some(decided) = decided(&item.value()) {
                        return Ok(decided);
                    }
                }
                Event::Deleted(_) => return Ok(Decided::Refused("the request was deleted".into())),
                Event::Synced(_) | Event::Bookmark(_) => {}
            }
        }
    }
}

fn decided(request: &Value) -> Option<Decided> {
    let status = &request["status"];
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let refusal = conditions.iter().find(|condition| condition["type"] == "Denied" || condition["type"] == "Failed");
    if let Some(refusal) = refusal {
        let why = refusal["message"].as_str().filter(|why| !why.is_empty());
        return Some(Decided::Refused(why.unwrap_or("the request was denied").to_owned()));
    }
    let text = status["certificate"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok())?;
    String::from_utf8(text).ok().map(Decided::Signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_decided_by_its_status() {
        let of = |status: Value| decided(&json!({"status": status}));
        assert!(of(json!({})).is_none());
        assert!(of(json!({"conditions": [{"type": "Approved"}]})).is_none());
        let signed = of(json!({"conditions": [{"type": "Approved"}], "certificate": BASE64_STANDARD.encode("PEM")}));
        assert!(matches!(signed, Some(Decided::Signed(pem)) if pem == "PEM"));
        for kind in ["Denied", "Failed"] {
            let refused = of(json!({"conditions": [{"type": kind, "message": "taken"}]}));
            assert!(matches!(refused, Some(Decided::Refused(why)) if why == "taken"));
        }
    }
}
