//! Warnings: what is accepted but will surprise, as texts for `Warning: 299` headers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{entries, text};
use crate::kind::Kind;

/// What to tell whoever writes an object of this kind, accepted or not.
pub fn deprecations(kind: &Kind) -> Vec<String> {
    match (&*kind.group, &*kind.plural) {
        ("", "endpoints") => {
            vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()]
        }
        _ => Vec::new(),
    }
}

/// What to tell whoever had this object accepted.
pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let mut found = of_kind(kind, object);
    found.extend(super::inactive::warnings(kind, object));
    found
}

fn of_kind(kind: &Kind, object: &Value) -> Vec<String> {
    match (&*kind.group, &*kind.plural) {
        ("", "endpoints") => deprecations(kind),
        ("", "serviceaccounts") => service_account(object),
        ("", "secrets") => secret(object),
        ("", "pods") => pod(&object["metadata"], &object["spec"], "metadata", "spec"),
        ("", "podtemplates") => template(&object["template"], "template"),
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            template(&object["spec"]["template"], "spec.template")
        }
        _ => Vec::new(),
    }
}

fn template(template: &Value, path: &str) -> Vec<String> {
    pod(&template["metadata"], &template["spec"], &format!("{path}.metadata"), &format!("{path}.spec"))
}

fn service_account(object: &Value) -> Vec<String> {
    let key = "kubernetes.io/enforce-mountable-secrets";
    let set = text(&object["metadata"]["annotations"][key]) == "true";
    let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
    set.then(|| format!("metadata.annotations[{key}]: {why}")).into_iter().collect()
}

fn secret(object: &Value) -> Vec<String> {
    if text(&object["type"]) != "kubernetes.io/tls" {
        return Vec::new();
    }
    let decoded = STANDARD.decode(text(&object["data"]["tls.crt"])).unwrap_or_default();
    let has_pem = String::from_utf8_lossy(&decoded).contains("-----BEGIN CERTIFICATE-----");
    if has_pem { Vec::new() } else { vec!["tls: failed to find any PEM data in certificate input".into()] }
}

/// Node labels that have a newer name.
const OLD_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];

fn pod(metadata: &Value, spec: &Value, metadata_path: &str, spec_path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (key, _) in entries(&metadata["annotations"]) {
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            out.push(format!("{metadata_path}.annotations[{key}]: {why}"));
        }
    }
    for (old, since, new) in OLD_LABELS {
        if spec["nodeSelector"].get(old).is_some() {
            out.push(format!("{spec_path}.nodeSelector[{old}]: deprecated since {since}; use {new:?} instead"));
        }
    }
    out
}
