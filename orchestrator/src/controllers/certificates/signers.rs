//! What each signer of the cluster signs. The words are kube-controller-manager's.

use std::collections::BTreeSet;

use apiserver::identity::{NODE, NODES};
use apiserver::pki::request::{API_CLIENT, CertificateRequest, KUBELET_CLIENT, KUBELET_SERVING};

const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Whether the cluster's own CA signs for this name.
pub fn is_ours(signer: &str) -> bool {
    [API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].contains(&signer)
}

/// Why a signer signs no such request; `None` if it does.
pub fn refusal(signer: &str, request: &CertificateRequest, usages: &[String]) -> Option<String> {
    match signer {
        API_CLIENT => client_usages(usages),
        KUBELET_CLIENT => kubelet_client(request, usages),
        KUBELET_SERVING => kubelet_serving(request, usages),
        _ => None,
    }
}

fn client_usages(usages: &[String]) -> Option<String> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(&usage.as_str())) {
        return Some(format!("invalid usage for client certificate: {other}"));
    }
    let missing = !usages.iter().any(|usage| usage == "client auth");
    missing.then(|| "missing required usage for client certificate: client auth".to_owned())
}

/// A node's certificate to the API server names that node and nothing else.
pub fn kubelet_client(request: &CertificateRequest, usages: &[String]) -> Option<String> {
    let names = &request.names;
    of_a_node(
        request,
        &[
            (!names.dns.is_empty(), "DNS subjectAltNames are not allowed"),
            (!names.emails.is_empty(), "Email subjectAltNames are not allowed"),
            (!names.addresses.is_empty(), "IP subjectAltNames are not allowed"),
            (!names.uris.is_empty(), "URI subjectAltNames are not allowed"),
        ],
        ("client auth", usages),
    )
}

/// A node's own server says which names and addresses it is reached by.
pub fn kubelet_serving(request: &CertificateRequest, usages: &[String]) -> Option<String> {
    let names = &request.names;
    of_a_node(
        request,
        &[
            (names.dns.is_empty() && names.addresses.is_empty(), "DNS or IP subjectAltName is required"),
            (!names.emails.is_empty(), "Email subjectAltNames are not allowed"),
            (!names.uris.is_empty(), "URI subjectAltNames are not allowed"),
        ],
        ("server auth", usages),
    )
}

fn of_a_node(
    request: &CertificateRequest,
    names: &[(bool, &str)],
    (purpose, usages): (&str, &[String]),
) -> Option<String> {
    if request.organizations != [NODES] {
        return Some(format!("subject organization is not {NODES}"));
    }
    if let Some((_, why)) = names.iter().find(|(wrong, _)| *wrong) {
        return Some((*why).to_owned());
    }
    if let Some(why) = exact_usages(purpose, usages) {
        return Some(why);
    }
    let named = request.common_name.starts_with(NODE);
    (!named).then(|| format!("subject common name does not begin with {NODE}"))
}

/// With or without `key encipherment`, which only RSA keys do.
fn exact_usages(purpose: &str, usages: &[String]) -> Option<String> {
    let asked: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let with = BTreeSet::from([purpose, "digital signature", "key encipherment"]);
    let without = BTreeSet::from([purpose, "digital signature"]);
    let shown = with.iter().copied().collect::<Vec<_>>().join(" ");
    (asked != with && asked != without).then(|| format!("usages did not match [{shown}]"))
}
