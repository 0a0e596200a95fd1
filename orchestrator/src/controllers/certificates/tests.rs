use api::uid::Uid;
use apiserver::pki::request::{API_CLIENT, CertificateRequest, KUBELET_CLIENT, KUBELET_SERVING};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use serde_json::{Value, json};

use super::approving::Known;
use super::signing::Outcome;
use super::{approving, cleaning, signers, signing};
use crate::controllers::golden;
use crate::controllers::runtime::Plan;
use crate::controllers::views::{Node, SigningRequest};

const CLIENT: [&str; 2] = ["digital signature", "client auth"];
const SERVING: [&str; 2] = ["digital signature", "server auth"];

/// A request in the form of `spec.request`.
pub fn pem(name: &str, group: &str, names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let name = |text: &&str| match text.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*text).try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(name).collect();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    BASE64_STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap())
}

fn asked(name: &str, group: &str, names: &[&str]) -> CertificateRequest {
    CertificateRequest::read(&pem(name, group, names)).unwrap()
}

fn usages(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn request(spec: &Value, conditions: &Value) -> SigningRequest {
    serde_json::from_value(json!({
        "metadata": {"name": "r", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec, "status": {"conditions": conditions},
    }))
    .unwrap()
}

#[test]
fn a_nodes_name_is_the_first_machines() {
    const NOW: &str = "2026-01-01T01:00:00Z";
    // A request at a revision, with a key of its own.
    let joining = |name: &str, revision: &str, conditions: Value| {
        let spec = json!({"signerName": KUBELET_CLIENT, "usages": CLIENT, "username": "system:bootstrap:abcdef",
            "request": pem("system:node:n", "system:nodes", &[])});
        let mut made = request(&spec, &conditions);
        (made.metadata.meta.name, made.metadata.meta.uid) = (name.into(), Uid::new(name));
        made.metadata.meta.resource_version = revision.into();
        made
    };
    let plan = |of: &SigningRequest, node: Option<&Node>, others: &[&SigningRequest]| {
        let asked = CertificateRequest::read(&of.spec.request).unwrap();
        approving::plan(of, &asked, &Known { node, requests: others, now: at(NOW) })
    };
    let decided = |kind: &str, time: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": time}]);
    let (first, second) = (joining("first", "7", json!([])), joining("second", "8", json!([])));
    let key = |of: &SigningRequest| CertificateRequest::read(&of.spec.request).unwrap().key_fingerprint().unwrap();
    let node = |annotations: Value| -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "annotations": annotations}})).unwrap()
    };
    let (its, unknown) = (node(json!({"node.amphipod.io/key": key(&first)})), node(json!({})));
    let both = [&first, &second];
    let (given, long_ago, denied) = (
        joining("given", "9", decided("Approved", "2026-01-01T00:59:00Z")),
        joining("given", "9", decided("Approved", "2026-01-01T00:57:00Z")),
        joining("denied", "3", decided("Denied", "2026-01-01T00:59:00Z")),
    );
    golden::check(
        "certificates-names",
        &[
            ("the first of two", plan(&first, None, &both)),
            ("the second of two", plan(&second, None, &both)),
            ("one that is late", plan(&second, None, &[&second, &given])),
            ("a name that was given long ago, and is no node's", plan(&second, None, &[&second, &long_ago])),
            ("a name that somebody else did not get", plan(&second, None, &[&second, &denied])),
            ("the same machine again", plan(&first, Some(&its), &[&first])),
            ("the name of another machine", plan(&second, Some(&its), &[&second])),
            ("the name of a node without a key", plan(&second, Some(&unknown), &[&second])),
        ],
    );
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn signers_sign_what_is_theirs() {
    let node = asked("system:node:n", "system:nodes", &[]);
    let serving = asked("system:node:n", "system:nodes", &["n", "10.0.0.1"]);
    let other = asked("jane", "dev", &[]);
    let rsa = usages(&["key encipherment", "digital signature", "client auth"]);
    let why = |signer, request: &CertificateRequest, names: &[String]| {
        signers::refusal(signer, request, names).unwrap_or_default()
    };
    assert_eq!(why(API_CLIENT, &other, &usages(&["client auth"])), "");
    assert_eq!(why(API_CLIENT, &other, &usages(&["server auth"])), "invalid usage for client certificate: server auth");
    assert_eq!(
        why(API_CLIENT, &other, &usages(&["digital signature"])),
        "missing required usage for client certificate: client auth"
    );
    assert_eq!(why(KUBELET_CLIENT, &node, &usages(&CLIENT)), "");
    assert_eq!(why(KUBELET_CLIENT, &node, &rsa), "");
    assert_eq!(
        why(KUBELET_CLIENT, &node, &usages(&SERVING)),
        "usages did not match [client auth digital signature key encipherment]"
    );
    assert_eq!(why(KUBELET_CLIENT, &other, &rsa), "subject organization is not system:nodes");
    assert_eq!(why(KUBELET_CLIENT, &serving, &rsa), "DNS subjectAltNames are not allowed");
    assert_eq!(why(KUBELET_SERVING, &serving, &usages(&SERVING)), "");
    assert_eq!(why(KUBELET_SERVING, &node, &usages(&SERVING)), "DNS or IP subjectAltName is required");
    let named = asked("jane", "system:nodes", &[]);
    assert_eq!(why(KUBELET_CLIENT, &named, &rsa), "subject common name does not begin with system:node:");
    assert!(signers::is_ours("kubernetes.io/legacy-unknown") && !signers::is_ours("example.com/own"));
}

