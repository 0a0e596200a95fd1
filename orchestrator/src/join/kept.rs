//! What a joined machine keeps: its key, its certificate, its cluster's authority. Files of the data folder, nobody else's to read.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use sha2::{Digest, Sha256};
use x509_parser::pem::parse_x509_pem;

use crate::control_plane::write_private;

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITY: &str = "node-ca.crt";

pub struct KeptFiles {
    folder: PathBuf,
    key: KeyPair,
}

/// A certificate of ours, and what it says.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub pem: String,
    pub user: String,
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Certificate {
    fn read(pem: String) -> Result<Self> {
        let (_, block) = parse_x509_pem(pem.as_bytes()).ok().context("it is no PEM")?;
        let certificate = block.parse_x509().ok().context("it is no certificate")?;
        let user = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let user = user.context("it names nobody")?.to_owned();
        let validity = certificate.validity();
        let time = |at: i64| Timestamp::from_second(at).context("its time cannot be read");
        let (from, until) = (time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?);
        Ok(Self { pem, user, from, until })
    }

    pub fn holds(&self, now: Timestamp) -> bool {
        now < self.until
    }
}

impl KeptFiles {
    /// Makes a key where there is none.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(folder: &Path) -> Result<Self> {
        let key = match read(&folder.join(KEY))? {
            Some(pem) => {
                KeyPair::from_pem(&pem).with_context(|| format!("{} is no key", folder.join(KEY).display()))?
            }
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
                // Before anybody signs for it.
                write_private(&folder.join(KEY), &key.serialize_pem())?;
                key
            }
        };
        Ok(Self { folder: folder.to_owned(), key })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// SHA-256 of the public key (its SubjectPublicKeyInfo), in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        format!("{:x}", Sha256::digest(self.key.subject_public_key_info()))
    }

    pub fn authority(&self) -> Result<Option<String>> {
        authority(&self.folder)
    }

    pub fn keep_authority(&self, pem: &str) -> Result<()> {
        write_private(&self.folder.join(AUTHORITY), pem)
    }

    pub fn certificate(&self) -> Result<Option<Certificate>> {
        let path = self.folder.join(CERTIFICATE);
        read(&path)?.map(Certificate::read).transpose().with_context(|| path.display().to_string())
    }

    /// # Errors
    /// When it is none, or cannot be written.
    pub fn keep_certificate(&self, pem: &str) -> Result<Certificate> {
        let certificate = Certificate::read(pem.to_owned()).context("the certificate that was given cannot be read")?;
        write_private(&self.folder.join(CERTIFICATE), pem)?;
        Ok(certificate)
    }
}

/// The authority that a folder keeps, PEM.
pub fn authority(folder: &Path) -> Result<Option<String>> {
    read(&folder.join(AUTHORITY))
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
