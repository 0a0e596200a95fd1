//! Certificate signing requests: whom and what they ask a certificate for.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode as _};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::{Pem, parse_x509_pem};
use x509_parser::prelude::FromDer;

use super::subject::{Subject, SubjectError};

/// The signers of Kubernetes' own names that the cluster's CA answers to.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

#[derive(Debug, Error)]
pub enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    NotARequest,
    #[error("the request cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("the request's signature is not of the key that it names, or not of a kind that is known here")]
    Signature,
}

/// Names beside the subject, by their kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherNames {
    pub dns: Vec<String>,
    /// Four or sixteen bytes each.
    pub addresses: Vec<Vec<u8>>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
}

/// A request whose signature holds.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    /// As it came: certificates have the subject byte by byte, with each of its groups.
    pub(super) asked: CertReqInfo,
    pub(super) alternative_names: Option<SubjectAltName>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: OtherNames,
}

impl CertificateRequest {
    /// Reads the PEM text of a request in base64, as `spec.request` has it.
    ///
    /// # Errors
    /// When it is none, or was not signed by the key that it names.
    pub fn read(request: &str) -> Result<Self, RequestError> {
        let block = block(request).map_err(RequestError::Unreadable)?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(RequestError::NotARequest);
        }
        let unreadable = |error: x509_cert::der::Error| RequestError::Unreadable(error.to_string());
        let asked = CertReq::from_der(&block.contents).map_err(unreadable)?;
        let (_, signed) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| RequestError::Unreadable(error.to_string()))?;
        signed.verify_signature().map_err(|_| RequestError::Signature)?;
        let asked = asked.info;
        let alternative_names = alternative_names(&asked).map_err(unreadable)?;
        let names = OtherNames::of(alternative_names.as_ref());
        let Subject { common_name, organizations } = Subject::of(&asked.subject)?;
        Ok(Self { asked, alternative_names, common_name, organizations, names })
    }

    /// SHA-256 of the public key (its SubjectPublicKeyInfo), in hexadecimal digits.
    ///
    /// # Errors
    /// When the key cannot be written as it was read.
    pub fn key_fingerprint(&self) -> Result<String, RequestError> {
        let key = self.asked.public_key.to_der().map_err(|error| RequestError::Unreadable(error.to_string()))?;
        Ok(format!("{:x}", Sha256::digest(key)))
    }
}

/// The first block of a PEM text in base64.
pub(crate) fn block(request: &str) -> Result<Pem, String> {
    let pem = BASE64_STANDARD.decode(request).map_err(|error| error.to_string())?;
    parse_x509_pem(&pem).map(|(_, block)| block).map_err(|error| error.to_string())
}

fn alternative_names(asked: &CertReqInfo) -> x509_cert::der::Result<Option<SubjectAltName>> {
    let requested = asked.attributes.iter().filter(|attribute| attribute.oid == ExtensionReq::OID);
    for value in requested.flat_map(|attribute| attribute.values.iter()) {
        let extensions: Vec<Extension> = value.decode_as()?;
        if let Some(names) = extensions.iter().find(|extension| extension.extn_id == SubjectAltName::OID) {
            let mut names = SubjectAltName::from_der(names.extn_value.as_bytes())?;
            // Go knows these four, so nobody's certificate has others.
            names.0.retain(|name| {
                matches!(
                    name,
                    GeneralName::DnsName(_)
                        | GeneralName::IpAddress(_)
                        | GeneralName::Rfc822Name(_)
                        | GeneralName::UniformResourceIdentifier(_)
                )
            });
            return Ok(Some(names).filter(|names| !names.0.is_empty()));
        }
    }
    Ok(None)
}

impl OtherNames {
    fn of(names: Option<&SubjectAltName>) -> Self {
        let mut all = Self::default();
        for name in names.into_iter().flat_map(|names| &names.0) {
            match name {
                GeneralName::DnsName(name) => all.dns.push(name.to_string()),
                GeneralName::IpAddress(address) => all.addresses.push(address.as_bytes().to_vec()),
                GeneralName::Rfc822Name(name) => all.emails.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(name) => all.uris.push(name.to_string()),
                _ => {}
            }
        }
        all
    }
}

/// When the first certificate of a PEM text ends, Unix seconds.
pub fn ends(pem: &[u8]) -> Option<i64> {
    let (_, block) = parse_x509_pem(pem).ok()?;
    let certificate = block.parse_x509().ok()?;
    Some(certificate.validity().not_after.timestamp())
}
