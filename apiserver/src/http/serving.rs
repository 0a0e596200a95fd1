//! The server's side of TLS: its certificate, renewed while it runs, and client certificates of our CA.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::pki::{Authority, LEAF_DAYS, PkiError};

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the serving certificate cannot be read")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the serving certificate cannot be used")]
    Config(#[from] rustls::Error),
    #[error("the client CA cannot be used")]
    Clients(#[from] rustls::server::VerifierBuilderError),
    #[error("the serving certificate cannot be signed")]
    Sign(#[from] PkiError),
}

/// Two thirds of a certificate's life.
const RENEWAL: Duration = Duration::from_secs(LEAF_DAYS.unsigned_abs() * 86_400 / 3 * 2);
/// After a renewal that failed.
const RETRY: Duration = Duration::from_secs(3600);

/// What the serving certificate is for, and who signs it.
pub struct Serving {
    authority: Arc<Authority>,
    names: Vec<String>,
    addresses: Vec<std::net::IpAddr>,
    current: Arc<Current>,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Serving {
    pub fn new(
        authority: Arc<Authority>,
        names: Vec<String>,
        addresses: Vec<std::net::IpAddr>,
    ) -> Result<Self, TlsError> {
        let first = certified(&authority, &names, &addresses)?;
        Ok(Self { authority, names, addresses, current: Arc::new(Current(RwLock::new(first))) })
    }

    /// TLS with our certificate; client certificates of our CA are asked for and not required.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.ca_certificate.as_bytes())?)?;
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn renew(&self) -> Result<(), TlsError> {
        let next = certified(&self.authority, &self.names, &self.addresses)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// Signs a new certificate long before the old one ends, until told to stop.
    pub async fn keep(self, stop: CancellationToken) {
        let mut wait = RENEWAL;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = match self.renew() {
                Ok(()) => RENEWAL,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the serving certificate is not renewed");
                    RETRY
                }
            };
        }
    }
}

/// A new certificate, with the authority's own behind it: who knows only that one's fingerprint, a machine that joins, sees it there.
fn certified(
    authority: &Authority,
    names: &[String],
    addresses: &[std::net::IpAddr],
) -> Result<Arc<CertifiedKey>, TlsError> {
    let identity = authority.serving(names, addresses)?;
    let chain = [&*identity.certificate, &*authority.ca_certificate].concat();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::NoNodes;
    use crate::server::{Config, Server};

    #[tokio::test(start_paused = true)]
    async fn new_connections_get_the_renewed_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::on_loopback(folder.path().join("store.redb"));
        let server = Server::open(&config, Arc::new(NoNodes)).await.unwrap();
        let serving = Serving::new(server.authority().clone(), vec!["localhost".into()], Vec::new()).unwrap();
        let current = serving.current.clone();
        let served = || current.0.read().unwrap().cert[0].clone();
        let (before, stop) = (served(), CancellationToken::new());
        let keeping = tokio::spawn(serving.keep(stop.clone()));
        tokio::time::sleep(RENEWAL - Duration::from_secs(1)).await;
        assert_eq!(served(), before);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_ne!(served(), before);
        stop.cancel();
        keeping.await.unwrap();
    }
}
