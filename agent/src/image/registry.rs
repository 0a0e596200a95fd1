//! Registries: which endpoints serve which names, and reading manifests and blobs from them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use oci_client::Reference;
use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Mutex;

use super::credentials::{Credential, matching};
use super::digest::Digest;
use super::name::ImageName;

/// A registry that says nothing for this long is down.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What registries themselves allow for a manifest; configurations are of that order too.
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Of tokens and refusals: what a registry that says more has to say is of no use.
const MAX_ANSWER: u64 = 64 << 10;

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
    /// Reads the file that says which endpoints serve a registry's content.
    ///
    /// # Errors
    /// [`RegistryError::File`], [`RegistryError::Syntax`], or [`RegistryError::Endpoint`] with the first that is no
    /// address.
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
    ///
    /// # Errors
    /// What the endpoint said that was asked last; [`RegistryError::NotFound`] when that has no such image.
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
    /// Not oci-client's, which reads tokens, refusals and manifests to their end, however long.
    plain: reqwest::Client,
    scheme: &'static str,
    auth: RegistryAuth,
    /// Found out with the first request, for all of the pull.
    access: Mutex<Option<Access>>,
    host: String,
    repository: String,
    image: String,
}

/// What requests carry.
#[derive(Clone, PartialEq)]
enum Access {
    /// The name and password themselves, if there are any.
    Own,
    Token(String),
}

#[derive(Clone, Copy, PartialEq)]
enum Age {
    New,
    Kept,
}

