//! Certificates and keys: the cluster's own CA, what it signs, and the key of service account tokens.
//!
//! The CA and the token key live in the store (all servers share them); serving and client certificates are made anew
//! at each start. Certificates are back-dated five minutes for clocks that differ.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use serde_json::{Value, json};
use thiserror::Error;
use x509_cert::der::DecodePem as _;

pub mod issue;
pub mod request;
pub mod subject;

use crate::engine::Engine;
use crate::object::{Collection, Encoded, Header, INTERNAL, ObjectKey};
use crate::store::{CommitError, Expect, Write};

const BACKDATE_SECONDS: i64 = 300;
const CA_DAYS: i64 = 3650;
pub const LEAF_DAYS: i64 = 365;

#[derive(Debug, Error)]
pub enum PkiError {
    #[error("cannot make a key or certificate")]
    Make(#[from] rcgen::Error),
    #[error("the CA certificate in the store cannot be read")]
    Read(#[from] x509_cert::der::Error),
    #[error("the keys in the store cannot be read: {0} is missing")]
    Missing(&'static str),
    #[error("cannot keep the cluster's keys in the store")]
    Keep(#[source] CommitError),
}

/// A certificate chain and its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// The cluster's keys.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: x509_cert::Certificate,
    pub ca_certificate: String,
    /// PKCS #8 PEM of the ES256 key that signs service account tokens.
    pub token_key: String,
    /// Its public half, PEM.
    pub token_public_key: String,
}

impl Authority {
    /// Reads the cluster's keys from the store, or makes them on the first start.
    ///
    /// # Errors
    /// [`PkiError::Keep`] when the store does not take new keys. The others when those it has cannot be read: they are
    /// not made anew, since what they signed would be worth nothing.
    pub async fn open(engine: &Engine) -> Result<Self, PkiError> {
        let collection = Collection::new(INTERNAL, "keys");
        let key = ObjectKey::new("", "cluster");
        if engine.cache().collection(&collection).get(&key).is_none() {
            let fresh = Encoded::new(&fresh()?);
            let write = Write::put(collection.clone(), key.clone(), Expect::Absent, fresh, Header::default());
            match engine.commit(vec![write]).await {
                // Another server was quicker: its keys are the cluster's.
                Ok(_) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(PkiError::Keep(error)),
            }
        }
        let kept = engine.cache().collection(&collection).get(&key).ok_or(PkiError::Missing("cluster"))?;
        Self::from_stored(&kept.value()["data"])
    }

    fn from_stored(data: &Value) -> Result<Self, PkiError> {
        let text = |field: &'static str| data[field].as_str().map(str::to_owned).ok_or(PkiError::Missing(field));
        let (ca_certificate, token_key) = (text("caCertificate")?, text("tokenKey")?);
        let issuer = Issuer::from_ca_cert_pem(&ca_certificate, KeyPair::from_pem(&text("caKey")?)?)?;
        let ca = x509_cert::Certificate::from_pem(&ca_certificate)?;
        let token_public_key = KeyPair::from_pem(&token_key)?.public_key_pem();
        Ok(Self { issuer, ca, ca_certificate, token_key, token_public_key })
    }

    /// A serving certificate for these names.
    ///
    /// # Errors
    /// [`PkiError::Make`], above all for a name that no certificate can hold.
    pub fn serving(&self, names: &[String], addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let mut params = leaf("amphipod-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        self.sign(params)
    }

    /// A client certificate: user and groups as Kubernetes reads them (CN and O).
    ///
    /// # Errors
    /// [`PkiError::Make`] when no key can be made or signed.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        self.sign(leaf(user, groups, ExtendedKeyUsagePurpose::ClientAuth)?)
    }

    fn sign(&self, params: CertificateParams) -> Result<Identity, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn fresh() -> Result<Value, PkiError> {
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let token_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("amphipod-ca", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, CA_DAYS);
    let certificate = params.self_signed(&ca_key)?;
    Ok(json!({
        "metadata": {"name": "cluster"},
        "data": {"caCertificate": certificate.pem(), "caKey": ca_key.serialize_pem(), "tokenKey": token_key.serialize_pem()},
    }))
}

fn leaf(name: &str, organizations: &[&str], usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name, organizations);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, LEAF_DAYS);
    Ok(params)
}

fn subject(name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    // Several organizations would need several attributes of one type, which the library does not keep.
    for organization in organizations {
        subject.push(DnType::OrganizationName, *organization);
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = jiff::Timestamp::now().as_second();
    let date = |seconds: i64| {
        let day = jiff::Timestamp::from_second(seconds).unwrap_or_default();
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(day.as_second()).unwrap_or(0))
    };
    params.not_before = date(now - BACKDATE_SECONDS).into();
    params.not_after = date(now + days * 86_400).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_keys_give_the_same_authority() {
        let kept = fresh().unwrap();
        let authority = Authority::from_stored(&kept["data"]).unwrap();
        let client = authority.client("admin", &["system:masters"]).unwrap();
        assert!(client.certificate.contains("BEGIN CERTIFICATE") && client.key.contains("PRIVATE KEY"));
        assert!(authority.serving(&["localhost".into()], &["127.0.0.1".parse().unwrap()]).is_ok());
        assert!(matches!(Authority::from_stored(&json!({})), Err(PkiError::Missing("caCertificate"))));
    }
}
