//! How a machine becomes a node of a cluster whose server is elsewhere, and stays one.
//!
//! Its key is made here and never leaves. With a join token it finds the server that may be believed and asks for a certificate; from
//! then on it asks by that certificate, also for the next one, and needs no token. The key stays the same: it is what the cluster
//! knows this node by ([`KeptFiles::fingerprint`]), until somebody deletes the Node.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use apiserver::identity::NODE;
use client::Client;
use client::https::pin::{Fingerprint, authority_of};
use client::https::{Config, Https, Identity};
use jiff::Timestamp;

use crate::token::JoinToken;

pub use kept::{Certificate, KeptFiles};
pub use renewal::keep;

mod kept;
mod renewal;
mod request;

const MANAGER: &str = "kubelet";
const NO_TOKEN: &str =
    "give a join token with --token-file: `amphipod token create` beside a server of the cluster makes one";

/// A machine with a certificate that holds.
pub struct Joined {
    pub https: Https,
    pub files: KeptFiles,
    pub certificate: Certificate,
}

impl Joined {
    pub fn client(&self) -> Client {
        Client::new(self.https.clone())
    }

    /// Asks for the next certificate and takes it into use.
    ///
    /// # Errors
    /// When it is not given in time; the one before goes on.
    pub async fn renew(&self, node: &str) -> Result<Certificate> {
        let pem = request::certificate(&self.client(), self.files.key(), node).await?;
        let next = self.files.keep_certificate(&pem)?;
        self.https.renew(&identity(&self.files, &next)).await.context("the new certificate cannot be used")?;
        Ok(next)
    }
}

/// Joins, or goes on with what this folder keeps from before. `server` is `host:port`.
///
/// # Errors
/// In words for whoever starts the agent: no token where one is needed, one that does not hold, another cluster's server or folder, a
/// name that is taken.
pub async fn join(server: &str, token: Option<&JoinToken>, folder: &Path, node: &str) -> Result<Joined> {
    let files = KeptFiles::open(folder)?;
    let authority = authority(server, token, &files).await?;
    let certificate = match held(&files, node)? {
        Some(certificate) => certificate,
        None => {
            let token = token
                .with_context(|| format!("this machine has no certificate of node {node} that holds: {NO_TOKEN}"))?;
            let asking = Https::new(config(server, &authority, Identity::Token(token.token.to_string())))?;
            let pem = request::certificate(&Client::new(asking), files.key(), node).await?;
            tracing::info!(node, "this machine has joined");
            files.keep_certificate(&pem)?
        }
    };
    let https = Https::new(config(server, &authority, identity(&files, &certificate)))?;
    Ok(Joined { https, files, certificate })
}

fn config(server: &str, authority: &str, identity: Identity) -> Config {
    Config { server: server.to_owned(), ca: authority.to_owned(), identity, manager: MANAGER.into() }
}

fn identity(files: &KeptFiles, certificate: &Certificate) -> Identity {
    Identity::Certificate { chain: certificate.pem.clone(), key: files.key_pem() }
}

/// The only authority that is believed from now on.
async fn authority(server: &str, token: Option<&JoinToken>, files: &KeptFiles) -> Result<String> {
    let shown = files.folder().display();
    match (files.authority()?, token) {
        (Some(known), Some(token)) => {
            let same = Fingerprint::of_pem(&known).is_ok_and(|known| known == token.authority);
            ensure!(
                same,
                "{shown} belongs to another cluster than the token: `amphipod reset` first, or another --data-dir"
            );
            Ok(known)
        }
        (Some(known), None) => Ok(known),
        (None, Some(token)) => {
            let found = authority_of(server, token.authority).await?;
            files.keep_authority(&found)?;
            Ok(found)
        }
        (None, None) => bail!("{shown} belongs to no cluster yet: {NO_TOKEN}"),
    }
}

/// By which the authority is known that this folder keeps from before.
pub fn known_authority(folder: &Path) -> Option<Fingerprint> {
    kept::authority(folder).ok().flatten().and_then(|pem| Fingerprint::of_pem(&pem).ok())
}

/// The certificate from before, if it is still worth something.
fn held(files: &KeptFiles, node: &str) -> Result<Option<Certificate>> {
    let Some(certificate) = files.certificate()? else { return Ok(None) };
    let of = certificate.user.strip_prefix(NODE).unwrap_or(&certificate.user);
    let shown = files.folder().display();
    ensure!(of == node, "{shown} belongs to node {of}, not {node}: give --node-name {of}, or another --data-dir");
    if !certificate.holds(Timestamp::now()) {
        tracing::warn!(until = %certificate.until, "this machine's certificate has ended");
        return Ok(None);
    }
    Ok(Some(certificate))
}

#[cfg(test)]
mod tests;