#[test]
fn plans_are_as_agreed() {
    let approved = json!([{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T01:00:00Z"}]);
    let now = at("2026-01-01T01:00:00Z");
    let of = |signer: &str, usages: &[&str], user: &str| {
        request(&json!({"signerName": signer, "usages": usages, "username": user, "groups": ["g"]}), &json!([]))
    };
    let bootstrap = of(KUBELET_CLIENT, &CLIENT, "system:bootstrap:abcdef");
    let own = of(KUBELET_CLIENT, &CLIENT, "system:node:n");
    let serving = of(KUBELET_SERVING, &SERVING, "system:node:n");
    let others = of(KUBELET_SERVING, &SERVING, "system:node:m");
    let client = asked("system:node:n", "system:nodes", &[]);
    let server = asked("system:node:n", "system:nodes", &["n", "10.0.0.1"]);
    let node = |address: &str| -> Node {
        let addresses = json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": address}]);
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"addresses": addresses}})).unwrap()
    };
    let decided = request(&json!({"signerName": API_CLIENT}), &approved);
    assert!(signing::is_due(&decided) && !signing::is_due(&own));
    let approve = |request: &SigningRequest, asked: &CertificateRequest, node: Option<&Node>| {
        approving::plan(request, asked, &Known { node, requests: &[], now })
    };
    let clean = |conditions: &Value, now: &str| cleaning::plan(&request(&json!({}), conditions), at(now));
    let plans: [(&str, Plan); 13] = [
        ("signed", signing::plan(&decided, &Outcome::Signed("PEM".into()), now)),
        ("refused", signing::plan(&decided, &Outcome::Refused("no usage".into()), now)),
        ("not yet", signing::plan(&decided, &Outcome::Unable("the CA has ended".into()), now)),
        ("a node that joins", approve(&bootstrap, &client, None)),
        ("a node that renews", approve(&own, &client, None)),
        ("a node's server", approve(&serving, &server, Some(&node("10.0.0.1")))),
        ("a node's server by another's address", approve(&serving, &server, Some(&node("10.0.0.2")))),
        ("a server of a node that is not there", approve(&serving, &server, None)),
        ("another node's server", approve(&others, &server, Some(&node("10.0.0.1")))),
        ("a person", approve(&of(API_CLIENT, &CLIENT, "jane"), &asked("jane", "dev", &[]), None)),
        ("approved lately", clean(&approved, "2026-01-01T01:59:59Z")),
        ("approved an hour ago", clean(&approved, "2026-01-01T02:00:00Z")),
        ("undecided for a day", clean(&json!([]), "2026-01-02T00:00:01Z")),
    ];
    golden::check("certificates", &plans);
}