impl Source {
    fn new(name: &ImageName, endpoint: &Endpoint, auth: RegistryAuth) -> Result<Source, RegistryError> {
        let scheme = if endpoint.plain_http { "http" } else { "https" };
        let (image, host) = (name.to_string(), endpoint.host.clone());
        let plain = reqwest::Client::builder().read_timeout(READ_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build();
        let plain = plain.map_err(|error| RegistryError::Pull {
            image: image.clone(),
            endpoint: host.clone(),
            source: Box::new(error.into()),
        })?;
        let repository = name.repository.clone();
        Ok(Source { plain, scheme, auth, access: Mutex::default(), host, repository, image })
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
        let (registry, version) = (reference.resolve_registry(), reference.digest().or(reference.tag()));
        let version = version.unwrap_or("latest");
        let url = format!("{}://{registry}/v2/{}/manifests/{version}", self.scheme, self.repository);
        let accept = MANIFEST_TYPES.join(", ");
        let response = self.authorised(registry, || self.plain.get(&url).header("Accept", &accept)).await?;
        let code = response.status().as_u16();
        let body = self.whole(response, "the manifest", MAX_MANIFEST).await?;
        refusal(code, &body, &url).map_or(Ok(body), |error| Err(self.failed(error)))
    }

    /// An answer that is kept in memory.
    async fn whole(
        &self,
        mut response: reqwest::Response,
        what: &'static str,
        limit: u64,
    ) -> Result<bytes::Bytes, RegistryError> {
        let mut body = bytes::BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error.into()))? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLarge { image: self.image.clone(), what, limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The answer to a request that carries what the registry wants to see. A token may become too old during a long
    /// pull: one that is refused and was not fetched just now is fetched anew, once.
    async fn authorised(
        &self,
        registry: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, RegistryError> {
        let (access, age) = self.access(registry, None).await?;
        let response = self.send(request(), &access).await?;
        if response.status() != reqwest::StatusCode::UNAUTHORIZED || age == Age::New {
            return Ok(response);
        }
        let (access, _) = self.access(registry, Some(&access)).await?;
        self.send(request(), &access).await
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        access: &Access,
    ) -> Result<reqwest::Response, RegistryError> {
        let request = match (access, &self.auth) {
            (Access::Token(token), _) => request.bearer_auth(token),
            (Access::Own, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (Access::Own, _) => request,
        };
        request.send().await.map_err(|error| self.failed(error.into()))
    }

    /// What was found out before, unless that is what was refused. Requests at the same time ask once.
    async fn access(&self, registry: &str, refused: Option<&Access>) -> Result<(Access, Age), RegistryError> {
        let mut kept = self.access.lock().await;
        if let Some(access) = kept.as_ref().filter(|access| refused != Some(*access)) {
            return Ok((access.clone(), Age::Kept));
        }
        let access = self.new_access(registry).await?;
        *kept = Some(access.clone());
        Ok((access, Age::New))
    }

    /// A token from where the registry says, or the name and password themselves.
    async fn new_access(&self, registry: &str) -> Result<Access, RegistryError> {
        let root = self.plain.get(format!("{}://{registry}/v2/", self.scheme)).send().await;
        let root = root.map_err(|error| self.failed(error.into()))?;
        let challenge = root.headers().get("WWW-Authenticate").and_then(|value| bearer_challenge(value.to_str().ok()?));
        Ok(match challenge {
            Some(challenge) => Access::Token(self.token(&challenge).await?),
            None => Access::Own,
        })
    }

    async fn token(&self, challenge: &Challenge) -> Result<String, RegistryError> {
        let scope = format!("repository:{}:pull", self.repository);
        let service = challenge.service.as_ref().map(|service| ("service", service.as_str()));
        let query: Vec<_> = [("scope", scope.as_str())].into_iter().chain(service).collect();
        let request = self.plain.get(&challenge.realm).query(&query);
        let request = match &self.auth {
            RegistryAuth::Basic(user, password) => request.basic_auth(user, Some(password)),
            _ => request,
        };
        let response = request.send().await.map_err(|error| self.failed(error.into()))?;
        let code = response.status().as_u16();
        let body = self.whole(response, "the answer to a request for a token", MAX_ANSWER).await?;
        if code != 200 {
            return Err(self.failed(OciDistributionError::AuthenticationFailure(beginning(&body))));
        }
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|error| self.failed(OciDistributionError::RegistryTokenDecodeError(error.to_string())))?;
        let none = || self.failed(OciDistributionError::RegistryTokenDecodeError("no token in it".into()));
        answer.token.or(answer.access_token).ok_or_else(none)
    }

    /// A manifest that an index names.
    pub async fn manifest_by_digest(&self, digest: &Digest) -> Result<Manifest, RegistryError> {
        self.manifest(&self.by_digest(digest)).await
    }

    /// Writes a blob to `out`, failing when its bytes don't have the digest, or the size, of its descriptor.
    pub async fn blob(&self, descriptor: &Descriptor, mut out: impl AsyncWrite + Unpin) -> Result<(), RegistryError> {
        let (reference, digest) = (self.by_digest(&descriptor.digest), descriptor.digest.as_str());
        let registry = reference.resolve_registry();
        let url = format!("{}://{registry}/v2/{}/blobs/{digest}", self.scheme, self.repository);
        let failed = |error: reqwest::Error| self.failed(error.into());
        let mut response = self.authorised(registry, || self.plain.get(&url)).await?;
        let code = response.status().as_u16();
        if code != 200 {
            let body = self.whole(response, "a refusal", MAX_ANSWER).await?;
            let unlike = || OciDistributionError::SpecViolationError(format!("{digest}: answered with status {code}"));
            return Err(self.failed(refusal(code, &body, &url).unwrap_or_else(unlike)));
        }
        let (mut count, mut hash) = (0_u64, Sha256::new());
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            count += chunk.len() as u64;
            if count > descriptor.size {
                break;
            }
            hash.update(&chunk);
            out.write_all(&chunk).await.map_err(|error| self.failed(error.into()))?;
        }
        out.flush().await.map_err(|error| self.failed(error.into()))?;
        if count != descriptor.size {
            let (image, digest, expected) = (self.image.clone(), descriptor.digest.clone(), descriptor.size);
            return Err(RegistryError::Size { image, digest, expected, actual: count });
        }
        let actual = Digest::finished(hash);
        if actual == descriptor.digest {
            return Ok(());
        }
        let (expected, actual) = (digest.to_owned(), actual.to_string());
        Err(self.failed(DigestError::VerificationError { expected, actual }.into()))
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
            Err(_) => OciDistributionError::ServerError { code, url, message: beginning(body) },
        }),
    }
}

/// What a status or an event has room for.
fn beginning(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned()
}

/// Where a registry sends those who want a token.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn bearer_challenge(header: &str) -> Option<Challenge> {
    let mut challenges = http_auth::ChallengeParser::new(header).filter_map(Result::ok);
    let bearer = challenges.find(|challenge| challenge.scheme.eq_ignore_ascii_case("Bearer"))?;
    let value = |wanted: &str| {
        let named = bearer.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.map(|(_, value)| value.to_unescaped())
    };
    Some(Challenge { realm: value("realm")?, service: value("service") })
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
