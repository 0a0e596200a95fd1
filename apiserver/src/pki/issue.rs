//! Certificates that answer signing requests.
//!
//! What makes the server's own certificates keeps one organization of a subject; requests may have several, so these are put together
//! here, from the request's own parts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::SigningKey as _;
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::der::asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::flagset::FlagSet;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc5912;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Encode, EncodePem};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::{Time, Validity};

use super::request::CertificateRequest;
use super::{Authority, BACKDATE_SECONDS, LEAF_DAYS};

/// What is shorter does not lose the time by which it is back-dated.
const SHORT: Duration = Duration::from_secs(8 * 3600);
const SHORTEST: Duration = Duration::from_secs(600);

#[derive(Debug, Error)]
pub enum IssueError {
    #[error("unrecognized usage values: {0:?}")]
    Usages(Vec<String>),
    #[error("the certificate cannot be written: {0}")]
    Write(#[from] x509_cert::der::Error),
    #[error("the cluster's CA cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("the cluster's CA has ended")]
    Ended,
}

/// How long a certificate shall hold: what is asked for, within ten minutes and a year.
pub fn lifetime(seconds: Option<i64>) -> Duration {
    let longest = Duration::from_secs(LEAF_DAYS.unsigned_abs() * 86_400);
    let asked = seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    asked.map_or(longest, |asked| asked.clamp(SHORTEST, longest))
}

impl Authority {
    /// The certificate that a request asks for, PEM: for its key, subject and names, with these usages.
    ///
    /// # Errors
    /// When a usage is none that certificates know, or the CA has ended.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        usages: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, IssueError> {
        let ca = &self.ca.tbs_certificate;
        let ends = ca.validity.not_after.to_system_time();
        if now >= ends {
            return Err(IssueError::Ended);
        }
        let began = now - Duration::from_secs(BACKDATE_SECONDS.unsigned_abs());
        let until = if lifetime < SHORT { now + lifetime } else { began + lifetime };
        let algorithm = AlgorithmIdentifierOwned { oid: rfc5912::ECDSA_WITH_SHA_256, parameters: None };
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(uuid::Uuid::new_v4().as_bytes())?,
            signature: algorithm.clone(),
            issuer: ca.subject.clone(),
            validity: Validity { not_before: time(began)?, not_after: time(until.min(ends))? },
            subject: request.asked.subject.clone(),
            subject_public_key_info: request.asked.public_key.clone(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions(&self.ca, request, usages)?),
        };
        let signature = BitString::from_bytes(&self.issuer.key().sign(&tbs_certificate.to_der()?)?)?;
        Ok(Certificate { tbs_certificate, signature_algorithm: algorithm, signature }.to_pem(LineEnding::LF)?)
    }
}

/// Whole seconds, in the form that the year asks for.
fn time(at: SystemTime) -> Result<Time, x509_cert::der::Error> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let whole = Duration::from_secs(since.as_secs());
    match UtcTime::from_unix_duration(whole) {
        Ok(time) => Ok(time.into()),
        Err(_) => Ok(GeneralizedTime::from_unix_duration(whole)?.into()),
    }
}

fn extensions(ca: &Certificate, request: &CertificateRequest, usages: &[String]) -> Result<Vec<Extension>, IssueError> {
    let Usages { key, extended } = Usages::of(usages)?;
    let mut all = Vec::new();
    if !key.is_empty() {
        all.push(extension(Criticality::Critical, &KeyUsage(key))?);
    }
    if !extended.is_empty() {
        all.push(extension(Criticality::NonCritical, &ExtendedKeyUsage(extended))?);
    }
    let constraints = BasicConstraints { ca: false, path_len_constraint: None };
    all.push(extension(Criticality::Critical, &constraints)?);
    if let Some((_, SubjectKeyIdentifier(id))) = ca.tbs_certificate.get()? {
        let authority = AuthorityKeyIdentifier {
            key_identifier: Some(id),
            authority_cert_issuer: None,
            authority_cert_serial_number: None,
        };
        all.push(extension(Criticality::NonCritical, &authority)?);
    }
    if let Some(names) = &request.alternative_names {
        // Where there is no subject, these names are all there is.
        let alone = request.asked.subject.0.is_empty();
        all.push(extension(if alone { Criticality::Critical } else { Criticality::NonCritical }, names)?);
    }
    Ok(all)
}

