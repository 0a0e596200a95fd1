//! Approves what nodes ask for themselves, so that they may join and renew by themselves.
//!
//! Clients' certificates are approved for whom a role grants `nodeclient` or `selfnodeclient`, as kube-controller-manager does; certificates
//! of nodes' own servers where they name what the Node object says of itself.
//!
//! A node's name belongs to the machine that had it first, known by its key, until its Node is deleted ([`taken`]): whoever has a join
//! token may become a node, and none that is there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use apiserver::identity::NODE;
use apiserver::pki::request::{CertificateRequest, KUBELET_CLIENT, KUBELET_SERVING};
use client::{Caches, Kept, Key};
use jiff::{SignedDuration, Timestamp};
use node::registration::KEY;
use serde_json::{Value, json};

use super::super::given::{Account, Given};
use super::super::runtime::{Action, Controller, Plan, Queue};
use super::super::views::{Node, SigningRequest};
use super::{APPROVED, DENIED, FAILED, find, signers, watch_requests, with_condition};

/// When one is looked at again that nobody may have: a role may grant it by then, or a node know its addresses.
const LATER: Duration = Duration::from_secs(60);
/// How long a machine that was given a certificate may take to register its Node.
const TO_REGISTER: SignedDuration = SignedDuration::from_mins(2);

pub struct Approving;

impl Controller for Approving {
    const NAME: &'static str = "certificatesigningrequest-approving-controller";
    const ACCOUNT: Account = Account::Service("certificate-controller");
    const READS: &'static [Kept] = &[Kept::of::<SigningRequest>(), Kept::of::<Node>()];

    fn new(_: &Given) -> Self {
        Self
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_requests(caches, queue);
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let undecided = |request: &std::sync::Arc<SigningRequest>| {
            request.status.certificate.is_empty()
                && [APPROVED, DENIED].iter().all(|kind| request.condition(kind).is_none())
        };
        let Some(request) = find(caches, key).filter(undecided) else { return Plan::new() };
        let Ok(asked) = CertificateRequest::read(&request.spec.request) else { return Plan::new() };
        let node = asked.common_name.strip_prefix(NODE).and_then(|name| caches.of::<Node>().get("", name));
        let others = caches.of::<SigningRequest>().all();
        let others: Vec<&SigningRequest> = others.iter().map(|other| &**other).collect();
        plan(&request, &asked, &Known { node: node.as_deref(), requests: &others, now: Timestamp::now() })
    }
}

/// What is known of the name that a request is about.
pub(super) struct Known<'a> {
    pub node: Option<&'a Node>,
    /// All requests there are.
    pub requests: &'a [&'a SigningRequest],
    pub now: Timestamp,
}

/// Why no other machine may have this name; `None` if it may.
fn taken(request: &SigningRequest, asked: &CertificateRequest, known: &Known<'_>) -> Option<String> {
    let name = asked.common_name.strip_prefix(NODE).unwrap_or(&asked.common_name);
    let key = asked.key_fingerprint().ok();
    if let Some(node) = known.node {
        let same = key.is_some() && node.metadata.meta.annotations.get(KEY) == key.as_ref();
        let why = format!(
            "node {name} is another machine's: choose another --node-name, or delete it first (`kubectl delete node {name}`)"
        );
        return (!same).then_some(why);
    }
    // Until the first machine's Node is there, its request stands for it.
    let before = |other: &&&SigningRequest| {
        is_before(other, request, known.now)
            && CertificateRequest::read(&other.spec.request)
                .is_ok_and(|its| its.common_name == asked.common_name && its.key_fingerprint().ok() != key)
    };
    known.requests.iter().find(before).map(|other| {
        let first = &other.metadata.meta.name;
        format!("another machine is just joining as node {name} (request {first}): choose another --node-name")
    })
}

/// Whether another request of the same kind comes before this one. Requests that nobody touched yet are in the order of their revisions,
/// which is also that in which they are seen here: of two at once, the later one always finds the earlier.
fn is_before(other: &SigningRequest, request: &SigningRequest, now: Timestamp) -> bool {
    let refused = [DENIED, FAILED].iter().any(|kind| other.condition(kind).is_some());
    if other.metadata.meta.uid == request.metadata.meta.uid || other.spec.signer_name != KUBELET_CLIENT || refused {
        return false;
    }
    let revision = |of: &SigningRequest| of.metadata.meta.resource_version.parse::<u64>().ok();
    match other.condition(APPROVED) {
        Some(approved) => {
            let at = approved["lastUpdateTime"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
            at.is_some_and(|at| now.duration_since(at) < TO_REGISTER)
        }
        None => revision(other) < revision(request),
    }
}

pub(super) fn plan(request: &SigningRequest, asked: &CertificateRequest, known: &Known<'_>) -> Plan {
    let now = known.now;
    let spec = &request.spec;
    let own = spec.username == asked.common_name;
    let approved = |message| vec![with_condition(request, "approval", (APPROVED, "AutoApproved", message), now)];
    let again = || vec![Action::Again { key: Key::of(&request.metadata.meta), after: LATER }];
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if signers::kubelet_client(asked, &spec.usages).is_none() => {
            let may = |subresource, message, otherwise| {
                vec![Action::IfAllowed { review: review(request, subresource), then: approved(message), otherwise }]
            };
            let any =
                may("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", again());
            match own {
                true => may(
                    "selfnodeclient",
                    "Auto approving self kubelet client certificate after SubjectAccessReview.",
                    any,
                ),
                false => match taken(request, asked, known) {
                    Some(why) => vec![with_condition(request, "approval", (DENIED, "NameTaken", &why), now)],
                    None => any,
                },
            }
        }
        KUBELET_SERVING if own && signers::kubelet_serving(asked, &spec.usages).is_none() => {
            match known.node.is_some_and(|node| names_itself(asked, node)) {
                true => approved("Auto approving kubelet serving certificate of the addresses of its own node."),
                false => again(),
            }
        }
        _ => Plan::new(),
    }
}

fn review(request: &SigningRequest, subresource: &str) -> Value {
    let spec = &request.spec;
    json!({
        "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
        "resourceAttributes": {
            "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
            "subresource": subresource, "version": "*",
        },
    })
}

/// Whether all names and addresses asked for are those of the node's status.
fn names_itself(asked: &CertificateRequest, node: &Node) -> bool {
    let known: BTreeSet<&str> = node.status.addresses.iter().map(|known| known.address.as_str()).collect();
    let addresses: BTreeSet<IpAddr> = known.iter().filter_map(|text| text.parse().ok()).collect();
    let address = |bytes: &Vec<u8>| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
    };
    asked.names.dns.iter().all(|name| known.contains(name.as_str()))
        && asked.names.addresses.iter().all(|bytes| address(bytes).is_some_and(|address| addresses.contains(&address)))
}
