//! What the agent needs from the rest of the node, one trait per boundary. The binary implements them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::uid::Uid;
use api::view::Meta;
use async_trait::async_trait;
use serde_json::Value;

/// Which pod, by everything that tells it from a namesake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
}

impl PodRef {
    pub fn of(pod: &Meta) -> Self {
        Self { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The object is not there (or, for a pod, has another UID by now): in whole words, as the kubelet has them, such as
    /// `configmap "x" not found`.
    #[error("{0}")]
    NotFound(String),
    /// The API server refused; asking again unchanged is useless.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers; ask again later.
    #[error("API server unavailable: {0}")]
    Unavailable(String),
}

/// An event about a pod, with the kubelet's reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    pub pod: PodRef,
    /// `spec.containers{web}`, when it is about one container.
    pub field_path: Option<String>,
    pub kind: EventKind,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    /// Empty means the API server's own audience.
    pub audiences: Vec<String>,
    pub expiration_seconds: i64,
    pub pod_name: String,
    pub pod_uid: Uid,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub token: String,
    pub expires_at: jiff::Timestamp,
}

/// Whether a pod is told its namespace's services by variables (`spec.enableServiceLinks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceLinks {
    Enabled,
    Disabled,
}

/// The API server as the agent sees it.
///
/// # Errors
/// [`UpstreamError`] says whether asking again is of use.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Replaces `status` of the pod with this UID.
    async fn write_status(&self, pod: &PodRef, status: Value) -> Result<(), UpstreamError>;
    /// Best effort: losing an event is the implementation's to log.
    async fn event(&self, event: PodEvent);
    /// Of the pod's namespace, and no older than the pod.
    async fn config_map(&self, pod: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError>;
    /// As with config maps.
    async fn secret(&self, pod: &PodRef, name: &str) -> Result<Arc<Value>, UpstreamError>;
    async fn service_account_token(&self, request: &TokenRequest) -> Result<Token, UpstreamError>;
    /// The handler of a RuntimeClass.
    async fn runtime_handler(&self, class: &str) -> Result<String, UpstreamError>;
    /// The variables that tell a pod of services: always of `kubernetes`, and with links of its namespace's.
    async fn service_environment(
        &self,
        namespace: &str,
        links: ServiceLinks,
    ) -> Result<Vec<(String, String)>, UpstreamError>;
    /// Everything of the pod is gone here: delete the object with grace 0 and this UID as precondition.
    async fn pod_removed(&self, pod: &PodRef) -> Result<(), UpstreamError>;
}

#[derive(Clone, Debug)]
pub struct Attachment {
    pub pod: PodRef,
    /// One, or one of each family.
    pub ips: Vec<IpAddr>,
    /// Any path that opens the pod's network namespace, valid during the call.
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
    /// Where the pod's resolvers look for names, when that is the cluster's own list in all its containers.
    pub searches: Option<Vec<String>>,
}

/// A port of the node that leads to a container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Every address of the node when none.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// The pod network. Both calls may be repeated, also after a restart of the agent.
///
/// # Errors
/// In words for people; what was made by then is taken back by `detach`, or found again by the next `attach`.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives what of the host ports the pod has to do without, in words.
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<String>, NetworkError>;
    /// Takes back all that `attach` made; the namespace may be gone already.
    async fn detach(&self, pod_uid: &Uid, ips: &[IpAddr]) -> Result<(), NetworkError>;
}
