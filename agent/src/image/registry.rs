//! Registries: which endpoints serve which names, and reading manifests and blobs from them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciEnvelope};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde::Deserialize;
use tokio::io::AsyncWrite;

use super::credentials::{Credential, matching};
use super::digest::Digest;
use super::name::ImageName;

/// A registry that says nothing for this long is down.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What registries themselves allow for a manifest; configurations are of that order too.
pub const MAX_MANIFEST: u64 = 4 << 20;

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// The `--registries` file:
///
/// ```yaml
/// registries:
///   docker.io:
///     endpoints: ["http://10.0.0.1:5000"]   # tried in order; plain http only where written
///     username: reader                      # optional
///     password: secret
/// ```
///
/// A registry without a row is asked over HTTPS at its own name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    #[serde(default)]
    registries: BTreeMap<String, Row>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(default)]
    endpoints: Vec<String>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("read registries file {path}")]
    File { path: String, source: std::io::Error },
    #[error("registries file {path}")]
    Syntax { path: String, source: serde_yaml::Error },
    #[error("registries file: {endpoint:?} must start with http:// or https:// and name a host")]
    Endpoint { endpoint: String },
    #[error("failed to pull and unpack image {image:?}: {endpoint}")]
    Pull { image: String, endpoint: String, source: Box<OciDistributionError> },
    #[error("failed to resolve reference {image:?}: {image}: not found")]
    NotFound { image: String },
    #[error("failed to pull and unpack image {image:?}: {what} is larger than {limit} bytes")]
    TooLarge { image: String, what: &'static str, limit: u64 },
    #[error("failed to pull and unpack image {image:?}: {digest} has {actual} bytes, its descriptor says {expected}")]
    Size { image: String, digest: Digest, expected: u64, actual: u64 },
}

/// One place that serves a registry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub plain_http: bool,
}

impl Registries {
    pub fn load(path: &Path) -> Result<Registries, RegistryError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| RegistryError::File { path: name.clone(), source })?;
        let registries: Registries =
            serde_yaml::from_str(&text).map_err(|source| RegistryError::Syntax { path: name, source })?;
        for endpoint in registries.registries.values().flat_map(|row| &row.endpoints) {
            parse_endpoint(endpoint)?;
        }
        Ok(registries)
    }

    fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let row = self.registries.get(registry);
        let mut found: Vec<_> =
            row.into_iter().flat_map(|row| &row.endpoints).filter_map(|url| parse_endpoint(url).ok()).collect();
        if found.is_empty() {
            found.push(Endpoint { host: registry.to_owned(), plain_http: false });
        }
        found
    }

    fn auth(&self, registry: &str) -> RegistryAuth {
        match self.registries.get(registry) {
            Some(Row { username: Some(user), password: Some(password), .. }) => {
                RegistryAuth::Basic(user.clone(), password.clone())
            }
            _ => RegistryAuth::Anonymous,
        }
    }

    /// The manifest behind a name, from the first endpoint that answers, and a source for its blobs. Each endpoint is
    /// asked with the pod's credentials first, then with the node's.
    pub async fn manifest(
        &self,
        name: &ImageName,
        credentials: &[Credential],
    ) -> Result<(Manifest, Source), RegistryError> {
        let mut last = None;
        for endpoint in self.endpoints(&name.registry) {
            let own = self.auth(&name.registry);
            for auth in matching(credentials, name).into_iter().chain([own]) {
                let source = Source::new(name, &endpoint, auth)?;
                match source.manifest(&source.reference(name)).await {
                    Ok(manifest) => return Ok((manifest, source)),
                    Err(RegistryError::Pull { source, .. }) => last = Some(describe(name, &endpoint.host, *source)),
                    Err(error) => last = Some(error),
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound { image: name.to_string() }))
    }
}

fn parse_endpoint(url: &str) -> Result<Endpoint, RegistryError> {
    let (rest, plain_http) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => return Err(RegistryError::Endpoint { endpoint: url.to_owned() }),
    };
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        return Err(RegistryError::Endpoint { endpoint: url.to_owned() });
    }
    Ok(Endpoint { host: host.to_owned(), plain_http })
}

fn describe(name: &ImageName, endpoint: &str, error: OciDistributionError) -> RegistryError {
    let missing = match &error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            use oci_client::errors::OciErrorCode::{ManifestUnknown, NameUnknown, NotFound};
            matches!(error.code, ManifestUnknown | NameUnknown | NotFound)
        }),
        _ => false,
    };
    if missing {
        return RegistryError::NotFound { image: name.to_string() };
    }
    RegistryError::Pull { image: name.to_string(), endpoint: endpoint.to_owned(), source: Box::new(error) }
}

/// A manifest's bytes, whose digest has been checked.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: bytes::Bytes,
    pub digest: Digest,
}

/// What a manifest says about a blob.
#[derive(Clone, Debug)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// One endpoint, ready to serve the blobs of one repository.
pub struct Source {
    client: Client,
    /// For manifests: the other one reads an answer to its end, however long.
    plain: reqwest::Client,
    scheme: &'static str,
    auth: RegistryAuth,
    host: String,
    repository: String,
    image: String,
}

