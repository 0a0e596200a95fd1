//! The authority of a server of which nothing is known but its certificate's fingerprint.
//!
//! A server shows its authority's certificate in the handshake. What is believed is not that, but its SHA-256, which came by another
//! way; then the server's own certificate has to be that authority's. Nothing is asked over this connection.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connection::{ConfigError, name_of};

/// To be connected, the handshake included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// SHA-256 of a certificate in DER, as `sha256sum` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct NoFingerprint;

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Of the first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_pem(text: &str) -> Result<Self, rustls::pki_types::pem::Error> {
        CertificateDer::from_pem_slice(text.as_bytes()).map(|certificate| Self::of(&certificate))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NoFingerprint)?;
        }
        Ok(Self(bytes))
    }
}

#[derive(Debug, Error)]
pub enum PinError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{server} cannot be reached: {why}")]
    Unreachable { server: String, why: String },
    #[error(
        "the authority of {server} is not the one with the fingerprint {wanted}: it is another cluster, or somebody stands in between"
    )]
    OtherAuthority { server: String, wanted: Fingerprint },
    #[error("the certificate of {server} does not hold: {why}")]
    Certificate { server: String, why: String },
}

/// The certificate of a server's authority, PEM. `server` is `host:port`.
///
/// # Errors
/// When the server cannot be reached, shows another authority, or a certificate that is not that authority's or of another name.
pub async fn authority_of(server: &str, wanted: Fingerprint) -> Result<String, PinError> {
    let name = name_of(server)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned { wanted, provider: provider.clone(), found: Mutex::default() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::from)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    let unreachable = |why: String| PinError::Unreachable { server: server.to_owned(), why };
    let handshake = async {
        let stream = TcpStream::connect(server).await.map_err(|error| unreachable(causes::chain(&error)))?;
        match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
            Ok(_) => Ok(()),
            Err(error) => match pinned.is_other_authority() {
                true => Err(PinError::OtherAuthority { server: server.to_owned(), wanted }),
                false => Err(PinError::Certificate { server: server.to_owned(), why: causes::chain(&error) }),
            },
        }
    };
    let late = |_| unreachable(format!("no answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, handshake).await.map_err(late)??;
    match pinned.take() {
        Found::Authority(der) => Ok(pem(&der)),
        Found::Nothing | Found::Other => Err(PinError::OtherAuthority { server: server.to_owned(), wanted }),
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    // Base64 is ASCII: a place of bytes is one of characters.
    let lines = (0..text.len()).step_by(PEM_LINE).map(|at| &text[at..text.len().min(at + PEM_LINE)]);
    let lines: Vec<&str> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// What a handshake showed.
#[derive(Debug, Default)]
enum Found {
    #[default]
    Nothing,
    Other,
    Authority(CertificateDer<'static>),
}

#[derive(Debug)]
struct Pinned {
    wanted: Fingerprint,
    provider: Arc<CryptoProvider>,
    found: Mutex<Found>,
}

impl Pinned {
    fn note(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    fn is_other_authority(&self) -> bool {
        matches!(*self.found.lock().unwrap_or_else(PoisonError::into_inner), Found::Other)
    }

    fn take(&self) -> Found {
        std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = others.iter().find(|other| Fingerprint::of(other) == self.wanted) else {
            self.note(Found::Other);
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(own, others, name, ocsp, now)?;
        self.note(Found::Authority(authority.clone().into_owned()));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text);
        for other in [&text[1..], &text.replace('a', "g"), "", &"é".repeat(32)] {
            assert_eq!(other.parse::<Fingerprint>(), Err(NoFingerprint), "{other}");
        }
    }

    #[test]
    fn what_was_shown_is_kept_as_it_was() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let text = pem(made.der());
        assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), *made.der());
        assert_eq!(Fingerprint::of_pem(&text).unwrap(), Fingerprint::of(made.der()));
    }
}