/// Whether who does not understand an extension has to refuse the certificate (RFC 5280, 4.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Criticality {
    Critical,
    NonCritical,
}

fn extension<T: AssociatedOid + Encode>(
    criticality: Criticality,
    value: &T,
) -> Result<Extension, x509_cert::der::Error> {
    let critical = criticality == Criticality::Critical;
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

struct Usages {
    key: FlagSet<KeyUsages>,
    extended: Vec<ObjectIdentifier>,
}

impl Usages {
    /// As `spec.usages` names them; what they are in a certificate is in the order of their names.
    fn of(names: &[String]) -> Result<Self, IssueError> {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let (mut key, mut extended, mut unknown) = (FlagSet::default(), Vec::new(), Vec::new());
        for name in names {
            match (key_usage(name), extended_usage(name)) {
                (Some(flag), _) => key |= flag,
                (None, Some(purpose)) if extended.contains(&purpose) => {}
                (None, Some(purpose)) => extended.push(purpose),
                (None, None) => unknown.push(name.to_owned()),
            }
        }
        if unknown.is_empty() { Ok(Self { key, extended }) } else { Err(IssueError::Usages(unknown)) }
    }
}

fn key_usage(name: &str) -> Option<KeyUsages> {
    Some(match name {
        "signing" | "digital signature" => KeyUsages::DigitalSignature,
        "content commitment" => KeyUsages::NonRepudiation,
        "key encipherment" => KeyUsages::KeyEncipherment,
        "data encipherment" => KeyUsages::DataEncipherment,
        "key agreement" => KeyUsages::KeyAgreement,
        "cert sign" => KeyUsages::KeyCertSign,
        "crl sign" => KeyUsages::CRLSign,
        "encipher only" => KeyUsages::EncipherOnly,
        "decipher only" => KeyUsages::DecipherOnly,
        _ => return None,
    })
}

fn extended_usage(name: &str) -> Option<ObjectIdentifier> {
    let number = match name {
        "any" => "2.5.29.37.0",
        "server auth" => "1.3.6.1.5.5.7.3.1",
        "client auth" => "1.3.6.1.5.5.7.3.2",
        "code signing" => "1.3.6.1.5.5.7.3.3",
        "email protection" | "s/mime" => "1.3.6.1.5.5.7.3.4",
        "ipsec end system" => "1.3.6.1.5.5.7.3.5",
        "ipsec tunnel" => "1.3.6.1.5.5.7.3.6",
        "ipsec user" => "1.3.6.1.5.5.7.3.7",
        "timestamping" => "1.3.6.1.5.5.7.3.8",
        "ocsp signing" => "1.3.6.1.5.5.7.3.9",
        "microsoft sgc" => "1.3.6.1.4.1.311.10.3.3",
        "netscape sgc" => "2.16.840.1.113730.4.1",
        _ => return None,
    };
    ObjectIdentifier::new(number).ok()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use x509_cert::der::Decode as _;
    use x509_cert::der::asn1::Ia5String;
    use x509_cert::ext::pkix::SubjectAltName;
    use x509_cert::ext::pkix::name::GeneralName;
    use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq};
    use x509_cert::spki::SubjectPublicKeyInfoOwned;

    use super::super::fresh;
    use super::*;
    use crate::authn;

    /// A request for this subject, whose parts stand in reverse (RFC 4514), and these names.
    fn request(subject: &str, names: Vec<GeneralName>) -> CertificateRequest {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut info = CertReqInfo {
            version: x509_cert::request::Version::V1,
            subject: subject.parse().unwrap(),
            public_key: SubjectPublicKeyInfoOwned::from_der(&key.subject_public_key_info()).unwrap(),
            attributes: Default::default(),
        };
        if !names.is_empty() {
            let names = extension(Criticality::NonCritical, &SubjectAltName(names)).unwrap();
            info.attributes.insert(ExtensionReq(vec![names]).try_into().unwrap()).unwrap();
        }
        let signature = BitString::from_bytes(&key.sign(&info.to_der().unwrap()).unwrap()).unwrap();
        let algorithm = AlgorithmIdentifierOwned { oid: rfc5912::ECDSA_WITH_SHA_256, parameters: None };
        let pem = CertReq { info, algorithm, signature }.to_pem(LineEnding::LF).unwrap();
        CertificateRequest::read(&BASE64_STANDARD.encode(pem)).unwrap()
    }

    fn usages(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn authority() -> Authority {
        Authority::from_stored(&fresh().unwrap()["data"]).unwrap()
    }

    #[test]
    fn a_certificate_names_whom_the_request_names_with_every_group() {
        let (authority, now) = (authority(), SystemTime::now());
        let asked = request("CN=jane,O=ops,O=dev", Vec::new());
        assert_eq!((&*asked.common_name, &*asked.organizations), ("jane", &usages(&["dev", "ops"])[..]));
        let client = usages(&["digital signature", "client auth", "key encipherment"]);
        let pem = authority.issue(&asked, &client, Duration::from_secs(3600), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let user = authn::Certificate::read(&pem.contents).unwrap().user;
        assert_eq!((&*user.name, &user.groups[..2]), ("jane", &usages(&["dev", "ops"])[..]));
        let (_, made) = X509Certificate::from_der(&pem.contents).unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(authority.ca_certificate.as_bytes()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca.contents).unwrap();
        made.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(made.issuer(), ca.subject());
        assert!(!made.is_ca() && made.extended_key_usage().unwrap().unwrap().value.client_auth);
        let usage = made.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let (from, to) = (made.validity().not_before.timestamp(), made.validity().not_after.timestamp());
        assert_eq!(to - from, 3600 + 300, "a short one is not made shorter");
    }

    fn address(text: &str) -> GeneralName {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn names_beside_the_subject_go_over() {
        let authority = authority();
        let asked = request(
            "CN=system:node:n,O=system:nodes",
            vec![GeneralName::DnsName(Ia5String::new("n.example").unwrap()), address("10.0.0.1"), address("fd00::1")],
        );
        assert_eq!(asked.names.dns, ["n.example"]);
        assert_eq!(asked.names.addresses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 16]);
        let serving = usages(&["server auth"]);
        let pem = authority.issue(&asked, &serving, lifetime(None), SystemTime::now()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, made) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(made.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 3);
        let (from, to) = (made.validity().not_before.timestamp(), made.validity().not_after.timestamp());
        assert_eq!(to - from, 365 * 86_400);
    }

    #[test]
    fn what_is_no_usage_is_told_and_no_certificate_outlives_the_ca() {
        let (authority, now) = (authority(), SystemTime::now());
        let asked = request("CN=a", Vec::new());
        let refused = authority.issue(&asked, &usages(&["dancing", "client auth"]), SHORTEST, now);
        assert!(matches!(refused, Err(IssueError::Usages(unknown)) if unknown == ["dancing"]));
        let year = Duration::from_secs(365 * 86_400);
        let late = now + year * 10 - Duration::from_secs(86_400);
        let pem = authority.issue(&asked, &usages(&["client auth"]), year, late).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, made) = X509Certificate::from_der(&pem.contents).unwrap();
        let ends = authority.ca.tbs_certificate.validity.not_after.to_unix_duration();
        assert_eq!(made.validity().not_after.timestamp().unsigned_abs(), ends.as_secs());
        assert!(matches!(authority.issue(&asked, &[], year, now + year * 11), Err(IssueError::Ended)));
    }

    #[test]
    fn what_is_asked_for_has_bounds() {
        let seconds = |asked| lifetime(asked).as_secs();
        assert_eq!(
            [seconds(None), seconds(Some(1)), seconds(Some(7200)), seconds(Some(i64::MAX))],
            [365 * 86_400, 600, 7200, 365 * 86_400]
        );
    }

    #[test]
    fn a_request_is_signed_by_its_own_key() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "one");
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        let pem = |label: &str, der: &[u8]| {
            BASE64_STANDARD
                .encode(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der)))
        };
        assert_eq!(CertificateRequest::read(&pem("CERTIFICATE REQUEST", &der)).unwrap().common_name, "one");
        let mut other = der.clone();
        let at = der.windows(3).position(|three| three == b"one").unwrap();
        other[at..at + 3].copy_from_slice(b"two");
        let refused = |request: &str| CertificateRequest::read(request).unwrap_err().to_string();
        assert_eq!(
            refused(&pem("CERTIFICATE REQUEST", &other)),
            "the request's signature is not of the key that it names, or not of a kind that is known here"
        );
        assert_eq!(refused(&pem("CERTIFICATE", &der)), "PEM block type must be CERTIFICATE REQUEST");
        assert!(refused(&pem("CERTIFICATE REQUEST", &der[..20])).starts_with("the request cannot be read"));
        assert!(refused("%%%").starts_with("the request cannot be read"));
    }
}