impl Source {
    fn new(name: &ImageName, endpoint: &Endpoint, auth: RegistryAuth) -> Result<Source, RegistryError> {
        let (protocol, scheme) =
            if endpoint.plain_http { (ClientProtocol::Http, "http") } else { (ClientProtocol::Https, "https") };
        let config = ClientConfig {
            protocol,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            ..ClientConfig::default()
        };
        let (image, host) = (name.to_string(), endpoint.host.clone());
        let plain = reqwest::Client::builder().read_timeout(READ_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build();
        let plain = plain.map_err(|error| RegistryError::Pull {
            image: image.clone(),
            endpoint: host.clone(),
            source: Box::new(error.into()),
        })?;
        let (client, repository) = (Client::new(config), name.repository.clone());
        Ok(Source { client, plain, scheme, auth, host, repository, image })
    }

    fn reference(&self, name: &ImageName) -> Reference {
        match (&name.digest, &name.tag) {
            (Some(digest), _) => self.by_digest(digest),
            (None, tag) => {
                let tag = tag.clone().unwrap_or_else(|| "latest".into());
                Reference::with_tag(self.host.clone(), self.repository.clone(), tag)
            }
        }
    }

    fn by_digest(&self, digest: &Digest) -> Reference {
        Reference::with_digest(self.host.clone(), self.repository.clone(), digest.to_string())
    }

    /// A manifest, which has the digest it was asked for by.
    async fn manifest(&self, reference: &Reference) -> Result<Manifest, RegistryError> {
        let bytes = self.manifest_bytes(reference).await?;
        let digest = Digest::of(&bytes);
        if reference.digest().is_some_and(|wanted| wanted != digest.as_str()) {
            let what = format!("asked for {}, got {digest}", reference.digest().unwrap_or_default());
            return Err(self.failed(OciDistributionError::SpecViolationError(what)));
        }
        Ok(Manifest { bytes, digest })
    }

    async fn manifest_bytes(&self, reference: &Reference) -> Result<bytes::Bytes, RegistryError> {
        let failed = |error: reqwest::Error| self.failed(error.into());
        let token = self.client.auth(reference, &self.auth, RegistryOperation::Pull).await;
        let token = token.map_err(|error| self.failed(error))?;
        let (registry, version) = (reference.resolve_registry(), reference.digest().or(reference.tag()));
        let version = version.unwrap_or("latest");
        let url = format!("{}://{registry}/v2/{}/manifests/{version}", self.scheme, self.repository);
        let request = self.plain.get(&url).header("Accept", MANIFEST_TYPES.join(", "));
        let request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let mut response = request.send().await.map_err(failed)?;
        let mut body = bytes::BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > MAX_MANIFEST {
                let (image, what) = (self.image.clone(), "the manifest");
                return Err(RegistryError::TooLarge { image, what, limit: MAX_MANIFEST });
            }
            body.extend_from_slice(&chunk);
        }
        match refusal(response.status().as_u16(), &body, &url) {
            Some(error) => Err(self.failed(error)),
            None => Ok(body.freeze()),
        }
    }

    /// A manifest that an index names.
    pub async fn manifest_by_digest(&self, digest: &Digest) -> Result<Manifest, RegistryError> {
        self.manifest(&self.by_digest(digest)).await
    }

    /// Writes a blob to `out`, failing when its bytes don't have the digest, or the size, of its descriptor.
    pub async fn blob(&self, descriptor: &Descriptor, out: impl AsyncWrite + Unpin) -> Result<(), RegistryError> {
        let reference = self.by_digest(&descriptor.digest);
        self.client.auth(&reference, &self.auth, RegistryOperation::Pull).await.map_err(|error| self.failed(error))?;
        let mut measured = Measured { out, count: 0, limit: descriptor.size };
        let asked = OciDescriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let pulled = self.client.pull_blob(&reference, &asked, &mut measured).await;
        if measured.count != descriptor.size && (pulled.is_ok() || measured.count > descriptor.size) {
            let (image, digest, expected) = (self.image.clone(), descriptor.digest.clone(), descriptor.size);
            return Err(RegistryError::Size { image, digest, expected, actual: measured.count });
        }
        pulled.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: OciDistributionError) -> RegistryError {
        RegistryError::Pull { image: self.image.clone(), endpoint: self.host.clone(), source: Box::new(error) }
    }
}

/// What a registry's answer means when it is not the manifest.
fn refusal(code: u16, body: &[u8], url: &str) -> Option<OciDistributionError> {
    let url = url.to_owned();
    match code {
        200 => None,
        401 => Some(OciDistributionError::UnauthorizedError { url }),
        _ => Some(match serde_json::from_slice::<OciEnvelope>(body) {
            Ok(envelope) => OciDistributionError::RegistryError { envelope, url },
            Err(_) => {
                let message = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
                OciDistributionError::ServerError { code, url, message }
            }
        }),
    }
}

/// Passes on so many bytes and no more.
struct Measured<W> {
    out: W,
    count: u64,
    limit: u64,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Measured<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.count + bytes.len() as u64 > self.limit {
            self.count += bytes.len() as u64;
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        let written = ready!(Pin::new(&mut self.out).poll_write(context, bytes))?;
        self.count += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.out).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.out).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod file_tests {
    use super::*;

    #[test]
    fn endpoints_of_a_file() {
        let text = "registries:\n  docker.io:\n    endpoints: ['http://10.0.0.1:5000/', 'https://mirror.example']\n";
        let registries: Registries = serde_yaml::from_str(text).unwrap();
        let hosts: Vec<_> = registries.endpoints("docker.io").into_iter().map(|e| (e.host, e.plain_http)).collect();
        assert_eq!(hosts, [("10.0.0.1:5000".to_owned(), true), ("mirror.example".to_owned(), false)]);
        assert_eq!(
            registries.endpoints("quay.io"),
            [Endpoint { host: "quay.io".into(), plain_http: false }],
            "HTTPS unless written"
        );
    }

    #[test]
    fn a_typo_in_the_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registries.yaml");
        for text in ["registries:\n  a:\n    endpoint: x\n", "registries:\n  a:\n    endpoints: ['10.0.0.1:5000']\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(Registries::load(&path).is_err(), "{text}");
        }
    }
}
