//! Signs what was approved, or says why it never will.

use std::sync::Arc;
use std::time::SystemTime;

use apiserver::pki::Authority;
use apiserver::pki::issue::{IssueError, lifetime};
use apiserver::pki::request::CertificateRequest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use causes::chain;
use client::{Caches, Kept, Key};
use jiff::Timestamp;
use serde_json::json;

use super::super::given::{Account, Given};
use super::super::runtime::{Controller, Plan, Queue};
use super::super::views::SigningRequest;
use super::{APPROVED, DENIED, FAILED, find, patch, signers, watch_requests, with_condition};

pub struct Signing {
    authority: Arc<Authority>,
}

impl Controller for Signing {
    const NAME: &'static str = "certificatesigningrequest-signing-controller";
    const ACCOUNT: Account = Account::Service("certificate-controller");
    const READS: &'static [Kept] = &[Kept::of::<SigningRequest>()];

    fn new(given: &Given) -> Self {
        Self { authority: given.facts.authority.clone() }
    }

    fn watch(&self, caches: &Caches, queue: &Queue) {
        watch_requests(caches, queue);
    }

    fn reconcile(&self, key: &Key, caches: &Caches) -> Plan {
        let Some(request) = find(caches, key).filter(|request| is_due(request)) else { return Plan::new() };
        plan(&request, &self.sign(&request), Timestamp::now())
    }
}

/// What came of signing.
pub(super) enum Outcome {
    Signed(String),
    /// It never will be, as it is.
    Refused(String),
    /// It may be later.
    Unable(String),
}

impl Signing {
    fn sign(&self, request: &SigningRequest) -> Outcome {
        let spec = &request.spec;
        let asked = match CertificateRequest::read(&spec.request) {
            Ok(asked) => asked,
            Err(error) => {
                return Outcome::Refused(format!("unable to parse csr {:?}: {error}", request.metadata.meta.name));
            }
        };
        if let Some(why) = signers::refusal(&spec.signer_name, &asked, &spec.usages) {
            return Outcome::Refused(why);
        }
        match self.authority.issue(&asked, &spec.usages, lifetime(spec.expiration_seconds), SystemTime::now()) {
            Ok(certificate) => Outcome::Signed(certificate),
            Err(error @ IssueError::Usages(_)) => Outcome::Refused(error.to_string()),
            Err(error) => Outcome::Unable(chain(&error)),
        }
    }
}

/// Whether somebody approved a request that is for us to sign, and nobody has.
pub(super) fn is_due(request: &SigningRequest) -> bool {
    let has = |kind| request.condition(kind).is_some();
    has(APPROVED)
        && !has(DENIED)
        && !has(FAILED)
        && request.status.certificate.is_empty()
        && signers::is_ours(&request.spec.signer_name)
}

pub(super) fn plan(request: &SigningRequest, outcome: &Outcome, now: Timestamp) -> Plan {
    match outcome {
        Outcome::Signed(certificate) => {
            let certificate = BASE64_STANDARD.encode(certificate);
            vec![patch(request, "status", json!({"status": {"certificate": certificate}}))]
        }
        Outcome::Refused(why) => {
            vec![with_condition(request, "status", (FAILED, "SignerValidationFailure", why), now)]
        }
        Outcome::Unable(why) => {
            tracing::error!(request = request.metadata.meta.name, why, "no certificate is signed");
            Plan::new()
        }
    }
}
