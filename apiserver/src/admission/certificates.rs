//! Who decides about certificates: approving and signing take a permission for the signer beside the one for the request,
//! and nobody is made an administrator by a certificate.

use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Cluster, Member, Review};
use crate::authz::Attributes;
use crate::identity::MASTERS;
use crate::pki::request::{API_CLIENT, block};
use crate::pki::subject::Subject;

#[derive(Debug)]
pub(super) struct Approval;

#[async_trait]
impl Member for Approval {
    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        may(cluster, review, "approve")
    }
}

#[derive(Debug)]
pub(super) struct Signing;

#[async_trait]
impl Member for Signing {
    fn concerns(&self, review: &Review<'_>) -> bool {
        let changed = |old: &Value, field: &str| old["status"][field] != review.object["status"][field];
        review.old.is_some_and(|old| changed(old, "certificate") || changed(old, "conditions"))
    }

    async fn validate(&self, cluster: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        may(cluster, review, "sign")
    }
}

/// Whether whoever asks may do this for the signer that the request named when it was made, or for its whole domain.
fn may(cluster: Cluster<'_>, review: &Review<'_>, verb: &str) -> Result<Vec<String>, Status> {
    let signer = review.old.and_then(|old| old["spec"]["signerName"].as_str()).unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let asked = |name: String| Attributes {
        verb: verb.into(),
        group: "certificates.k8s.io".into(),
        resource: "signers".into(),
        name,
        ..Attributes::default()
    };
    let allowed = [signer.to_owned(), format!("{domain}/*")]
        .into_iter()
        .any(|name| cluster.authorizer.allows(cluster.reader, &review.context.user, &asked(name)));
    match allowed {
        true => Ok(Vec::new()),
        false => Err(review.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}"))),
    }
}

#[derive(Debug)]
pub(super) struct SubjectRestriction;

#[async_trait]
impl Member for SubjectRestriction {
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.object["spec"]["signerName"] == API_CLIENT
    }

    async fn validate(&self, _: Cluster<'_>, review: &Review<'_>) -> Result<Vec<String>, Status> {
        let request = review.object["spec"]["request"].as_str().unwrap_or_default();
        match subject(request) {
            Err(why) => Err(review.forbidden(&format!("failed to parse CSR: {why}"))),
            Ok(subject) if subject.organizations.iter().any(|group| group == MASTERS) => {
                let why = format!("use of {API_CLIENT} signer with {MASTERS} group is not allowed");
                Err(review.forbidden(&why))
            }
            Ok(_) => Ok(Vec::new()),
        }
    }
}

/// Whom a request is to be a certificate of, from the PEM text in base64.
pub(super) fn subject(request: &str) -> Result<Subject, String> {
    let block = block(request)?;
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    Subject::read(parsed.certification_request_info.subject.as_raw()).map_err(|error| error.to_string())
}
