//! Registries: which endpoints serve which names, and reading manifests and blobs from them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde::Deserialize;
use tokio::io::AsyncWrite;

use super::name::ImageName;

/// A registry that says nothing for this long is down.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

    /// The manifest behind a name, from the first endpoint that answers, and a source for its blobs.
    pub async fn manifest(&self, name: &ImageName) -> Result<(Manifest, Source), RegistryError> {
        let mut last = None;
        for endpoint in self.endpoints(&name.registry) {
            let source = Source::new(name, &endpoint, self.auth(&name.registry));
            match source.manifest(&source.reference(name)).await {
                Ok(manifest) => return Ok((manifest, source)),
                Err(error) => last = Some(describe(name, &endpoint.host, error)),
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
    pub digest: String,
}

/// One endpoint, ready to serve the blobs of one repository.
pub struct Source {
    client: Client,
    auth: RegistryAuth,
    host: String,
    repository: String,
    image: String,
}

impl Source {
    fn new(name: &ImageName, endpoint: &Endpoint, auth: RegistryAuth) -> Source {
        let protocol = if endpoint.plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig {
            protocol,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            ..ClientConfig::default()
        };
        let (host, repository) = (endpoint.host.clone(), name.repository.clone());
        Source { client: Client::new(config), auth, host, repository, image: name.to_string() }
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

    fn by_digest(&self, digest: &str) -> Reference {
        Reference::with_digest(self.host.clone(), self.repository.clone(), digest.to_owned())
    }

    async fn manifest(&self, reference: &Reference) -> Result<Manifest, OciDistributionError> {
        let (bytes, digest) = self.client.pull_manifest_raw(reference, &self.auth, &MANIFEST_TYPES).await?;
        Ok(Manifest { bytes, digest })
    }

    /// A manifest that an index names.
    pub async fn manifest_by_digest(&self, digest: &str) -> Result<Manifest, RegistryError> {
        self.manifest(&self.by_digest(digest)).await.map_err(|error| self.failed(error))
    }

    /// Writes a blob to `out`, failing when its bytes don't have the digest.
    pub async fn blob(&self, descriptor: &OciDescriptor, out: impl AsyncWrite) -> Result<(), RegistryError> {
        let reference = self.by_digest(&descriptor.digest);
        self.client.auth(&reference, &self.auth, RegistryOperation::Pull).await.map_err(|error| self.failed(error))?;
        self.client.pull_blob(&reference, descriptor, out).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: OciDistributionError) -> RegistryError {
        RegistryError::Pull { image: self.image.clone(), endpoint: self.host.clone(), source: Box::new(error) }
    }
}

#[cfg(test)]
mod tests {
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
